"""Checkpoints in a folder of this machine: listed, and the newest good one."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from pathlib import Path

from rl_experiments.checkpoints.manifest import is_complete, verify
from rl_experiments.errors import UserError, one_line
from rl_experiments.paths import checkpoint_name
from rl_experiments.storage.disk_errors import is_disk_error

_FULL_DISK_BYTES = 1 << 20  # a disk with less free is full


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step in the name of a checkpoint's folder."""
    return int(checkpoint.name.rpartition("-")[2])


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Return the folders `checkpoint-N`, complete or not, the newest first."""
    paths = Path(folder).glob(checkpoint_name("*"))
    return sorted(
        (path for path in paths if re.fullmatch(checkpoint_name(r"\d+"), path.name)),
        key=step_of,
        reverse=True,
    )


def latest_complete(folder: str | Path) -> Path | None:
    """Return the newest checkpoint that was finished, by a look that reads no content."""
    return next(filter(is_complete, list_checkpoints(folder)), None)


def latest_valid(folder: str | Path) -> Path | None:
    """Return the newest checkpoint whose files have their hashes; damaged ones are passed over."""
    return next(filter(verify, list_checkpoints(folder)), None)


def remove_unfinished(folder: str | Path, *, step: int, error: Exception) -> Exception:
    """Delete `checkpoint-{step}`, which could not be written; return the error to raise for it.

    That is the system's own error where one is among the causes, or where safetensors names its
    number. torch says only that it could not write: then what the disk shows, else torch's words.
    """
    checkpoint = Path(folder) / checkpoint_name(step)
    evident = _evident_error(checkpoint)
    shutil.rmtree(checkpoint, ignore_errors=True)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Exception) and is_disk_error(cause):
            return cause
        number = re.search(r"\(os error (\d+)\)", str(cause))  # as Rust's libraries write it
        if number:
            return OSError(int(number[1]), os.strerror(int(number[1])), str(checkpoint))
        if re.search(r"PytorchStreamWriter|inline_container", str(cause)):
            return evident or UserError(
                f"{checkpoint} could not be written: {one_line(str(cause))[:200]}; see to the "
                "disk, then run the same command with resume=true"
            )
        cause = cause.__cause__ or cause.__context__
    return error


def _evident_error(checkpoint: Path) -> OSError | None:
    """Return why a file could not grow: it has the size of the limit, or the disk is full."""
    sizes = [path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()]
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and max(sizes, default=0) >= limit:
        return OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(checkpoint))
    if sizes and shutil.disk_usage(checkpoint).free < _FULL_DISK_BYTES:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoint))
    return None
