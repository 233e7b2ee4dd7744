"""Presets and variants: what conf/preset and conf/variant add for an environment and a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rl_experiments.config.environment import environment_name
from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR

PRESETS = sorted(
    f"{group}/{file.stem}"
    for group in ("preset", "variant")
    for file in (CONF_DIR / group).glob("*.yaml")
    if file.stem != "plain"
)


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        return compose("config", ["name=test", *overrides])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_named_after_an_environment_and_a_model(preset: str) -> None:
    name = preset.split("/")[1]
    environment = name.removesuffix("_tiny")
    assert (CONF_DIR / f"env/{environment}.yaml").exists()
    assert name == f"{environment}_tiny" and (CONF_DIR / "model/tiny.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_variant_has_a_name_and_a_preset_leaves_the_environment_alone(preset: str) -> None:
    env = OmegaConf.select(OmegaConf.load(CONF_DIR / f"{preset}.yaml"), "env")
    assert (env is not None) == preset.startswith("variant/")
    if env is not None:
        assert env.variant == "tiny"
        name = preset.split("/")[1]
        shown = composed(f"env={name.removesuffix('_tiny')}", "model=tiny").env
        assert environment_name(shown) == f"{shown.name} (variant {name})"


@pytest.mark.slow
def test_a_preset_applies_to_its_environment_and_model_alone() -> None:
    assert composed("env=wordle", "model=tiny").env.words == "tiny"
    assert composed("env=wordle", "model=qwen2_5_0_5b").env.words == "english"
    assert composed("env=wordle", "model=tiny", "env.words=english").env.words == "english"
    plain = composed("env=wordle", "model=tiny", "variant=plain")
    assert plain.env == composed("env=wordle", "model=qwen2_5_0_5b").env
    assert plain.reward.credit == composed("env=wordle", "model=tiny").reward.credit


@pytest.mark.slow
@pytest.mark.parametrize("group", ["preset", "tuned"])
def test_a_conf_folder_of_a_user_may_have_presets_under_either_name(
    group: str, tmp_path: Path
) -> None:
    (tmp_path / group).mkdir()
    file = tmp_path / group / "textarena_tiny.yaml"
    file.write_text("# @package _global_\nenv:\n  max_turns: 7\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert composed("env=textarena", "model=tiny", search).env.max_turns == 7
