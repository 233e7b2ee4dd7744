"""The proof that an engine plays the policy: what rounding explains is noise, and the rest a fault.

Rounding in bfloat16 makes the log-probabilities of a pretrained model differ by 0.02 to 0.07 nats,
which is more than many a fault does to a small one. So it is measured, not guessed, on replies that
the engine itself wrote: the policy's log-probabilities are computed in float32 too, once with its
own weights ("exact"), and once with what an engine holds, adapters merged and rounded ("held").

- **Level.** The engine must be as near to the held log-probabilities as the trainer's arithmetic is
  to the exact ones, times `checks.noise_factor`. That detects what is wrong from the start:
  another RoPE base, a layer that was never sent.
- **Tracking.** Where the held log-probabilities moved since an earlier sync, the engine must have
  moved alike: the share is the slope of the engine's changes on those. That detects weights that
  stay behind before the difference itself is above the noise. The policy's own weights would not
  do: rounding to bfloat16 loses most of a small change (measured: 15 to 60 % of it arrives in the
  first steps of LoRA on SmolLM2-135M), which is no fault of the sync.

All means are weighted by the probabilities of the tokens, so that the unlikely ones, on which
rounding is largest, do not dominate. Differences are in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rl_experiments.config.schema import ChecksConfig
from rl_experiments.errors import UserError

# Below it no difference is a fault: kernels multiply float32 in TF32, which the noise of float32
# training does not show.
_MIN_LIMIT = 0.01
# How far from 1 the share may be, and how many of its standard errors.
_MAX_SHARE_ERROR = 0.3
_MAX_STANDARD_ERRORS = 5.0
# The error of an engine's change to that of the trainer's rounding: both ends of the change are
# rounded, the merged weights too, and the tokens of one reply share their error.
_ERROR_FACTOR = 2.5
_MIN_NOISE = 0.002


@dataclass(frozen=True)
class Sync:
    """Log-probabilities of the same tokens just after a sync, each of shape (tokens,)."""

    step: int
    engine: torch.Tensor
    trainer: torch.Tensor  # as training computes them
    exact: torch.Tensor  # by the trainer, in float32
    held: torch.Tensor  # likewise, with the weights that an engine holds


@dataclass(frozen=True)
class Share:
    """How much of the change of its weights since the sync of `step` the engine shows."""

    step: int
    value: float
    standard_error: float
    movement: float  # of the held log-probabilities: root mean square

    @property
    def is_wrong(self) -> bool:
        error = abs(self.value - 1)
        return not error <= max(_MAX_SHARE_ERROR, _MAX_STANDARD_ERRORS * self.standard_error)


class SyncProof:
    """Judges each sync by its own figures and against the earlier ones."""

    def __init__(self, checks: ChecksConfig) -> None:
        self._checks = checks
        self._syncs: list[Sync] = []

    def check(self, sync: Sync) -> dict[str, float]:
        """Return the metrics of the sync; raise a `UserError` if the engine is not the policy."""
        weights = sync.exact.exp()
        difference = _mean((sync.engine - sync.held).abs(), weights)
        noise = _mean((sync.trainer - sync.exact).abs(), weights)
        _check_level(difference, noise, self._checks)
        shares = list(self._shares(sync))
        for share in shares:
            if share.is_wrong:
                raise UserError(
                    "The engine is not the policy after a weight sync: it shows "
                    f"{share.value:.0%} of the policy's change since step {share.step} "
                    f"({share.movement:.4f} nats, where rounding makes {noise:.4f}); the weights "
                    "did not reach it whole"
                )
        self._syncs.append(sync)
        metrics = {
            "sampling/sync_logp_difference/mean": difference,
            "sampling/rounding_logp_difference/mean": noise,
            # What the rounding of weights does: how far the policy that is played is from the one
            # that is trained.
            "sampling/weight_rounding_logp_difference/mean": _mean(
                (sync.held - sync.exact).abs(), weights
            ),
        }
        if shares:
            metrics["sampling/sync_share"] = min(shares, key=lambda each: each.standard_error).value
        return metrics

    def _shares(self, now: Sync) -> Iterator[Share]:
        """Yield the engine's share since 1, 2, 4, 8, ... syncs ago, and since the first."""
        count = len(self._syncs)
        ages = {2**power for power in range(count.bit_length())} | {count}
        for age in sorted(ages):
            if 0 < age <= count:
                share = _share(self._syncs[-age], now)
                if share is not None:
                    yield share


def _check_level(difference: float, noise: float, checks: ChecksConfig) -> None:
    """Stop if engine and policy differ by more than the trainer's rounding explains."""
    limit = difference_limit(noise, checks.max_sync_difference, checks)
    if not difference <= limit:  # also true for NaN
        raise UserError(
            "The engine is not the policy after a weight sync: their log-probabilities differ by "
            f"{difference:.3f} on average, where rounding makes {noise:.3f} and the limit is "
            f"{limit:.3f} (checks.max_sync_difference); its weights, dtype or a setting of the "
            "model such as rope_theta differ"
        )


def difference_limit(noise: float, limit: float | None, checks: ChecksConfig) -> float:
    """Return the largest mean difference that is no fault; `limit` is the user's own, if any."""
    return max(_MIN_LIMIT, checks.noise_factor * noise) if limit is None else limit


def _share(then: Sync, now: Sync) -> Share | None:
    """Return the engine's share of the movement of its weights; None if these did not move."""
    weights = then.exact.exp()
    moved, followed = now.held - then.held, now.engine - then.engine
    signal = float((weights * moved.square()).sum())
    if not signal > 0:
        return None
    value = float((weights * moved * followed).sum()) / signal
    noise = math.sqrt(
        max(_mean((each.trainer - each.exact).square(), weights) for each in (then, now))
    )
    error = _ERROR_FACTOR * max(noise, _MIN_NOISE)
    spread = math.sqrt(float((weights.square() * moved.square()).sum()))
    movement = math.sqrt(signal / float(weights.sum()))
    return Share(then.step, value, error * spread / signal, movement)


def _mean(values: torch.Tensor, weights: torch.Tensor) -> float:
    return float((values * weights).sum() / weights.sum())
