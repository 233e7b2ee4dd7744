"""A checked experiment, and what follows from its settings."""

from __future__ import annotations

from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig

from environments import Environment
from rl_experiments.config.registration import default_model
from rl_experiments.config.schema import Config, TrainerConfig


@dataclass(frozen=True)
class Experiment:
    """A configuration that `preflight.check` has accepted, with the environment it describes."""

    config: Config
    environment: Environment


def generation_steps(trainer: TrainerConfig) -> int:
    """Return how many optimizer steps learn from the episodes of one generation."""
    passes = trainer.steps_per_generation * trainer.num_iterations
    return max(1, passes // trainer.gradient_accumulation_steps)


def evaluation_temperature(config: Config) -> float:
    """Return the sampling temperature of evaluations: the training temperature by default."""
    temperature = config.evaluation.temperature
    return config.trainer.temperature if temperature is None else temperature


def model_choice(config: Config) -> str:
    """Return the model's name and why it was chosen, as one line for the user."""
    hydra = HydraConfig.get()
    name = config.model.name
    if any(word.startswith("model=") for word in hydra.overrides.task):
        return f"{name} (from the command line)"
    choices = hydra.runtime.choices
    gpu, env = str(choices["gpu"]), str(choices["env"])
    if name != default_model(gpu, env):
        return f"{name} (from experiment={choices['experiment']})"
    reason = "gpu=local" if gpu == "local" else f"what env={env} recommends on a GPU"
    return f"{name} ({reason}; model=... chooses another)"
