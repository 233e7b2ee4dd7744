"""Reading what a run has printed and written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def table_row(printed: str, policy: str) -> list[float]:
    """Return the figures in the row of a policy in a printed table."""
    line = next(x for x in printed.splitlines() if x.strip(" │┃|").split()[:1] == [policy])
    return [float(word) for word in re.findall(r"[+-]?\d+(?:\.\d+)?", line)]


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
