"""Runs the jobs of a Hydra application on Modal or on this machine, and follows them to the end.

The names below are the public ones; each module is imported when its name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra_modal_jobs.backends.modal_volume import read_output
    from hydra_modal_jobs.bundle import git_state
    from hydra_modal_jobs.claim import claim_run, undo_all
    from hydra_modal_jobs.dotenv_file import read_dotenv
    from hydra_modal_jobs.errors import JobFailed, LaunchRefused
    from hydra_modal_jobs.run_commands import resume, runs
    from hydra_modal_jobs.secrets import Secrets, is_secret_name

__all__ = [
    "JobFailed",
    "LaunchRefused",
    "Secrets",
    "claim_run",
    "git_state",
    "is_secret_name",
    "read_dotenv",
    "read_output",
    "resume",
    "runs",
    "undo_all",
]

_MODULES = {
    "JobFailed": "errors",
    "LaunchRefused": "errors",
    "Secrets": "secrets",
    "claim_run": "claim",
    "git_state": "bundle",
    "is_secret_name": "secrets",
    "read_dotenv": "dotenv_file",
    "read_output": "backends.modal_volume",
    "resume": "run_commands",
    "runs": "run_commands",
    "undo_all": "claim",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
