"""Where a run's checkpoints outlive its machine: a folder, or a bucket of an S3 server.

{url}/{project}/models/{name}/{step, zero-padded}/ holds the files of one checkpoint, and a manifest
that is written last: without it there is no checkpoint. Who writes there: see `lease`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rl_experiments.checkpoints import local as checkpoint
from rl_experiments.checkpoints.local import (
    CorruptCheckpoint,
    Manifest,
    Metrics,
    RetentionPolicy,
)
from rl_experiments.errors import UserError
from rl_experiments.paths import MANIFEST_FILE, checkpoint_name
from rl_experiments.storage.files import sha256_of, write_atomically
from rl_experiments.storage.objects import ObjectInfo, ObjectStore, Sameness

# What can be read without running code that it holds; all else torch may unpickle.
_HARMLESS = {".safetensors", ".json", ".jsonl", ".yaml", ".txt", ".jinja", ".model"}

_SMALL = 1 << 16  # bytes that are sent as quickly as the store copies them

Known = Mapping[int, list[str]]  # fingerprints of the manifests that this run wrote, by step


@dataclass(frozen=True)
class Fetched:
    folder: Path
    step: int
    left_out: list[str]  # files that torch would unpickle and no one vouched for


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self._manifests: dict[int, Manifest] = {}  # as read or written here

    @classmethod
    def open(
        cls,
        url: str,
        *,
        project: str,
        name: str,
        setting: str,
        writes: bool = True,
        patience: float = 15.0,
    ) -> CheckpointStore:
        """Raises a `UserError` for whatever would fail later; `setting` is what names the url."""
        for key, value in (("checkpoint.project", project), ("name", name)):
            if not re.fullmatch(r"[A-Za-z0-9][\w.=+-]{0,199}", value, re.ASCII):
                raise UserError(f"{key}={value!r}: only letters, digits and . _ - = + may be in it")
        below = f"{project}/models/{name}"
        objects = ObjectStore.open(url, below, writes=writes, setting=setting, patience=patience)
        return cls(objects)

    def steps(self) -> list[int]:
        """Those of the checkpoints that have a manifest."""
        return _steps(self.objects.list())

    def push(
        self,
        folder: Path,
        *,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy a sealed checkpoint, but for what is there already. `guard` raises to forbid it."""
        local = Manifest.of(folder)
        if local.left_out:
            return  # it came from here
        at, same, there = _folder(local.step), Sameness(), self.objects.list()
        present = f"{at}/{MANIFEST_FILE}" in there
        stale = [name for name in local.files if not same(folder / name, there.get(f"{at}/{name}"))]
        if present and not stale and self._has(local):
            return
        guard()
        if present:
            self.objects.remove(f"{at}/{MANIFEST_FILE}")  # it would describe a mixture
        for name in stale:
            self._put(folder / name, f"{at}/{name}", there, same)
        _compare(local, self.objects.list(at))
        guard()
        self.objects.write(f"{at}/{MANIFEST_FILE}", local.text())
        self._manifests[local.step] = local

    def fetch(self, step: int, into: Path, *, known: Known, trusted: bool = False) -> Fetched:
        """`into/checkpoint-{step}`, there whole or not at all. Raises `Torn`, and `UserError`.

        A file that torch may unpickle is left out unless this run wrote it (`known`), or `trusted`.
        """
        manifest = self.manifest(step)
        if known.get(step) and manifest.fingerprint not in known[step]:
            raise CorruptCheckpoint("its manifest is not the one that this run wrote")
        with self.objects.told():
            there = self.objects.list(_folder(step))
        _compare(manifest, there)
        trusted = trusted or manifest.fingerprint in known.get(step, [])
        files = {
            name: told
            for name, told in manifest.files.items()
            if trusted or Path(name).suffix in _HARMLESS
        }
        left_out = sorted(manifest.files.keys() - files.keys())
        target, building = into / checkpoint_name(step), into / f".checkpoint-{step}.fetched"
        shutil.rmtree(building, ignore_errors=True)
        try:
            for name, (size, sha) in files.items():
                self._get(f"{_folder(step)}/{name}", building / name, size, sha)
            local = Manifest(step, files, manifest.metrics, left_out)
            write_atomically(building / MANIFEST_FILE, local.text())
            shutil.rmtree(target, ignore_errors=True)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return Fetched(target, step, left_out)

    def prune(self, keep: RetentionPolicy, *, newest: int) -> list[int]:
        """Delete what the rules drop of the steps up to `newest`, which has been pushed whole.

        Later ones are no business of the rules: a run that went back will write them again.
        """
        there = self.objects.list()
        begun = {int(key.partition("/")[0]) for key in there if re.match(r"\d{6,}/", key)}
        whole = [step for step in _steps(there) if step <= newest]
        kept = keep.of(whole, self._metrics(whole) if keep.best else {})
        dropped = sorted(step for step in begun - kept if step < newest)
        for step in dropped:
            manifest = f"{_folder(step)}/{MANIFEST_FILE}"
            keys = [key for key in there if key.startswith(f"{_folder(step)}/")]
            # The manifest first: half a checkpoint must not look like one.
            for key in sorted(keys, key=lambda key: key != manifest):
                self.objects.remove(key)
            if not self.objects.is_remote:
                shutil.rmtree(self.objects.path(_folder(step)), ignore_errors=True)
            self._manifests.pop(step, None)
        return dropped

    def manifest(self, step: int) -> Manifest:
        """Raises `CorruptCheckpoint`, and `UserError`."""
        try:
            with self.objects.told():
                text = self.objects.read(f"{_folder(step)}/{MANIFEST_FILE}")
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise CorruptCheckpoint("it has no manifest") from None
            raise
        found = Manifest.parse(text)
        if found.step != step:
            raise CorruptCheckpoint(f"its manifest is that of step {found.step}")
        return found

    def _has(self, local: Manifest) -> bool:
        try:
            return self.manifest(local.step).fingerprint == local.fingerprint
        except CorruptCheckpoint:
            return False

    def _put(self, path: Path, key: str, there: Mapping[str, ObjectInfo], same: Sameness) -> None:
        """Steps share files, such as the tokenizer: what the store has it copies itself."""
        if self.objects.is_remote and path.stat().st_size >= _SMALL:
            for other, info in there.items():
                if other.partition("/")[2] == key.partition("/")[2] and same(path, info):
                    try:
                        return self.objects.copy(other, key, size=info["size"])
                    except FileNotFoundError:
                        pass  # deleted since it was listed
        self.objects.put(path, key)

    def _get(self, key: str, path: Path, size: int, sha: str) -> None:
        for _ in range(2):  # a fault on the way is not one of the object
            try:
                with self.objects.told():
                    self.objects.get(key, path, size=size)
            except UserError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise CorruptCheckpoint(f"{key} is missing") from None
                raise
            if path.stat().st_size == size and sha256_of(path) == sha:
                return
        raise CorruptCheckpoint(f"{key} is not what was written")

    def _metrics(self, steps: Iterable[int]) -> dict[int, Metrics]:
        for step in steps:
            if step not in self._manifests:
                try:
                    self._manifests[step] = self.manifest(step)
                except CorruptCheckpoint:
                    continue
        return {step: found.metrics for step, found in self._manifests.items()}


def newest(
    store: CheckpointStore | None,
    folder: Path,
    *,
    hashes: Path,
    say: Callable[[str], None],
    trusted: bool = False,
) -> Fetched | None:
    """The newest whole checkpoint of the folder or the store, fetched if need be; None to start.

    What is torn is named and passed over.
    """
    known, remote = read_hashes(hashes), list[int]()
    local = {checkpoint.step_of(path): path for path in folder.glob("checkpoint-*[0-9]")}
    if store:
        with store.objects.told():
            remote = store.steps()
    for step in sorted({*local, *remote}, reverse=True):
        if step in local:
            if checkpoint.is_whole(local[step]):
                left_out = Manifest.of(local[step]).left_out
                if not (left_out and trusted and step in remote):
                    return Fetched(local[step], step, left_out)
            else:
                say(f"{local[step]} is torn or was changed: passed over")
        if store and step in remote:
            try:
                return store.fetch(step, folder, known=known, trusted=trusted)
            except CorruptCheckpoint as torn:
                say(f"Step {step} in {store.objects.label}: {torn}: passed over")
    return None


def is_remote(path: str) -> bool:
    return "://" in path


def fetched(url: str, cache: Path) -> Path:
    """The checkpoint at `.../{name}/{step}`, or the newest whole one at `.../{name}`.

    Without what torch would unpickle: to play, and to learn anew, takes the weights alone.
    """
    above, _, last = url.rstrip("/").rpartition("/")
    is_step = re.fullmatch(r"\d{6,}", last) is not None
    root = above if is_step else url
    objects = ObjectStore.open(root, "", writes=False, setting="checkpoint", patience=15.0)
    store = CheckpointStore(objects)
    told = f"{root} {os.environ.get('AWS_ENDPOINT_URL', '')}"
    into = cache / "checkpoints" / hashlib.sha256(told.encode()).hexdigest()[:16]
    with objects.told():
        steps = [int(last)] if is_step else store.steps()
    reason = "holds no checkpoint"
    for step in reversed(steps):
        try:
            here, there = into / checkpoint_name(step), store.manifest(step)
            if checkpoint.is_whole(here) and Manifest.of(here).files.items() <= there.files.items():
                return here
            copy = store.fetch(step, into, known={})
            return copy.folder
        except CorruptCheckpoint as torn:
            reason = f"step {step}: {torn}"
    raise UserError(f"checkpoint={url}: {reason}")


def remember(hashes: Path, folder: Path) -> None:
    """Note that this run made the checkpoint: its files may be unpickled when they come back."""
    known, made = read_hashes(hashes), Manifest.of(folder)
    if not made.left_out and made.fingerprint not in known.get(made.step, []):
        known.setdefault(made.step, []).append(made.fingerprint)
        write_atomically(hashes, json.dumps(known, indent=1))


def read_hashes(hashes: Path) -> dict[int, list[str]]:
    try:
        read = json.loads(hashes.read_text())
        return {int(step): [str(print_) for print_ in prints] for step, prints in read.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}  # then nothing is vouched for


def _folder(step: int) -> str:
    return f"{step:06d}"


def _steps(there: Iterable[str]) -> list[int]:
    found = (re.fullmatch(rf"(\d{{6,}})/{MANIFEST_FILE}", key) for key in there)
    return sorted(int(match[1]) for match in found if match)


def _compare(manifest: Manifest, there: Mapping[str, ObjectInfo]) -> None:
    for name, (size, _) in manifest.files.items():
        key = f"{_folder(manifest.step)}/{name}"
        if key not in there:
            raise CorruptCheckpoint(f"{key} is missing")
        if there[key]["size"] != size:
            raise CorruptCheckpoint(f"{key} has {there[key]['size']} of {size} bytes")
