"""A mini-batch that is too large for the GPU goes through the model in micro-batches.

A batch is a dictionary of tensors with TRL's names (see `collate.py`). The micro-batches of a
mini-batch give the gradient of the whole: the loss of each is weighted by its part in the loss of
the mini-batch, and their backward passes add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rl_experiments import distributed
from rl_experiments.training.samples import split_by_tokens

Batch = dict[str, Any]
PartT = TypeVar("PartT")

# Losses of TRL that are a sum over tokens, divided by the generation's number of tokens.
_SUM_LOSSES = ("dapo", "cispo", "vespo")
# Losses of TRL that are a mean over the batch's tokens; all others are means over its samples.
_TOKEN_MEAN_LOSSES = ("bnpo",)


def micro_batches(batch: Batch, max_tokens: int) -> list[Batch]:
    """Split a mini-batch into parts of at most `max_tokens` tokens after padding.

    Samples of similar length are put together. The split is the same in all processes, because
    TRL gathers metrics of each sample: it is made for the widest of the processes' samples.
    """
    prompts = batch["prompt_mask"].sum(1).tolist()
    completions = batch["completion_mask"].sum(1).clamp(min=1).tolist()
    # Prompts and completions are padded apart: a long prompt with a short completion wastes much
    # beside a short prompt with a long completion, even where their sums are equal.
    order = sorted(
        range(len(prompts)),
        key=lambda row: (completions[row].bit_length(), prompts[row] + completions[row]),
    )
    sizes = [(prompts[row], completions[row]) for row in order]
    widest = [
        (max(prompt for prompt, _ in same_row), max(completion for _, completion in same_row))
        for same_row in zip(*distributed.gather([sizes]), strict=True)
    ]
    rows = torch.tensor(order, device=batch["prompt_mask"].device)
    return [trim_padding(batch, rows[part]) for part in split_by_tokens(widest, max_tokens)]


def trim_padding(batch: Batch, rows: torch.Tensor) -> Batch:
    """Return the given rows of a batch without the columns that are padding in all of them."""
    tensors = {name: value for name, value in batch.items() if _has_rows(value)}
    selected = {name: value[rows] for name, value in tensors.items()}
    longest_prompt = int(selected["prompt_mask"].sum(1).max())
    longest_completion = max(1, int(selected["completion_mask"].sum(1).max()))
    for name, value in selected.items():
        is_prompt = name.startswith("prompt")  # padded on the left
        selected[name] = value[:, -longest_prompt:] if is_prompt else value[:, :longest_completion]
    return batch | selected


def loss_weight(micro_batch: Batch, batch: Batch, loss_type: str) -> float:
    """Return the factor that makes the losses of the micro-batches add up to the batch's loss.

    A loss that is a mean over samples is one over those that were played: `row_scale` is the number
    of all samples over that of these.
    """
    if loss_type in _SUM_LOSSES:
        return 1.0
    if loss_type in _TOKEN_MEAN_LOSSES:
        return float(micro_batch["tool_mask"].sum() / batch["tool_mask"].sum().clamp(min=1))
    share = float(micro_batch["prompt_ids"].size(0) / batch["prompt_ids"].size(0))
    return share * float(batch["row_scale"])


def backward_all_but_last(
    parts: list[PartT], loss_of: Callable[[PartT], torch.Tensor], *, model: Any, accelerator: Any
) -> torch.Tensor:
    """Add up the losses of micro-batches, and run the backward pass of all but the last one.

    The returned loss has the value of the whole mini-batch and the graph of the last micro-batch,
    whose backward pass is the caller's. Only then do the processes exchange their gradients.
    """
    total = torch.zeros((), device=accelerator.device)
    for part in parts[:-1]:
        with accelerator.no_sync(model):
            loss = loss_of(part)
            accelerator.backward(loss)
        total += loss.detach()
    return total + loss_of(parts[-1])


def rows_at_once(row_tokens: int, max_tokens: int) -> int:
    """Return how many rows of `row_tokens` tokens may go through the model together: at least 1."""
    return max(1, max_tokens // row_tokens)


def _has_rows(value: Any) -> bool:
    """Return whether a value of a batch has one row per sample, unlike counts and flags."""
    return torch.is_tensor(value) and value.dim() > 1
