"""The `train` verb: baselines, the policy before, GRPO, the policy after, and the figures of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, SupportsFloat

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rl_experiments import distributed
from rl_experiments.checkpoints.local import latest_complete, step_of
from rl_experiments.commands.job import task
from rl_experiments.config.experiment import Experiment, evaluation_temperature
from rl_experiments.config.schema import Config, default_model
from rl_experiments.errors import UserError, one_line
from rl_experiments.evaluation.plots import plot_learning_curve
from rl_experiments.evaluation.policies import is_api_model
from rl_experiments.evaluation.results import PolicyResult
from rl_experiments.evaluation.runner import Evaluation
from rl_experiments.inference.api_client import api_key
from rl_experiments.judge import rewarder as judge
from rl_experiments.judge.rewarder import Judge
from rl_experiments.paths import LEARNING_CURVE_FILE, VALIDATION_FOLDER
from rl_experiments.preflight import check
from rl_experiments.run.folder import Run
from rl_experiments.run.recorder import RunRecorder, open_recorder
from rl_experiments.run.resume import resume_command
from rl_experiments.terminal import interrupts
from rl_experiments.terminal.progress import Progress
from rl_experiments.tracking import loggers

_VALIDATION = 1 << 30  # the index of the first seed of evaluations while training


@task
def train(cfg: DictConfig) -> float:
    """Train a policy in Hydra's output folder. Returns its win rate on unseen seeds."""
    experiment = check(cfg)
    if is_api_model(experiment.config):
        raise UserError(
            f"model.base_url={experiment.config.model.base_url}: a model behind an endpoint can "
            "be evaluated, not trained; choose another model=..."
        )
    loggers.check_installed(experiment.config.logger)
    own = _function(experiment.config.trainer.target)
    if experiment.config.reward.ruler.enabled:
        if own is not None:
            raise UserError("reward.ruler.enabled=true: has no effect with trainer.target")
        api_key(experiment.config.judge, judge.SETTING)
    run = Run.open(cfg)
    progress = Progress()
    progress.print(f"Model: {_model_choice(experiment.config)}")
    try:
        with open_recorder(run, cfg, experiment.config, progress) as logged:
            if own is not None:
                metric = own(cfg, logged)
            else:
                evaluation = _train_and_judge(experiment, logged, progress)
            logged.log_results()
    except BaseException as error:
        if interrupts.caused(error):
            raise KeyboardInterrupt(_stopped(run)) from None
        raise
    if own is not None:
        progress.print(f"Run folder: {run.folder}")
        return metric
    progress.print(evaluation.table())
    if experiment.config.model.scratch is not None:
        progress.print(
            "before: made at random and warmed up on random replies, which teach the format, "
            "no skill. What was gained after that, GRPO gained."
        )
    progress.print(f"Run folder: {run.folder}")
    return evaluation.results["after"].win_rate.value


def _train_and_judge(experiment: Experiment, run: RunRecorder, progress: Progress) -> Evaluation:
    rubric = experiment.environment.rubric
    say = partial(progress.console.print, soft_wrap=True, markup=False, highlight=False)
    with judge.open_judge(experiment.config, rubric=rubric, folder=run.folder, say=say) as found:
        return _train(experiment, run, progress, found)


def _train(
    experiment: Experiment, run: RunRecorder, progress: Progress, judge: Judge | None
) -> Evaluation:
    config, environment = experiment.config, experiment.environment
    with progress.status("loading PyTorch and TRL"):
        from rl_experiments.models.policy import load_policy
        from rl_experiments.training.build import build_trainer
        from rl_experiments.training.grpo_config import make_grpo_config
        from rl_experiments.training.reporter import Reporter

        distributed.initialize()
        arguments = make_grpo_config(config, run.checkpoints)
    with progress.status("loading the model (made at random and warmed up, the first time)"):
        policy = load_policy(config, environment, run.folder, trains=True)
    for note in policy.notes:
        progress.print(note)
    samples = config.evaluation.samples
    evaluation = Evaluation(run.evaluation, environment, config.num_examples, samples=samples)
    for name in environment.baselines:
        evaluation.evaluate_scripted(name)

    def play(
        on: Evaluation, name: str, version: str, model: Any, progress: Progress
    ) -> PolicyResult:
        temperature = evaluation_temperature(config)
        rollout = policy.rollout(config, environment, temperature=temperature, model=model)
        size = config.evaluation.batch_size
        return on.evaluate_model(name, rollout, version=version, batch_size=size, progress=progress)

    def evaluate_policy(name: str, version: str, model: Any) -> None:
        play(evaluation, name, version, model, progress)
        evaluation.save()

    evaluate_policy("before", "step 0", policy.model)
    trainer = build_trainer(experiment, run, policy, arguments, judge=judge)
    examples = config.evaluation.validation_examples
    validation = Evaluation(
        run.folder / VALIDATION_FOLDER, environment, examples, first=_VALIDATION
    )

    def validate(step: int) -> None:
        with trainer.phase_timer.phase("evaluation"):
            model, quiet = trainer.accelerator.unwrap_model(trainer.model), Progress(quiet=True)
            result = play(validation, "validation", f"step {step}", model, quiet)
        trainer.record("eval/win_rate", result.win_rate.value)
        if result.reward:
            trainer.record("eval/reward", result.reward.value)

    steps = config.trainer.max_steps
    found = run.rewind()
    done = step_of(found) if found else 0
    if done > steps:
        raise UserError(f"trainer.max_steps={steps}: {run.folder} has come to step {done} already")
    if config.resume:
        progress.print(f"Going on from step {done}" if done else "No checkpoint: from the start")
    with progress.phase("train step", total=steps, done=done, line_per_note=True) as advance:
        every = config.evaluation.every_steps
        reporter = Reporter(run, advance, validate=validate, validate_every_steps=every)
        trainer.add_callback(reporter)
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    if reporter.stopped:
        raise UserError(f"{_stopped(run)} (asked to end: its time or its budget is spent)")
    evaluate_policy("after", f"step {steps}", trainer.accelerator.unwrap_model(trainer.model))
    if distributed.is_first():
        plot_learning_curve(run.metrics, evaluation, run.folder / LEARNING_CURVE_FILE)
    return evaluation


def _function(target: str | None) -> Callable[[DictConfig, RunRecorder], float] | None:
    """What `trainer.target=package.module:function` names."""
    if target is None:
        return None
    module, _, name = target.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(
            f"trainer.target={target} cannot be imported: {reason}; give package.module:function"
        ) from None

    def run_it(cfg: DictConfig, run: RunRecorder) -> float:
        metric = found(cfg, run)
        if not isinstance(metric, SupportsFloat):
            raise UserError(f"trainer.target={target}: returned {metric!r}; return the metric")
        return float(metric)

    return run_it


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
    found = latest_complete(run.checkpoints)
    done = f"step {step_of(found)} is kept" if found else "no checkpoint was due yet"
    return f"Stopped; {done} in {run.folder}. Go on with: {resume_command()}"
