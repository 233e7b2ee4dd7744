"""The manifest of a run: what was launched, where, and by which calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra_plugins.modal_launcher._failure import Refused
from hydra_plugins.modal_launcher._files import json_lines, read_json, write_json
from hydra_plugins.modal_launcher._job import CONTROL

MANIFEST = "manifest.json"


@dataclass
class Record:
    """A run's manifest and the folder it lies in; folders in it are relative, so it can move."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def begin(cls, folder: Path, *, task: str, source: dict[str, Any] | None) -> Record:
        """The manifest of the folder; a further launch into it adds to what there is."""
        content = read_json(folder / MANIFEST)
        if content is None:
            made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            content = {"name": folder.name, "created": made, "task": task, "jobs": []}
        content["source"] = source
        return cls(folder, content)

    @classmethod
    def load(cls, folder: Path) -> Record:
        content = read_json(folder / MANIFEST)
        if content is None:
            raise Refused(f"{folder}: no run of this launcher (it has no {MANIFEST})")
        return cls(folder, content)

    def put(self, entries: Sequence[dict[str, Any]]) -> None:
        """Add the jobs, each in the place of an older one of its number."""
        by_num = {entry["num"]: entry for entry in self.content["jobs"]}
        by_num |= {entry["num"]: {**by_num.get(entry["num"], {}), **entry} for entry in entries}
        self.content["jobs"] = [by_num[num] for num in sorted(by_num)]
        self.save()

    def save(self) -> None:
        write_json(self.folder / MANIFEST, self.content)

    @property
    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.content["jobs"]
        return jobs

    def folder_of(self, entry: dict[str, Any]) -> Path:
        return self.folder / entry["subdir"]

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
