"""Run the project as a process of its own and read the results that its run folder holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ART_RULES = ("env=game2048", "env.rules=art", "env.parser=strict")
# The task of conf/preset/game2048_tiny.yaml; random play wins about four games in ten.
EASY_2048 = (
    *("env=game2048", "env.win_value=32", "env.max_moves=30", "env.hints=true"),
    *("env.earlier_turns=0", "reward.credit=turn", "reward.gamma=0.5"),
)


def model_overrides(size: str) -> list[str]:
    """Return the overrides that choose the benchmarks' model of a size.

    `small` computes in float32, because it is meant for a CPU.
    """
    from benchmarks.models import model_folder  # imports torch

    folder = model_folder(size)
    chosen = ["model=qwen2_5_0_5b", f"model.path={folder}", f"model.name=benchmark_{size}"]
    return [*chosen, "model.dtype=float32"] if size == "small" else chosen


def unique_name(prefix: str) -> str:
    """Return a name that no earlier run has."""
    return f"{prefix}-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}"


def start(name: str, overrides: Sequence[str]) -> subprocess.Popen[str]:
    """Start a training run and return its process; its output goes to `runs/NAME.txt`."""
    Path("runs").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "rl_experiments", f"name={name}", *overrides]
    with Path(f"runs/{name}.txt").open("a") as out:
        # In a session of its own, so that all of its processes can be ended.
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )


def finish(process: subprocess.Popen[str], name: str, *, timeout_seconds: float = 600) -> Path:
    """Wait until a run has ended and return its folder.

    Exits the benchmark with the run's output if the run fails or takes longer than the timeout.
    """
    try:
        status: int | str = process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        status = f"still running after {timeout_seconds:.0f} s"
    if status:
        sys.exit(f"{read_output(name)[-4000:]}\n{name}: {status}")
    return run_folder(name)


def train(prefix: str, overrides: Sequence[str], *, timeout_seconds: float = 600) -> Path:
    """Train from beginning to end, as a run with a new name, and return the run's folder."""
    name = unique_name(prefix)
    return finish(start(name, overrides), name, timeout_seconds=timeout_seconds)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a run and all of its processes with SIGKILL."""
    os.killpg(process.pid, 9)
    process.wait()


def run_folder(name: str) -> Path:
    """Return the folder of the first job of a run."""
    return Path("runs") / name / "0"


def read_output(name: str) -> str:
    """Return what a run has printed so far."""
    return Path(f"runs/{name}.txt").read_text()


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def policies(run: Path) -> dict[str, dict[str, Any]]:
    """Return the results of each evaluated policy, by its name, from evaluation.json."""
    entries = json.loads((run / "evaluation.json").read_text())["policies"]
    return {entry["policy"]: entry for entry in entries}


def reproducible_results(run: Path) -> Any:
    """Return what two equal runs share: the metrics without times, and the evaluation."""
    lines = [{k: v for k, v in line.items() if "time/" not in k} for line in metrics(run)]
    return lines, json.loads((run / "evaluation.json").read_text())


def format_estimate(estimate: dict[str, float]) -> str:
    """Return an estimate with its 95 % interval, as `0.411 (0.381 to 0.442)`."""
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**estimate)


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(v) for v in r.values()] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return str(value)
