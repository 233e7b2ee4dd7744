"""Episodes of GSM8K: rewards, ends, scripted policies, settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from environments import End, evaluation_seed, training_seed
from environments.gsm8k import Gsm8k
from tests.environments.gsm8k.questions import ROWS
from tests.support.paths import CHECKOUT


def test_rewards_and_ends(questions: str) -> None:
    env = Gsm8k(questions, correct_weight=2, format_weight=0.5)
    shown = env.reset(evaluation_seed(3))
    row = next(row for row in ROWS if row["question"] == shown)
    gold = row["answer"].rpartition(" ")[2]
    assert env.category == "1 step"
    right = env.step(rf"We add. \boxed{{{gold}}}")
    assert (right.end, right.reward, right.metrics) == (End.WON, 2.5, {"win": 1.0, "format": 1.0})
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("")
    for reply, end, reward in (
        (rf"\boxed{{{gold}1}}", End.LOST, 0.5),
        (f"The answer is {gold}.", End.INVALID, 0.0),
        (env.system_prompt, End.INVALID, 0.0),
        (shown, End.INVALID, 0.0),
    ):
        assert env.reset(evaluation_seed(3), member=1) == shown
        step = env.step(reply)
        assert (step.end, step.reward) == (end, reward)
    env.reset(0)
    assert env.truncate().end is End.TRUNCATED
    assert env.reply_from_input(" 18 ") == r"\boxed{18}"
    assert env.reply_from_input("#### 18") == "#### 18"


def test_scripted_policies_without_skill_earn_little(questions: str) -> None:
    env, rng = Gsm8k(questions), Random(0)
    wins = {}
    for name, policy in env.baselines.items():
        ends = []
        for index in range(500):
            env.reset(training_seed(0, index))
            ends.append(env.step(policy(env, rng)))
        assert all(step.metrics["format"] for step in ends)
        wins[name] = sum(step.end is End.WON for step in ends) / len(ends)
    assert wins.pop("oracle") == 1
    assert max(wins.values()) < 0.2


def test_wrong_settings_are_named(questions: str, tmp_path: Path) -> None:
    wrong: dict[str, list[Any]] = {"correct_weight": [-1, "1", 101], "format_weight": [NAN, True]}
    wrong |= {"data": ["", None, 3], "evaluation_data": [""]}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"\Aenv\.{name}={value}: must be \w+"):
                Gsm8k(**{"data": questions, name: value})
    missing: Any = str(tmp_path / "missing.jsonl")
    for name in ("data", "evaluation_data"):
        with pytest.raises(ValueError, match=rf"\Aenv\.{name}=\S+ there is no such file.*must be"):
            Gsm8k(**{"data": questions, name: missing})
    (tmp_path / "image.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is not text"):
        Gsm8k(str(tmp_path / "image.jsonl"))


NAN = float("nan")


def test_the_yaml_has_the_settings_of_the_class(questions: str) -> None:
    names = [field.name for field in fields(Gsm8k)]
    stored = OmegaConf.load(CHECKOUT / "conf/env/gsm8k.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    assert stored.data == "openai/gsm8k"
    chosen = OmegaConf.merge(OmegaConf.masked_copy(stored, names), {"data": questions})
    env = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Gsm8k), chosen))
    assert env == Gsm8k(questions) and isinstance(env, Gsm8k)
    assert env.fresh().questions is env.questions  # read once
