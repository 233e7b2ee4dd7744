"""From the `trainer` settings to TRL: its arguments, the trainer, and what it reports."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig

from environments import training_seed
from rl_experiments import distributed
from rl_experiments.config.experiment import Experiment, generation_steps
from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, did_you_mean, one_line
from rl_experiments.judge.rewarder import Judge
from rl_experiments.models.policy import Policy, lora_config, uses_vllm
from rl_experiments.rollout.types import Trajectory
from rl_experiments.run.recorder import RunRecorder
from rl_experiments.training.trainer import EpisodeTrainer

_EPISODES_KEPT = 2  # of each generation, in episodes.jsonl
# In the progress line: phases of the time, and states of the machine.
_PHASES = {
    **{"rollout": "rollout", "judge": "judge", "sync": "sync", "log_probs": "log-probs"},
    **{"loss": "loss", "optimizer": "optimizer", "checkpoint": "checkpoint"},
}
_STATES = {"engine/cache_use": "KV cache", "gpu/idle": "GPU idle"}
# Names a file: once it is there, training ends with a checkpoint. The launcher writes it when a
# job has spent its part of the budget, or its attempt is nearly out of time.
_STOP_VARIABLE = "HYDRA_JOB_STOP"


def stop_requested() -> bool:
    """Whether the job has been asked to end after a checkpoint."""
    return os.path.exists(os.environ.get(_STOP_VARIABLE, ""))


def log_episodes(run: RunRecorder, step: int, episodes: list[Trajectory]) -> None:
    """Keep a few of them for people to read."""
    if distributed.is_first():
        run.log_episodes(step, episodes[:_EPISODES_KEPT])


def trainer_arguments(config: Config, run: RunRecorder) -> GRPOConfig:
    """TRL's arguments from the `trainer` settings."""
    own = {field.name for field in dataclasses.fields(config.trainer)} - {"extra", "target"}
    settings = {name: getattr(config.trainer, name) for name in own}
    settings = {k: getattr(v, "value", v) for k, v in settings.items()}  # enums by their value
    settings["save_steps"] = config.checkpoint.every_steps
    if settings["gradient_checkpointing"] is None:  # `build_trainer` chooses where it can
        settings["gradient_checkpointing"] = torch.cuda.is_available()
    if uses_vllm(config):
        merge(settings)
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    for key in config.trainer.extra:
        if key not in known:
            raise UserError(
                f"trainer.extra.{key}: TRL has no such setting{did_you_mean(key, known)}"
            )
    try:
        arguments = GRPOConfig(
            output_dir=str(run.checkpoints),
            seed=config.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=config.model.dtype.value == "bfloat16" and torch.cuda.is_available(),
            logging_steps=generation_steps(config.trainer),
            logging_nan_inf_filter=False,
            shuffle_dataset=False,  # the seeds are random as they are
            report_to="none",  # the run has loggers of its own
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            # Processes exchange their gradients and nothing else.
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            **settings,
            **config.trainer.extra,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"trainer: {one_line(str(error))}") from None
    # One process uses one GPU, also where it sees others; `gpu.count` starts more of them.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def merge(settings: dict[str, Any]) -> None:
    """Make the passes of an optimizer step one, which is split again by what fits the GPU.

    The same update: TRL's losses are sums or means over batches of equal size. A pass costs a third
    of a second however little is in it.
    """
    passes = math.gcd(settings["gradient_accumulation_steps"], settings["steps_per_generation"])
    settings["per_device_train_batch_size"] *= passes
    settings["gradient_accumulation_steps"] //= passes
    settings["steps_per_generation"] //= passes


def build_trainer(
    experiment: Experiment,
    run: RunRecorder,
    policy: Policy,
    arguments: GRPOConfig,
    *,
    judge: Judge | None = None,
) -> EpisodeTrainer:
    """The trainer of the policy on the experiment's episodes, its checkpoints in the run."""
    config = experiment.config
    if policy.fit is not None:
        arguments.gradient_checkpointing = policy.fit.gradient_checkpointing
    groups = arguments.generation_batch_size // arguments.num_generations
    period = arguments.steps_per_generation * arguments.num_iterations
    passes = arguments.max_steps * arguments.gradient_accumulation_steps
    generations = -(-passes // period)
    seeds = [training_seed(config.seed, index) for index in range(groups * generations)]
    trainer = EpisodeTrainer(
        model=policy.model,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [""] * len(seeds), "seed": seeds}),
        processing_class=policy.tokenizer,
        # A checkpoint's adapter is trained on.
        peft_config=None if isinstance(policy.model, PeftModel) else lora_config(config.model),
        rollout=lambda trainer: policy.rollout(
            config,
            experiment.environment,
            temperature=config.trainer.temperature,
            model=trainer.model,
        ),
        reward=config.reward,
        checks=config.checks,
        seal=run.seal,
        micro_batch_tokens=_micro_batch_tokens(config, policy),
        judge=judge,
        on_episodes=lambda step, episodes: log_episodes(run, step, episodes),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _micro_batch_tokens(config: Config, policy: Policy) -> int | None:
    """What fits the smallest of the GPUs; None for a mini-batch as a whole."""
    if policy.fit is None:
        return config.fit.micro_batch_tokens
    return min(distributed.gather([policy.fit.micro_batch_tokens]))


class Reporter(TrainerCallback):
    """Writes the metrics of each generation, moves the progress line, and ends when asked to.

    `validate(step)` is called after every `every` steps, before their metrics are written.
    """

    def __init__(
        self,
        run: RunRecorder,
        advance: Callable[..., None],
        *,
        validate: Callable[[int], None],
        every: int | None,
    ) -> None:
        self.run = run
        self.advance = advance
        self.validate = validate
        self.every = every
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)
        if self.every and state.global_step % self.every == 0:
            self.validate(state.global_step)
        is_whole = state.global_step % args.logging_steps == 0  # a generation's last step
        if (
            is_whole
            and state.global_step < state.max_steps
            and distributed.broadcast_from_first(stop_requested())
        ):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "loss" not in logs or not state.is_world_process_zero:  # the summary at the end
            return
        # What differs between two equal runs has names of its own.
        logs["time/step"] = logs.pop("step_time")
        self.run.log_metrics(state.global_step, logs)
        reward, speed = logs.get("reward", math.nan), logs["time/tokens_per_second"]
        note = f"reward {reward:.3f}  win {logs['win_rate']:.0%}  {speed:,.0f} tokens/s"
        self.advance(0, note=f"{note}  {_shares(logs)}")


def _shares(logs: dict[str, Any]) -> str:
    """Where the time went, in words: the phases that took a hundredth of it or more."""
    shares = {name: logs.get(f"time/{name}", 0.0) / logs["time/total"] for name in _PHASES}
    words = [f"{_PHASES[name]} {share:.0%}" for name, share in shares.items() if share >= 0.01]
    words += [f"{said} {logs[n]:.0%}" for n, said in _STATES.items() if logs.get(n, 0.0) >= 0.01]
    return "  ".join(words)
