"""Ctrl-C at any moment leaves nothing that costs money unsaid."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra_modal_jobs import Secrets, launch
from hydra_modal_jobs.backends import modal_app
from hydra_modal_jobs.backends.base import Backend, Ended, Event
from hydra_modal_jobs.backends.modal import ModalBackend
from hydra_modal_jobs.config import ModalJobsConf, VolumesConf
from hydra_modal_jobs.errors import LaunchRefused, UserLeft
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.manifest import LAUNCHED, RunManifest
from modal import exception
from omegaconf import OmegaConf

NO_SECRETS = Secrets({})


@pytest.fixture(autouse=True)
def keyboard() -> Iterator[None]:
    """Restore how Ctrl-C is answered, which a program that is about to end does not."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def press(times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def a_job(run: Path, num: int, gpu: str) -> Job:
    volumes = VolumesConf(experimenter="me", experiment_name="tests")
    return Job(
        num=num,
        overrides=[f"gpu={gpu}"],
        config=OmegaConf.create({"hydra": {"launcher": {}}}),
        settings=ModalJobsConf(gpu=gpu, app_name="toy", volumes=volumes),
        folder=run / str(num),
        task=None,
        payload={"dir": str(run), "subdir": str(num)},
    )


def a_manifest(jobs: Sequence[Job], backend: str) -> RunManifest:
    manifest = RunManifest(jobs[0].sweep_folder, {"name": "toy", "jobs": []})
    common = {"backend": backend, "launch": "a", "usd_per_hour": 0.0, "call": None, "app": None}
    manifest.update([{"num": job.num, "subdir": str(job.num), **common} for job in jobs])
    return manifest


class Moment(modal_app.Launch):
    """A launch in which Ctrl-C is pressed at the given moment."""

    moment = ""
    times = 1
    is_stopped_at_modal = False
    unsure: Exception | None = None
    error: Exception | None = None

    def start(self, *, is_stopped: Callable[[], bool]) -> None:
        app = modal_app.App("ap-1", self.name, "https://modal.com/ap-1")
        steps: list[tuple[str, Callable[[], None]]] = [
            ("deploying", lambda: None),
            ("deployed", lambda: self._note_app(app)),
            ("queued", lambda: self._note_call(self._jobs[0], "fc-1")),
        ]
        for moment, step in steps:
            self.is_queueing |= moment == "queued"
            step()
            if moment == self.moment:
                if self.error:
                    raise self.error
                press(self.times)
                while not is_stopped():
                    pass
                return

    def withdraw(self) -> None:
        press()  # and once more while it is being withdrawn
        if self.unsure:
            raise self.unsure
        type(self).is_stopped_at_modal = True


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[Moment]]:
    def at(moment: str, **more: Any) -> type[Moment]:
        launched = type("At", (Moment,), {"moment": moment, **more})
        monkeypatch.setattr(modal_app, "Launch", launched)
        return launched

    return at


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("when", ["deploying", "deployed", "queued"])
def test_ctrl_c_while_jobs_are_queued_stops_them(
    tmp_path: Path, moment: Callable[..., type[Moment]], when: str, times: int
) -> None:
    launched = moment(when, times=times)
    jobs = [a_job(tmp_path / "toy", num, "T4") for num in range(2)]
    manifest = a_manifest(jobs, "modal")
    with pytest.raises(UserLeft, match="nothing runs on Modal"):
        ModalBackend(manifest, jobs[0].settings).submit(jobs, NO_SECRETS)
    press()  # has no effect: the program is ending
    assert launched.is_stopped_at_modal
    assert [manifest.state(entry) for entry in manifest.jobs] == ["not begun"] * 2


@pytest.mark.parametrize("error", [None, LaunchRefused("Modal cannot be reached (down)")])
def test_what_is_not_surely_stopped_is_named_and_stays_in_the_manifest(
    tmp_path: Path, moment: Callable[..., type[Moment]], error: Exception | None
) -> None:
    moment("queued", unsure=exception.ConnectionError("no route"), error=error)
    jobs = [a_job(tmp_path / "toy", num, "T4") for num in range(2)]
    manifest = a_manifest(jobs, "modal")
    with pytest.raises(
        (UserLeft, LaunchRefused), match=r"no route.*cost money.*modal app stop toy-me-toy$"
    ):
        ModalBackend(manifest, jobs[0].settings).submit(jobs, NO_SECRETS)
    states = [RunManifest.load(manifest.folder).state(entry) for entry in manifest.jobs]
    assert states == [LAUNCHED] * 2


class Place(Backend):
    """A place whose jobs go on until they are cancelled; at the first look Ctrl-C is pressed."""

    name = "place"
    title = "elsewhere"
    presses = False
    is_cancelled = False

    def submit(self, jobs: Sequence[Job], secrets: Secrets) -> None: ...

    def attach(self, nums: Any, *, is_quiet: bool = False) -> None:
        self.nums = list(nums)

    def events(self, timeout_seconds: float) -> list[Event]:
        if self.presses and not self.is_cancelled:
            raise KeyboardInterrupt
        ended = self.nums if self.is_cancelled else []
        return [Ended(num, JobResult("cancelled", seconds=1.0)) for num in ended]

    def cancel(self) -> None:
        self.is_cancelled = True


class Here(Place):
    title = "on this machine"
    presses = True


class There(Place):
    is_remote = True


@pytest.mark.parametrize("is_foreground", [True, False])
@pytest.mark.parametrize("policy", ["ask", "cancel", "leave"])
def test_ctrl_c_in_a_sweep_partly_elsewhere_ends_or_names_the_jobs_there(
    tmp_path: Path, policy: str, is_foreground: bool
) -> None:
    jobs = [a_job(tmp_path / "toy", num, gpu) for num, gpu in enumerate(("local", "T4"))]
    jobs[1].settings.on_interrupt = policy
    manifest = a_manifest(jobs, "modal")
    manifest.update([{"num": 1, "call": "fc-1"}])
    here, there = Here(manifest, jobs[0].settings), There(manifest, jobs[1].settings)
    here.is_foreground = is_foreground
    groups: list[tuple[Backend, list[Job]]] = [(here, jobs[:1]), (there, jobs[1:])]
    line = ""
    try:
        launch._follow(groups, NO_SECRETS, is_detached=False)
    except UserLeft as left:
        line = str(left)
    assert here.is_cancelled
    assert there.is_cancelled == (policy != "leave")
    if policy == "leave":
        assert "Left 1 job running" in line and "runs cancel toy" in line


def test_ctrl_c_at_a_moment_without_a_question_names_what_goes_on(tmp_path: Path) -> None:
    class Starting(There):
        def attach(self, nums: Any, *, is_quiet: bool = False) -> None:
            raise KeyboardInterrupt

    jobs = [a_job(tmp_path / "toy", 0, "T4")]
    manifest = a_manifest(jobs, "modal")
    manifest.update([{"num": 0, "call": "fc-1"}])
    groups: list[tuple[Backend, list[Job]]] = [(Starting(manifest, jobs[0].settings), jobs)]
    with pytest.raises(UserLeft, match=r"1 job goes on elsewhere and may cost money.*cancel"):
        launch._follow(groups, NO_SECRETS, is_detached=False)


def test_a_run_whose_jobs_go_on_elsewhere_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `train name=toy resume=true` beside a detached job of that name."""
    jobs = [a_job(tmp_path / "toy", 0, "local")]
    manifest = a_manifest(jobs, "modal")
    launch._refuse_beside_pending(jobs)
    manifest.update([{"num": 0, "call": "fc-1"}])
    launch._refuse_beside_pending(jobs)  # a new run in this folder is refused elsewhere
    jobs[0].settings.resume = True
    monkeypatch.setattr(ModalBackend, "is_pending", lambda self, num: True)
    with pytest.raises(LaunchRefused, match=r"^toy: 1 job is still queued or running; .*cancel$"):
        launch._refuse_beside_pending(jobs)
