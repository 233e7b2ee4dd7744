"""One job of a launch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import AnyNode, DictConfig, OmegaConf, open_dict, read_write

from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import write_json
from hydra_modal_jobs.jobs import serialize
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.jobs.seal import SEAL, seal
from hydra_modal_jobs.paths import FORMAT_VERSION, JOB_FILE


@dataclass
class Job:
    """One job of a launch.

    `config` is the whole configuration, the application's and Hydra's, with interpolations kept.
    `settings` is the job's own `hydra.launcher`. `folder` is absolute, on this machine. `payload`
    is plain data: all that a process elsewhere, or a later one, needs to run the job.
    """

    num: int
    overrides: list[str]
    config: DictConfig
    settings: ModalJobsConf
    folder: Path
    task: Callable[[Any], Any] | None  # None until it is needed: attaching imports nothing
    payload: dict[str, Any]

    @property
    def processes(self) -> int:
        """How many processes the job is started as."""
        return self.settings.processes or self.settings.gpu_count

    @property
    def sweep_folder(self) -> Path:
        """The folder of the run."""
        return Path(self.payload["dir"])

    @property
    def result(self) -> JobResult | None:
        """How the job ended; None if it has not."""
        return JobResult.read(self.folder)

    def function(self) -> Callable[[Any], Any]:
        """Return the task, imported now if need be. Raises `LaunchRefused` if it cannot be."""
        if self.task is None:
            try:
                self.task = serialize.load_task(self.payload["task"])
            except (ImportError, AttributeError) as error:
                raise LaunchRefused(
                    f"{self.payload['task']['name']}: {error}; it was imported from "
                    f"{self.payload['task']['folder']}, resume it where that is"
                ) from None
        return self.task

    def save(self) -> None:
        """Write `job.json`, sealed, from which `saved.reopen` makes the job again."""
        content = {"format_version": FORMAT_VERSION, **self.payload}
        write_json(self.folder / JOB_FILE, {**content, SEAL: seal(content)})


def update_payload(job: Job) -> Job:
    """Bring the payload and the settings of a job up to date with its changed configuration."""
    job.payload |= serialize.dump_config(job.config)
    job.settings = launcher_settings(job.config)
    return job


def labels(jobs: Sequence[Job]) -> dict[int, str]:
    """Return for each job what tells it from the others: the overrides that not all of them have.

    A single job, or one that equals another, is labelled with all of its overrides.
    """
    words = {job.num: [w for w in job.overrides if not w.startswith("name=")] for job in jobs}
    common = set.intersection(*map(set, words.values())) if len(jobs) > 1 else set()
    return {
        num: " ".join([word for word in overrides if word not in common] or overrides) or "-"
        for num, overrides in words.items()
    }


def gpu_label(job: Job) -> str:
    """Return the GPU of a job with its fallbacks and count, such as `A10G/L4:2`."""
    settings = job.settings
    if settings.gpu is None:
        return "none"
    kinds = "/".join([settings.gpu, *settings.gpu_fallback])
    return kinds if settings.gpu_count == 1 else f"{kinds}:{settings.gpu_count}"


def cost_key(job: Job) -> str:
    """Return a key that is equal for jobs that should take equally long.

    It holds where the job runs, its choices of configuration groups, and the settings that
    `hydra.launcher.shape` names.
    """
    choices = {k: v for k, v in job.config.hydra.runtime.choices.items() if "hydra/" not in k}
    settings = job.settings
    resources = [settings.gpu, settings.gpu_count, settings.cpu, settings.memory]
    named = {key: str(OmegaConf.select(job.config, key)) for key in settings.shape}
    return json.dumps([resources, job.payload["task"]["name"], choices, named], sort_keys=True)


def activate(config: DictConfig) -> None:
    """Let `${hydra:...}` refer to this job. Hydra's own `set_config` copies the whole for that."""
    HydraConfig.instance().cfg = cast(Any, config)


def launcher_settings(config: DictConfig) -> ModalJobsConf:
    """Return the job's `hydra.launcher`, typed and with interpolations resolved."""
    plain = serialize.to_plain(config.hydra.launcher, resolve=True)
    return copy.deepcopy(_typed_settings(json.dumps(plain)))


@lru_cache(maxsize=16)  # the jobs of a sweep have few different ones
def _typed_settings(text: str) -> ModalJobsConf:
    typed = OmegaConf.merge(OmegaConf.structured(ModalJobsConf), json.loads(text))
    settings = OmegaConf.to_object(typed)
    assert isinstance(settings, ModalJobsConf)
    return settings


def application_config(config: DictConfig) -> DictConfig:
    """Return a copy of the configuration without Hydra's own part."""
    not_copied = {id(config._get_node("hydra")): AnyNode(None)}
    plain = copy.deepcopy(config, not_copied)
    with read_write(plain), open_dict(plain):
        del plain["hydra"]
    return plain


@contextmanager
def writable(config: DictConfig) -> Iterator[None]:
    """Lift the locks that Hydra puts on a configuration."""
    with read_write(config), open_dict(config), read_write(config.hydra), open_dict(config.hydra):
        yield
