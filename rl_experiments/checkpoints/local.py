"""Checkpoints that are whole: sealed by a manifest of sizes and hashes, written last."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rl_experiments.errors import UserError
from rl_experiments.paths import (
    ADAPTER_CONFIG_FILE,
    CHECKPOINTS_FOLDER,
    MANIFEST_FILE,
    MODEL_CONFIG_FILE,
    checkpoint_name,
)
from rl_experiments.storage.files import sha256_of, write_atomically

Metrics = Mapping[str, float]


class CorruptCheckpoint(Exception):
    """A checkpoint that is not what its manifest says."""


@dataclass(frozen=True)
class Manifest:
    step: int
    files: dict[str, tuple[int, str]]  # by name: bytes, SHA-256
    metrics: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # what a fetch did not trust

    @classmethod
    def parse(cls, text: str | bytes) -> Manifest:
        """Read a manifest; `CorruptCheckpoint` if the text, perhaps a stranger's, is none."""
        try:
            read = json.loads(text)
            files = {str(k): (int(size), str(sha)) for k, (size, sha) in read["files"].items()}
            metrics = {str(k): float(v) for k, v in read.get("metrics", {}).items()}
            found = cls(int(read["step"]), files, metrics, list(read.get("left_out", [])))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptCheckpoint("its manifest cannot be read") from None
        for name in files:
            if {"", ".", ".."} & set(name.split("/")) or re.search(r"[\\\0]", name):
                raise CorruptCheckpoint("its manifest names a file outside of it")
        return found

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        return cls.parse((folder / MANIFEST_FILE).read_bytes())

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @property
    def fingerprint(self) -> str:
        told = json.dumps([self.step, self.files], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay: all that any of the rules names."""

    latest: int = 2
    every: int | None = None  # steps
    best: str | None = None  # a metric, the greater the better

    def of(self, steps: Iterable[int], metrics: Mapping[int, Metrics]) -> set[int]:
        steps = sorted(steps)
        scores = {step: metrics.get(step, {}).get(self.best or "", math.nan) for step in steps}
        scored = [step for step in steps if not math.isnan(scores[step])]
        return {
            *steps[-max(1, self.latest) :],
            *(step for step in steps if self.every and step % self.every == 0),
            *sorted(scored, key=lambda step: (scores[step], step))[-1:],
        }


def seal(folder: str | Path, *, step: int, metrics: Metrics | None = None) -> Path:
    """Make `checkpoint-{step}` count."""
    checkpoint = Path(folder) / checkpoint_name(step)
    files = {
        path.relative_to(checkpoint).as_posix(): (path.stat().st_size, sha256_of(path))
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    write_atomically(checkpoint / MANIFEST_FILE, Manifest(step, files, dict(metrics or {})).text())
    return checkpoint


def prune(
    folder: str | Path, keep: RetentionPolicy, *, newest: int, held: Collection[int] = ()
) -> None:
    """Delete what the rules drop of the steps up to `newest`, which is whole, but for the held."""
    found = {step_of(path): path for path in _checkpoints(folder) if step_of(path) <= newest}
    metrics = {}
    for step, path in found.items():
        with suppress(OSError, CorruptCheckpoint):
            metrics[step] = Manifest.of(path).metrics
    for step in found.keys() - keep.of(metrics, metrics) - set(held):
        shutil.rmtree(found[step])


def failure(folder: str | Path, *, step: int, error: Exception) -> Exception:
    """Why `checkpoint-{step}` could not be written; what there is of it is removed.

    torch and safetensors hide what the system said, so it is asked once more.
    """
    checkpoint = Path(folder) / checkpoint_name(step)
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
        files = Manifest.of(checkpoint).files
        return all(
            (checkpoint / name).stat().st_size == size and sha256_of(checkpoint / name) == sha
            for name, (size, sha) in files.items()
        )
    except (OSError, CorruptCheckpoint):
        return False


def latest(folder: str | Path) -> Path | None:
    """The newest whole checkpoint; torn ones are passed over."""
    return next(filter(is_whole, _checkpoints(folder)), None)


def find(path: str) -> Path:
    """The checkpoint that a user means: itself, or the newest whole one of a run's folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"checkpoint={path}: no such folder")
    for holder in (folder, folder / CHECKPOINTS_FOLDER, folder / "0" / CHECKPOINTS_FOLDER):
        newest = latest(holder)
        if newest:
            return newest
    if (folder / MANIFEST_FILE).exists() and not is_whole(folder):
        raise UserError(f"checkpoint={path}: torn or changed since it was written; take another")
    if not any((folder / name).exists() for name in (MODEL_CONFIG_FILE, ADAPTER_CONFIG_FILE)):
        raise UserError(f"checkpoint={path}: holds no checkpoint")
    return folder


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoints(folder: str | Path) -> Iterator[Path]:
    """Whole or torn, newest first."""
    found = [p for p in Path(folder).glob("checkpoint-*") if re.fullmatch(r".*-\d+", p.name)]
    yield from sorted(found, key=step_of, reverse=True)
