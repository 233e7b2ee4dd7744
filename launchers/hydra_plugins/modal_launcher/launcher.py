"""The plugin that Hydra finds; its work is in the modules beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ModalJobsLauncher(Launcher):
    """Runs each job where its own composed `hydra.launcher` says."""

    def __init__(self, **_: Any) -> None:
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from hydra_modal_jobs.jobs.compose import SweepLoader

        # Before the sweeper composes the jobs: for hundreds of them Hydra takes half a minute.
        hydra_context.config_loader = SweepLoader.over(hydra_context.config_loader)
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from hydra_modal_jobs.launch import launch

        assert self.config is not None
        return launch(
            self.hydra_context,
            self.task_function,
            self.config,
            job_overrides,
            first=initial_job_idx,
        )
