"""The files of conf/: each composes, and says what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rl_experiments.config.registration import register
from rl_experiments.config.schema import TrainerConfig
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from tests.support.paths import OUTSIDE


@contextmanager
def composed(*overrides: str) -> Iterator[DictConfig]:
    """Yield the configuration that these overrides compose to."""
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        yield compose(config_name="config", overrides=["name=test", *overrides])


def choices(group: str) -> list[str]:
    """Return the choices of a group of conf/."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def test_the_art_experiment_has_the_settings_of_its_original() -> None:
    with composed("experiment=game2048_art") as composed_cfg:
        cfg = OmegaConf.create(OmegaConf.to_yaml(composed_cfg))  # with enums as their names
    expected = {
        "env.rules": "art",
        "env.win_value": 128,
        "env.size": 4,
        "env.max_moves": None,
        "env.parser": "strict",
        "env.hints": False,
        "env.earlier_turns": None,
        "gpu.type": "A10G",
        "gpu.timeout": 7200,
        "model.path": "Qwen/Qwen2.5-3B-Instruct",
        "model.max_length": 8192,
        "model.lora.enabled": True,
        "model.lora.r": 8,
        "model.lora.alpha": 16,
        "trainer.max_steps": 40,
        "trainer.num_generations": 18,
        "trainer.learning_rate": 1e-5,
        "trainer.adam_beta1": 0.9,
        "trainer.adam_beta2": 0.99,
        "trainer.weight_decay": 0.1,
        "trainer.max_grad_norm": 0.1,
        "trainer.epsilon": 0.2,
        "trainer.beta": 0.0,
        "trainer.max_completion_length": 128,
        "reward.credit": "episode",
    }
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
    assert len(cfg.model.lora.target_modules) == 7
    trainer = cfg.trainer  # one group of 18 games, and one optimizer step, each generation
    assert trainer.per_device_train_batch_size * trainer.steps_per_generation == 18
    assert trainer.steps_per_generation == trainer.gradient_accumulation_steps


def test_trainer_settings_are_trls_own() -> None:
    from trl import GRPOConfig

    settings = {field.name for field in fields(TrainerConfig)} - {"extra", "target"}
    assert settings <= {field.name for field in fields(GRPOConfig)}


def test_every_yaml_begins_by_saying_what_it_is() -> None:
    files = [*CONF_DIR.rglob("*.yaml"), *OUTSIDE.rglob("*.yaml")]
    assert len(files) > 20
    without = [
        f for f in files if not re.match(r"# (?!@package).|# @package \S+\n# .", f.read_text())
    ]
    assert without == []


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("model"))
def test_every_model_composes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = name in ("openai", "openrouter")
    for service in ("OPENAI", "OPENROUTER"):
        monkeypatch.setenv(f"{service}_API_KEY", "a-key")
    words = [f"model.name={name}"] if remote else []
    with composed("env=game2048", f"model={name}", *words) as cfg:
        model = check(cfg).config.model
        assert model.name == name
        assert [bool(model.path), bool(model.scratch), bool(model.base_url)].count(True) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("gpu"))
def test_every_gpu_composes(name: str) -> None:
    with composed("env=game2048", f"gpu={name}") as cfg:
        same = {"a100": "a100_80gb"}.get(name, name)
        assert cfg.gpu.type.lower().replace("-", "_") == same
        assert cfg.model.name == ("tiny" if name == "local" else "qwen2_5_3b")
        assert OmegaConf.missing_keys(cfg) == set()
