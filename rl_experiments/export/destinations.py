"""Where an exported model goes: a folder, S3, or the Hugging Face hub."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from rl_experiments.errors import UserError, one_line
from rl_experiments.export.card import HUB_NAME
from rl_experiments.paths import MODEL_CONFIG_FILE
from rl_experiments.storage.objects import ObjectStore

DESTINATIONS = "FOLDER, s3://bucket/prefix or hub:OWNER/NAME"
_FILES_OF_OTHER_MODELS = ["*.safetensors", "*.bin", "*.index.json", "adapter_*"]
_S3_PATIENCE_SECONDS = 15.0  # for an answer before the work begins
_CLEANUP_PATIENCE_SECONDS = 1.0
_BUILDING = ".export-"  # what the name of a folder begins with in which a model is built
_LOCK_FILE = ".lock"
_UNLOCKED_SECONDS = 3600.0  # a folder that is older and has no lock is of an earlier version


class Destination(NamedTuple):
    """A place that was checked to accept a model.

    `send` moves a finished folder there, and returns how the place is shown to the user. The
    folder is best built in `build_in`, or anywhere if that is None. `model_name` is what
    `from_pretrained` takes to load the model from there.
    """

    send: Callable[[Path], str]
    build_in: Path | None
    model_name: str


def open_destination(to: str) -> Destination:
    """Check that a model can be written to the value of `--to`, which is one of DESTINATIONS.

    Raises a `UserError` for what would otherwise fail only after the model has been built.
    """
    if to.startswith("s3://"):
        return Destination(_s3_sender(to), None, ".")
    if to.startswith("hub:"):
        return Destination(_hub_sender(to), None, to.removeprefix("hub:"))
    if not to or ":" in to:
        raise UserError(f"--to={to}: give {DESTINATIONS}")
    folder = Path(to).expanduser().absolute()
    remove_abandoned(folder.parent)
    with errors_as_one_line(to):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"--to={to}: there is something already; give a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
    return Destination(lambda built: str(built.rename(folder)), folder.parent, ".")


def _s3_sender(to: str) -> Callable[[Path], str]:
    store = ObjectStore.open(
        to, "", writes=True, setting="--to", patience_seconds=_S3_PATIENCE_SECONDS
    )
    with store.as_user_error():
        if store.list():
            raise UserError(f"--to={to}: there is something already; give an empty place")

    def send(built: Path) -> str:
        # The config goes last: without it nobody can load a model that is not complete.
        files = sorted(
            built.iterdir(), key=lambda path: (path.name == MODEL_CONFIG_FILE, path.name)
        )
        try:
            with store.as_user_error():
                for path in files:
                    store.put(path, path.name)
        except BaseException:
            store.patience_seconds = _CLEANUP_PATIENCE_SECONDS
            with suppress(Exception):
                for path in files:
                    store.remove(path.name)
            raise
        return to

    return send


def _hub_sender(to: str) -> Callable[[Path], str]:
    from huggingface_hub import HfApi

    name, token = to.removeprefix("hub:"), os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(HUB_NAME, name):
        raise UserError(f"--to={to}: give hub:OWNER/NAME")
    if not token:
        raise UserError(f"--to={to}: HF_TOKEN is not set; set a token that may write there")
    api = HfApi(token=token)
    with errors_as_one_line(to):
        api.whoami()

    def send(built: Path) -> str:
        api.create_repo(name, private=True, exist_ok=True)
        # Weights that were there before would be loaded along with the new ones.
        api.upload_folder(repo_id=name, folder_path=built, delete_patterns=_FILES_OF_OTHER_MODELS)
        return f"{api.endpoint}/{name}, private if it is new,"

    return send


@contextmanager
def building_folder(parent: Path | None) -> Iterator[Path]:
    """Yield a new folder in `parent` to build in, which only its owner may read; remove it then.

    One that a killed process has left is known by its lock, which nobody holds any more.
    """
    with (
        tempfile.TemporaryDirectory(prefix=_BUILDING, dir=parent) as folder,
        (Path(folder) / _LOCK_FILE).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(folder)


def remove_abandoned(parent: Path) -> None:
    """Delete the folders of `building_folder` that killed processes have left in `parent`."""
    for folder in parent.glob(f"{_BUILDING}*"):
        with suppress(OSError):  # another user's, or another process builds in it
            if not (folder / _LOCK_FILE).exists():
                if time.time() - folder.stat().st_mtime > _UNLOCKED_SECONDS:
                    shutil.rmtree(folder)
                continue
            with (folder / _LOCK_FILE).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


@contextmanager
def errors_as_one_line(to: str) -> Iterator[None]:
    """Raise errors of the disk, of the hub and of safetensors as a `UserError` about `--to`."""
    from httpx import HTTPError
    from safetensors import SafetensorError

    try:
        yield
    except (HTTPError, ConnectionError) as error:
        response = getattr(error, "response", None)
        if response is None:
            reason = "the hub does not answer; connect, and unset HF_HUB_OFFLINE"
        else:
            reason = f"the hub says {response.status_code}; see what HF_TOKEN permits"
        raise UserError(f"--to={to}: {reason}") from error
    except (OSError, SafetensorError) as error:
        reason = one_line(str(error))
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror} ({error.filename})"
        raise UserError(f"--to={to}: {reason}") from error
