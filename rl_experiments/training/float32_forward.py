"""A model's forward pass in float32, whatever the precision that it is trained in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from rl_experiments.inference.weight_sync import replacements

HALF_PRECISION = (torch.bfloat16, torch.float16)


@contextmanager
def float32_forward(model: nn.Module, *, held_in: torch.dtype | None = None) -> Iterator[None]:
    """Within, the model computes in float32: weights are widened layer by layer, as each is used.

    With `held_in` the weights are those of an engine that holds them in that dtype: adapters are
    merged, and the sums rounded.

    So the memory for it is that of the widest layer. Matrices are multiplied in TF32 on a GPU that
    has it, whose rounding is an eighth of bfloat16's. The weights are the same tensors afterwards.
    """
    device = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device, enabled=False))
        precision = torch.get_float32_matmul_precision()
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("high")
        disable_adapter: Any = getattr(model, "disable_adapter", None)
        if held_in is not None and disable_adapter is not None:
            stack.enter_context(disable_adapter())
        for layer in _layers(model):
            for handle in _widen(layer, held_in):
                stack.callback(handle.remove)
        yield


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield modules that hold every weight once: decoder layers, and what lies beside them.

    What an adapter wraps stays together with it, as the adapter casts between the two.
    """
    for child in module.children():
        is_wrapped = hasattr(child, "base_layer")
        if isinstance(module, nn.ModuleList) or is_wrapped or any(True for _ in _tensors(child)):
            yield child
        else:
            yield from _layers(child)


def _tensors(module: nn.Module, *, recurse: bool = False) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=recurse)
    yield from module.buffers(recurse=recurse)


def _widen(layer: nn.Module, held_in: torch.dtype | None) -> tuple[Any, Any]:
    """Let the layer have weights in float32 while it computes; return the hooks that do it."""
    originals: list[tuple[torch.Tensor, torch.Tensor]] = []

    def replace(tensor: torch.Tensor, value: torch.Tensor) -> None:
        originals.append((tensor, tensor.data))
        tensor.data = value.float()

    def widen(*_: Any) -> None:
        if held_in is not None:
            for parameter, weight in list(replacements(layer)):
                replace(parameter, weight.detach().to(held_in))
        for tensor in _tensors(layer, recurse=True):
            if tensor.dtype in HALF_PRECISION:
                replace(tensor, tensor.data)

    def restore(*_: Any) -> None:
        while originals:
            tensor, data = originals.pop()
            tensor.data = data

    before = layer.register_forward_pre_hook(widen)
    return before, layer.register_forward_hook(restore, always_call=True)
