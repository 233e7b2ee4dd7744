"""The model that plays and learns, its tokenizer, and the rollouts that it makes."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from environments import Environment
from rl_experiments import checkpoint
from rl_experiments.chat import Chat
from rl_experiments.errors import UserError, one_line
from rl_experiments.rollout import Rollout
from rl_experiments.schema import Config, ModelConfig
from rl_experiments.scratch import best_device, scratch_model
from rl_experiments.transformers_sampler import TransformersSampler


@dataclass(frozen=True)
class Policy:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def rollout(
        self, config: Config, environment: Environment, *, temperature: float, model: Any = None
    ) -> Rollout:
        """Rollouts of this policy, or of `model` where training has wrapped it."""
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
        path = str(checkpoint.find(config.checkpoint))
    elif config.model.scratch is not None:
        path = str(scratch_model(config.model.scratch, environment, seed=config.seed))
    else:
        path = str(config.model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, config.model.dtype.value),
            attn_implementation=config.model.attn_implementation,
        )
    except (OSError, ValueError, ImportError) as error:
        named = "checkpoint" if config.checkpoint else "model.path"
        if not config.checkpoint and not Path(path).exists() and not _hub_answers(error):
            raise UserError(
                f"model.path={path}: not on this machine, and the Hugging Face hub does not "
                "answer; connect, or name a folder (model=tiny needs neither)"
            ) from None
        raise UserError(f"{named}={path}: cannot be loaded: {one_line(str(error))[:300]}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(model.to(best_device()), tokenizer)


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


def _hub_answers(error: Exception) -> bool:
    """Whether loading failed for another reason than that the hub is out of reach."""
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    words = ("couldn't connect", "connection", "offline", "cannot find the requested files")
    return not offline and not any(word in str(error).lower() for word in words)


def _quieten() -> None:
    """Keep the libraries' chatter out of the terminal; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
