"""Jobs of a run that exists: described by their files, or reopened to run again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import read_json, write_json
from hydra_modal_jobs.jobs import serialize
from hydra_modal_jobs.jobs.job import Job, launcher_settings
from hydra_modal_jobs.jobs.seal import SEAL, is_sealed, seal
from hydra_modal_jobs.paths import JOB_FILE

_LAUNCHER = "hydra.launcher"


def reopen(folder: Path, *, former_names: Mapping[str, str] | None = None) -> Job:
    """Return the job that a folder was made by, with its settings of that time, to run it again.

    `former_names` maps modules, or `module:name`, as they were called then to their present names.
    This imports and unpickles what `job.json` names, so it raises `LaunchRefused` for a file that
    this machine has not written, as for one that cannot be read.
    """
    payload = read_payload(folder)
    refuse_unsealed(folder, payload)
    payload.pop(SEAL, None)
    serialize.rename(payload, former_names or {})
    # The run's folder may have been moved, or copied to another machine.
    depth = len(Path(payload["subdir"]).parts)
    payload["dir"] = str(folder.absolute().parents[depth - 1])
    source = payload["task"]["folder"]
    if source not in sys.path and Path(source).is_dir():
        sys.path.append(source)
    config = serialize.load_config(payload)
    return Job(
        num=payload["num"],
        overrides=payload["overrides"],
        config=config,
        settings=launcher_settings(config),
        folder=folder.absolute(),
        task=None,
        payload=payload,
    )


def read_payload(folder: Path) -> dict[str, Any]:
    """Return the content of a job's `job.json`. Raises `LaunchRefused` if it cannot be read."""
    payload = read_json(folder / JOB_FILE)
    if not isinstance(payload, dict):
        raise LaunchRefused(f"{folder}: its {JOB_FILE} is missing or cut off")
    return payload


def refuse_unsealed(folder: Path, payload: Mapping[str, Any]) -> None:
    """Raise `LaunchRefused` unless this machine has written the payload in the job's folder."""
    if not is_sealed(payload):
        raise LaunchRefused(
            f"{folder / JOB_FILE}: this machine did not write it as it is, and to run it is to run "
            "code that it names or holds; add --trust if you trust where it comes from"
        )


def trust(folder: Path) -> None:
    """Seal a job's `job.json` as if this machine had written it."""
    payload = read_payload(folder)
    write_json(folder / JOB_FILE, {**payload, SEAL: seal(payload)})


def describe(run: Path, entry: Mapping[str, Any]) -> Job:
    """Return the job of an entry in a run's manifest to show, follow and end it, not to run it.

    Nothing is imported or unpickled, as the folder may come from anyone; a setting that needs
    that, or that is not as it should be, has its default.
    """
    folder = run / str(entry["subdir"])
    payload = read_json(folder / JOB_FILE)
    text = payload.get("config") if isinstance(payload, dict) else None
    try:
        config = OmegaConf.create(text) if isinstance(text, str) else OmegaConf.create()
    except (YAMLError, OmegaConfBaseException, ValueError):
        config = OmegaConf.create()
    if not isinstance(config, DictConfig):
        config = OmegaConf.create()
    if not isinstance(OmegaConf.select(config, _LAUNCHER, throw_on_missing=False), DictConfig):
        config = OmegaConf.create({"hydra": {"launcher": {}}})
    return Job(
        num=entry["num"],
        overrides=[str(word) for word in entry.get("overrides", [])],
        config=config,
        settings=_readable_settings(config),
        folder=folder.absolute(),
        task=None,
        payload={"dir": str(run.absolute()), "subdir": str(entry["subdir"])},
    )


def _readable_settings(config: DictConfig) -> ModalJobsConf:
    """Return the launcher's settings as far as they are plain."""
    typed = OmegaConf.structured(ModalJobsConf(app_name=""))  # the default needs a whole job
    for name in ModalJobsConf.__dataclass_fields__:
        with suppress(Exception):  # a resolver of the application raises what it likes
            value = OmegaConf.select(config, f"{_LAUNCHER}.{name}", throw_on_missing=True)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            OmegaConf.update(typed, name, value)
    settings = OmegaConf.to_object(typed)
    assert isinstance(settings, ModalJobsConf)
    return settings
