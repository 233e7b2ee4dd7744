"""The file `launch.json` of a run: what was launched, and where each job is queued."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import read_json, read_json_lines, write_json
from hydra_modal_jobs.jobs.result import JobResult
from hydra_modal_jobs.paths import (
    ATTEMPTS_FILE,
    FORMAT_VERSION,
    FORMER_LAUNCH_FILE,
    LAUNCH_FILE,
    RESULT_FILE,
)

LAUNCHED = "launched"  # the state of a job that is queued or running elsewhere


def run_name(folder: Path) -> str:
    """Return a run's name: the last part of its folder, with the date before a bare time.

    >>> run_name(Path("/home/me/multirun/2026-11-22/18-09-03"))
    '2026-11-22/18-09-03'
    """
    parts = [part for part in folder.parts if part != folder.anchor]
    bare = list(takewhile(lambda part: not re.search("[A-Za-z]", part), reversed(parts)))
    return "/".join(reversed(bare)) or folder.name


def is_run(folder: Path) -> bool:
    """Return whether the folder is that of a run, also of one by an earlier version."""
    return _read(folder) is not None


def run_folders(root: Path) -> list[Path]:
    """Return the folders of the runs under `root`, the oldest launch first."""
    files = [
        path
        for name in (FORMER_LAUNCH_FILE, LAUNCH_FILE)
        for pattern in (f"*/{name}", f"*/*/{name}")
        for path in root.glob(pattern)
    ]
    launched = {path.parent: path.stat().st_mtime for path in files if is_run(path.parent)}
    outer = [folder for folder in launched if folder.parent not in launched]
    return sorted(outer, key=lambda folder: launched[folder])


@dataclass
class RunManifest:
    """The content of `launch.json` and the folder of the run, which can be moved.

    Each job has an entry, a dictionary: `num`, `overrides`, `subdir`, `gpu`, `launch` (the id of
    its last launch), `usd_per_hour`, `backend`, `call` (the backend's id of the queued job, None
    for a job that ends with its launch) and what else the backend needs to come back to it.
    """

    folder: Path
    content: dict[str, Any]

    @classmethod
    def begin(cls, folder: Path, *, task: str, source: dict[str, Any] | None) -> RunManifest:
        """Return the manifest of the folder, a new one or that of the launches before this."""
        content = _read(folder)
        if content is None:
            created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            content = {"name": run_name(folder), "created": created, "task": task, "jobs": []}
        content |= {"format_version": FORMAT_VERSION, "source": source}
        return cls(folder, content)

    @classmethod
    def load(cls, folder: Path) -> RunManifest:
        """Read the manifest of a run. Raises `LaunchRefused` if the folder has none."""
        content = _read(folder)
        if content is None:
            raise LaunchRefused(f"{folder}: no run of this launcher (it has no {LAUNCH_FILE})")
        for entry in content["jobs"]:
            # Before format version 1 no backend was named.
            entry.setdefault("backend", "modal" if entry.get("call") else "local")
            if not entry.get("call") and entry["backend"] == "local":
                entry.pop("app", None)  # of an earlier launch of the job
        return cls(folder, content)

    @property
    def path(self) -> Path:
        return self.folder / LAUNCH_FILE

    @property
    def name(self) -> str:
        return run_name(self.folder)

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """The entries of all jobs, by number."""
        jobs: list[dict[str, Any]] = self.content["jobs"]
        return jobs

    def entry(self, num: int) -> dict[str, Any]:
        """Return the entry of a job."""
        return next(entry for entry in self.jobs if entry["num"] == num)

    def update(self, entries: Sequence[dict[str, Any]]) -> None:
        """Add entries, or merge them into those of the same number, and write the file."""
        by_num = {entry["num"]: entry for entry in self.content["jobs"]}
        by_num |= {entry["num"]: {**by_num.get(entry["num"], {}), **entry} for entry in entries}
        self.content["jobs"] = [by_num[num] for num in sorted(by_num)]
        write_json(self.path, self.content)

    def folder_of(self, entry: dict[str, Any]) -> Path:
        """Return the folder of a job."""
        return self.folder / str(entry["subdir"])

    def refuse_outside(self) -> None:
        """Raise `LaunchRefused` if a job's folder, as the file names it, lies outside of the run.

        The file may come from anyone, and what a job sends back is written into its folder.
        """
        run = self.folder.resolve()
        for entry in self.jobs:
            if not self.folder_of(entry).resolve().is_relative_to(run):
                raise LaunchRefused(
                    f"{self.path}: the folder of job {entry['num']} ({entry['subdir']}) lies "
                    "outside of the run, so nothing is read or written for it"
                )

    def result(self, entry: dict[str, Any]) -> JobResult | None:
        """Return how a job ended, if that is known here and belongs to its last launch."""
        result = JobResult.read(self.folder_of(entry))
        return result if result and result.launch == entry.get("launch") else None

    def state(self, entry: dict[str, Any]) -> str:
        """Return a job's state in a word; `LAUNCHED` if it is queued or running elsewhere."""
        result = self.result(entry)
        if result:
            return result.state
        if entry.get("call") or entry.get("app"):
            return LAUNCHED
        has_begun = any(read_json_lines(self.folder_of(entry) / ATTEMPTS_FILE))
        return "interrupted" if has_begun else "not begun"


def spent_usd(folder: Path) -> float:
    """Return what the jobs of a run that have ended cost."""
    results = (read_json(path) or {} for path in folder.glob(f"**/{RESULT_FILE}"))
    return sum(float(result.get("usd") or 0.0) for result in results)


def _read(folder: Path) -> dict[str, Any] | None:
    for name in (LAUNCH_FILE, FORMER_LAUNCH_FILE):
        content = read_json(folder / name)
        if isinstance(content, dict) and "jobs" in content:
            return content
    return None
