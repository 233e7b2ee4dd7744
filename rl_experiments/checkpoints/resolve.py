"""From what a user names (a run, a checkpoint, an address) to the folder of one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rl_experiments.checkpoints.local import list_checkpoints
from rl_experiments.checkpoints.manifest import is_complete, verify
from rl_experiments.checkpoints.store import download_weights
from rl_experiments.errors import UserError
from rl_experiments.paths import (
    ADAPTER_CONFIG_FILE,
    CHECKPOINTS_FOLDER,
    MANIFEST_FILE,
    MODEL_CONFIG_FILE,
    cache_folder,
)


def is_url(path_or_url: str) -> bool:
    """Return whether it is an address such as s3://bucket/..., rather than a folder."""
    return "://" in path_or_url


def resolve(path_or_url: str) -> Path:
    """Return the folder of the checkpoint to load, verified; download it if it is at an address.

    A checkpoint, a model in a folder, a run folder, or an address of any of a store's runs or
    steps will do; of a run it is the newest checkpoint that is not damaged. Raises a `UserError`.
    """
    if is_url(path_or_url):
        return download_weights(path_or_url, cache_folder())
    return _choose(path_or_url, verify)


def locate(path: str) -> Path:
    """Return the folder of the checkpoint like `resolve`, by a look that reads no content.

    It is for checks before a run begins. What is loaded later goes through `resolve`.
    """
    return _choose(path, is_complete)


def _choose(path: str, is_good: Callable[[Path], bool]) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"checkpoint={path}: no such folder")
    for parent in (folder, folder / CHECKPOINTS_FOLDER, folder / "0" / CHECKPOINTS_FOLDER):
        newest = next(filter(is_good, list_checkpoints(parent)), None)
        if newest:
            return newest
    if (folder / MANIFEST_FILE).exists() and not is_good(folder):
        raise UserError(
            f"checkpoint={path}: it is damaged, or was changed since it was written; take another"
        )
    if not any((folder / name).exists() for name in (MODEL_CONFIG_FILE, ADAPTER_CONFIG_FILE)):
        raise UserError(f"checkpoint={path}: this folder holds no checkpoint")
    return folder
