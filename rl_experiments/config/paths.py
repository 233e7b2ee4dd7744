"""Where runs lie."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
