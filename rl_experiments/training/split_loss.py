"""TRL's trainer with mini-batches that may go through the model in parts, at the same gradient.

It uses these private names of TRL 1.16.0 and accelerate:

- `GRPOTrainer._get_per_token_logps_and_entropies`, called and overridden, to keep its result
- `GRPOTrainer._entropy_bonus_enabled` and `_last_world_entropy`, read
- `GradientState._set_sync_gradients`, called as transformers does
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from rl_experiments.training.mean_terms import ExpertLoad, Part, select, weighted_loss
from rl_experiments.training.micro_batches import (
    Batch,
    backward_all_but_last,
    loss_weight,
    micro_batches,
)


class SplitLossTrainer(GRPOTrainer):
    """Computes TRL's loss in micro-batches of at most `micro_batch_tokens` tokens.

    None stands for whole mini-batches.
    """

    def __init__(self, *, args: GRPOConfig, micro_batch_tokens: int | None, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)
        self.micro_batch_tokens = micro_batch_tokens
        # What the loss computed last, each (samples, tokens), and the balance of a model's experts.
        self._loss_logprobs = torch.empty(0)
        self._loss_entropies: torch.Tensor | None = None
        self._loss_balance: torch.Tensor | None = None
        self._part: Part | None = None  # whose loss is being computed

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Return TRL's loss of a mini-batch, computed in micro-batches if it has many tokens."""
        trl_loss = super().compute_loss
        batches = [inputs]
        if model.training and self.micro_batch_tokens is not None:
            batches = micro_batches(inputs, self.micro_batch_tokens)
        parts = [Part(batch) for batch in batches]
        load = self._survey(model, parts)

        def loss_of(part: Part) -> torch.Tensor:
            is_last = part is parts[-1]
            entropy_coefficient = self._entropy_coefficient()  # TRL may change it in the last part
            with (
                self._computing(part, is_last=is_last),
                load.balancing() if load else nullcontext(),
            ):
                loss: torch.Tensor = trl_loss(model, part.batch, False, num_items_in_batch)
            self.check_part(part.batch, is_last=is_last)
            weight = loss_weight(part.batch, inputs, self.loss_type)
            if not (self._entropy_bonus_enabled or self.aux_loss_enabled):
                return loss * weight
            return self._weighted(loss, part, parts, weight, entropy_coefficient)

        return backward_all_but_last(parts, loss_of, model=model, accelerator=self.accelerator)

    def check_part(self, micro_batch: Batch, *, is_last: bool) -> None:
        """Check what the loss of a micro-batch computed; called just after it."""

    def _survey(self, model: Any, parts: list[Part]) -> ExpertLoad | None:
        """Find out what the loss of a part must know of all parts, by another forward pass.

        That is needed for the tokens of highest entropy, which are noted in the parts, and for the
        load of a model's experts, which is returned.
        """
        is_split = len(parts) > 1
        selects = self.top_entropy_quantile < 1.0 and (is_split or self._entropy_bonus_enabled)
        load = ExpertLoad(len(parts)) if self.aux_loss_enabled and is_split else None
        if not selects and load is None:
            return None
        entropies = []
        with torch.no_grad(), load.counting() if load else nullcontext():
            for part in parts:
                batch = part.batch
                _, entropy, _ = self._get_per_token_logps_and_entropies(
                    model,
                    torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                    torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                    batch["completion_ids"].size(1),
                    compute_entropy=True,
                    compute_aux_loss=self.aux_loss_enabled,
                )
                entropies.append(entropy[part.mask.bool()])
        if selects:
            tokens = torch.cat(entropies).unsqueeze(0)
            quantile = 1 - self.top_entropy_quantile
            chosen = super().get_high_entropy_mask(tokens, torch.ones_like(tokens), quantile)
            select(parts, chosen.squeeze(0))
        return load

    @contextmanager
    def _computing(self, part: Part, *, is_last: bool) -> Iterator[None]:
        """Let TRL know which part's loss it computes.

        At the end of an optimizer step TRL adapts the weight of the entropy bonus: only at the last
        part.
        """
        state = self.accelerator.gradient_state
        ends_step = state.sync_gradients
        state._set_sync_gradients(ends_step and is_last)
        self._part = part
        try:
            yield
        finally:
            self._part = None
            state._set_sync_gradients(ends_step)

    def _entropy_coefficient(self) -> float:
        """Return the weight of the entropy bonus in this optimizer step."""
        if self.use_adaptive_entropy and self._last_world_entropy > self.args.entropy_target:
            return 0.0
        return float(self.entropy_coef)

    def _weighted(
        self,
        loss: torch.Tensor,
        part: Part,
        parts: list[Part],
        weight: float,
        entropy_coefficient: float,
    ) -> torch.Tensor:
        """Return the part's summand of the mini-batch's loss, given TRL's loss of the part."""
        passes = self.current_gradient_accumulation_steps
        assert self._loss_entropies is not None  # TRL's loss always computes them
        balance = None
        if self._loss_balance is not None:
            balance = self.router_aux_loss_coef / passes * self._loss_balance
        return weighted_loss(
            loss,
            part,
            parts,
            weight=weight,
            entropies=-entropy_coefficient / passes * self._loss_entropies,
            balance=balance,
        )

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return TRL's result, and keep it for the loss and its checks."""
        results: tuple[Any, ...] = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        logprobs, self._loss_entropies, self._loss_balance = results
        self._loss_logprobs = logprobs.detach()
        return results

    def get_high_entropy_mask(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the tokens of a part that are among those of highest entropy of all parts."""
        if self._part is not None and self._part.selected is not None:
            return self._part.selected
        mask: torch.Tensor = super().get_high_entropy_mask(*args, **kwargs)
        return mask
