"""When training stops because it cannot be right: each guard raises a `UserError` with the reason.

Limits are the settings `checks.*`. A difference of log-probabilities is in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import nn

from environments import End
from rl_experiments.config.schema import ChecksConfig, RewardConfig
from rl_experiments.errors import UserError
from rl_experiments.rollout.advantages import rewards_vary
from rl_experiments.rollout.types import Trajectory

_ERRORS_SHOWN = 3


def check_some_episode_was_played(trajectories: Sequence[Trajectory]) -> None:
    """Stop if the environment raised an error in every episode of a generation."""
    if all(trajectory.end is End.FAILED for trajectory in trajectories):
        errors = sorted({str(trajectory.error) for trajectory in trajectories})
        raise UserError(f"env._target_: every episode failed: {'; '.join(errors[:_ERRORS_SHOWN])}")


def check_some_prompt_fits(has_samples: bool, *, max_length: int, max_new_tokens: int) -> None:
    """Stop if no episode of a generation had room for its first reply."""
    if not has_samples:
        raise UserError(
            f"model.max_length={max_length}: no episode's first prompt fits beside "
            f"trainer.max_completion_length={max_new_tokens}; raise model.max_length"
        )


def check_policy_version(trajectories: Sequence[Trajectory], *, step: int) -> None:
    """Stop if episodes were played with other weights than those of the optimizer step `step`."""
    for trajectory in trajectories:
        version = trajectory.policy_version
        if trajectory.turns and trajectory.turns[0].reply_ids and version != step:
            raise UserError(
                f"The engine played with the weights of step {version}, but the trainer is at step "
                f"{step}: the weight sync did not reach the engine"
            )


def check_sampler_logprobs(mean_difference: float, *, limit: float) -> None:
    """Stop if the sampler's log-probabilities of a generation are not the trainer's."""
    if not mean_difference <= limit:  # also true for NaN
        raise UserError(
            f"The sampler and the trainer disagree: their log-probabilities differ by "
            f"{mean_difference:.3f} on average, where rounding explains {limit:.3f} "
            "(checks.max_logp_difference); the sampler's weights, temperature or log-probability "
            "mode are not the policy's"
        )


def check_gradient_is_finite(model: nn.Module, *, step: int) -> None:
    """Stop before the optimizer step `step` if its gradient has a NaN or is infinite."""
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    if not nn.utils.get_total_norm(gradients).isfinite():
        raise UserError(
            f"The gradient of optimizer step {step} is not finite, so that step is not taken and "
            "the checkpoints are those before it; lower trainer.learning_rate, set "
            "model.dtype=float32, or look for infinite rewards (env.*, reward.*)"
        )


def check_weights_are_finite(model: nn.Module, *, where: str) -> None:
    """Stop if a weight that is trained is NaN or infinite; `where` names the step or checkpoint."""
    weights = [each.detach() for each in model.parameters() if each.requires_grad]
    if not nn.utils.get_total_norm(weights, norm_type=math.inf).isfinite():
        raise UserError(
            f"The weights of {where} are not finite (NaN or infinite): training cannot go on from "
            "them; go back to an earlier checkpoint, with a lower trainer.learning_rate"
        )


class LearningGuard:
    """Stops a run that had nothing to learn from in `checks.patience` generations in a row."""

    def __init__(self, checks: ChecksConfig, reward: RewardConfig) -> None:
        self.checks = checks
        self.reward = reward
        self._generations_invalid = 0
        self._generations_without_signal = 0

    def check(self, groups: Sequence[Sequence[Trajectory]]) -> None:
        """Take a generation into account; `groups` are those of all processes."""
        patience = self.checks.patience
        invalid = fmean(episode.end is End.INVALID for group in groups for episode in group)
        is_invalid = invalid > self.checks.max_invalid
        self._generations_invalid = self._generations_invalid + 1 if is_invalid else 0
        if self._generations_invalid >= patience:
            raise UserError(
                f"The reply format has collapsed: {invalid:.0%} of the episodes ended on a reply "
                f"that could not be read, {patience} generations in a row; lower "
                "trainer.learning_rate, raise trainer.max_completion_length, or raise "
                "checks.max_invalid"
            )
        credit, gamma = self.reward.credit, self.reward.gamma
        has_signal = any(rewards_vary(group, credit=credit, gamma=gamma) for group in groups)
        self._generations_without_signal = 0 if has_signal else self._generations_without_signal + 1
        if self._generations_without_signal >= patience:
            raise UserError(
                f"No group's rewards varied in {patience} generations: there is nothing to learn "
                "from; make the task easier or harder (env.*), raise trainer.num_generations or "
                "trainer.temperature, or raise checks.patience"
            )


def global_mean_and_max(values: torch.Tensor, accelerator: Any) -> tuple[float, float]:
    """Return mean and maximum over the values of all processes; a process may have none."""
    maximum = values.max() if values.numel() else values.new_zeros(())
    here = torch.stack([values.sum(), values.new_tensor(float(values.numel())), maximum])
    sums, counts, maxima = accelerator.gather(here).view(-1, 3).unbind(1)
    return float(sums.sum() / counts.sum().clamp(min=1)), float(maxima.max())
