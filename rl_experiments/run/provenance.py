"""What made a run: commit, versions, machine, seeds, and the words of the command line."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from environments import evaluation_seed, training_seed

_FORMAT_VERSION = 1  # of run.json; files without a version are of this one
_PACKAGES = (
    *("torch", "trl", "transformers", "peft", "accelerate", "datasets"),
    *("hydra-core", "omegaconf", "wandb"),
)
_SOURCE_VARIABLE = "HYDRA_JOB_SOURCE"  # the launcher's: the commit of the code that it sent


def provenance(cfg: DictConfig) -> dict[str, Any]:
    """Return what run.json holds, for the job that runs now."""
    hydra = HydraConfig.get()
    return {
        "format_version": _FORMAT_VERSION,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "overrides": list(hydra.overrides.task),
        "choices": {k: v for k, v in hydra.runtime.choices.items() if "/" not in k},
        "git": _git_state(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "seeds": {
            "run": cfg.seed,
            "first training seed": training_seed(cfg.seed, 0),
            "evaluation": [evaluation_seed(0), evaluation_seed(cfg.num_examples - 1)],
        },
    }


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the code that runs, and whether the checkout differs from it."""
    from hydra_modal_jobs import git_state

    # A container has no checkout; the launcher says there what it has sent.
    sent: dict[str, Any] | None = json.loads(os.environ.get(_SOURCE_VARIABLE, "null"))
    return git_state(Path(__file__).parent) or sent


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
