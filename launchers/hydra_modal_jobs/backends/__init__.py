"""Where jobs run: Modal, this machine, or this very process; each is a `Backend`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused

if TYPE_CHECKING:
    from hydra_modal_jobs.backends.base import Backend
    from hydra_modal_jobs.manifest import RunManifest

LOCAL_GPU = "local"  # the value of hydra.launcher.gpu for this machine
BACKENDS = {
    "local": "hydra_modal_jobs.backends.local:LocalBackend",
    "modal": "hydra_modal_jobs.backends.modal:ModalBackend",
    "debug": "hydra_modal_jobs.backends.debug:DebugBackend",
}


def backend_name(settings: ModalJobsConf) -> str:
    """Return the backend that a job's settings ask for."""
    return settings.backend or ("local" if settings.gpu == LOCAL_GPU else "modal")


def backend_class(name: str) -> type[Backend]:
    """Import a backend by its name here, or as `module:Class` if it comes from elsewhere."""
    module, _, class_name = BACKENDS.get(name, name).partition(":")
    try:
        backend: type[Backend] = getattr(import_module(module), class_name)
    except (ImportError, AttributeError, ValueError):
        raise LaunchRefused(
            f"hydra.launcher.backend={name}: no such backend (choose from: {', '.join(BACKENDS)})"
        ) from None
    return backend


def backend_of_entry(manifest: RunManifest, entry: Mapping[str, Any]) -> type[Backend]:
    """Return the backend that holds a job of a run.

    Raises `LaunchRefused` if that names code and this machine did not launch the job so.
    """
    from hydra_modal_jobs.jobs.saved import describe, read_payload, refuse_unsealed

    name = str(entry["backend"])
    if name not in BACKENDS:
        folder = manifest.folder_of(dict(entry))
        refuse_unsealed(folder, read_payload(folder))
        if backend_name(describe(manifest.folder, entry).settings) != name:
            raise LaunchRefused(f"{manifest.path}: job {entry['num']} has another backend: {name}")
    return backend_class(name)


def backend_of(settings: ModalJobsConf) -> type[Backend]:
    """Return the backend of a job with these settings."""
    return backend_class(backend_name(settings))
