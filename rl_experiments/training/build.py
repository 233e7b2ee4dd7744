"""Puts the trainer of an experiment together."""

from __future__ import annotations

import math

from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback
from trl import GRPOConfig

from environments import training_seed
from rl_experiments import distributed
from rl_experiments.config.experiment import Experiment
from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, one_line
from rl_experiments.judge.rewarder import Judge
from rl_experiments.models.loading import lora_config
from rl_experiments.models.policy import Policy
from rl_experiments.rollout.runner import RolloutRunner
from rl_experiments.rollout.types import Trajectory
from rl_experiments.run.recorder import RunRecorder
from rl_experiments.training.trainer import EpisodeTrainer

_EPISODES_RECORDED = 2  # of each generation, for people to read


def build_trainer(
    experiment: Experiment,
    run: RunRecorder,
    policy: Policy,
    arguments: GRPOConfig,
    *,
    judge: Judge | None = None,
) -> EpisodeTrainer:
    """Return the trainer of a policy on the experiment's environment, with checkpoints in `run`.

    Raises a `UserError` if TRL does not accept the settings for this model.
    """
    config = experiment.config
    if policy.memory_plan is not None:
        arguments.gradient_checkpointing = policy.memory_plan.gradient_checkpointing

    def make_rollout(trainer: EpisodeTrainer) -> RolloutRunner:
        return policy.rollout(
            config,
            experiment.environment,
            temperature=config.trainer.temperature,
            model=trainer.model,
        )

    def record_episodes(step: int, episodes: list[Trajectory]) -> None:
        if distributed.is_first():
            run.log_episodes(step, episodes[:_EPISODES_RECORDED])

    is_adapter = isinstance(policy.model, PeftModel)  # a checkpoint's, which is trained further
    try:
        trainer = EpisodeTrainer(
            model=policy.model,
            args=arguments,
            train_dataset=_seed_dataset(arguments, seed=config.seed),
            processing_class=policy.tokenizer,
            peft_config=None if is_adapter else lora_config(config.model),
            rollout=make_rollout,
            reward=config.reward,
            checks=config.checks,
            finalize_checkpoint=run.seal,
            micro_batch_tokens=_micro_batch_tokens(config, policy),
            judge=judge,
            on_episodes=record_episodes,
        )
    except ValueError as error:
        raise UserError(f"trainer: {one_line(str(error))}") from None
    trainer.remove_callback(PrinterCallback)
    return trainer


def _seed_dataset(arguments: GRPOConfig, *, seed: int) -> Dataset:
    """Return a dataset with one episode seed for each group of the whole training."""
    groups_per_generation = arguments.generation_batch_size // arguments.num_generations
    passes = arguments.max_steps * arguments.gradient_accumulation_steps
    passes_per_generation = arguments.steps_per_generation * arguments.num_iterations
    generations = math.ceil(passes / passes_per_generation)
    seeds = [training_seed(seed, index) for index in range(groups_per_generation * generations)]
    # TRL requires a prompt column; the environment writes the prompts.
    return Dataset.from_dict({"prompt": [""] * len(seeds), "seed": seeds})


def _micro_batch_tokens(config: Config, policy: Policy) -> int | None:
    """Return the tokens that fit the smallest of the GPUs; None to never split a mini-batch."""
    if policy.memory_plan is None:
        return config.memory.micro_batch_tokens
    return min(distributed.gather([policy.memory_plan.micro_batch_tokens]))
