"""Save a checkpoint as a transformers model, with a LoRA adapter merged into its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl_experiments.errors import UserError, one_line
from rl_experiments.paths import ADAPTER_CONFIG_FILE

_SHARD_SIZE = "5GB"  # of one file of weights
_MAX_REASON_CHARACTERS = 300


def save_model(checkpoint: Path, folder: Path, cfg: Any, *, label: str) -> str | None:
    """Save the model of a checkpoint with its tokenizer into a folder.

    `cfg` is the configuration of its run, and `label` how the user named the checkpoint. Returns
    the base model that an adapter was merged into, None if the checkpoint holds all weights.
    Raises a `UserError` if the checkpoint or its base cannot be loaded.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from rl_experiments.inference.weight_sync import check_mergeable

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base = _base_model(checkpoint, label)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(
            base or checkpoint, dtype=cfg.model.dtype if base else "auto"
        )
    except (OSError, ValueError) as error:
        reason = one_line(str(error))[:_MAX_REASON_CHARACTERS]
        raise UserError(f"{label}: {base or 'it'} cannot be loaded: {reason}") from None
    if base:
        # peft keeps the adapter in fp32, as it was trained. The sum is made in fp32 and rounded
        # once, to the type the base was played in, so these are the weights that vLLM played with.
        model = PeftModel.from_pretrained(model, checkpoint)
        check_mergeable(model, label=label)
        model = model.merge_and_unload()
    model.config.use_cache = True  # training may have turned it off
    model.generation_config = _generation_config(model.generation_config, cfg)
    model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    return base


def _base_model(checkpoint: Path, label: str) -> str | None:
    """Return the folder or the hub's name of the model that the checkpoint's adapter is for."""
    adapter = checkpoint / ADAPTER_CONFIG_FILE
    if not adapter.exists():
        return None
    base = str(json.loads(adapter.read_text())["base_model_name_or_path"])
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(f"{label}: its base {base} is not on this machine; export where it is")
    return base


def _generation_config(known: Any, cfg: Any) -> Any:
    """Return settings with which replies are drawn as in the evaluation: the whole distribution.

    Those of a base model may draw from fewer tokens, and lower the chance of repeated ones.
    """
    from transformers import GenerationConfig

    token_ids = {
        name: getattr(known, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")
    }
    temperature = cfg.evaluation.temperature
    if temperature is None:
        temperature = cfg.trainer.temperature
    if not temperature:
        return GenerationConfig(do_sample=False, **token_ids)
    return GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, **token_ids
    )
