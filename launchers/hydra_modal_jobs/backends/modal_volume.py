"""The files of jobs on Modal's outputs volume: fetched, read, and protected from another run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import modal
from modal import exception
from omegaconf import DictConfig, OmegaConf

from hydra_modal_jobs.backends.modal_errors import as_refusal, within
from hydra_modal_jobs.config import ModalJobsConf, SecretsConf, VolumesConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import atomic_path
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.manifest import run_name
from hydra_modal_jobs.names import volume_names
from hydra_modal_jobs.paths import (
    CLAIM_FILE,
    FORMER_LAUNCH_FILE,
    JOB_FILE,
    LAUNCH_FILE,
    MULTIRUN_FILE,
)

_FILES_OF_RUN = (LAUNCH_FILE, FORMER_LAUNCH_FILE, CLAIM_FILE, MULTIRUN_FILE)

_READ_SECONDS = 10.0  # for a small file; Modal's client tries for a minute to reach the service


def outputs_volume(settings: ModalJobsConf) -> str:
    """Return the name of the volume that holds the job's files while it runs."""
    return volume_names(settings)[settings.volumes.outputs]


def remote_folder(job: Job) -> PurePosixPath:
    """Return the job's folder in its container."""
    run = run_name(job.sweep_folder)
    return PurePosixPath(job.settings.volumes.outputs) / run / str(job.payload["subdir"])


def refuse_existing(jobs: Sequence[Job]) -> None:
    """Raise `LaunchRefused` if another run of this name left files where a job would write."""
    existing: dict[tuple[str, str], set[str]] = {}
    for job in jobs:
        volume, run = outputs_volume(job.settings), run_name(job.sweep_folder)
        if (volume, run) not in existing:
            existing[volume, run] = _names_in(volume, run)
        if Path(job.payload["subdir"]).parts[0] in existing[volume, run]:
            raise LaunchRefused(
                f"{remote_folder(job)} of the volume {volume} holds a run of this name already; "
                "take another name, or resume it"
            )


def pull(entry: dict[str, Any], folder: Path, *, checkpoints: bool) -> list[str]:
    """Fetch a job's files into its folder here: those that are new or of another size.

    `entry` is the job's in the manifest. Checkpoints are left out unless asked for. Returns the
    names of the files fetched. Raises `LaunchRefused`, when the others are here, if a file on the
    volume would be written outside of the folder.
    """
    volume = modal.Volume.from_name(entry["volume"])
    inside = PurePosixPath(entry["remote"]).relative_to(entry["mount"])
    try:
        files = list(volume.iterdir(str(inside), recursive=True))
    except exception.NotFoundError:
        return []
    fetched, refused = [], []
    for file in files:
        name = _name_in(inside, file.path)
        if name is None or not _is_inside(folder, name):
            refused.append(file.path)
            continue
        is_checkpoint = bool(entry["skip"]) and _matches(name, entry["skip"])
        if file.type.name != "FILE" or (is_checkpoint and not checkpoints):
            continue
        if _is_written_here(name, entry):
            continue
        target = folder / name
        here = target.stat() if target.exists() else None
        if here and here.st_size == file.size and here.st_mtime >= file.mtime:
            continue
        with atomic_path(target) as building, building.open("wb") as content:
            for chunk in volume.read_file(file.path) if file.size else ():
                content.write(chunk)
        fetched.append(str(name))
    if refused:
        raise LaunchRefused(
            f"the volume {entry['volume']} has {refused[0]!r}, which would be written outside of "
            f"{folder}; it was left out, the rest was fetched"
        )
    return fetched


def read_text(entry: dict[str, Any], name: str) -> str:
    """Return a file of a job as it is on the volume now; empty if there is none yet."""
    path = PurePosixPath(entry["remote"]).relative_to(entry["mount"]) / name
    try:
        chunks = list(modal.Volume.from_name(entry["volume"]).read_file(str(path)))
    except (FileNotFoundError, exception.NotFoundError):
        return ""
    return b"".join(chunks).decode(errors="replace")


def read_output(config: DictConfig, path: str) -> str | None:
    """Return the text of a file that a job sees at this absolute path of its outputs volume.

    `config` is composed with Hydra's own part. Returns None if the volume has no such file. Raises
    `LaunchRefused` if Modal does not answer, or not within a few seconds.
    """
    plain = OmegaConf.to_container(config.hydra.launcher.volumes, resolve=True)
    volumes = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VolumesConf), plain))
    dotenv = config.hydra.launcher.secrets.dotenv
    assert isinstance(volumes, VolumesConf)
    if not PurePosixPath(path).is_relative_to(volumes.outputs):
        return None
    name = outputs_volume(ModalJobsConf(volumes=volumes, secrets=SecretsConf(dotenv=dotenv)))
    inside = str(PurePosixPath(path).relative_to(volumes.outputs))
    with as_refusal():
        try:
            chunks = within(
                _READ_SECONDS, lambda: list(modal.Volume.from_name(name).read_file(inside))
            )
        except (FileNotFoundError, exception.NotFoundError):
            return None
    return b"".join(chunks).decode(errors="replace")


def _names_in(volume: str, folder: str) -> set[str]:
    with as_refusal():
        try:
            entries = modal.Volume.from_name(volume).listdir(folder)
        except exception.NotFoundError:
            return set()
    return {PurePosixPath(entry.path).name for entry in entries}


def _name_in(folder: PurePosixPath, path: str) -> PurePosixPath | None:
    """Return the name of a volume's file below a folder; None if it has another place."""
    try:
        name = PurePosixPath(path).relative_to(folder)
    except ValueError:
        return None
    return None if ".." in name.parts or not name.parts else name


def _is_inside(folder: Path, name: PurePosixPath) -> bool:
    """Return whether a file of this name lands in the folder here, whatever links there are."""
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def _is_written_here(name: PurePosixPath, entry: dict[str, Any]) -> bool:
    """Return whether a file is written here alone, as what `resume` runs depends on it."""
    is_of_run = entry.get("subdir") == "."  # the job's folder is that of the run
    return str(name).endswith(JOB_FILE) or (is_of_run and str(name) in _FILES_OF_RUN)


def _matches(name: PurePosixPath, pattern: str) -> bool:
    top = pattern.partition("/")[0]
    return name.parts[0] == top if "*" not in top else name.match(pattern)
