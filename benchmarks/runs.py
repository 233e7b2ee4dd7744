"""What the benchmarks share: the project as a process of its own, and what its run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RULES_ART = ("env=game2048", "env.rules=art", "env.parser=strict")
# The task of conf/preset/game2048_tiny.yaml, a random play of which wins four times in ten.
EASY = (
    *("env=game2048", "env.win_value=32", "env.max_moves=30", "env.hints=true"),
    *("env.earlier_turns=0", "reward.credit=turn", "reward.gamma=0.5"),
)


def model(size: str) -> list[str]:
    """The overrides that choose the benchmarks' model; `small` is kept exact for a CPU."""
    from benchmarks.models import model_folder  # which imports torch

    folder = model_folder(size)
    chosen = ["model=qwen2_5_0_5b", f"model.path={folder}", f"model.name=benchmark_{size}"]
    return [*chosen, "model.dtype=float32"] if size == "small" else chosen


def name_of(what: str) -> str:
    """A run's name, unlike any before."""
    return f"{what}-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}"


def start(name: str, overrides: Sequence[str]) -> subprocess.Popen[str]:
    """A training run under way, its output in `runs/NAME.txt`."""
    Path("runs").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "rl_experiments", f"name={name}", *overrides]
    with Path(f"runs/{name}.txt").open("a") as out:
        # In a session of its own, so that all of its processes can be ended.
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )


def finish(process: subprocess.Popen[str], name: str, *, timeout: float = 600) -> Path:
    """Wait for the run's end; its folder. A run that fails or hangs ends the benchmark."""
    try:
        status: int | str = process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        status = f"still running after {timeout:.0f} s"
    if status:
        sys.exit(f"{output(name)[-4000:]}\n{name}: {status}")
    return folder(name)


def train(what: str, overrides: Sequence[str], *, timeout: float = 600) -> Path:
    """The folder of a training run from beginning to end."""
    name = name_of(what)
    return finish(start(name, overrides), name, timeout=timeout)


def kill(process: subprocess.Popen[str]) -> None:
    """End a run and its processes at once."""
    os.killpg(process.pid, 9)
    process.wait()


def folder(name: str) -> Path:
    return Path("runs") / name / "0"


def output(name: str) -> str:
    return Path(f"runs/{name}.txt").read_text()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def policies(run: Path) -> dict[str, dict[str, Any]]:
    """What evaluation.json says of each policy."""
    found = json.loads((run / "evaluation.json").read_text())["policies"]
    return {policy["policy"]: policy for policy in found}


def results(run: Path) -> Any:
    """All that two equal runs have in common: metrics without the clock's, and the evaluation."""
    lines = [{k: v for k, v in line.items() if "time/" not in k} for line in metrics(run)]
    return lines, json.loads((run / "evaluation.json").read_text())


def shown(estimate: dict[str, float]) -> str:
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**estimate)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(v) for v in r.values()] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return str(value)
