"""Everything that can be known to be wrong before any work is done."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from rl_experiments.checkpoints.resolve import is_url, locate
from rl_experiments.config.environment import build_environment
from rl_experiments.config.experiment import Experiment, generation_steps
from rl_experiments.config.schema import Config, Credit, EndpointConfig, VllmMode
from rl_experiments.errors import UserError, did_you_mean
from rl_experiments.evaluation.policies import is_api_model, resolve_policies
from rl_experiments.inference.api_client import LOCAL_HOSTS
from rl_experiments.paths import CONF_DIR
from rl_experiments.run.resume import check_resume

# TRL's settings of a sampler that cuts the distribution; TRL's own sampler is not used here.
_NOT_SAMPLED = ("top_k", "top_p", "min_p", "repetition_penalty", "generation_kwargs", "use_vllm")


def composed(overrides: Sequence[str], *, example: str, **defaults: str) -> Experiment:
    """What the settings of a verb without a run folder come to; `defaults` are for those not given.

    `example` is told where something else than settings is given.
    """
    if any(word.startswith("-") for word in overrides):
        raise UserError(f"only settings are taken here, such as {example}")
    given = {word.split("=")[0] for word in overrides}
    words = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        return check(compose(config_name="config", overrides=[*overrides, *words]))


def check(cfg: DictConfig) -> Experiment:
    """The typed configuration; a `UserError` names the first setting that is wrong."""
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith("hydra"))
    if missing:
        raise UserError(f"{missing[0]}: a value is missing; give {missing[0]}=...")
    config = _typed(cfg)
    check_resume(cfg)
    environment = build_environment(config.env)
    _check_trainer(config)
    _check_numbers(config)
    _check_engine(config)
    _check_endpoint("model", config.model)
    _check_endpoint("judge", config.judge)
    _check_ruler(config)
    if config.policy and config.policy not in environment.baselines:
        hint = did_you_mean(config.policy, environment.baselines)
        raise UserError(
            f"policy={config.policy}: {config.env.get('name')} has no such policy{hint}"
        )
    elsewhere = config.gpu.type != "local" and not os.environ.get("MODAL_TASK_ID")
    if elsewhere:
        _check_reachable(config)
    elif config.checkpoint.path and not is_url(config.checkpoint.path):
        config.checkpoint.path = str(locate(config.checkpoint.path))
    model = config.model
    if not config.checkpoint.path and not (model.path or model.scratch or model.base_url):
        raise UserError("model.path: name a Hugging Face model or a folder, or set model.scratch")
    if config.policies or is_api_model(config):
        resolve_policies(config, environment, elsewhere=elsewhere)
    return Experiment(config, environment)


def _check_endpoint(name: str, endpoint: EndpointConfig) -> None:
    if endpoint.base_url is not None and not re.match(r"https?://[^\s/]", endpoint.base_url):
        raise UserError(
            f"{name}.base_url={endpoint.base_url}: give an address such as http://127.0.0.1:8000/v1"
        )
    _at_least(f"{name}.concurrency", endpoint.concurrency, 1)
    for key in ("timeout", "deadline"):
        if not getattr(endpoint, key) > 0:
            raise UserError(f"{name}.{key}={getattr(endpoint, key)}: must be above 0 seconds")
    for key in ("input_usd", "output_usd", "max_requests", "max_total_tokens", "max_usd"):
        value = getattr(endpoint, key)
        if value is not None and not value >= 0:
            raise UserError(f"{name}.{key}={value}: must not be below 0")
    prices = (endpoint.input_usd, endpoint.output_usd)
    if prices.count(None) == 1:
        raise UserError(f"{name}.input_usd and {name}.output_usd: give both, or neither")
    if endpoint.max_usd is not None and None in prices:
        raise UserError(
            f"{name}.max_usd={endpoint.max_usd}: needs {name}.input_usd and {name}.output_usd, "
            "the prices of a million tokens"
        )


def _check_ruler(config: Config) -> None:
    ruler, judge = config.reward.ruler, config.judge
    if ruler.enabled and config.reward.credit is Credit.turn:
        raise UserError(
            "reward.credit=turn: a judge rewards whole episodes; use reward.credit=episode with "
            "reward.ruler.enabled=true"
        )
    if ruler.enabled and judge.base_url is None:
        raise UserError(
            "judge.base_url: give the judge's address, such as http://127.0.0.1:8000/v1"
        )
    if not 0 < ruler.weight <= 1:
        raise UserError(f"reward.ruler.weight={ruler.weight}: must be above 0 and at most 1")
    if not 0 <= ruler.max_failures <= 1:
        raise UserError(f"reward.ruler.max_failures={ruler.max_failures}: must be from 0 to 1")
    _at_least("reward.ruler.max_chars", ruler.max_chars, 500)
    _at_least("judge.max_tokens", judge.max_tokens, 1)
    if judge.temperature < 0:
        raise UserError(f"judge.temperature={judge.temperature}: must not be below 0")


def _check_reachable(config: Config) -> None:
    """A job on Modal sees the folders of its volumes, not those of this machine."""
    judge = config.judge.base_url
    if config.reward.ruler.enabled and judge and urlsplit(judge).hostname in LOCAL_HOSTS:
        raise UserError(
            f"judge.base_url={judge}: is on this machine, which gpu={config.gpu.type.lower()} "
            "cannot see"
        )
    named = {"checkpoint": config.checkpoint.path, "model.path": config.model.path}
    named |= {  # a name may happen to be that of a folder here; with a suffix it is a file's
        f"env.{key}": value
        for key, value in config.env.items()
        if isinstance(value, str) and Path(value).suffix
    }
    named |= {"policies": next((w for w in config.policies if Path(w).is_dir()), None)}
    for name, path in named.items():
        if path and Path(path).exists():
            raise UserError(
                f"{name}={path}: is on this machine, which gpu={config.gpu.type.lower()} "
                "cannot see; give a folder of the outputs volume (/outputs/RUN/JOB), or use "
                "gpu=local"
            )


def _typed(cfg: DictConfig) -> Config:
    """The configuration merged into its schema, which catches what `+key=value` let through."""
    schema = OmegaConf.structured(Config)
    known = [field.name for field in fields(Config)]
    for key in map(str, cfg):
        if key not in (*known, "hydra"):
            raise UserError(f"{key}: no such setting{did_you_mean(key, known)}")
    # As plain values: a typed node would bring the keys along that `+` has added to it.
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    typed = OmegaConf.to_object(OmegaConf.merge(schema, plain))
    assert isinstance(typed, Config)
    return typed


def _check_trainer(config: Config) -> None:
    """TRL's own conditions, and those for a resume that is exact."""
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
    period = trainer.steps_per_generation * trainer.num_iterations
    accumulate = trainer.gradient_accumulation_steps
    if period % accumulate and accumulate % period:
        raise UserError(
            f"trainer.gradient_accumulation_steps={accumulate} and trainer.steps_per_generation x "
            f"trainer.num_iterations = {period}: one must divide the other"
        )
    for name, value in (
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("evaluation.every_steps", config.evaluation.every_steps),
        ("trainer.max_steps", trainer.max_steps),
    ):
        if value is None:
            continue
        _at_least(name, value, 1)
        if value * accumulate % period:
            unit = generation_steps(trainer)
            below, above = value // unit * unit, (value // unit + 1) * unit
            choices = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"{name}={value} ends within a generation, from which a run cannot resume "
                f"exactly; use a multiple of {unit}, such as {choices}"
            )
    for key in trainer.extra:
        if hasattr(trainer, key):
            raise UserError(f"trainer.extra.{key}: this is a setting of its own, trainer.{key}")
        if key in _NOT_SAMPLED or key.startswith("vllm_"):
            raise UserError(
                f"trainer.extra.{key}: has no effect; replies are drawn from the policy's whole "
                "distribution, as the importance ratios need (trainer.temperature shapes it)"
            )


def _check_numbers(config: Config) -> None:
    trainer = config.trainer
    for name in (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "num_iterations",
        "max_completion_length",
    ):
        _at_least(f"trainer.{name}", getattr(trainer, name), 1)
    for name in ("learning_rate", "temperature", "max_grad_norm", "epsilon"):
        value = getattr(trainer, name)
        if not value > 0:
            raise UserError(f"trainer.{name}={value}: must be above 0")
    if not 0 <= config.seed < 2**30:
        raise UserError(f"seed={config.seed}: must be from 0 to {2**30 - 1}")
    if not 0 <= config.reward.gamma <= 1:
        raise UserError(f"reward.gamma={config.reward.gamma}: must be from 0 to 1")
    _at_least("num_examples", config.num_examples, 1)
    _at_least("evaluation.validation_examples", config.evaluation.validation_examples, 1)
    best = config.checkpoint.keep_best or ""
    if best.startswith("eval/") and not config.evaluation.every_steps:
        raise UserError(f"checkpoint.keep_best={best}: needs evaluation.every_steps=...")
    _at_least("checkpoint.keep_latest", config.checkpoint.keep_latest, 1)
    if config.checkpoint.keep_every is not None:
        _at_least("checkpoint.keep_every", config.checkpoint.keep_every, 1)
    if not config.checkpoint.close_timeout >= 0:
        raise UserError(
            f"checkpoint.close_timeout={config.checkpoint.close_timeout}: must not be below 0"
        )
    _at_least("gpu.count", config.gpu.count, 1)
    _at_least("evaluation.batch_size", config.evaluation.batch_size, 1)
    _at_least("evaluation.samples", config.evaluation.samples, 1)
    _at_least("checks.patience", config.checks.patience, 1)
    temperature = config.evaluation.temperature
    if temperature is not None and temperature < 0:
        raise UserError(f"evaluation.temperature={temperature}: must not be below 0")
    if config.model.max_length <= trainer.max_completion_length:
        raise UserError(
            f"model.max_length={config.model.max_length} leaves no room for a prompt beside "
            f"trainer.max_completion_length={trainer.max_completion_length}"
        )


def _check_engine(config: Config) -> None:
    vllm, gpus = config.vllm, config.gpu.count
    for name in ("max_num_seqs", "block_size", "tensor_parallel_size"):
        _at_least(f"vllm.{name}", getattr(vllm, name), 1)
    share = vllm.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise UserError(f"vllm.gpu_memory_utilization={share}: must be above 0 and at most 1")
    if vllm.max_model_len is not None and vllm.max_model_len < config.model.max_length:
        raise UserError(
            f"vllm.max_model_len={vllm.max_model_len} is below model.max_length="
            f"{config.model.max_length}, which episodes may fill; lower that"
        )
    if vllm.enable_auto_tool_choice and not vllm.tool_call_parser:
        raise UserError(
            "vllm.enable_auto_tool_choice=true: name the format of the calls in "
            "vllm.tool_call_parser=... (hermes, for Qwen2.5)"
        )
    if vllm.mode is VllmMode.colocate and vllm.tensor_parallel_size > 1:
        raise UserError(
            f"vllm.tensor_parallel_size={vllm.tensor_parallel_size}: needs vllm.mode=server; a "
            "colocated engine is one a GPU"
        )
    if vllm.mode is VllmMode.server and gpus > 1 + vllm.tensor_parallel_size:
        raise UserError(
            f"gpu.count={gpus}: vllm.mode=server trains on one GPU beside the server's; set "
            f"gpu.count={1 + vllm.tensor_parallel_size}, or vllm.mode=colocate"
        )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name}={value}: must be at least {least}")
