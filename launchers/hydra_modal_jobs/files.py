"""Small files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Replace the file in one step; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        building.write_text(text)
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=1))


def read_json(path: Path) -> Any:
    """The file's value; None if there is no such file or it is torn."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def append_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def json_lines(path: Path) -> Iterator[Any]:
    """The lines of the file; torn ones are passed over."""
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def last_json_line(path: Path) -> dict[str, Any] | None:
    """The newest whole line, found from the end of a file of any length."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        return value if isinstance(value, dict) else None
    return None
