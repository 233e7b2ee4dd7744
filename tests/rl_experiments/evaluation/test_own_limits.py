"""The tiny model's short replies are those of the tiny model alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rl_experiments.config.registration import register
from rl_experiments.config.schema import Config
from rl_experiments.evaluation.own_limits import with_own_limits
from rl_experiments.evaluation.policies import EvaluatedPolicy, resolve_policies
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import compose_and_check


def policies(*words: str) -> dict[str, EvaluatedPolicy]:
    """Return the policies of an evaluation with these overrides, by their names."""
    register()
    experiment = compose_and_check(words, example="", name="test")
    return {
        policy.name: with_own_limits(policy, experiment.config, words)
        for policy in resolve_policies(experiment.config, experiment.environment)
    }


def limits(*words: str) -> dict[str, int]:
    """Return how many tokens a reply of each policy may have."""
    chosen = policies(*words).items()
    return {name: policy.config.trainer.max_completion_length for name, policy in chosen}


@pytest.mark.slow
def test_each_policy_has_the_limit_of_its_model(tmp_path: Path) -> None:
    listed = "policies=[random,tiny,qwen2_5_0_5b]"
    assert limits(listed) == {"random": 8, "tiny": 8, "qwen2_5_0_5b": 128}
    assert limits(listed, "env=tool_test") == {"random": 32, "tiny": 32, "qwen2_5_0_5b": 128}
    assert limits(listed, "trainer.max_completion_length=16")["qwen2_5_0_5b"] == 16
    assert limits(listed, "model=qwen2_5_0_5b") == dict.fromkeys(("random", "tiny"), 128) | {
        "qwen2_5_0_5b": 128
    }
    (tmp_path / "config.json").write_text("{}")  # a model in a folder, of no run
    assert limits(f"policies=[{tmp_path}]") == {str(tmp_path): 128}


@pytest.mark.slow
def test_a_model_behind_an_api_is_not_the_tiny_one() -> None:
    address = "model.base_url=http://127.0.0.1:9/v1"
    assert limits(address, "model.name=m", "policies=[model,other,random]") == {
        **{"m": 128, "other": 128},
        "random": 8,
    }


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["model.max_length=3000"]])
def test_a_checkpoint_has_the_limits_of_its_run(tmp_path: Path, words: list[str]) -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        run = compose(
            "config",
            ["name=r", "model=qwen2_5_0_5b", "trainer.max_completion_length=77"],
        )
    assert isinstance(OmegaConf.to_object(run), Config)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(run))
    (tmp_path / "config.json").write_text("{}")
    [policy] = policies(f"checkpoint.path={tmp_path}", *words).values()
    config = policy.config
    assert config.trainer.max_completion_length == 77
    assert config.model.name == "qwen2_5_0_5b" and config.model.dtype.value == "bfloat16"
    assert config.model.max_length == (3000 if words else 4096)
    assert limits(f"checkpoint.path={tmp_path}", "model=tiny") == {tmp_path.name: 8}
