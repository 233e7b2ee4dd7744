"""Conditions on settings: each one that is broken is named in one line, with its value."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from rl_experiments.config.schema import Config, Credit, VllmMode
from rl_experiments.config.validate import check_settings
from rl_experiments.errors import UserError

NAN = float("nan")


def config(**settings: Any) -> Config:
    """Return a configuration with these settings, `a__b` for a.b; the others can be trained."""
    made = Config(name="x")
    made.judge.base_url = "http://127.0.0.1:8000/v1"
    for name, value in settings.items():
        *groups, leaf = name.split("__")
        setattr(reduce(getattr, groups, made), leaf, value)
    return made


def test_the_defaults_are_accepted() -> None:
    check_settings(config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed=-1: must be from 0 to 1073741823"),
        ({"num_examples": 0}, "num_examples=0: must be at least 1"),
        ({"trainer__gradient_accumulation_steps": 0}, "must be at least 1"),
        ({"trainer__steps_per_generation": 0}, "must be at least 1"),
        ({"trainer__learning_rate": 0.0}, "trainer.learning_rate=0.0: must be above 0"),
        ({"trainer__learning_rate": NAN}, "trainer.learning_rate=nan: must be above 0"),
        ({"trainer__num_generations": 1}, "a group needs at least 2 episodes"),
        ({"trainer__num_generations": 3}, "does not divide the 8 episodes of a generation"),
        (
            {"trainer__steps_per_generation": 3, "trainer__gradient_accumulation_steps": 2},
            "one must divide the other",
        ),
        (
            {"trainer__steps_per_generation": 4, "checkpoint__every_steps": 6},
            "checkpoint.every_steps=6 ends within a generation, from which a run cannot resume "
            "exactly; use a multiple of 4, such as 4 or 8",
        ),
        (
            {"trainer__steps_per_generation": 4, "evaluation__every_steps": 2},
            "use a multiple of 4, such as 4",
        ),
        ({"trainer__extra": {"max_steps": 1}}, "trainer.extra.max_steps: this is a setting of"),
        ({"trainer__extra": {"vllm_mode": "server"}}, "trainer.extra.vllm_mode: has no effect"),
        ({"reward__gamma": 1.5}, "reward.gamma=1.5: must be from 0 to 1"),
        ({"evaluation__temperature": NAN}, "evaluation.temperature=nan: must not be below 0"),
        ({"checkpoint__keep_best": "eval/reward"}, "needs evaluation.every_steps=..."),
        ({"checkpoint__keep_every": 0}, "checkpoint.keep_every=0: must be at least 1"),
        ({"checkpoint__close_timeout": -1.0}, "checkpoint.close_timeout=-1.0: must not be below 0"),
        ({"model__max_length": 128}, "model.max_length=128 leaves no room for a prompt"),
        ({"vllm__gpu_memory_utilization": 0.0}, "must be above 0 and at most 1"),
        ({"vllm__max_model_len": 100}, "lower model.max_length"),
        ({"vllm__enable_auto_tool_choice": True}, "vllm.tool_call_parser=..."),
        ({"vllm__tensor_parallel_size": 2}, "needs vllm.mode=server"),
        ({"vllm__mode": VllmMode.server, "gpu__count": 3}, "set gpu.count=2, or vllm.mode="),
        ({"model__base_url": "localhost"}, "model.base_url=localhost: give an address such as"),
        ({"judge__timeout": 0.0}, "judge.timeout=0.0: must be above 0 seconds"),
        ({"judge__max_requests": -1}, "judge.max_requests=-1: must not be below 0"),
        ({"model__input_usd": 1.0}, "model.input_usd and model.output_usd: give both, or neither"),
        ({"model__max_usd": 1.0}, "model.max_usd=1.0: needs model.input_usd and"),
        (
            {"reward__ruler__enabled": True, "reward__credit": Credit.turn},
            "reward.credit=turn: a judge rewards whole episodes",
        ),
        ({"reward__ruler__enabled": True, "judge__base_url": None}, "judge.base_url: give the"),
        ({"reward__ruler__weight": 0.0}, "reward.ruler.weight=0.0: must be above 0 and at most 1"),
        ({"reward__ruler__max_chars": 10}, "reward.ruler.max_chars=10: must be at least 500"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_condition_that_is_broken_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_settings(config(**settings))
    line = str(refused.value)
    assert message in line and "\n" not in line
