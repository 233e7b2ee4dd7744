"""Checkpoints that are whole: sealed by a manifest of sizes and hashes, written last."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from rl_experiments.errors import UserError
from rl_experiments.files import write_atomically

MANIFEST = "manifest.json"


def seal(folder: str | Path, *, step: int, keep: int) -> None:
    """Make `checkpoint-{step}` count, then drop all but the latest `keep`."""
    checkpoint = Path(folder) / f"checkpoint-{step}"
    files = {
        path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _sha256(path)]
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"step": step, "files": files}
    write_atomically(checkpoint / MANIFEST, json.dumps(manifest, indent=1))
    for old in list(_checkpoints(folder))[keep:]:
        shutil.rmtree(old)


def failure(folder: str | Path, *, step: int, error: Exception) -> Exception:
    """Why `checkpoint-{step}` could not be written; what there is of it is removed.

    torch and safetensors hide what the system said, so it is asked once more.
    """
    checkpoint = Path(folder) / f"checkpoint-{step}"
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    try:
        with max(files, key=lambda path: path.stat().st_mtime_ns).open("ab") as file:
            file.write(bytes(1 << 20))
    except OSError as said:
        error = said
    except ValueError:
        pass  # no file was begun
    shutil.rmtree(checkpoint, ignore_errors=True)
    return error


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that the manifest names is there, unchanged."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        return all(
            (checkpoint / name).stat().st_size == size and _sha256(checkpoint / name) == digest
            for name, (size, digest) in files.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def latest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint; torn ones are passed over."""
    return next(filter(is_whole, _checkpoints(folder)), None)


def find(path: str) -> Path:
    """The checkpoint that a user means: itself, or the newest whole one of a run's folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"checkpoint={path}: no such folder")
    for holder in (folder, folder / "checkpoints", folder / "0" / "checkpoints"):
        newest = latest(holder)
        if newest:
            return newest
    if (folder / MANIFEST).exists() and not is_whole(folder):
        raise UserError(f"checkpoint={path}: torn or changed since it was written; take another")
    if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"checkpoint={path}: holds no checkpoint")
    return folder


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: str | Path) -> Iterator[Path]:
    """Whole or torn, newest first."""
    found = [p for p in Path(folder).glob("checkpoint-*") if re.fullmatch(r".*-\d+", p.name)]
    yield from sorted(found, key=step_of, reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
