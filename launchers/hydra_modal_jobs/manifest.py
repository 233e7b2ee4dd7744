"""The manifest of a run: what was launched, where, and by which calls."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import json_lines, read_json, write_json
from hydra_modal_jobs.jobs.job import CONTROL

MANIFEST = "manifest.json"


def name_of(folder: Path) -> str:
    """A run's name: the last part of its folder, and the date before what is a bare time.

    >>> name_of(Path("/home/me/multirun/2026-11-22/18-09-03"))
    '2026-11-22/18-09-03'
    """
    parts = [part for part in folder.parts if part != folder.anchor]
    bare = list(takewhile(lambda part: not re.search("[A-Za-z]", part), reversed(parts)))
    return "/".join(reversed(bare)) or folder.name


def recorded(root: Path) -> list[Path]:
    """The folders of the runs under `root`, the oldest launch first."""
    found = [*root.glob(f"*/{MANIFEST}"), *root.glob(f"*/*/{MANIFEST}")]
    runs = [path for path in found if not (path.parents[1] / MANIFEST).exists()]
    return [path.parent for path in sorted(runs, key=lambda path: path.stat().st_mtime)]


@dataclass
class RunManifest:
    """A run's manifest and the folder it lies in; folders in it are relative, so it can move."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def begin(cls, folder: Path, *, task: str, source: dict[str, Any] | None) -> RunManifest:
        """The manifest of the folder; a further launch into it adds to what there is."""
        content = read_json(folder / MANIFEST)
        if content is None:
            made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            content = {"name": name_of(folder), "created": made, "task": task, "jobs": []}
        content["source"] = source
        return cls(folder, content)

    @classmethod
    def load(cls, folder: Path) -> RunManifest:
        content = read_json(folder / MANIFEST)
        if content is None:
            raise LaunchRefused(f"{folder}: no run of this launcher (it has no {MANIFEST})")
        return cls(folder, content)

    def put(self, entries: Sequence[dict[str, Any]]) -> None:
        """Add the jobs, each in the place of an older one of its number."""
        by_num = {entry["num"]: entry for entry in self.content["jobs"]}
        by_num |= {entry["num"]: {**by_num.get(entry["num"], {}), **entry} for entry in entries}
        self.content["jobs"] = [by_num[num] for num in sorted(by_num)]
        self.save()

    @property
    def path(self) -> Path:
        return self.folder / MANIFEST

    def save(self) -> None:
        write_json(self.path, self.content)

    @property
    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.content["jobs"]
        return jobs

    def folder_of(self, entry: dict[str, Any]) -> Path:
        return self.folder / str(entry["subdir"])

    def result(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        """How a job ended, if that is known here and it is about the manifest's last launch."""
        found = read_json(self.folder_of(entry) / CONTROL / "result.json")
        return found if found and found.get("launch") == entry.get("launch") else None

    def state(self, entry: dict[str, Any]) -> str:
        """In a word; a job on Modal that has not come back is `launched`."""
        result = self.result(entry)
        if result:
            return str(result["state"])
        if entry.get("call"):
            return "launched"
        begun = any(json_lines(self.folder_of(entry) / CONTROL / "attempts.jsonl"))
        return "interrupted" if begun else "not begun"


def spent(folder: Path) -> float:
    """USD of the jobs of a run that have ended."""
    total = 0.0
    for path in folder.glob(f"**/{CONTROL}/result.json"):
        total += float((read_json(path) or {}).get("usd") or 0.0)
    return total
