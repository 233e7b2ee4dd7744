"""A setting of TRL's that would do nothing is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from trl import GRPOConfig

from rl_experiments.config.schema import Config, TrainerConfig
from rl_experiments.errors import UserError
from rl_experiments.preflight import check
from rl_experiments.training.grpo_config import make_grpo_config
from tests.support.trainers import composed


def config(*overrides: str) -> Config:
    return check(composed("name=x", *overrides)).config


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        *("mask_truncated_completions=true", "chat_template_kwargs={enable_thinking: false}"),
        *("reward_weights=[0.5]", "multi_objective_aggregation=normalize_then_sum"),
        *("cache_implementation=static", "max_tool_calling_iterations=3", "seed=3"),
        *("log_completions=true", "num_completions_to_print=2", "logging_steps=5"),
        *("model_init_kwargs={dtype: float16}", "trust_remote_code=true", "fp16=true"),
        *("num_generations_eval=8", "eval_strategy=steps", "pad_to_multiple_of=64"),
        *("use_transformers_continuous_batching=true", "generation_batch_size=32"),
        *("save_total_limit=1", "save_only_model=true", "push_to_hub=true", "report_to=wandb"),
        *("num_train_epochs=3", "label_smoothing_factor=0.1", "shuffle_dataset=true"),
        *("dataloader_num_workers=2", "neftune_noise_alpha=5", "auto_find_batch_size=true"),
    ],
)
def test_a_setting_without_effect_is_refused(setting: str, tmp_path: Path) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(UserError, match=rf"^trainer\.extra\.{name}: has no effect") as error:
        make_grpo_config(config(f"+trainer.extra.{setting}"), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "enabling"),
    [
        ("entropy_target=0.3", ["+trainer.extra.use_adaptive_entropy=true"]),
        ("delta=1.5", ["trainer.loss_type=dr_grpo"]),
        ("sapo_temperature_pos=1.5", ["trainer.loss_type=sapo"]),
        ("vespo_k_neg=2.5", ["trainer.loss_type=vespo"]),
        ("use_bias_correction_kl=false", ["trainer.beta=0.1"]),
        ("sync_ref_model=true", ["trainer.beta=0.1", "model.lora.enabled=false"]),
    ],
)
def test_a_setting_that_others_enable_is_refused_without_them(
    setting: str, enabling: list[str], tmp_path: Path
) -> None:
    off = ["trainer.loss_type=cispo", "model.lora.enabled=true"]
    with pytest.raises(UserError, match=r"^trainer\.extra\.\w+: has no effect without trainer"):
        make_grpo_config(config(*off, f"+trainer.extra.{setting}"), tmp_path)
    name = setting.partition("=")[0]
    arguments = make_grpo_config(config(*off, *enabling, f"+trainer.extra.{setting}"), tmp_path)
    assert getattr(arguments, name) != getattr(GRPOConfig(use_cpu=True, bf16=False), name)


@pytest.mark.parametrize(
    "setting", ["entropy_coef=0.1", "optim=adafactor", "top_entropy_quantile=0.2", "tf32=false"]
)
def test_a_setting_with_an_effect_is_passed_to_trl(setting: str, tmp_path: Path) -> None:
    name, _, value = setting.partition("=")
    arguments = make_grpo_config(config(f"+trainer.extra.{setting}"), tmp_path)
    assert str(getattr(arguments, name)).lower().endswith(value)


def test_settings_of_the_schema_are_trls() -> None:
    """What the schema offers beside `extra` is passed on under the same name."""
    names = {field.name for field in dataclasses.fields(TrainerConfig)} - {"extra", "target"}
    assert names <= {field.name for field in dataclasses.fields(GRPOConfig)}
