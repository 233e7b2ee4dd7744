"""Names of apps and volumes that Modal accepts, made from the user's settings."""

from __future__ import annotations

import getpass
import hashlib
import re

from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.secrets import public_variable

_MAX_CHARACTERS = 64


def valid_name(name: str) -> str:
    """Return the name if Modal accepts it, else a similar one that no other name becomes."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "x"
    if clean == name and len(name) <= _MAX_CHARACTERS:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{clean[: _MAX_CHARACTERS - 7]}-{mark}"


def experimenter(settings: ModalJobsConf) -> str:
    """Return who experiments, by the settings, EXPERIMENTER, or the login."""
    given = settings.volumes.experimenter or public_variable("EXPERIMENTER", settings.secrets)
    return given or getpass.getuser()


def volume_names(settings: ModalJobsConf) -> dict[str, str]:
    """Return the volume's name for each mount path."""
    volumes = settings.volumes
    experiment = volumes.experiment_name or public_variable("EXPERIMENT_NAME", settings.secrets)
    ending = f"{experimenter(settings)}-{experiment or 'default'}"
    if volumes.cache == volumes.outputs:
        raise LaunchRefused(
            f"hydra.launcher.volumes.cache={volumes.cache}: the outputs have this path already; "
            "choose another path"
        )
    return {
        volumes.cache: valid_name(f"{volumes.prefix}-cache-{ending}"),
        volumes.outputs: valid_name(f"{volumes.prefix}-outputs-{ending}"),
    }


def app_name(settings: ModalJobsConf, run: str) -> str:
    """Return the name of the Modal app of a run."""
    return valid_name(f"{settings.app_name}-{experimenter(settings)}-{run}")
