"""Writes the metrics of training, moves the progress line, and ends training when asked to."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from rl_experiments import distributed
from rl_experiments.run.recorder import RunRecorder

# The words of the progress line, by metric.
_PHASE_LABELS = {
    "time/rollout": "rollout",
    "time/judge": "judge",
    "time/sync": "sync",
    "time/log_probs": "log-probs",
    "time/loss": "loss",
    "time/optimizer": "optimizer",
    "time/checkpoint": "checkpoint",
}
_GPU_LABELS = {"engine/cache_use": "KV cache", "gpu/idle": "GPU idle"}
_SMALLEST_SHARE_SHOWN = 0.01
# This variable names a file. Once the file exists, training ends with a checkpoint. The launcher
# creates it when a job has spent its part of the budget or its attempt is nearly out of time.
_STOP_FILE_VARIABLE = "HYDRA_JOB_STOP"


class Reporter(TrainerCallback):
    """Reports to the run's files, its loggers and the progress line.

    `advance(steps, note=...)` moves the progress line. `validate(step)` is called after every
    `validate_every_steps` optimizer steps, before the metrics of that step are written. `stopped`
    is set if training ended early because it was asked to.
    """

    def __init__(
        self,
        run: RunRecorder,
        advance: Callable[..., None],
        *,
        validate: Callable[[int], None],
        validate_every_steps: int | None,
    ) -> None:
        self.run = run
        self.advance = advance
        self.validate = validate
        self.validate_every_steps = validate_every_steps
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)
        step = state.global_step
        if self.validate_every_steps and step % self.validate_every_steps == 0:
            self.validate(step)
        ends_generation = step % args.logging_steps == 0  # only there can a run be resumed
        if ends_generation and step < state.max_steps and _every_process_should_stop():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        is_summary = "loss" not in logs  # TRL's last entry, at the end of training
        if is_summary or not state.is_world_process_zero:
            return
        # Wall-clock metrics have the prefix time/, so that the others of two runs can be compared.
        logs["time/step"] = logs.pop("step_time")
        self.run.log_metrics(state.global_step, logs)
        reward, speed = logs.get("reward", math.nan), logs["time/tokens_per_second"]
        note = f"reward {reward:.3f}  win {logs['win_rate']:.0%}  {speed:,.0f} tokens/s"
        if logs["cut_replies"] >= _SMALLEST_SHARE_SHOWN:
            note += f"  {logs['cut_replies']:.0%} cut at trainer.max_completion_length"
        self.advance(0, note=f"{note}  {_shares_of_time(logs)}")


def _every_process_should_stop() -> bool:
    """Return whether the job was asked to stop; the first process decides for all."""
    return distributed.broadcast_from_first(os.path.exists(os.environ.get(_STOP_FILE_VARIABLE, "")))


def _shares_of_time(logs: Mapping[str, float]) -> str:
    """Return each phase's share of the time and the use of the GPU, without small shares."""
    shares = {
        label: logs.get(name, 0.0) / logs["time/total"] for name, label in _PHASE_LABELS.items()
    }
    shares |= {label: logs.get(name, 0.0) for name, label in _GPU_LABELS.items()}
    return "  ".join(
        f"{label} {share:.0%}" for label, share in shares.items() if share >= _SMALLEST_SHARE_SHOWN
    )
