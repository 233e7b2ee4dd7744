"""Train each environment for two steps with the tiny model on a CPU, and evaluate it."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal

from tests.support.program import SMALL, Program

TWO_STEPS = [
    *(word for word in SMALL if not word.startswith("env.")),
    "name=two",
    "num_examples=8",
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=16",
    "trainer.gradient_accumulation_steps=1",
    "trainer.num_generations=8",
    "trainer.steps_per_generation=1",
    "checkpoint.every_steps=1",
    "model.scratch.warmup_episodes=12",
    "model.scratch.warmup_steps=20",
    "model.scratch.warmup_learning_rate=1e-2",
]
# The command line of each environment, and whether it has an oracle.
ENVIRONMENTS = {
    "experiment=game2048_art model=tiny gpu=local env.win_value=16 env.max_moves=6": False,
    "env=wordle env.words=english env.held_out=0.2": True,
    "env=gsm8k env.data=questions.jsonl": True,
    "env=bfcl_single_turn": True,
    "env=tool_test": True,
    "env=reasoning_gym env.dataset=coin_flip+graph_color": False,
    "env=textarena env.options={max_number:9} env.max_turns=4": False,
    "env=gymnasium env.options={is_slippery:false} env.max_steps=6": True,
    "env=gymnasium env.id=Blackjack-v1": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("typed", ENVIRONMENTS)
def test_two_steps_train_and_are_evaluated(typed: str, program: Program, tmp_path: Path) -> None:
    questions = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(10)]
    lines = [json.dumps(question) for question in questions]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    done = program(*TWO_STEPS, *typed.split())
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "runs/two/0"

    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        assert all(isfinite(step[name]) for name in ("loss", "grad_norm", "reward"))
        assert step["sampling/sampling_logp_difference/mean"] < 1e-3
        assert step["turns"] >= 1 and step["end/failed"] == 0
    # The rewards vary, and the weights change.
    assert any(step["reward_std"] > 0 and step["grad_norm"] > 0 for step in steps)
    first, last = (load_file(run / f"checkpoints/checkpoint-{n}/model.safetensors") for n in (1, 2))
    assert any(not equal(first[name], last[name]) for name in first)

    summary = json.loads((run / "evaluation.json").read_text())
    policies = {policy["policy"]: policy for policy in summary["policies"]}
    scripted = list(policies)[:-2]
    assert list(policies)[-2:] == ["before", "after"] and scripted[0] == "random"
    for policy in policies.values():
        assert (policy["episodes"], policy["failed"]) == (8, 0)
        assert isfinite(policy["reward"]["value"])
    assert ("oracle" in scripted) is ENVIRONMENTS[typed]
    if "oracle" in scripted:
        assert policies["oracle"]["win_rate"]["value"] == 1
        assert policies["oracle"]["reward"]["value"] > policies["random"]["reward"]["value"]
