"""The interface of a backend, which is a place where jobs run, and the events that come from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hydra.core.utils import JobReturn
from hydra.types import HydraContext

from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.manifest import RunManifest
from hydra_modal_jobs.secrets import Secrets
from hydra_modal_jobs.worker.events import Update


@dataclass(frozen=True)
class Line:
    """A line of a job's output; with `num` None, a message about the launch as a whole."""

    num: int | None
    text: str


@dataclass(frozen=True)
class Ended:
    """A job has ended. `returned` is Hydra's own return if the job ran in this process."""

    num: int
    result: JobResult
    returned: JobReturn | None = None


Event = Line | Update | Ended


class Backend(ABC):
    """Runs the jobs of one run.

    The launch calls `submit`, then `attach`, then `events` until every job has ended, then
    `close`. A later process that comes back to jobs that are queued elsewhere begins with
    `attach`. A new place needs a module with a subclass, which `hydra.launcher.backend` names; the
    methods that are not abstract suit jobs whose files are on this machine and cost nothing.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # in messages: "on Modal"
    # Whether jobs are queued elsewhere and go on without the launching process. Their entries in
    # the manifest have a `call`; they can be detached, attached to, left and cancelled later.
    is_remote: ClassVar[bool] = False
    # Whether the jobs print to this terminal themselves, so that nothing is shown for them.
    is_foreground: bool = False

    def __init__(
        self,
        manifest: RunManifest,
        settings: ModalJobsConf,
        *,
        context: HydraContext | None = None,
    ) -> None:
        self.manifest = manifest
        self.settings = settings
        self.context = context

    @classmethod  # noqa: B027
    def check_job(cls, job: Job) -> None:
        """Raise `LaunchRefused` if the job asks for what this place does not have."""

    @classmethod  # noqa: B027
    def check_together(cls, jobs: Sequence[Job]) -> None:
        """Raise `LaunchRefused` if the jobs cannot be in one launch."""

    @classmethod  # noqa: B027
    def check_launch(cls, jobs: Sequence[Job], *, resumes: bool) -> None:
        """Raise `LaunchRefused` if the jobs cannot be submitted now."""

    @classmethod
    def usd_per_hour(cls, settings: ModalJobsConf) -> tuple[float | None, float | None]:
        """Return the lowest and highest price of a job; None where it is not known."""
        return 0.0, 0.0

    @classmethod
    def plan_notes(cls, jobs: Sequence[Job]) -> list[str]:
        """Return lines for below the plan: what else the user should know before the launch."""
        return []

    @classmethod
    def attempt_seconds(cls, settings: ModalJobsConf) -> int | None:
        """Return how long an attempt may take; None without a limit."""
        return None

    @abstractmethod
    def submit(self, jobs: Sequence[Job], secrets: Secrets) -> None:
        """Queue the jobs, and note in the manifest how to come back to them."""

    def attach(self, nums: Collection[int], *, is_quiet: bool = False) -> None:  # noqa: B027
        """Begin to collect the events of these jobs; `is_quiet` leaves out their output."""

    @abstractmethod
    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """Return what happened since the last call, after waiting at most so long for it."""

    @abstractmethod
    def cancel(self) -> None:
        """End the attached jobs; what they have saved is kept. They still send `Ended`."""

    def reach(self, nums: Collection[int]) -> None:  # noqa: B027
        """Raise `LaunchRefused`, within seconds, if the place of these jobs does not answer now.

        The message says how to end them all the same.
        """

    def stop_command(self, nums: Collection[int]) -> str:
        """Return a command that ends these jobs by the place's own means; "" if there is none."""
        return ""

    def close(self, *, keeps_others: bool = False) -> None:  # noqa: B027
        """Release what the launch holds; `keeps_others` if other jobs of the run still need it."""

    def fetch(self, num: int, *, checkpoints: bool = False) -> list[str] | None:
        """Bring a job's files here and return their names; None if they are here already."""
        return None

    def read_log(self, num: int) -> str:
        """Return the output of a job so far."""
        path = self.manifest.folder_of(self.manifest.entry(num)) / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def is_pending(self, num: int) -> bool:
        """Return whether a job is still queued or running."""
        return False
