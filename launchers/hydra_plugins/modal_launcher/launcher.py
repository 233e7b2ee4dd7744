"""The launcher class that Hydra discovers; `hydra_modal_jobs` does its work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


class ModalJobsLauncher(Launcher):
    """Runs each job where the `hydra.launcher` of its own configuration says."""

    def __init__(self, **_: Any) -> None:
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Claim the run's folder, and keep what `launch` needs.

        It also speeds up how Hydra composes the jobs.
        """
        from hydra_modal_jobs.claim import claim_run
        from hydra_modal_jobs.jobs.sweep_loader import SweepLoader

        # It must be in place before the sweeper composes: Hydra takes half a minute for hundreds.
        hydra_context.config_loader = SweepLoader.over(hydra_context.config_loader)
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function
        with suppress(OmegaConfBaseException):  # the sweeper reports a folder without a value
            claim_run(Path(str(config.hydra.sweep.dir)))  # before the sweeper writes there

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run one job for each list of overrides; return their results in the same order."""
        from hydra_modal_jobs.launch import launch

        assert self.config is not None
        return launch(
            self.hydra_context,
            self.task_function,
            self.config,
            job_overrides,
            first_number=initial_job_idx,
        )
