"""The `evaluate` verb: let policies play the same unseen seeds, and print how they compare."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rl_experiments import distributed
from rl_experiments.commands.job import job
from rl_experiments.config.environment import environment_name
from rl_experiments.config.experiment import Experiment, evaluation_temperature
from rl_experiments.errors import UserError
from rl_experiments.evaluation.own_limits import with_own_limits
from rl_experiments.evaluation.played_environment import environment_lines
from rl_experiments.evaluation.policies import EvaluatedPolicy, resolve_policies
from rl_experiments.evaluation.results import PolicyResult
from rl_experiments.evaluation.runner import Evaluation
from rl_experiments.inference.api_budget import Spend
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.preflight import check
from rl_experiments.run.folder import Run
from rl_experiments.run.resume import resume_command
from rl_experiments.terminal import interrupts
from rl_experiments.terminal.progress import Progress


@job
def evaluate(cfg: DictConfig) -> float:
    """Evaluate what `policies` lists, or one scripted `policy`, or the model beside all of them.

    Returns the win rate of the last policy that was asked for.
    """
    experiment = check(cfg)
    overrides = HydraConfig.get().overrides.task
    policies = [
        with_own_limits(policy, experiment.config, overrides)
        for policy in resolve_policies(experiment.config, experiment.environment)
    ]
    with Run.open(cfg) as run:
        return _evaluate_all(policies, experiment, run)


def _evaluate_all(policies: Sequence[EvaluatedPolicy], experiment: Experiment, run: Run) -> float:
    config, environment = experiment.config, experiment.environment
    distributed.initialize()
    evaluation = Evaluation(
        run.evaluation,
        environment,
        config.num_examples,
        samples=config.evaluation.samples,
        environment_name=environment_name(config.env),
    )
    evaluation.compared = [policy.name for policy in policies]
    progress = Progress()
    checkpoints = [policy.config.checkpoint.path for policy in policies]
    for line in environment_lines(config, *filter(None, checkpoints)):
        progress.print(line)
    try:
        if not config.policies and not config.policy:
            for name in environment.baselines:
                evaluation.evaluate_scripted(name)
        for policy in policies:
            result = _evaluate(policy, run, evaluation, progress)
            evaluation.save()
    except BaseException as error:
        kept = f"the episodes played are in {run.evaluation}"
        if interrupts.caused(error):
            raise KeyboardInterrupt(f"Stopped; {kept}. Go on with: {resume_command()}") from None
        if isinstance(error, UserError) and evaluation.has_begun:
            remedy = "the same command with resume=true goes on"
            raise UserError(f"{error}; {kept}: {remedy}") from None
        raise
    _print_results(evaluation, progress)
    progress.print(f"Run folder: {run.folder}")
    evaluation.refuse_unmeasured(evaluation.results)
    return result.win_rate.value if result.win_rate else math.nan


def _evaluate(
    policy: EvaluatedPolicy, run: Run, evaluation: Evaluation, progress: Progress
) -> PolicyResult:
    """Let the policy play the seeds of the evaluation."""
    if policy.is_scripted:
        return evaluation.evaluate_scripted(policy.name)
    if policy.is_api_model:
        return _evaluate_api_model(policy, evaluation, progress)
    return _evaluate_local_model(policy, run, evaluation, progress)


def _evaluate_local_model(
    policy: EvaluatedPolicy, run: Run, evaluation: Evaluation, progress: Progress
) -> PolicyResult:
    from rl_experiments.models.policy import load_policy

    config = policy.config
    with progress.status("loading the model"):
        model = load_policy(config, evaluation.environment, run.folder)
    for note in model.notes:
        progress.print(note)
    rollout = model.rollout(
        config, evaluation.environment, temperature=evaluation_temperature(config)
    )
    result = evaluation.evaluate_model(
        policy.name,
        rollout,
        version=model.path,
        batch_size=config.evaluation.batch_size,
        progress=progress,
    )
    if model.engine is not None:
        model.engine.close()
    del model, rollout
    gc.collect()  # the next policy needs the memory
    return result


def _evaluate_api_model(
    policy: EvaluatedPolicy, evaluation: Evaluation, progress: Progress
) -> PolicyResult:
    config, model = policy.config, policy.config.model
    client = ApiClient(
        model, model=model.name, setting="model", journal=evaluation.api_journal(policy.name)
    )
    try:
        return evaluation.evaluate_api_model(
            policy.name,
            client,
            max_tokens=config.trainer.max_completion_length,
            temperature=evaluation_temperature(config),
            progress=progress,
        )
    finally:
        progress.print(f"{model.name}: {_describe_spend(client.spend)}")
        for note in client.notes:
            progress.print(note)


def _describe_spend(spend: Spend) -> str:
    parts = [f"{spend.requests} requests"]
    if spend.retries:
        parts.append(f"{spend.retries} of them retries")
    if spend.reused:
        parts.append(f"{spend.reused} answers known from before")
    parts.append(f"{spend.tokens:,} tokens at most")
    if spend.usd:
        parts.append(f"{spend.usd:.4f} USD at most")
    return ", ".join(parts)


def _print_results(evaluation: Evaluation, progress: Progress) -> None:
    for table in (evaluation.table(), *evaluation.details()):
        progress.print(table)
    for line in evaluation.notes():
        progress.print(line)
    failed = sum(result.failed for result in evaluation.results.values())
    if failed:
        progress.print(
            f"{failed} episodes failed, without a reward; play them again with: {resume_command()}"
        )
