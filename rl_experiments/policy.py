"""The model that plays and learns, its tokenizer, and the rollouts that it makes."""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from environments import Environment
from rl_experiments.chat import Chat
from rl_experiments.errors import UserError, one_line
from rl_experiments.fit import Fit, Shape, fit
from rl_experiments.rollout import Rollout
from rl_experiments.sampler import Sampler
from rl_experiments.schema import Config, ModelConfig, SamplerKind
from rl_experiments.scratch import best_device, scratch_model
from rl_experiments.transformers_sampler import TransformersSampler
from rl_experiments.vllm_engine import VllmEngine, VllmSampler


@dataclass(frozen=True)
class Policy:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: VllmEngine | None = None  # what plays, where it is not the model itself
    fit: Fit | None = None

    def rollout(
        self, config: Config, environment: Environment, *, temperature: float, model: Any = None
    ) -> Rollout:
        """Rollouts of this policy, or of `model` where training has wrapped it."""
        sampler: Sampler
        if self.engine is not None:
            sampler = VllmSampler(
                self.engine,
                model or self.model,
                eos_token_id=self.tokenizer.eos_token_id,
                max_new_tokens=config.trainer.max_completion_length,
                temperature=temperature,
            )
        else:
            sampler = TransformersSampler(
                model or self.model,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                max_new_tokens=config.trainer.max_completion_length,
                temperature=temperature,
            )
        return Rollout(
            environment=environment,
            chat=Chat(self.tokenizer, environment.system_prompt, environment.tools),
            sampler=sampler,
            max_new_tokens=config.trainer.max_completion_length,
            max_length=config.model.max_length,
        )


def load_policy(config: Config, environment: Environment) -> Policy:
    """The checkpoint, else the model of the configuration, on the best device there is."""
    _quieten()
    if config.checkpoint:
        path = config.checkpoint
    elif config.model.scratch is not None:
        path = str(scratch_model(config.model.scratch, environment, seed=config.seed))
    else:
        path = str(config.model.path)
    if not Path(path).is_dir() and not _is_cached(path) and not _hub_answers():
        raise UserError(
            f"model.path={path}: not on this machine, and the Hugging Face hub does not answer; "
            "connect, or name a folder (model=tiny needs neither)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=_weights_dtype(config),
            attn_implementation=config.model.attn_implementation,
        )
    except (OSError, ValueError, ImportError) as error:
        setting = "checkpoint" if config.checkpoint else "model.path"
        raise UserError(
            f"{setting}={path}: cannot be loaded: {one_line(str(error))[:300]}"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = model.to(best_device())
    if not uses_vllm(config):
        return Policy(model, tokenizer)
    base = _base_folder(model.name_or_path)
    chosen = fit(config, Shape.of(base), total=config.fit.memory_gib or _gpu_gib())
    engine = VllmEngine(config, base, utilization=chosen.utilization, sleep=chosen.sleep)
    return Policy(model, tokenizer, engine, chosen)


def uses_vllm(config: Config) -> bool:
    """Whether vLLM plays: where it is asked for, and by default for a model of use on a GPU."""
    if config.sampler is SamplerKind.auto:
        return torch.cuda.is_available() and config.model.name != "tiny"
    return config.sampler is SamplerKind.vllm


def _base_folder(name: str) -> str:
    """The folder of the whole model that a name, or an adapter's folder, stands for."""
    adapter = Path(name) / "adapter_config.json"
    if adapter.exists():
        name = json.loads(adapter.read_text())["base_model_name_or_path"]
    if Path(name).is_dir():
        return name
    return str(Path(cached_file(name, "config.json")).parent)


def _gpu_gib() -> float:
    if not torch.cuda.is_available():
        raise UserError("sampler=vllm: needs a GPU here; use sampler=transformers")
    return float(torch.cuda.get_device_properties(0).total_memory / (1 << 30))


def _weights_dtype(config: Config) -> torch.dtype:
    """Weights that are trained are kept in fp32: bf16 would lose small updates."""
    if torch.cuda.is_available() and not config.model.lora.enabled:
        return torch.float32
    found: torch.dtype = getattr(torch, config.model.dtype.value)
    return found


def lora_config(model: ModelConfig) -> Any:
    """The adapter to train, as peft takes it; None to train all weights."""
    if not model.lora.enabled:
        return None
    from peft import LoraConfig

    lora = model.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )


def _is_cached(name: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        raise UserError(f"model.path={name}: neither a folder nor the name of a model") from None


def _hub_answers() -> bool:
    """Whether the hub can be reached, without the minute of retries that a download would make."""
    if constants.is_offline_mode():
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=10)
    except httpx.TransportError:
        return False
    return True


def _quieten() -> None:
    """Keep the libraries' chatter out of the terminal; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
