"""The `trainer` settings as TRL's arguments."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from rl_experiments.config.experiment import generation_steps
from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, one_line
from rl_experiments.models.policy import uses_vllm
from rl_experiments.training.trl_settings import check_extra

_NOT_TRL = {"extra", "target"}  # fields of `TrainerConfig` that are not settings of TRL


def make_grpo_config(config: Config, checkpoints: Path) -> GRPOConfig:
    """Return TRL's arguments; `checkpoints` is the folder for `checkpoint-{step}`.

    Raises a `UserError` if TRL does not know or does not accept a setting, or if it does nothing.
    """
    settings = {
        field.name: getattr(config.trainer, field.name)
        for field in dataclasses.fields(config.trainer)
        if field.name not in _NOT_TRL
    }
    settings = {name: getattr(value, "value", value) for name, value in settings.items()}  # enums
    settings["save_steps"] = config.checkpoint.every_steps
    if settings["gradient_checkpointing"] is None:  # `build_trainer` decides where vLLM plays
        settings["gradient_checkpointing"] = torch.cuda.is_available()
    if uses_vllm(config):
        merge_accumulation_passes(settings)
    trl_names = {field.name for field in dataclasses.fields(GRPOConfig)}
    check_extra(config, trl_names)
    try:
        return GRPOConfig(
            output_dir=str(checkpoints),
            seed=config.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=config.model.dtype.value == "bfloat16" and torch.cuda.is_available(),
            logging_steps=generation_steps(config.trainer),
            logging_nan_inf_filter=False,  # a NaN must be seen
            shuffle_dataset=False,  # the dataset is a list of random seeds already
            report_to="none",  # the run has its own loggers
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            # Processes exchange their gradients and nothing else.
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            **settings,
            **config.trainer.extra,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"trainer: {one_line(str(error))}") from None


def merge_accumulation_passes(settings: dict[str, Any]) -> None:
    """Turn gradient accumulation into one large batch, changing the settings in place.

    The update stays the same, because TRL's losses are sums or means over batches of equal size.
    The trainer splits the batch again by what fits the GPU (`micro_batches.py`). This is faster,
    because a pass costs a third of a second however little is in it.
    """
    passes = math.gcd(settings["gradient_accumulation_steps"], settings["steps_per_generation"])
    settings["per_device_train_batch_size"] *= passes
    settings["gradient_accumulation_steps"] //= passes
    settings["steps_per_generation"] //= passes
