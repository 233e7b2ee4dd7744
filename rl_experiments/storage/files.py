"""Files that are written whole or not at all, and files of JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl_experiments.errors import UserError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write a file or a folder at; then rename it to `target`.

    Whoever looks at `target` sees the old content or the new, never a part. A file or an empty
    folder that is there already is replaced; a folder with content raises an `OSError`. If the
    block raises, what it wrote is removed and `target` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}-{threading.get_native_id()}"
    building = target.with_name(f".{target.name}.{writer}.tmp")
    _remove(building)  # of a process with the same number that was killed
    try:
        yield building
        for path in (building, *building.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        building.replace(target)
    finally:
        _remove(building)


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a text file in one step, making its folder if need be."""
    with _naming(path), atomic_path(path) as building:
        building.write_text(text)


def append_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Append each record as one line; after a torn line, which a kill leaves, on a new one."""
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    if not content:
        return
    with _naming(path), path.open("a+b", buffering=0) as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        rest = memoryview(content)
        while rest:  # one write, unless the disk is almost full
            rest = rest[file.write(rest) :]


def read_json_lines(path: Path, *keys: str) -> Iterator[Any]:
    """Yield the record of each line; yield nothing if there is no file.

    Torn lines are skipped, and those that are no object with these keys.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and all(key in record for key in keys):
                yield record


def read_json_object(path: Path, *keys: str, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises a `UserError` with the remedy if the file is no object with these keys.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not all(key in content for key in keys):
        raise UserError(f"{path}: is broken; {remedy}")
    return content


def keep_json_lines(path: Path, keep: Callable[[Any], bool]) -> None:
    """Rewrite the file with the records for which `keep` is true; do nothing without a file."""
    if path.exists():
        records = [record for record in read_json_lines(path) if keep(record)]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the system name the file, which that of a write does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
