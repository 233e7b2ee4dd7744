"""Which settings of TRL's `GRPOConfig` do something here, to refuse the others by name.

Prompts, rewards, sampling, checkpoints, logs and evaluation are not TRL's here; its settings of
them would be taken and forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl_experiments.config.schema import Config, LossType
from rl_experiments.errors import UserError, did_you_mean

_OPTIMIZER = {"optim", "optim_args", "optim_target_modules", "adam_epsilon", "lr_scheduler_kwargs"}
_LOSS = {
    *("top_entropy_quantile", "off_policy_mask_threshold", "router_aux_loss_coef"),
    *("entropy_coef", "use_adaptive_entropy", "disable_dropout", "cast_lm_head_to_fp32"),
}
_COMPUTATION = {
    *("tf32", "gradient_checkpointing_kwargs", "use_liger_kernel", "torch_empty_cache_steps"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "full_determinism", "debug"),
    *("ddp_bucket_cap_mb", "ddp_static_graph", "ddp_backend", "ddp_timeout"),
    *("fsdp", "fsdp_config", "deepspeed", "accelerator_config", "parallelism_config"),
}
_CLIPPED_LOSSES = (LossType.grpo, LossType.bnpo, LossType.dr_grpo, LossType.dapo, LossType.luspo)

# What to set in place of a setting that has no effect.
_INSTEAD = {
    **dict.fromkeys(("seed", "data_seed"), "seed"),
    **dict.fromkeys(("fp16", "bf16", "model_init_kwargs"), "model.dtype"),
    **dict.fromkeys(("save_steps", "save_strategy"), "checkpoint.every_steps"),
    **dict.fromkeys(("eval_strategy", "eval_steps"), "evaluation.every_steps"),
    **dict.fromkeys(("report_to", "run_name", "project"), "logger"),
    **dict.fromkeys(("output_dir", "resume_from_checkpoint"), "name and resume"),
    "save_total_limit": "checkpoint.keep_latest",
    "num_train_epochs": "trainer.max_steps",
    "generation_batch_size": "trainer.steps_per_generation",
    "reward_weights": "reward",
}


def check_extra(config: Config, trl_names: set[str]) -> None:
    """Raise a `UserError` for a setting in `trainer.extra` that is unknown or has no effect."""
    extra = config.trainer.extra
    for name in extra:
        if name not in trl_names:
            raise UserError(
                f"trainer.extra.{name}: TRL has no such setting{did_you_mean(name, trl_names)}"
            )
        conditions = _conditions(config, extra)
        if name in conditions:
            holds, condition = conditions[name]
            if not holds:
                raise UserError(f"trainer.extra.{name}: has no effect without {condition}")
        elif name not in _OPTIMIZER | _LOSS | _COMPUTATION:
            instead = f"; set {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise UserError(
                f"trainer.extra.{name}: has no effect here, where prompts, rewards, sampling, "
                f"checkpoints, logs and evaluation are not TRL's{instead}"
            )


def _conditions(config: Config, extra: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """Return whether settings have an effect that others must enable, and what enables them."""
    trainer, lora = config.trainer, config.model.lora
    loss = trainer.loss_type
    clipped = "|".join(each.value for each in _CLIPPED_LOSSES)
    has_reference = (trainer.beta > 0, "trainer.beta above 0")
    moves = trainer.beta > 0 and not lora.enabled
    adapts = (bool(extra.get("use_adaptive_entropy")), "trainer.extra.use_adaptive_entropy=true")
    syncs = (bool(extra.get("sync_ref_model")), "trainer.extra.sync_ref_model=true")
    sapo = (loss is LossType.sapo, "trainer.loss_type=sapo")
    vespo = (loss is LossType.vespo, "trainer.loss_type=vespo")
    return {
        "delta": (loss in _CLIPPED_LOSSES, f"trainer.loss_type={clipped}"),
        "use_bias_correction_kl": has_reference,
        "sync_ref_model": (moves, "trainer.beta above 0 and model.lora.enabled=false"),
        **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), syncs),
        **dict.fromkeys(("entropy_coef_min", "entropy_coef_max"), adapts),
        **dict.fromkeys(("entropy_coef_delta", "entropy_target"), adapts),
        **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), sapo),
        **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos"), vespo),
        **dict.fromkeys(("vespo_k_neg", "vespo_lambda_neg"), vespo),
        "liger_kernel_config": (
            bool(extra.get("use_liger_kernel")),
            "trainer.extra.use_liger_kernel=true",
        ),
    }
