"""The presets: what conf/preset/ENV_MODEL.yaml adds to the settings of an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR

PRESETS = sorted(file.stem for file in (CONF_DIR / "preset").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        return compose("config", ["name=test", *overrides])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_named_after_an_environment_and_a_model(preset: str) -> None:
    environment = preset.removesuffix("_tiny")
    assert (CONF_DIR / f"env/{environment}.yaml").exists()
    assert preset == f"{environment}_tiny" and (CONF_DIR / "model/tiny.yaml").exists()


def test_a_preset_applies_to_its_environment_and_model_alone() -> None:
    assert composed("env=wordle", "model=tiny").env.words == "tiny"
    assert composed("env=wordle", "model=qwen2_5_0_5b").env.words == "english"
    assert composed("env=wordle", "model=tiny", "env.words=english").env.words == "english"


@pytest.mark.parametrize("group", ["preset", "tuned"])
def test_a_conf_folder_of_a_user_may_have_presets_under_either_name(
    group: str, tmp_path: Path
) -> None:
    (tmp_path / group).mkdir()
    file = tmp_path / group / "textarena_tiny.yaml"
    file.write_text("# @package _global_\nenv:\n  max_turns: 7\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert composed("env=textarena", "model=tiny", search).env.max_turns == 7
