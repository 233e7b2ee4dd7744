"""What the trainer does just before and after each optimizer step."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from rl_experiments.training import guards
from rl_experiments.training.phase_timer import PhaseTimer


class TimeOptimizer(TrainerCallback):
    """Times the optimizer step, which is between two calls of the trainer's methods."""

    def __init__(self, phase_timer: PhaseTimer) -> None:
        self._phase_timer = phase_timer
        self._running = ExitStack()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._running.enter_context(self._phase_timer.phase("optimizer"))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._running.close()


class StopIfNotFinite(TrainerCallback):
    """Ends training at the step at which gradients or weights are no numbers any more.

    A later checkpoint would hold them, and resuming from it would never get better.
    """

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any
    ) -> None:
        guards.check_gradient_is_finite(model, step=state.global_step + 1)

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any
    ) -> None:
        guards.check_weights_are_finite(model, where=f"optimizer step {state.global_step + 1}")
