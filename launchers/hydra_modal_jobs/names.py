"""Names that Modal takes, made from what people write."""

from __future__ import annotations

import getpass
import hashlib
import re

from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.secrets import public

_LONGEST = 64


def valid(name: str) -> str:
    """The name itself if Modal takes it; else one that no other name becomes."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "x"
    if clean == name and len(name) <= _LONGEST:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{clean[: _LONGEST - 7]}-{mark}"


def experimenter(settings: ModalJobsConf) -> str:
    given = settings.volumes.experimenter or public("EXPERIMENTER", settings.secrets)
    return given or getpass.getuser()


def volume_names(settings: ModalJobsConf) -> dict[str, str]:
    """Mount path to volume name."""
    volumes = settings.volumes
    experiment = volumes.experiment_name or public("EXPERIMENT_NAME", settings.secrets)
    end = f"{experimenter(settings)}-{experiment or 'default'}"
    if volumes.cache == volumes.outputs:
        raise LaunchRefused(
            f"hydra.launcher.volumes.cache={volumes.cache}: the outputs are there already; choose "
            "another path"
        )
    return {
        volumes.cache: valid(f"{volumes.prefix}-cache-{end}"),
        volumes.outputs: valid(f"{volumes.prefix}-outputs-{end}"),
    }


def app_name(settings: ModalJobsConf, run: str) -> str:
    return valid(f"{settings.app_name}-{experimenter(settings)}-{run}")
