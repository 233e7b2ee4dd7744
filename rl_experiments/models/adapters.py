"""Which layers of a model get a LoRA adapter."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from rl_experiments.config.schema import ALL_LINEAR, LoraConfig
from rl_experiments.errors import UserError

_NAMES_SHOWN = 12


def peft_targets(lora: LoraConfig) -> list[str] | str:
    """Return peft's `target_modules`: names, or `all-linear`.

    The default names are those that Llama and Qwen give to all their linear layers. They stand for
    the linear layers of any model, whatever their names there.
    """
    names = list(lora.target_modules)
    return ALL_LINEAR if names in ([ALL_LINEAR], LoraConfig().target_modules) else names


def adapted_layers(model: Any, targets: Sequence[str] | str) -> list[str]:
    """Return the full names of the linear layers that peft's `target_modules` select.

    A string other than `all-linear` is a regular expression. The layer that writes the logits is
    none of `all-linear`.
    """
    head = model.get_output_embeddings()
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not (targets == ALL_LINEAR and module is head)
    ]
    if targets == ALL_LINEAR:
        return layers
    if isinstance(targets, str):
        return [name for name in layers if re.fullmatch(targets, name)]
    return [name for name in layers if any(_has_name(name, target) for target in targets)]


def check_targets(model: Any, lora: LoraConfig) -> None:
    """Raise a `UserError` if `model.lora.target_modules` has a name that no layer has.

    So it does for a layer whose weight is the embeddings' too: an adapter would change one of them.
    """
    targets = peft_targets(lora)
    if isinstance(targets, str):
        return
    unknown = [name for name in targets if not adapted_layers(model, [name])]
    if unknown:
        layers = adapted_layers(model, ALL_LINEAR)
        names = list(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
        raise UserError(
            f"model.lora.target_modules: the model has no linear layer named {', '.join(unknown)}; "
            f"it has {', '.join(names[:_NAMES_SHOWN])} ([{ALL_LINEAR}] takes all)"
        )
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_shared = head is not None and getattr(embeddings, "weight", None) is head.weight
    for name in adapted_layers(model, targets) if is_shared else ():
        if model.get_submodule(name) is head:
            raise UserError(
                f"model.lora.target_modules: {name} shares its weight with the embeddings, which "
                "an adapter would not change; leave it out"
            )


def adapted_note(model: Any, adapter: Any) -> str:
    """Return a line that says which weights get an adapter, and what share of the model they are.

    Peft is asked itself, about a copy of the model without weights: it also reaches experts, which
    are no layers of their own. `adapter` is its configuration.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        skeleton = get_peft_model(type(model)(copy.deepcopy(model.config)), copy.deepcopy(adapter))
    counts: Counter[str] = Counter()
    weights = 0
    for name, module in skeleton.named_modules():
        if isinstance(module, ParamWrapper):
            counts[module.parameter_name] += 1
            weights += module.get_param().numel()
        elif isinstance(module, LoraLayer):
            counts[name.rpartition(".")[2]] += 1
            weights += module.get_base_layer().weight.numel()
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    of_ends = {id(p) for module in ends if module is not None for p in module.parameters()}
    total = sum(p.numel() for p in model.parameters() if p.dim() > 1 and id(p) not in of_ends)
    names = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"LoRA adapts {names}: {weights / total:.0%} of the weights between the embeddings"


def _has_name(layer: str, target: str) -> bool:
    """Return whether peft takes a layer for a target: by its name or by the end of its path."""
    return layer == target or layer.endswith(f".{target}")
