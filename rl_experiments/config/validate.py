"""Conditions on the settings that can be checked by looking at nothing but the settings."""

from __future__ import annotations

import re
from dataclasses import fields

from omegaconf import DictConfig, OmegaConf

from rl_experiments.config.experiment import generation_steps
from rl_experiments.config.messages import hint_for_leaf
from rl_experiments.config.schema import (
    Config,
    Credit,
    EndpointConfig,
    JudgeConfig,
    RulerConfig,
    TrainerConfig,
    VllmMode,
)
from rl_experiments.errors import UserError, did_you_mean

# Settings of TRL's own sampler, which is not used here: they cut the distribution that replies are
# drawn from.
_SETTINGS_OF_TRLS_SAMPLER = (
    *("top_k", "top_p", "min_p", "repetition_penalty"),
    *("generation_kwargs", "use_vllm"),
)
_LEAST_CHARS_FOR_A_JUDGE = 500
_ADDRESS_EXAMPLE = "http://127.0.0.1:8000/v1"


def typed_config(cfg: DictConfig) -> Config:
    """Return the composed configuration as an object of the schema.

    Raises a `UserError` for a value that is missing and for a setting that the schema does not
    have; Hydra lets `+key=value` through.
    """
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith("hydra"))
    if missing:
        raise UserError(f"{missing[0]}: a value is missing; give {missing[0]}=...")
    schema = OmegaConf.structured(Config)
    known = [field.name for field in fields(Config)]
    for key in map(str, cfg):
        if key not in (*known, "hydra"):
            hint = did_you_mean(key, known)
            if "did you mean " not in hint:
                hint = hint_for_leaf(key) or hint
            raise UserError(f"{key}: no such setting{hint}")
    # Merged as plain values: a typed node would bring along the keys that `+` has added to it.
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    typed = OmegaConf.to_object(OmegaConf.merge(schema, plain))
    assert isinstance(typed, Config)
    return typed


def check_settings(config: Config) -> None:
    """Raise a `UserError` that names the first setting whose value cannot be right."""
    _check_numbers(config)
    _check_trainer(config)
    _check_engine(config)
    _check_endpoint("model", config.model)
    _check_endpoint("judge", config.judge)
    _check_ruler(config.reward.ruler, config.judge, config.reward.credit)


def _check_trainer(config: Config) -> None:
    """Check the conditions of TRL, and those that let a run resume exactly."""
    trainer = config.trainer
    episodes = trainer.per_device_train_batch_size * trainer.steps_per_generation
    if trainer.num_generations < 2:
        raise UserError(
            f"trainer.num_generations={trainer.num_generations}: a group needs at least 2 episodes"
        )
    if episodes % trainer.num_generations:
        raise UserError(
            f"trainer.num_generations={trainer.num_generations} does not divide the "
            f"{episodes} episodes of a generation (trainer.per_device_train_batch_size="
            f"{trainer.per_device_train_batch_size} x trainer.steps_per_generation="
            f"{trainer.steps_per_generation})"
        )
    passes_per_generation = trainer.steps_per_generation * trainer.num_iterations
    passes_per_step = trainer.gradient_accumulation_steps
    if passes_per_generation % passes_per_step and passes_per_step % passes_per_generation:
        raise UserError(
            f"trainer.gradient_accumulation_steps={passes_per_step} and "
            f"trainer.steps_per_generation x trainer.num_iterations = {passes_per_generation}: "
            "one must divide the other"
        )
    for name, steps in (
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("evaluation.every_steps", config.evaluation.every_steps),
        ("trainer.max_steps", trainer.max_steps),
    ):
        if steps is not None:
            _require_at_least(name, steps, 1)
            _require_whole_generations(name, steps, trainer)
    for key in trainer.extra:
        if hasattr(trainer, key):
            raise UserError(f"trainer.extra.{key}: this is a setting of its own, trainer.{key}")
        if key in _SETTINGS_OF_TRLS_SAMPLER or key.startswith("vllm_"):
            raise UserError(
                f"trainer.extra.{key}: has no effect; replies are drawn from the policy's whole "
                "distribution, as the importance ratios need (trainer.temperature shapes it)"
            )


def _require_whole_generations(name: str, steps: int, trainer: TrainerConfig) -> None:
    """Refuse a number of optimizer steps that ends within a generation."""
    passes = steps * trainer.gradient_accumulation_steps
    if passes % (trainer.steps_per_generation * trainer.num_iterations):
        unit = generation_steps(trainer)
        below, above = steps // unit * unit, (steps // unit + 1) * unit
        choices = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"{name}={steps} ends within a generation, from which a run cannot resume "
            f"exactly; use a multiple of {unit}, such as {choices}"
        )


def _check_numbers(config: Config) -> None:
    """Check the ranges of single numbers, and that a prompt has room beside its reply.

    This comes first: the other conditions divide by some of these numbers.
    """
    trainer, evaluation, checkpoint = config.trainer, config.evaluation, config.checkpoint
    for name in (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "num_iterations",
        "max_completion_length",
    ):
        _require_at_least(f"trainer.{name}", getattr(trainer, name), 1)
    for name in ("learning_rate", "temperature", "max_grad_norm", "epsilon"):
        _require_above_zero(f"trainer.{name}", getattr(trainer, name))
    if not 0 <= config.seed < 2**30:
        raise UserError(f"seed={config.seed}: must be from 0 to {2**30 - 1}")
    _require_share("reward.gamma", config.reward.gamma)
    _require_at_least("num_examples", config.num_examples, 1)
    _require_at_least("evaluation.validation_examples", evaluation.validation_examples, 1)
    best = checkpoint.keep_best or ""
    if best.startswith("eval/") and not evaluation.every_steps:
        raise UserError(f"checkpoint.keep_best={best}: needs evaluation.every_steps=...")
    _require_at_least("checkpoint.keep_latest", checkpoint.keep_latest, 1)
    if checkpoint.keep_every is not None:
        _require_at_least("checkpoint.keep_every", checkpoint.keep_every, 1)
    _require_not_negative("checkpoint.close_timeout", checkpoint.close_timeout)
    _require_at_least("gpu.count", config.gpu.count, 1)
    _require_at_least("evaluation.batch_size", evaluation.batch_size, 1)
    _require_at_least("evaluation.samples", evaluation.samples, 1)
    _require_at_least("checks.patience", config.checks.patience, 1)
    if evaluation.temperature is not None:
        _require_not_negative("evaluation.temperature", evaluation.temperature)
    if config.model.max_length <= trainer.max_completion_length:
        raise UserError(
            f"model.max_length={config.model.max_length} leaves no room for a prompt beside "
            f"trainer.max_completion_length={trainer.max_completion_length}"
        )


def _check_engine(config: Config) -> None:
    """Check the settings of vLLM against the GPUs and against those of the model."""
    vllm, gpus = config.vllm, config.gpu.count
    for name in ("max_num_seqs", "block_size", "tensor_parallel_size"):
        _require_at_least(f"vllm.{name}", getattr(vllm, name), 1)
    utilization = vllm.gpu_memory_utilization
    if utilization is not None and not 0 < utilization <= 1:
        raise UserError(f"vllm.gpu_memory_utilization={utilization}: must be above 0 and at most 1")
    if vllm.max_model_len is not None and vllm.max_model_len < config.model.max_length:
        raise UserError(
            f"vllm.max_model_len={vllm.max_model_len} is below model.max_length="
            f"{config.model.max_length}, which an episode may fill; lower model.max_length"
        )
    if vllm.enable_auto_tool_choice and not vllm.tool_call_parser:
        raise UserError(
            "vllm.enable_auto_tool_choice=true: name the format of the calls in "
            "vllm.tool_call_parser=... (hermes, for Qwen2.5)"
        )
    if vllm.mode is VllmMode.colocate and vllm.tensor_parallel_size > 1:
        raise UserError(
            f"vllm.tensor_parallel_size={vllm.tensor_parallel_size}: needs vllm.mode=server; with "
            "vllm.mode=colocate each GPU has an engine of its own"
        )
    if vllm.mode is VllmMode.server and gpus > 1 + vllm.tensor_parallel_size:
        raise UserError(
            f"gpu.count={gpus}: vllm.mode=server trains on one GPU beside the server's; set "
            f"gpu.count={1 + vllm.tensor_parallel_size}, or vllm.mode=colocate"
        )


def _check_endpoint(group: str, endpoint: EndpointConfig) -> None:
    """Check the address and the budget of a model behind an API; `group` is model or judge."""
    if endpoint.base_url is not None and not re.match(r"https?://[^\s/]", endpoint.base_url):
        raise UserError(
            f"{group}.base_url={endpoint.base_url}: give an address such as {_ADDRESS_EXAMPLE}"
        )
    _require_at_least(f"{group}.concurrency", endpoint.concurrency, 1)
    for key in ("timeout", "deadline"):
        if not getattr(endpoint, key) > 0:
            raise UserError(f"{group}.{key}={getattr(endpoint, key)}: must be above 0 seconds")
    for key in ("input_usd", "output_usd", "max_requests", "max_total_tokens", "max_usd"):
        value = getattr(endpoint, key)
        if value is not None:
            _require_not_negative(f"{group}.{key}", value)
    prices = (endpoint.input_usd, endpoint.output_usd)
    if prices.count(None) == 1:
        raise UserError(f"{group}.input_usd and {group}.output_usd: give both, or neither")
    if endpoint.max_usd is not None and None in prices:
        raise UserError(
            f"{group}.max_usd={endpoint.max_usd}: needs {group}.input_usd and {group}.output_usd, "
            "the prices of a million tokens"
        )


def _check_ruler(ruler: RulerConfig, judge: JudgeConfig, credit: Credit) -> None:
    """Check whether a judge can give rewards with these settings."""
    if ruler.enabled and credit is Credit.turn:
        raise UserError(
            "reward.credit=turn: a judge rewards whole episodes; use reward.credit=episode with "
            "reward.ruler.enabled=true"
        )
    if ruler.enabled and judge.base_url is None:
        raise UserError(f"judge.base_url: give the judge's address, such as {_ADDRESS_EXAMPLE}")
    if not 0 < ruler.weight <= 1:
        raise UserError(f"reward.ruler.weight={ruler.weight}: must be above 0 and at most 1")
    _require_share("reward.ruler.max_failures", ruler.max_failures)
    _require_at_least("reward.ruler.max_chars", ruler.max_chars, _LEAST_CHARS_FOR_A_JUDGE)
    _require_at_least("judge.max_tokens", judge.max_tokens, 1)
    _require_not_negative("judge.temperature", judge.temperature)


# The conditions are written so that NaN meets none of them.


def _require_at_least(name: str, value: int, minimum: int) -> None:
    if not value >= minimum:
        raise UserError(f"{name}={value}: must be at least {minimum}")


def _require_above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}={value}: must be above 0")


def _require_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise UserError(f"{name}={value}: must not be below 0")


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value}: must be from 0 to 1")
