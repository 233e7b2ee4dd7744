"""Several processes train one policy, a GPU each; here they share the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import SMALL, Program

# One mini-batch a generation: nothing is shuffled between the processes.
EPISODES = [*SMALL, "trainer.steps_per_generation=1", "trainer.max_steps=3", "num_examples=9"]

ONE_SIDED = """
from dataclasses import dataclass
from environments import End, Step, is_evaluation_seed
from environments.game2048 import Game2048

@dataclass
class OneSided(Game2048):
    def reset(self, seed, *, member=0):
        self.ends = not is_evaluation_seed(seed) and seed // 2 % 2 == 1
        return super().reset(seed, member=member)

    def step(self, reply):
        step = super().step(reply)
        return Step(reward=step.reward, end=End.LOST) if self.ends else step
"""


def metrics(cwd: Path, name: str) -> list[dict[str, Any]]:
    lines = (cwd / "runs" / name / "0/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_train_as_one_with_the_same_episodes(
    program: Program, tmp_path: Path
) -> None:
    one = program(*EPISODES, "name=one", "trainer.per_device_train_batch_size=8")
    assert one.returncode == 0, one.stderr
    two = program(*EPISODES, "name=two", "gpu.count=2")
    assert two.returncode == 0, two.stdout + two.stderr
    for alone, both in zip(metrics(tmp_path, "one"), metrics(tmp_path, "two"), strict=True):
        for name in ("step", "reward", "rollout/tokens", "turns", "end/lost"):
            assert both[name] == pytest.approx(alone[name], abs=1e-6), name
        for name in ("loss", "grad_norm", "entropy"):
            assert both[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name
    played = [
        json.loads((tmp_path / "runs" / name / "0/evaluation.json").read_text())
        for name in ("one", "two")
    ]
    assert played[0]["policies"][:5] == played[1]["policies"][:5]
    lines = (tmp_path / "runs/two/0/evaluation/after.jsonl").read_text().splitlines()
    assert len({json.loads(line)["seed"] for line in lines}) == len(lines) == 9
    assert two.stdout.count("train step 3/3") == 1  # one process speaks


def test_episodes_that_all_end_at_once_in_one_process_hold_nobody_up(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "one_sided.py").write_text(ONE_SIDED)
    settings = [*SMALL, "trainer.max_steps=4", "fit.micro_batch_tokens=250", "gpu.count=2"]
    done = program(*settings, "name=x", "env._target_=one_sided.OneSided", timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path, "x")[-1]["step"] == 4


def test_what_is_wrong_is_said_once_and_ends_all_processes(program: Program) -> None:
    done = program(*SMALL, "name=x", "gpu.count=2", "model.max_length=20", timeout=100)
    assert done.returncode == 1
    assert "model.max_length=20: the first prompt of no episode fits" in done.stderr
    assert "ChildFailedError" not in done.stdout + done.stderr
