"""Terms of the loss that are means over a mini-batch, where it goes through the model in parts.

TRL takes the entropy bonus, the choice of the tokens with the highest entropy and the balance of a
model's experts from the batch that it is given. For a part they must come from the whole
mini-batch; else the gradient would depend on how the mini-batch was split.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.models.mixtral import modeling_mixtral

from rl_experiments.training.micro_batches import Batch

RouterLogits = tuple[torch.Tensor, ...]  # of each layer: (rows x tokens, experts)


@dataclass
class Part:
    """A micro-batch, with the tokens of its completions that the loss is taken over."""

    batch: Batch
    mask: torch.Tensor = field(init=False)  # (samples, tokens)
    # The tokens with the highest entropies of the mini-batch, where only these are learned from.
    selected: torch.Tensor | None = field(default=None, init=False)  # (samples, tokens)

    def __post_init__(self) -> None:
        self.mask = self.batch["completion_mask"] * self.batch["tool_mask"]

    @property
    def active(self) -> torch.Tensor:
        """The tokens that the entropy bonus is a mean over."""
        return self.mask if self.selected is None else self.mask * self.selected


def select(parts: list[Part], chosen: torch.Tensor) -> None:
    """Note which tokens are learned from; `chosen` has one value per token of the masks."""
    counts = [int(part.mask.sum()) for part in parts]
    for part, of_part in zip(parts, torch.split(chosen, counts), strict=True):
        part.selected = torch.zeros_like(part.mask, dtype=torch.bool)
        part.selected[part.mask.bool()] = of_part


def weighted_loss(
    loss: torch.Tensor,
    part: Part,
    parts: list[Part],
    *,
    weight: float,
    entropies: torch.Tensor,
    balance: torch.Tensor | None,
) -> torch.Tensor:
    """Return a part's summand of the mini-batch's loss, given TRL's loss of the part.

    `weight` is that of the policy's loss. TRL has added the mean of `entropies` over the active
    tokens, of shape (samples, tokens), and `balance`; both come with their coefficients.
    """
    tokens = torch.stack([each.active.sum() for each in parts]).sum().clamp(min=1)
    active = part.active
    entropy = (entropies * active).sum() / active.sum().clamp(min=1)
    total = loss * weight + entropy * (active.sum() / tokens - weight)
    if balance is not None:
        total = total + balance * (1 / len(parts) - weight)
    return total


@dataclass
class ExpertLoad:
    """How often each expert was chosen in a mini-batch, summed over layers and tokens.

    First `counting()` sees all parts. Then, within `balancing()`, the loss of a part is its summand
    of the loss of the whole, times the number of parts, so that their mean is the whole.
    """

    parts: int
    _chosen: torch.Tensor | None = field(default=None, init=False)  # (experts,)
    _rows: float = field(default=0.0, init=False)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what the models called within choose."""
        with _load_balancing_loss(self._count):
            yield

    @contextmanager
    def balancing(self) -> Iterator[None]:
        """Give the models called within a loss against the load of the whole mini-batch."""
        with _load_balancing_loss(self._loss):
            yield

    def _count(
        self, logits: RouterLogits, experts: int, top_k: int, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        weights = attention_mask.reshape(-1).to(logits[0])
        for layer in logits:
            chosen = layer.topk(top_k, dim=-1).indices
            counts = torch.zeros(experts, device=layer.device)
            counts.scatter_add_(0, chosen.reshape(-1), weights.float().repeat_interleave(top_k))
            self._chosen = counts if self._chosen is None else self._chosen + counts
            self._rows += float(weights.sum())
        return logits[0].new_zeros(())

    def _loss(
        self, logits: RouterLogits, experts: int, top_k: int, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        assert self._chosen is not None  # it has counted before
        weights = attention_mask.reshape(-1, 1).to(logits[0])
        probability = sum((layer.softmax(-1).float() * weights).sum(0) for layer in logits)
        balance = (self._chosen * probability).sum() / self._rows**2
        return balance * experts * self.parts


@contextmanager
def _load_balancing_loss(function: Any) -> Iterator[None]:
    """Let TRL's fused head call `function`; it looks the loss up in transformers' module."""
    original = modeling_mixtral.load_balancing_loss_func
    modeling_mixtral.load_balancing_loss_func = function
    try:
        yield
    finally:
        modeling_mixtral.load_balancing_loss_func = original
