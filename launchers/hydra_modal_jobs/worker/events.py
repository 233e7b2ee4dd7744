"""What a supervisor reports about its job, as marked lines among the job's own output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

MARK = "\x1e"  # begins a supervisor's line; it is removed from the job's own lines


@dataclass(frozen=True)
class Update:
    """The state of a job: `status` has the newest metrics, `link` a tracker's page of the run."""

    num: int
    state: str
    attempt: int = 1
    status: dict[str, Any] = field(default_factory=dict)
    usd: float = 0.0
    link: str = ""

    def to_line(self) -> str:
        """Return the update as a line of output."""
        return MARK + json.dumps(asdict(self))


def parse_line(line: str) -> str | Update:
    """Return the update in a supervisor's line, and any other line as it is.

    >>> parse_line(Update(num=2, state="running").to_line()).state
    'running'
    """
    if not line.startswith(MARK):
        return line
    try:
        return Update(**json.loads(line[len(MARK) :]))
    except (TypeError, ValueError):
        return line
