"""Holds what plays the episodes to the policy that learns from them, by log-probabilities.

After each weight sync an engine is compared on replies of its own (see `sync_proof`), and once per
generation the sampler's log-probabilities of the episodes are compared with those of the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import selective_log_softmax

from rl_experiments import distributed
from rl_experiments.inference.sampler import Engine
from rl_experiments.rollout.runner import first_replies
from rl_experiments.training import guards
from rl_experiments.training.collate import collate_tokens, pad
from rl_experiments.training.float32_forward import HALF_PRECISION, float32_forward
from rl_experiments.training.micro_batches import Batch
from rl_experiments.training.samples import TrainingSample
from rl_experiments.training.sync_proof import Sync, SyncProof, difference_limit

if TYPE_CHECKING:
    from rl_experiments.training.trainer import EpisodeTrainer

_PROBE_EPISODES = 24  # whose first turns are compared after each weight sync
_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by accelerate's names
_PROBE_TOKENS = 32  # of each of their replies, at most


class SamplerGuard:
    """Compares sampler and trainer, records by how much they differ, and stops at a fault."""

    def __init__(self, trainer: EpisodeTrainer) -> None:
        self._trainer = trainer
        self._proof = SyncProof(trainer.checks)
        # (prompt, reply) token ids that engine and policy are compared on after each sync; None
        # before the first.
        self._probe: list[tuple[list[int], list[int]]] | None = None
        # Nats, what rounding makes on the probe: of the trainer's arithmetic, and of the weights.
        self._rounding = self._weight_rounding = 0.0
        # Trainer less sampler, and 1 for each importance ratio that is clipped: one tensor per
        # micro-batch of the first loss after a generation. None once these were compared.
        self._differences: list[torch.Tensor] | None = None
        self._clipped: list[torch.Tensor] = []

    def expect(self) -> None:
        """Compare the next loss: it is the first after a generation, on the weights of that."""
        self._differences = []

    def compare(self, micro_batch: Batch, logprobs: torch.Tensor, *, is_last: bool) -> None:
        """Compare the loss's log-probabilities with the sampler's: both (samples, tokens).

        They must be equal up to rounding. `is_last` marks the last micro-batch of the mini-batch.
        """
        if self._differences is None:
            return
        differences = logprobs - micro_batch["sampling_per_token_logps"]
        mask = micro_batch["tool_mask"].bool()
        self._differences.append(differences[mask])
        self._clipped.append(self._is_clipped(differences, mask))
        if not is_last:
            return
        accelerator, record = self._trainer.accelerator, self._trainer.record
        every_difference, self._differences = torch.cat(self._differences).abs(), None
        mean, maximum = guards.global_mean_and_max(every_difference, accelerator)
        record("sampling/sampling_logp_difference/mean", mean)
        record("sampling/sampling_logp_difference/max", maximum)
        every_clipped, self._clipped = torch.cat(self._clipped), []
        record(
            "sampling/clipped_by_rounding",
            guards.global_mean_and_max(every_clipped, accelerator)[0],
        )
        self._check_generation(mean, micro_batch)

    def check_sync(self) -> None:
        """Compare the engine with the policy, just after a weight sync."""
        engine = self._trainer.rollout.sampler.engine
        assert engine is not None  # else this is never called
        if self._probe is None:
            self._probe = self._make_probe(engine)
        if not any(distributed.gather([bool(self._probe)])):
            return
        device = self._trainer.accelerator.device
        batch = collate_tokens(
            [TrainingSample(prompt, reply) for prompt, reply in self._probe],
            pad_token_id=self._trainer.processing_class.pad_token_id,
            device=device,
        )
        mask = batch["completion_mask"].bool()
        of_engine = pad(engine.logprobs(self._probe), device=device)
        rounded, exact = self._rounded_and_exact(batch)
        held = exact
        if engine.dtype in HALF_PRECISION:
            model = self._trainer.accelerator.unwrap_model(self._trainer.model)
            with float32_forward(model, held_in=engine.dtype):
                held = self._logprobs(model, batch, temperature=1.0)
        gathered = (
            torch.tensor(distributed.gather(each[mask].tolist()))
            for each in (of_engine, rounded, exact, held)
        )
        metrics = self._proof.check(Sync(self._trainer.state.global_step, *gathered))
        self._rounding = metrics["sampling/rounding_logp_difference/mean"]
        self._weight_rounding = metrics["sampling/weight_rounding_logp_difference/mean"]
        for name, value in metrics.items():
            self._trainer.record(name, value)

    def _is_clipped(self, log_ratios: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return 1 for each importance ratio that the loss would clip, and 0 for each other.

        In the first loss after a generation every ratio is 1 but for rounding, so what is clipped
        there is clipped by rounding alone.
        """
        trainer = self._trainer
        if trainer.importance_sampling_level == "sequence":
            log_ratios = (log_ratios * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            mask = mask.any(dim=1)
        ratios = log_ratios[mask].exp()
        low, high = 1 - trainer.epsilon_low, 1 + trainer.epsilon_high
        if trainer.loss_type == "cispo":  # it has a largest ratio alone
            low, high = 0.0, trainer.epsilon_high
        clipped: torch.Tensor = (ratios < low) | (ratios > high)
        return clipped.float()

    def _check_generation(self, difference: float, micro_batch: Batch) -> None:
        """Stop if the mean difference is more than rounding explains, measured where needed."""
        trainer, checks = self._trainer, self._trainer.checks
        noise = self._rounding + self._weight_rounding
        limit = difference_limit(noise, checks.max_logp_difference, checks)
        if checks.max_logp_difference is None and not difference <= limit:
            rounded, exact = self._rounded_and_exact(micro_batch, temperature=trainer.temperature)
            rounding = (rounded - exact)[micro_batch["tool_mask"].bool()].abs()
            noise, _ = guards.global_mean_and_max(rounding, trainer.accelerator)
            limit = difference_limit(noise + self._weight_rounding, None, checks)
        guards.check_sampler_logprobs(difference, limit=limit)

    def _make_probe(self, engine: Engine) -> list[tuple[list[int], list[int]]]:
        """Return the first prompts of the training with what the engine replies to them."""
        trainer = self._trainer
        sampler = engine.sampler(
            trainer.model,
            eos_token_id=trainer.processing_class.eos_token_id,
            max_new_tokens=min(trainer.rollout.max_new_tokens, _PROBE_TOKENS),
            temperature=1.0,
        )
        return first_replies(
            trainer.rollout, sampler, seeds=trainer.train_dataset["seed"][:_PROBE_EPISODES]
        )

    def _rounded_and_exact(
        self, batch: Batch, *, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the policy's log-probabilities of the completions: two of (samples, tokens).

        The first are computed in the half precision of training or of the engine, if any, and the
        others in float32.
        """
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        dtype = self._half_precision(model)
        if dtype is None:
            exact = self._logprobs(model, batch, temperature)
            return exact, exact
        with torch.autocast(self._trainer.accelerator.device.type, dtype):
            rounded = self._logprobs(model, batch, temperature)
        with float32_forward(model):
            return rounded, self._logprobs(model, batch, temperature)

    def _half_precision(self, model: Any) -> torch.dtype | None:
        """Return the half precision in which training or the engine computes; None if neither."""
        autocast = _AUTOCAST_DTYPES.get(self._trainer.accelerator.mixed_precision)
        engine = self._trainer.rollout.sampler.engine
        dtypes = [autocast, engine and engine.dtype, *(each.dtype for each in model.parameters())]
        return next((dtype for dtype in dtypes if dtype in HALF_PRECISION), None)

    @torch.no_grad()
    def _logprobs(self, model: Any, batch: Batch, temperature: float) -> torch.Tensor:
        """Return the log-probabilities of the completions' tokens: (samples, tokens).

        TRL's own have the temperature of training, which its fused head is made for.
        """
        # Without the autocast that accelerate has put around the model.
        forward = getattr(model, "_original_forward", model)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        rows = self._trainer.rows_at_once(ids.size(1))
        keep = batch["completion_ids"].size(1)
        logprobs, is_training = [], model.training
        model.eval()  # without dropout
        try:
            for part_ids, part_mask in zip(
                torch.split(ids, rows), torch.split(mask, rows), strict=True
            ):
                output = forward(
                    input_ids=part_ids, attention_mask=part_mask, logits_to_keep=keep + 1
                )
                logits = output.logits[:, -keep - 1 : -1].float() / temperature
                logprobs.append(selective_log_softmax(logits, part_ids[:, -keep:]))
        finally:
            model.train(is_training)
        return torch.cat(logprobs)
