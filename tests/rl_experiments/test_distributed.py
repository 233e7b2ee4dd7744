"""Two processes train one policy. On a machine with GPUs each has one; here they share the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import SMALL, Program

# With one mini-batch per generation no sample moves from one process to the other.
EPISODES = [*SMALL, "trainer.steps_per_generation=1", "trainer.max_steps=3", "num_examples=9"]

# Episodes of every second group end after one turn.
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
    """Return the metrics that a run in `cwd` has logged."""
    lines = (cwd / "runs" / name / "0/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
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
    assert two.stdout.count("train step 3/3") == 1  # one process prints


@pytest.mark.slow
def test_a_process_whose_episodes_all_end_at_once_does_not_block_the_others(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "one_sided.py").write_text(ONE_SIDED)
    settings = [*SMALL, "num_examples=4", "memory.micro_batch_tokens=250", "gpu.count=2"]
    done = program(*settings, "name=x", "env._target_=one_sided.OneSided", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path, "x")[-1]["step"] == 4


@pytest.mark.slow
def test_an_error_of_all_processes_is_shown_once(program: Program) -> None:
    done = program(*SMALL, "name=x", "gpu.count=2", "model.max_length=20", timeout=600)
    assert done.returncode == 1
    assert "model.max_length=20: no episode's first prompt fits" in done.stderr
    assert "ChildFailedError" not in done.stdout + done.stderr
