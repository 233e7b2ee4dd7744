"""The `train` verb: baselines, the policy before, GRPO, the policy after, and the figures of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rl_experiments import checkpoint
from rl_experiments.check import Experiment, check, generation_steps
from rl_experiments.errors import UserError, did_you_mean, one_line
from rl_experiments.evaluate import Evaluation, evaluation_temperature
from rl_experiments.plot import learning_curve
from rl_experiments.progress import Progress
from rl_experiments.run import Run, command_line
from rl_experiments.schema import Config, default_model

if TYPE_CHECKING:
    from rl_experiments.policy import Policy

_EPISODES_KEPT = 2  # of each generation, in episodes.jsonl


def train(cfg: DictConfig) -> float:
    """Train a policy in Hydra's output folder. Returns its win rate on unseen seeds."""
    experiment = check(cfg)
    run = Run.open(cfg)
    progress = Progress()
    progress.print(f"Model: {_model_choice(experiment.config)}")
    try:
        evaluation = _train(experiment, run, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(run)) from None
    progress.print(evaluation.table())
    progress.print(f"Run folder: {run.folder}")
    return evaluation.results["after"].win_rate.value


def _train(experiment: Experiment, run: Run, progress: Progress) -> Evaluation:
    config, environment = experiment.config, experiment.environment
    with progress.status("loading PyTorch and TRL"):
        from rl_experiments.policy import load_policy

        arguments = trainer_arguments(config, run)
    with progress.status("loading the model (made at random and warmed up, the first time)"):
        policy = load_policy(config, environment)
    evaluation = Evaluation(run.evaluation, environment, config.num_examples)
    for name in environment.baselines:
        evaluation.scripted(name)

    def evaluate_policy(name: str, version: str, model: Any) -> None:
        temperature = evaluation_temperature(config)
        rollout = policy.rollout(config, environment, temperature=temperature, model=model)
        size = config.evaluation.batch_size
        evaluation.policy(name, rollout, version=version, batch_size=size, progress=progress)
        evaluation.save()

    evaluate_policy("before", "step 0", policy.model)
    trainer = build_trainer(experiment, run, policy, arguments)
    steps = config.trainer.max_steps
    found = run.rewind()
    done = checkpoint.step_of(found) if found else 0
    if done > steps:
        raise UserError(f"trainer.max_steps={steps}: {run.folder} has come to step {done} already")
    with progress.phase("train", total=steps, done=done) as advance:
        trainer.add_callback(_reporter(run, config, advance))
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    evaluate_policy("after", f"step {steps}", trainer.accelerator.unwrap_model(trainer.model))
    learning_curve(run.metrics, evaluation, run.folder / "learning_curve.png")
    return evaluation


def trainer_arguments(config: Config, run: Run) -> Any:
    """TRL's arguments from the `trainer` settings."""
    import dataclasses

    import torch
    from trl import GRPOConfig

    own = {field.name for field in dataclasses.fields(config.trainer)} - {"extra"}
    settings = {name: getattr(config.trainer, name) for name in own}
    settings = {k: getattr(v, "value", v) for k, v in settings.items()}  # enums by their value
    settings["save_total_limit"] = None  # old checkpoints go once a new one is whole
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    for key in config.trainer.extra:
        if key not in known:
            raise UserError(
                f"trainer.extra.{key}: TRL has no such setting{did_you_mean(key, known)}"
            )
    if "wandb" in config.logger.report_to:
        os.environ.setdefault("WANDB_PROJECT", config.logger.project)
        if not os.environ.get("WANDB_API_KEY"):
            os.environ.setdefault("WANDB_MODE", "offline")
    try:
        return GRPOConfig(
            output_dir=str(run.checkpoints),
            run_name=run.folder.parent.name + "-" + run.folder.name,
            seed=config.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=config.model.dtype.value == "bfloat16" and torch.cuda.is_available(),
            logging_steps=generation_steps(config.trainer),
            logging_nan_inf_filter=False,
            shuffle_dataset=False,  # the seeds are random as they are
            report_to=list(config.logger.report_to) or "none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            **settings,
            **config.trainer.extra,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"trainer: {one_line(str(error))}") from None


def build_trainer(experiment: Experiment, run: Run, policy: Policy, arguments: Any) -> Any:
    """The trainer of the policy on the experiment's episodes, its checkpoints in the run."""
    from datasets import Dataset
    from transformers import PrinterCallback

    from environments import training_seed
    from rl_experiments.policy import lora_config
    from rl_experiments.trainer import EpisodeTrainer

    config = experiment.config
    groups = arguments.generation_batch_size // arguments.num_generations
    generations = -(-arguments.max_steps // generation_steps(config.trainer))
    seeds = [training_seed(config.seed, index) for index in range(groups * generations)]
    trainer = EpisodeTrainer(
        model=policy.model,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [""] * len(seeds), "seed": seeds}),
        processing_class=policy.tokenizer,
        peft_config=lora_config(config.model),
        rollout=lambda trainer: policy.rollout(
            config,
            experiment.environment,
            temperature=config.trainer.temperature,
            model=trainer.model,
        ),
        reward=config.reward,
        checks=config.checks,
        keep_checkpoints=config.trainer.save_total_limit,
        on_episodes=lambda step, episodes: run.log_episodes(step, episodes[:_EPISODES_KEPT]),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _reporter(run: Run, config: Config, advance: Any) -> Any:
    """The callback that writes metrics and moves the progress line."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            advance(1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            if "loss" not in logs:  # the summary at the end
                return
            # What differs between two equal runs has names of its own.
            logs["time/step"] = logs.pop("step_time")
            run.log_metrics(state.global_step, logs)
            speed = logs["time/tokens_per_second"]
            advance(
                0,
                note=f"reward {logs['reward']:.3f}  win {logs['win_rate']:.0%}  "
                f"{speed:,.0f} tokens/s",
            )

    return Reporter()


def _model_choice(config: Config) -> str:
    """The model's name and why it is this one."""
    choices = HydraConfig.get().runtime.choices
    name = config.model.name
    if any(word.startswith("model=") for word in HydraConfig.get().overrides.task):
        return f"{name} (from the command line)"
    gpu, env = str(choices["gpu"]), str(choices["env"])
    if name != default_model(gpu, env):
        return f"{name} (from experiment={choices['experiment']})"
    why = "gpu=local" if gpu == "local" else f"what env={env} recommends on a GPU"
    return f"{name} ({why}; model=... chooses another)"


def _stopped(run: Run) -> str:
    found = checkpoint.latest(run.checkpoints)
    done = f"step {checkpoint.step_of(found)} is kept" if found else "no checkpoint was due yet"
    return f"Stopped; {done} in {run.folder}. Go on with: {_resume_command()}"


def _resume_command() -> str:
    command = command_line()
    return command if "resume=true" in command else f"{command} resume=true"
