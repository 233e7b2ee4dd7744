"""The `train` verb: evaluate the model, train it with GRPO, evaluate it again on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, SupportsFloat

from omegaconf import DictConfig

from rl_experiments import distributed
from rl_experiments.checkpoints.local import latest_complete, step_of
from rl_experiments.commands.job import job
from rl_experiments.config.environment import environment_name
from rl_experiments.config.experiment import Experiment, evaluation_temperature, model_choice
from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, one_line
from rl_experiments.evaluation.played_environment import environment_lines
from rl_experiments.evaluation.plots import plot_learning_curve
from rl_experiments.evaluation.policies import is_api_model
from rl_experiments.evaluation.results import PolicyResult
from rl_experiments.evaluation.runner import Evaluation
from rl_experiments.inference.api_client import api_key
from rl_experiments.judge import rewarder
from rl_experiments.judge.rewarder import Judge
from rl_experiments.paths import LEARNING_CURVE_FILE, VALIDATION_FOLDER
from rl_experiments.preflight import check
from rl_experiments.run.folder import Run
from rl_experiments.run.recorder import RunRecorder, open_recorder
from rl_experiments.run.resume import resume_command
from rl_experiments.terminal import interrupts
from rl_experiments.terminal.progress import Progress
from rl_experiments.tracking import loggers

# Evaluations while training have seeds from this index on, which the final evaluation never plays.
_FIRST_VALIDATION_INDEX = 1 << 30

TrainFunction = Callable[[DictConfig, RunRecorder], float]


@job
def train(cfg: DictConfig) -> float:
    """Train a policy in Hydra's output folder; return its win rate on unseen seeds.

    With `trainer.target` the function that it names trains instead, and its metric is returned.
    """
    experiment = check(cfg)
    config = experiment.config
    target = _prepare(config)
    with Run.open(cfg) as run:
        return _train(cfg, experiment, run, target)


def _train(
    cfg: DictConfig, experiment: Experiment, run: Run, target: TrainFunction | None
) -> float:
    config = experiment.config
    progress = Progress()
    progress.print(f"Model: {model_choice(config)}")
    for line in environment_lines(config):
        progress.print(line)
    evaluation: Evaluation | None = None
    try:
        with open_recorder(run, cfg, config, progress) as recorder:
            if target is not None:
                metric = target(cfg, recorder)
            else:
                evaluation = _train_with_grpo(experiment, recorder, progress)
                win_rate = evaluation.results["after"].win_rate
                metric = win_rate.value if win_rate else math.nan
            recorder.log_results()
    except BaseException as error:
        if interrupts.caused(error):
            raise KeyboardInterrupt(_stopped_message(run)) from None
        raise
    if evaluation is not None:
        progress.print(evaluation.table())
        for line in evaluation.notes():
            progress.print(line)
        if config.model.scratch is not None:
            progress.print(
                "before: made at random and warmed up on random replies, which teach the format, "
                "no skill. What was gained after that, GRPO gained."
            )
    progress.print(f"Run folder: {run.folder}")
    if evaluation is not None:
        evaluation.refuse_unmeasured(["after"])
    return metric


def _prepare(config: Config) -> TrainFunction | None:
    """Refuse what cannot be trained or logged, and return what `trainer.target` names, if any."""
    if is_api_model(config):
        raise UserError(
            f"model.base_url={config.model.base_url}: a model behind an endpoint can "
            "be evaluated, not trained; choose another model=..."
        )
    loggers.check_installed(config.logger)
    target = _train_function(config.trainer.target) if config.trainer.target else None
    if config.reward.ruler.enabled:
        if target is not None:
            raise UserError("reward.ruler.enabled=true: has no effect with trainer.target")
        api_key(config.judge, rewarder.SETTING)
    return target


def _train_function(target: str) -> TrainFunction:
    """Return the function that `trainer.target=package.module:function` names."""
    module, _, name = target.partition(":")
    try:
        function = getattr(import_module(module), name)
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(
            f"trainer.target={target} cannot be imported: {reason}; give package.module:function"
        ) from None

    def train_and_check(cfg: DictConfig, recorder: RunRecorder) -> float:
        metric = function(cfg, recorder)
        if not isinstance(metric, SupportsFloat):
            raise UserError(f"trainer.target={target}: returned {metric!r}; return the metric")
        return float(metric)

    return train_and_check


def _train_with_grpo(
    experiment: Experiment, recorder: RunRecorder, progress: Progress
) -> Evaluation:
    rubric = experiment.environment.rubric
    with rewarder.open_judge(
        experiment.config, rubric=rubric, folder=recorder.folder, say=progress.print
    ) as judge:
        return _GrpoRun(experiment, recorder, progress, judge).run()


class _GrpoRun:
    """One run of GRPO, with the evaluations before, while and after it trains."""

    def __init__(
        self,
        experiment: Experiment,
        recorder: RunRecorder,
        progress: Progress,
        judge: Judge | None,
    ) -> None:
        with progress.status("loading PyTorch and TRL"):
            from rl_experiments.models.policy import load_policy
            from rl_experiments.training.grpo_config import make_grpo_config

            distributed.initialize()
            self._grpo_config = make_grpo_config(experiment.config, recorder.checkpoints)
        with progress.status("loading the model (made at random and warmed up, the first time)"):
            self._policy = load_policy(
                experiment.config, experiment.environment, recorder.folder, trains=True
            )
        for note in self._policy.notes:
            progress.print(note)
        self._experiment = experiment
        self._config = experiment.config
        self._recorder = recorder
        self._progress = progress
        self._judge = judge

    def run(self) -> Evaluation:
        """Evaluate, train and evaluate again; return the final evaluation."""
        from rl_experiments.training.build import build_trainer

        environment, steps = self._experiment.environment, self._config.trainer.max_steps
        evaluation = Evaluation(
            self._recorder.evaluation,
            environment,
            self._config.num_examples,
            samples=self._config.evaluation.samples,
            environment_name=environment_name(self._config.env),
        )
        for name in environment.baselines:
            evaluation.evaluate_scripted(name)
        self._evaluate(evaluation, "before", self._policy.model, step=0)
        evaluation.save()
        trainer = build_trainer(
            self._experiment, self._recorder, self._policy, self._grpo_config, judge=self._judge
        )
        self._train(trainer)
        model = trainer.accelerator.unwrap_model(trainer.model)
        self._evaluate(evaluation, "after", model, step=steps)
        evaluation.save()
        if distributed.is_first():
            figure = self._recorder.folder / LEARNING_CURVE_FILE
            plot_learning_curve(self._recorder.metrics, evaluation, figure)
        return evaluation

    def _train(self, trainer: Any) -> None:
        """Train from the newest checkpoint up to `trainer.max_steps`.

        Raises a `UserError` if the job was asked to end before that.
        """
        from rl_experiments.training.reporter import Reporter

        validation = Evaluation(
            self._recorder.folder / VALIDATION_FOLDER,
            self._experiment.environment,
            self._config.evaluation.validation_examples,
            first=_FIRST_VALIDATION_INDEX,
        )
        checkpoint_path = self._recorder.rewind()
        done = self._steps_done(checkpoint_path)
        steps = self._config.trainer.max_steps
        with self._progress.phase(
            "train step", total=steps, done=done, line_per_note=True
        ) as advance:
            reporter = Reporter(
                self._recorder,
                advance,
                validate=lambda step: self._validate(trainer, validation, step),
                validate_every_steps=self._config.evaluation.every_steps,
            )
            trainer.add_callback(reporter)
            trainer.train(resume_from_checkpoint=str(checkpoint_path) if checkpoint_path else None)
        if reporter.stopped:
            message = _stopped_message(self._recorder)
            raise UserError(f"{message} (asked to end: its time or its budget is spent)")

    def _steps_done(self, checkpoint_path: Path | None) -> int:
        """Return the optimizer steps that the checkpoint has, and show where a resume begins."""
        done = step_of(checkpoint_path) if checkpoint_path else 0
        steps = self._config.trainer.max_steps
        if done > steps:
            raise UserError(
                f"trainer.max_steps={steps}: {self._recorder.folder} has come to step {done} "
                "already"
            )
        if self._config.resume:
            self._progress.print(
                f"Going on from step {done}" if done else "No checkpoint: from the start"
            )
        return done

    def _validate(self, trainer: Any, validation: Evaluation, step: int) -> None:
        """Evaluate the policy while it trains, and add the result to its metrics."""
        with trainer.phase_timer.phase("evaluation"):
            model = trainer.accelerator.unwrap_model(trainer.model)
            result = self._evaluate(validation, "validation", model, step=step, quiet=True)
        if result.win_rate:
            trainer.record("eval/win_rate", result.win_rate.value)
        if result.reward:
            trainer.record("eval/reward", result.reward.value)

    def _evaluate(
        self, evaluation: Evaluation, name: str, model: Any, *, step: int, quiet: bool = False
    ) -> PolicyResult:
        """Let the model, as it is after this optimizer step, play the seeds of the evaluation."""
        rollout = self._policy.rollout(
            self._config,
            self._experiment.environment,
            temperature=evaluation_temperature(self._config),
            model=model,
        )
        return evaluation.evaluate_model(
            name,
            rollout,
            version=f"step {step}",
            batch_size=self._config.evaluation.batch_size,
            progress=Progress(quiet=True) if quiet else self._progress,
        )


def _stopped_message(run: Run) -> str:
    """Return what is kept of a run that was stopped, and the command that goes on with it."""
    newest = latest_complete(run.checkpoints)
    kept = f"step {step_of(newest)} is kept" if newest else "no checkpoint was due yet"
    return f"Stopped; {kept} in {run.folder}. Go on with: {resume_command()}"
