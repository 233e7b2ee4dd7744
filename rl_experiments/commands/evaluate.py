"""The `evaluate` verb: several policies on the same unseen seeds, and the tables of it."""

from __future__ import annotations

import gc

from omegaconf import DictConfig

from rl_experiments import distributed
from rl_experiments.commands.job import task
from rl_experiments.config.experiment import evaluation_temperature
from rl_experiments.errors import UserError
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


@task
def evaluate(cfg: DictConfig) -> float:
    """Evaluate one scripted policy, a model beside all of them, or what `policies` names.

    Returns the win rate of the last that was asked for.
    """
    experiment = check(cfg)
    config, environment = experiment.config, experiment.environment
    asked = resolve_policies(config, environment)
    run = Run.open(cfg)
    distributed.initialize()
    samples = config.evaluation.samples
    evaluation = Evaluation(run.evaluation, environment, config.num_examples, samples=samples)
    evaluation.compared = [contestant.name for contestant in asked]
    progress = Progress()
    try:
        if not config.policies and not config.policy:
            for name in environment.baselines:
                evaluation.evaluate_scripted(name)
        for contestant in asked:
            found = _play(contestant, run, evaluation, progress)
            evaluation.save()
    except BaseException as error:
        kept = f"the episodes played are in {run.evaluation}"
        if interrupts.caused(error):
            raise KeyboardInterrupt(f"Stopped; {kept}. Go on with: {resume_command()}") from None
        if isinstance(error, UserError) and evaluation.has_begun:
            again = "the same command with resume=true goes on"
            raise UserError(f"{error}; {kept}: {again}") from None
        raise
    progress.print(evaluation.table())
    for table in evaluation.details():
        progress.print(table)
    failed = sum(result.failed for result in evaluation.results.values())
    if failed:
        progress.print(
            f"{failed} episodes failed, without a reward; play them again with: {resume_command()}"
        )
    progress.print(f"Run folder: {run.folder}")
    return found.win_rate.value


def _play(
    contestant: EvaluatedPolicy, run: Run, evaluation: Evaluation, progress: Progress
) -> PolicyResult:
    if contestant.is_scripted:
        return evaluation.evaluate_scripted(contestant.name)
    if contestant.is_api_model:
        return _play_endpoint(contestant, evaluation, progress)
    from rl_experiments.models.policy import load_policy

    config = contestant.config
    with progress.status("loading the model"):
        policy = load_policy(config, evaluation.environment, run.folder)
    for note in policy.notes:
        progress.print(note)
    temperature = evaluation_temperature(config)
    result = evaluation.evaluate_model(
        contestant.name,
        policy.rollout(config, evaluation.environment, temperature=temperature),
        version=policy.path,
        batch_size=config.evaluation.batch_size,
        progress=progress,
    )
    if policy.engine is not None:
        policy.engine.close()
    del policy
    gc.collect()  # the next one needs the memory
    return result


def _play_endpoint(
    contestant: EvaluatedPolicy, evaluation: Evaluation, progress: Progress
) -> PolicyResult:
    config = contestant.config
    model = config.model
    endpoint = ApiClient(
        model, model=model.name, setting="model", journal=evaluation.api_journal(contestant.name)
    )
    try:
        return evaluation.evaluate_api_model(
            contestant.name,
            endpoint,
            max_tokens=config.trainer.max_completion_length,
            temperature=evaluation_temperature(config),
            progress=progress,
        )
    finally:
        progress.print(f"{model.name}: {_told(endpoint.spend)}")


def _told(meter: Spend) -> str:
    words = [f"{meter.requests} requests"]
    words += [f"{meter.retries} of them again"] if meter.retries else []
    words += [f"{meter.reused} answers known from before"] if meter.reused else []
    words += [f"{meter.prompt_tokens + meter.completion_tokens:,} tokens at most"]
    words += [f"{meter.usd:.4f} USD at most"] if meter.usd else []
    return ", ".join(words)
