"""The settings of the tool test: the YAML, errors, the prompt, the preset."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from environments.tool_test import ToolTest
from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from tests.environments.tool_test.playing import TIMER, says
from tests.support.paths import CHECKOUT

WRONG: dict[str, list[Any]] = {
    "offered": [["fly"], ["say", "say"]],
    "min_calls": [0, 9, True],
    "max_calls": [0, 9, 1.5],
    "arguments": ["any"],
    "one_a_turn": [1],
    "max_turns": [0],
    "exact_weight": [-1],
    "names_weight": [float("nan")],
    "arguments_weight": [True],
    "calls_weight": ["1", float("inf")],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named(name: str) -> None:
    for value in WRONG[name]:
        options: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=rf"\Aenv\.{name}=.*: must be [^\n]*\Z"):
            ToolTest(**options)


def test_conflicting_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env\.max_turns=3: must be from 4"):
        ToolTest(one_a_turn=True, max_turns=3)
    with pytest.raises(ValueError, match=r"env\.offered=say: must leave tasks for training and"):
        ToolTest(offered=["say"], max_calls=1, arguments="free")  # type: ignore[arg-type]


def test_the_yaml_has_the_settings_of_the_class_and_the_prompt_follows_them() -> None:
    names = [field.name for field in fields(ToolTest)]
    stored = OmegaConf.load(CHECKOUT / "conf/env/tool_test.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    chosen = OmegaConf.masked_copy(stored, names)
    env = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ToolTest), chosen))
    assert env == ToolTest() and isinstance(env, ToolTest)
    assert "Make all calls in one reply" in env.system_prompt
    assert "one call a turn" in ToolTest(one_a_turn=True).system_prompt
    env.reset(0)
    typed = env.reply_from_input('set_timer {"minutes": 5}')
    assert typed == says(TIMER) and env.reply_from_input("Done.") == "Done."


def test_the_preset_of_the_tiny_model_composes() -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        experiment = check(compose("config", overrides=["name=test", "env=tool_test"]))
    env = experiment.environment
    assert isinstance(env, ToolTest) and len(env.tools) == 2
    assert experiment.config.trainer.max_completion_length == 32
