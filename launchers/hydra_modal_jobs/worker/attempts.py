"""The ledger of a job's attempts: `attempts.jsonl`, a line when each begins and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra_modal_jobs.files import append_json_lines, read_json, read_json_lines
from hydra_modal_jobs.paths import ALIVE_FILE, ATTEMPTS_FILE, FORMAT_VERSION

_MAX_CRASHES = 20  # of a job in all, whatever it saved between them


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job in a launch.

    `checkpoints` is a fingerprint of the checkpoints that it began with. `ended` and `ended_as`
    (a state or a kind of failure) are None if its container was lost.
    """

    number: int
    begun: float
    checkpoints: str
    ended: float | None = None
    ended_as: str | None = None


class Ledger:
    """Reads and writes the attempts of one launch of a job."""

    def __init__(self, job_folder: Path, launch: str) -> None:
        self._path = job_folder / ATTEMPTS_FILE
        self._alive = job_folder / ALIVE_FILE
        self._launch = launch

    def attempts(self) -> list[Attempt]:
        """Return the attempts so far, in order."""
        begun: dict[int, dict[str, Any]] = {}
        ended: dict[int, dict[str, Any]] = {}
        for record in read_json_lines(self._path):
            if record.get("launch") == self._launch:
                (begun if "begun" in record else ended)[record["attempt"]] = record
        return [
            Attempt(
                number=number,
                begun=record["begun"],
                checkpoints=record["saved"],
                ended=ended.get(number, {}).get("ended"),
                ended_as=ended.get(number, {}).get("as"),
            )
            for number, record in begun.items()
        ]

    def begin(self, number: int, *, at: float, checkpoints: str, gpu: str | None) -> None:
        """Note that an attempt begins."""
        self._append(number, {"begun": at, "gpu": gpu, "saved": checkpoints})

    def end(self, number: int, *, at: float, ended_as: str, checkpoints: str) -> None:
        """Note that an attempt ended."""
        self._append(number, {"ended": at, "as": ended_as, "saved": checkpoints})

    def seconds(self, attempts: Sequence[Attempt]) -> float:
        """Return how long attempts took together; a lost one, until the job was last seen."""
        last_seen = read_json(self._alive) or 0.0
        total = 0.0
        for attempt in attempts:
            ended = max(last_seen, attempt.begun) if attempt.ended is None else attempt.ended
            total += max(0.0, ended - attempt.begun)
        return total

    def _append(self, number: int, record: dict[str, Any]) -> None:
        head = {"format_version": FORMAT_VERSION, "launch": self._launch, "attempt": number}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_json_lines(self._path, [{**head, **record}])


def crashes_in_a_row(attempts: Sequence[Attempt], *, checkpoints: str) -> int:
    """Count the newest attempts that were lost without a new checkpoint.

    `checkpoints` is the present fingerprint. A job that was lost very often counts each loss.
    """
    crashes = 0
    following = [*(attempt.checkpoints for attempt in attempts[1:]), checkpoints]
    for attempt, after in zip(attempts, following, strict=False):
        has_saved = after != attempt.checkpoints
        crashes = 0 if attempt.ended is not None or has_saved else crashes + 1
    lost = sum(attempt.ended is None for attempt in attempts)
    return lost if lost > _MAX_CRASHES else crashes


def may_try_again(crashes: int, *, retries: int) -> bool:
    """Return whether a job that crashed so often in a row may have another attempt."""
    return crashes <= min(retries, _MAX_CRASHES)
