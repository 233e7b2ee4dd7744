"""Where a run's checkpoints outlive its machine: a folder, or a bucket of an S3 server.

URL/PROJECT/models/NAME/STEP/ holds the files of one checkpoint, STEP with six digits at least, and
its manifest, which is written last: without it there is no checkpoint. `lease` says who may write.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rl_experiments.checkpoints.local import list_checkpoints, step_of
from rl_experiments.checkpoints.manifest import (
    CorruptCheckpoint,
    Manifest,
    Metrics,
    verify,
)
from rl_experiments.checkpoints.retention import RetentionPolicy
from rl_experiments.errors import UserError
from rl_experiments.paths import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    MANIFEST_FILE,
    RECORDS_FOLDER,
    checkpoint_name,
)
from rl_experiments.storage.files import atomic_path, sha256_of, write_atomically
from rl_experiments.storage.objects import ObjectInfo, ObjectStore

# Files of these kinds are read without running code in them. All others torch may unpickle.
_HARMLESS_SUFFIXES = {".safetensors", ".json", ".jsonl", ".yaml", ".txt", ".jinja", ".model"}
_OPEN_SECONDS = 15.0  # until a store that gives no answer is given up
_DOWNLOAD_ATTEMPTS = 2  # of a file whose content is wrong: the fault may be one of the network
_ABANDONED_SECONDS = 24 * 3600.0  # a partial download that is older belongs to a killed process

_FORMAT_VERSION = 1  # of the file of fingerprints; without a version it is the steps alone

Fingerprints = Mapping[int, list[str]]  # of the manifests that this run wrote, by step


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on this machine."""

    folder: Path
    step: int
    left_out: list[str]  # files that torch would unpickle, whose writer is unknown


class CheckpointStore:
    """The checkpoints of one run in its store."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self._manifests: dict[int, Manifest] = {}  # those read or written here
        self._damaged: set[int] = set()  # steps whose files were seen to be wrong

    @classmethod
    def open(
        cls,
        url: str,
        *,
        project: str,
        name: str,
        setting: str,
        writes: bool = True,
        patience_seconds: float = _OPEN_SECONDS,
    ) -> CheckpointStore:
        """Return the store of a run, after a test that it can be read, and written if `writes`.

        `setting` is the name of the setting that holds the url, for messages. Raises a `UserError`.
        """
        for key, value in (("checkpoint.project", project), ("name", name)):
            if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]{0,199}", value, re.ASCII):
                raise UserError(f"{key}={value!r}: only letters, digits and . _ - = + may be in it")
        below = f"{project}/models/{name}"
        objects = ObjectStore.open(
            url, below, writes=writes, setting=setting, patience_seconds=patience_seconds
        )
        return cls(objects)

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that have a manifest, in order."""
        return _steps_with_manifest(self.objects.list())

    def push(self, checkpoint: Path, *, guard: Callable[[], None] = lambda: None) -> None:
        """Upload a finished checkpoint, unless the store has just this one.

        `guard` is called before each change of the store, and raises to forbid it. Raises
        `CorruptCheckpoint` if the store holds something else afterwards than was sent.
        """
        local = Manifest.read(checkpoint)
        if local.left_out:
            return  # it came from the store, which has more of it
        key = _folder_of(local.step)
        objects = self.objects.list()
        has_manifest = f"{key}/{MANIFEST_FILE}" in objects
        if has_manifest and self._holds(local, objects):
            return
        guard()
        if has_manifest:
            # It would describe a mixture of old files and new ones.
            self.objects.remove(f"{key}/{MANIFEST_FILE}")
        for name in local.files:
            self.objects.put(checkpoint / name, f"{key}/{name}")
        _check_sizes(local, self.objects.list(key))
        guard()
        self.objects.write(f"{key}/{MANIFEST_FILE}", local.to_json())
        self._manifests[local.step] = local
        self._damaged.discard(local.step)

    def fetch(
        self, step: int, into: Path, *, known: Fingerprints, trusted: bool = False
    ) -> LocalCheckpoint:
        """Download a checkpoint to `into/checkpoint-{step}`, which is there whole or not at all.

        Files that torch may unpickle are left out, unless this run wrote them (their fingerprint
        is `known`) or the store is `trusted`. Raises `CorruptCheckpoint` and `UserError`.
        """
        manifest = self.manifest(step)
        if known.get(step) and manifest.fingerprint not in known[step]:
            raise CorruptCheckpoint("its manifest is not the one that this run wrote")
        trusted = trusted or manifest.fingerprint in known.get(step, [])
        files = {
            name: size_and_hash
            for name, size_and_hash in manifest.files.items()
            if trusted or Path(name).suffix in _HARMLESS_SUFFIXES
        }
        left_out = sorted(manifest.files.keys() - files.keys())
        target = into / checkpoint_name(step)
        with self._noting_damage(step), atomic_path(target) as building:
            with self.objects.as_user_error():
                objects = self.objects.list(_folder_of(step))
            _check_sizes(manifest, objects)
            for name, (size, sha256) in files.items():
                self._download(f"{_folder_of(step)}/{name}", building / name, size, sha256)
            local = Manifest(step, files, manifest.metrics, left_out)
            write_atomically(building / MANIFEST_FILE, local.to_json())
            shutil.rmtree(target, ignore_errors=True)  # damaged, or without what was left out
        return LocalCheckpoint(target, step, left_out)

    def prune(self, policy: RetentionPolicy, *, newest: int) -> list[int]:
        """Delete the checkpoints before step `newest` that the policy drops; return their steps.

        Steps after `newest` are kept: a run that was set back to an earlier step overwrites them.
        """
        objects = self.objects.list()
        begun = {int(key.partition("/")[0]) for key in objects if re.match(r"\d{6,}/", key)}
        complete = [step for step in _steps_with_manifest(objects) if step <= newest]
        kept = policy.kept(complete, self._metrics_of(complete) if policy.best else {})
        dropped = sorted(step for step in begun - kept if step < newest)
        for step in dropped:
            manifest = f"{_folder_of(step)}/{MANIFEST_FILE}"
            keys = [key for key in objects if key.startswith(f"{_folder_of(step)}/")]
            # The manifest first: half a checkpoint must not look like a whole one.
            for key in sorted(keys, key=lambda key: key != manifest):
                self.objects.remove(key)
            if not self.objects.is_remote:
                shutil.rmtree(self.objects.path(_folder_of(step)), ignore_errors=True)
            self._manifests.pop(step, None)
        return dropped

    def manifest(self, step: int) -> Manifest:
        """Return the manifest of a step in the store.

        Raises `CorruptCheckpoint` if there is none or it is wrong, and a `UserError`.
        """
        try:
            with self.objects.as_user_error():
                text = self.objects.read(f"{_folder_of(step)}/{MANIFEST_FILE}")
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise CorruptCheckpoint("it has no manifest") from None
            raise
        manifest = Manifest.parse(text)
        if manifest.step != step:
            raise CorruptCheckpoint(f"its manifest is that of step {manifest.step}")
        return manifest

    def _holds(self, local: Manifest, objects: Mapping[str, ObjectInfo]) -> bool:
        """Return whether the store has this checkpoint, as its manifest and the sizes show."""
        if local.step in self._damaged:
            return False
        try:
            _check_sizes(local, objects)
            return self.manifest(local.step).fingerprint == local.fingerprint
        except CorruptCheckpoint:
            return False

    @contextmanager
    def _noting_damage(self, step: int) -> Iterator[None]:
        try:
            yield
        except CorruptCheckpoint:
            self._damaged.add(step)
            raise

    def _download(self, key: str, path: Path, size: int, sha256: str) -> None:
        for _ in range(_DOWNLOAD_ATTEMPTS):
            try:
                with self.objects.as_user_error():
                    self.objects.get(key, path, size=size)
            except UserError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise CorruptCheckpoint(f"{key} is missing") from None
                raise
            if path.stat().st_size == size and sha256_of(path) == sha256:
                return
        raise CorruptCheckpoint(f"{key} is not what was written")

    def _metrics_of(self, steps: Iterable[int]) -> dict[int, Metrics]:
        for step in steps:
            if step not in self._manifests:
                try:
                    self._manifests[step] = self.manifest(step)
                except CorruptCheckpoint:
                    continue
        return {step: manifest.metrics for step, manifest in self._manifests.items()}


def find_resume_point(
    store: CheckpointStore | None,
    folder: Path,
    *,
    fingerprints: Path,
    say: Callable[[str], None],
    trusted: bool = False,
) -> LocalCheckpoint | None:
    """Return the newest undamaged checkpoint of the folder or the store; None to start afresh.

    It is verified, and downloaded if only the store has it. `say` hears of those passed over.
    """
    remove_abandoned_downloads(folder, older_than_seconds=0)  # the run has no other writer
    known = read_fingerprints(fingerprints)
    local = {step_of(path): path for path in list_checkpoints(folder)}
    remote: list[int] = []
    if store:
        with store.objects.as_user_error():
            remote = store.steps()
    for step in sorted({*local, *remote}, reverse=True):
        if step in local:
            if verify(local[step]):
                left_out = Manifest.read(local[step]).left_out
                if not (left_out and trusted and step in remote):
                    return LocalCheckpoint(local[step], step, left_out)
            else:
                say(f"{local[step]} is unfinished or damaged; it is passed over")
        if store and step in remote:
            try:
                return store.fetch(step, folder, known=known, trusted=trusted)
            except CorruptCheckpoint as damage:
                say(f"Step {step} in {store.objects.label}: {damage}; it is passed over")
    return None


def download_weights(url: str, cache: Path) -> Path:
    """Return the checkpoint at `.../NAME/STEP`, or the newest undamaged one at `.../NAME`.

    What torch would unpickle, such as the optimizer's state, is left out: the weights suffice to
    play, and to begin another training. A copy in `cache` is used if it is still undamaged.
    """
    root, only_step = _split_address(url)
    store, steps = _open_address(root, only_step)
    address = f"{root} {os.environ.get('AWS_ENDPOINT_URL', '')}"
    into = cache / CHECKPOINTS_FOLDER / hashlib.sha256(address.encode()).hexdigest()[:16]
    remove_abandoned_downloads(into, older_than_seconds=_ABANDONED_SECONDS)
    reason = "holds no checkpoint"
    for step in reversed(steps):
        try:
            copy, stored = into / checkpoint_name(step), store.manifest(step)
            if verify(copy) and Manifest.read(copy).files.items() <= stored.files.items():
                return copy
            return store.fetch(step, into, known={}).folder
        except CorruptCheckpoint as damage:
            reason = f"step {step}: {damage}"
    raise UserError(f"checkpoint={url}: {reason}")


def read_run_settings(url: str) -> str | None:
    """Return the settings of the run whose checkpoint is at an address, as its YAML file has them.

    Returns None if the checkpoint does not hold them. Raises a `UserError` if it cannot be read.
    """
    store, steps = _open_address(*_split_address(url))
    for step in reversed(steps):
        with store.objects.as_user_error():
            try:
                text = store.objects.read(f"{_folder_of(step)}/{RECORDS_FOLDER}/{CONFIG_FILE}")
            except FileNotFoundError:
                continue
        return text.decode(errors="replace")
    return None


def _split_address(url: str) -> tuple[str, int | None]:
    """Return the address of a run in a store, and the step if the address names one."""
    above, _, last = url.rstrip("/").rpartition("/")
    return (above, int(last)) if re.fullmatch(r"\d{6,}", last) else (url, None)


def _open_address(root: str, only_step: int | None) -> tuple[CheckpointStore, list[int]]:
    """Return the store at the address of a run, to read, and the steps that are asked for."""
    objects = ObjectStore.open(
        root, "", writes=False, setting="checkpoint", patience_seconds=_OPEN_SECONDS
    )
    store = CheckpointStore(objects)
    if only_step is not None:
        return store, [only_step]
    with objects.as_user_error():
        return store, store.steps()


def remove_abandoned_downloads(folder: Path, *, older_than_seconds: float) -> None:
    """Delete the partial downloads that killed processes have left in a folder."""
    for path in folder.glob(f".{checkpoint_name('*')}"):
        if path.is_dir() and time.time() - path.stat().st_mtime >= older_than_seconds:
            shutil.rmtree(path, ignore_errors=True)


def remember_fingerprint(file: Path, checkpoint: Path) -> None:
    """Note in `file` that this run made the checkpoint, so that it may be unpickled later."""
    known, manifest = read_fingerprints(file), Manifest.read(checkpoint)
    if not manifest.left_out and manifest.fingerprint not in known.get(manifest.step, []):
        known.setdefault(manifest.step, []).append(manifest.fingerprint)
        content = {"format_version": _FORMAT_VERSION, "steps": known}
        write_atomically(file, json.dumps(content, indent=1))


def read_fingerprints(file: Path) -> dict[int, list[str]]:
    """Return the fingerprints of the checkpoints that this run made, by step; none if unreadable.

    A checkpoint without one is a stranger's: torch does not unpickle it.
    """
    try:
        content = json.loads(file.read_text())
        steps = content["steps"] if "format_version" in content else content
        return {int(step): [str(each) for each in known] for step, known in steps.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError, KeyError):
        return {}


def _folder_of(step: int) -> str:
    return f"{step:06d}"


def _steps_with_manifest(keys: Iterable[str]) -> list[int]:
    matches = (re.fullmatch(rf"(\d{{6,}})/{MANIFEST_FILE}", key) for key in keys)
    return sorted(int(match[1]) for match in matches if match)


def _check_sizes(manifest: Manifest, objects: Mapping[str, ObjectInfo]) -> None:
    for name, (size, _) in manifest.files.items():
        key = f"{_folder_of(manifest.step)}/{name}"
        if key not in objects:
            raise CorruptCheckpoint(f"{key} is missing")
        if objects[key]["size"] != size:
            raise CorruptCheckpoint(f"{key} has {objects[key]['size']} of {size} bytes")
