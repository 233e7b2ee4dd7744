"""A composed configuration that has been checked, with its environment."""

from __future__ import annotations

from dataclasses import dataclass

from environments import Environment
from rl_experiments.config.schema import Config, TrainerConfig


@dataclass(frozen=True)
class Experiment:
    """A composed configuration that holds together, and its environment."""

    config: Config
    environment: Environment


def generation_steps(trainer: TrainerConfig) -> int:
    """Optimizer steps from one generation of episodes to the next."""
    micro_steps = trainer.steps_per_generation * trainer.num_iterations
    return max(1, micro_steps // trainer.gradient_accumulation_steps)


def evaluation_temperature(config: Config) -> float:
    """The training temperature unless told otherwise."""
    chosen = config.evaluation.temperature
    return config.trainer.temperature if chosen is None else chosen
