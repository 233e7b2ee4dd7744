"""The policy's weights for an engine: adapters merged, loaded, and proven to have arrived."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights by the names of the model's architecture, LoRA added out of place.

    To merge the adapter into the base weights, and out again, would let those drift in bf16.
    """
    # A loaded adapter lies within the model itself, one in training in a wrapper around it.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapted = {
        f"{name}.base_layer.weight": module
        for name, module in base.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }
    for name, weight in base.named_parameters():
        if "lora_" in name:
            continue
        if name in adapted:
            total = weight.detach().float()
            for adapter in adapted[name].active_adapters:
                total = total + adapted[name].get_delta_weight(adapter).detach().float()
            weight = total.to(weight.dtype)
        yield name.replace(".base_layer", ""), weight


def load_weights(network: Any, model: Any) -> None:
    """Copy the policy's weights into vLLM's network."""
    network.load_weights((name, weight.detach()) for name, weight in merged_weights(model))


def differing_weights(network: Any, model: Any) -> list[str]:
    """Return the names of the weights in which vLLM's network and the policy differ.

    vLLM packs some weights, such as those of q, k and v, into one tensor, row after row, in the
    order in which the policy lists them.
    """
    packed = getattr(network, "packed_modules_mapping", {})
    packed_name_of = {part: whole for whole, parts in packed.items() for part in parts}
    engine_weights = dict(network.named_parameters())
    compared_rows = dict.fromkeys(engine_weights, 0)
    differing = []
    for name, weight in merged_weights(model):
        *path, module, kind = name.split(".")
        engine_name = ".".join([*path, packed_name_of.get(module, module), kind])
        start = compared_rows.get(engine_name, 0)
        rows = None
        if engine_name in engine_weights:
            rows = engine_weights[engine_name][start : start + len(weight)]
        compared_rows[engine_name] = start + len(weight)
        if rows is None or not torch.equal(rows, weight.to(rows)):
            differing.append(name)
    return differing + [
        name
        for name, weight in engine_weights.items()
        if _rows_to_compare(name, weight) > compared_rows[name]
    ]


def _rows_to_compare(name: str, weight: torch.Tensor) -> int:
    """Return how many rows of an engine's weight the policy must have; padding it cannot have."""
    is_padded_vocabulary = "embed" in name or "lm_head" in name
    return 1 if is_padded_vocabulary else len(weight)
