"""The policy's weights for an engine: adapters merged, loaded, and proven to have arrived."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftType
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from rl_experiments.errors import UserError


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights by the names of the model's architecture, adapters added out of place.

    To merge the adapter into the base weights, and out again, would let those drift in bf16. The
    sums are made in fp32 and rounded once.
    """
    # A loaded adapter lies within the model itself, one in training in a wrapper around it.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen: set[int] = set()  # weights that two modules share come once
    for name, weight, original in _weights(base, ""):
        if id(original) not in seen:
            seen.add(id(original))
            yield name, weight


def replacements(module: nn.Module) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Yield each weight of a module that an engine has, and what it is with adapters added."""
    for _, weight, original in _weights(module, ""):
        yield original, weight


def check_mergeable(model: Any, *, label: str) -> None:
    """Raise a `UserError` if the weights cannot be those of an adapted model without adapters.

    `label` is the setting that chose the adapter, with its value.
    """
    for adapter in getattr(model, "peft_config", {}).values():
        if adapter.peft_type is not PeftType.LORA:
            raise UserError(
                f"{label}: its adapter is of the kind {adapter.peft_type.value}; only LoRA "
                "adapters can be played and trained further"
            )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names: dict[int, list[str]] = {}
    adapted = set()
    for name, weight, original in _weights(base, "", merges=False):
        names.setdefault(id(original), []).append(name)
        if weight is None:
            adapted.add(id(original))
    for shared in adapted:
        if len(names[shared]) > 1:
            first, second = (name.removesuffix(".weight") for name in names[shared][:2])
            raise UserError(
                f"{label}: the adapter changes a weight that {first} and {second} share, for one "
                "of them alone, which no model without an adapter can; leave it out of "
                "model.lora.target_modules"
            )


def check_engine_can_hold(model: Any) -> None:
    """Raise a `UserError` if vLLM cannot be given the model's weights while it runs.

    It keeps experts in a form of its kernels, on a CPU in copies that a later load does not reach.
    """
    if any(weight.dim() == 3 and ".experts." in name for name, weight in model.named_parameters()):
        raise UserError(
            "sampler=vllm: vLLM keeps the experts of this model in a form of its own, where they "
            "cannot be renewed and compared with the policy's; set sampler=transformers"
        )


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


def _weights(
    module: nn.Module, prefix: str, *, merges: bool = True
) -> Iterator[tuple[str, Any, nn.Parameter]]:
    """Yield name, merged weight and the parameter it is made from, module by module.

    Without `merges` the weight of an adapted module is None.
    """
    if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        originals = dict(_base_layer(module).named_parameters())
        merged = _merged(module) if merges else dict.fromkeys(originals)
        for name, original in originals.items():
            yield f"{prefix}{name}", merged[name], original
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", parameter, parameter
    for name, child in module.named_children():
        yield from _weights(child, f"{prefix}{name}.", merges=merges)


def _base_layer(module: Any) -> nn.Module:
    """Return the module within peft's wrappers around it."""
    while isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        module = module.base_layer if isinstance(module, BaseTunerLayer) else module.original_module
    return module  # type: ignore[no-any-return]


@torch.no_grad()
def _merged(module: Any) -> dict[str, torch.Tensor]:
    """Return the weights that a module and its adapters amount to, by name."""
    dtypes = {name: weight.dtype for name, weight in _base_layer(module).named_parameters()}
    if type(module) is Linear and not module.lora_variant and not any(module.lora_bias.values()):
        weights = dict(module.base_layer.named_parameters())
        total = weights["weight"].detach().float()
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                total = total + module.get_delta_weight(adapter).detach().float()
        return weights | {"weight": total.to(dtypes["weight"])}
    # All else peft merges itself, in a copy: adapters of experts or embeddings, DoRA, biases,
    # modules and tokens that are trained as wholes.
    module = copy.deepcopy(module).float()
    if hasattr(module, "unload_and_optionally_merge_module"):
        plain = module.unload_and_optionally_merge_module(True, False, None)
    else:
        module.merge()
        plain = module.get_base_layer()
    return {name: weight.to(dtypes[name]) for name, weight in plain.named_parameters()}


def _rows_to_compare(name: str, weight: torch.Tensor) -> int:
    """Return how many rows of an engine's weight the policy must have; padding it cannot have."""
    is_padded_vocabulary = "embed" in name or "lm_head" in name
    return 1 if is_padded_vocabulary else len(weight)
