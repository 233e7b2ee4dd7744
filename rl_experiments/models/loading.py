"""Loads the weights of a policy: from a folder, a checkpoint or the Hugging Face hub."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from environments import Environment
from rl_experiments import distributed
from rl_experiments.checkpoints.resolve import resolve
from rl_experiments.config.schema import Config, LoraConfig, ModelConfig
from rl_experiments.errors import UserError
from rl_experiments.inference.weight_sync import check_mergeable
from rl_experiments.models.adapters import adapted_layers, check_targets, peft_targets
from rl_experiments.models.tiny import scratch_model
from rl_experiments.network import why_unreachable
from rl_experiments.paths import ADAPTER_CONFIG_FILE, MODEL_CONFIG_FILE

_HUB_TIMEOUT_SECONDS = 10


def resolve_model_path(config: Config, environment: Environment) -> str:
    """Return where the policy's weights are: a folder, or a name that the hub knows.

    A checkpoint is verified, and downloaded if it is remote, and a random model is made, by the
    first process for all.
    Raises a `UserError` if the model is not on this machine and the hub cannot be reached.
    """
    if config.checkpoint.path:
        checkpoint = distributed.is_first() and resolve(config.checkpoint.path)
        path = str(distributed.broadcast_from_first(checkpoint))
    elif config.model.scratch is not None:
        made = distributed.is_first() and scratch_model(
            config.model.scratch, environment, seed=config.seed
        )
        path = str(distributed.broadcast_from_first(made))
    else:
        path = str(config.model.path)
    if not Path(path).is_dir() and not _is_in_hub_cache(path) and not _hub_is_reachable():
        raise UserError(
            f"model.path={path}: not on this machine, and the Hugging Face hub does not answer; "
            "connect to the internet, or give a folder (model=tiny needs neither)"
        )
    return path


def load_model(path: str, config: Config, *, trains: bool) -> PreTrainedModel:
    """Return the model of a folder or hub name, or the adapter of a folder on its base model.

    `trains` makes an adapter trainable, or merges it if all weights are to be trained. The adapter
    is loaded by peft, because transformers would round it to the base's dtype and training would
    then start a new adapter.
    """
    adapter = _adapter_config(path)
    model = AutoModelForCausalLM.from_pretrained(
        adapter["base_model_name_or_path"] if adapter else path,
        dtype=_weights_dtype(config),
        attn_implementation=config.model.attn_implementation,
    )
    if adapter is None:
        if trains and config.model.lora.enabled:
            check_targets(model, config.model.lora)
        return model
    from peft import PeftModel, PeftType

    # Before peft renames the layers.
    if trains and config.model.lora.enabled and adapter["peft_type"] == PeftType.LORA:
        _check_adapter(path, adapter, config.model.lora, model)
    adapted = PeftModel.from_pretrained(model, path, is_trainable=trains)
    check_mergeable(adapted, label=_setting(path, config))
    if trains and not config.model.lora.enabled:
        return adapted.merge_and_unload().requires_grad_(True)
    return adapted


def _setting(path: str, config: Config) -> str:
    """Return the setting that names the weights, with its value."""
    return f"{'checkpoint' if config.checkpoint.path else 'model.path'}={path}"


def lora_config(model: ModelConfig) -> Any:
    """Return the adapter to train as peft's `LoraConfig`; None to train all weights."""
    if not model.lora.enabled:
        return None
    from peft import LoraConfig

    lora = model.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=peft_targets(lora),
        task_type="CAUSAL_LM",
    )


def base_model_folder(path: str) -> str:
    """Return the folder of the whole model that a hub name or an adapter's folder refers to."""
    adapter = _adapter_config(path)
    if adapter is not None:
        path = adapter["base_model_name_or_path"]
    if Path(path).is_dir():
        return path
    return str(Path(cached_file(path, MODEL_CONFIG_FILE)).parent)


def generation_eos(path: str) -> int | list[int] | None:
    """Return the `eos_token_id` of a model's `generation_config.json`; None without that file."""
    try:
        config = GenerationConfig.from_pretrained(base_model_folder(path))
    except OSError:
        return None
    eos: int | list[int] | None = config.eos_token_id
    return eos


def merged_model_folder(path: str, config: Config, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a folder with the whole model: an adapter is merged into a copy of its base.

    The copy is deleted when this process ends.
    """
    if _adapter_config(path) is None:
        return path
    folder = tempfile.mkdtemp(prefix="rl_experiments-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    load_model(path, config, trains=False).merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quiet_libraries() -> None:
    """Keep warnings and progress bars of the libraries out of the terminal; errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _adapter_config(path: str) -> dict[str, Any] | None:
    """Return peft's configuration if the path is an adapter's folder, else None."""
    file = Path(path) / ADAPTER_CONFIG_FILE
    if not file.exists():
        return None
    adapter: dict[str, Any] = json.loads(file.read_text())
    return adapter


def _check_adapter(path: str, adapter: dict[str, Any], lora: LoraConfig, model: Any) -> None:
    """Raise a `UserError` if `model.lora` asks for another adapter than the checkpoint has."""
    asked = {"r": lora.r, "alpha": lora.alpha, "target_modules": sorted(lora.target_modules)}
    trained = {"r": adapter["r"], "alpha": adapter["lora_alpha"]}
    layers = adapted_layers(model, adapter["target_modules"])
    if layers == adapted_layers(model, peft_targets(lora)):
        trained["target_modules"] = asked["target_modules"]  # names may differ
    else:
        trained["target_modules"] = sorted(adapter["target_modules"])
    for name, value in asked.items():
        if value != trained[name]:
            shown, in_checkpoint = (
                f"[{','.join(v)}]" if isinstance(v, list) else v for v in (value, trained[name])
            )
            raise UserError(
                f"model.lora.{name}={shown}: the adapter of checkpoint={path} has "
                f"{name}={in_checkpoint} and is trained further; set model.lora.{name}="
                f"{in_checkpoint}"
            )


def _weights_dtype(config: Config) -> torch.dtype:
    """Return `model.dtype`, but float32 where all weights are trained: bf16 loses small updates."""
    if not config.model.lora.enabled:
        return torch.float32
    dtype: torch.dtype = getattr(torch, config.model.dtype.value)
    return dtype


def _is_in_hub_cache(name: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, MODEL_CONFIG_FILE), str)
    except HFValidationError:
        raise UserError(
            f"model.path={name}: neither a folder nor the name of a model on the Hugging Face hub"
        ) from None


def _hub_is_reachable() -> bool:
    """Ask the hub once, because a download would retry for a minute before it fails."""
    if constants.is_offline_mode():
        return False
    reason = why_unreachable(constants.ENDPOINT, timeout_seconds=_HUB_TIMEOUT_SECONDS)
    return reason is None
