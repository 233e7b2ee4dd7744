"""Files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with building.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


def append_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Append each record as one line."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    with path.open("a") as file:
        file.write(text)


def read_json_lines(path: Path) -> Iterator[Any]:
    """The records of a file that may end in a torn line; none if there is no file."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                return  # a process was killed while it wrote this line


def keep_json_lines(path: Path, keep: Callable[[Any], bool]) -> None:
    """Rewrite the file with the records that `keep` takes."""
    if path.exists():
        records = [record for record in read_json_lines(path) if keep(record)]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def digest(path: Path, kind: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
