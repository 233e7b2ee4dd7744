"""Evaluation on unseen seeds: every policy plays the same ones, and each episode is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from environments import Environment, evaluation_seed
from rl_experiments import interrupts, intervals, ranks
from rl_experiments.check import check
from rl_experiments.errors import UserError, task
from rl_experiments.files import (
    append_json_lines,
    keep_json_lines,
    read_json_lines,
    write_atomically,
)
from rl_experiments.intervals import Estimate, shown
from rl_experiments.progress import Progress
from rl_experiments.rollout import Rollout, Task, Trajectory, play_scripted
from rl_experiments.run import Run, resume_command
from rl_experiments.schema import Config


@dataclass(frozen=True)
class Result:
    """How a policy did on the evaluation seeds. `outcomes` has (won, reward) in order of seed."""

    policy: str
    n: int
    win_rate: Estimate
    reward: Estimate | None  # None when every episode failed
    turns: float
    failed: int
    outcomes: list[tuple[float, float]]


class Evaluation:
    """The results of policies on one set of seeds, kept in the run's folder as they are played."""

    def __init__(
        self, folder: Path, environment: Environment, num_examples: int, *, first: int = 0
    ) -> None:
        self.folder = folder
        self.environment = environment
        self.seeds = [evaluation_seed(index) for index in range(first, first + num_examples)]
        self.results: dict[str, Result] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def scripted(self, name: str) -> Result:
        """Evaluate one of the environment's scripted policies."""
        policy = self.environment.baselines[name]

        def play(tasks: Sequence[Task], keep: Callable[[Trajectory], None]) -> None:
            for trajectory in play_scripted(self.environment, policy, tasks, name=name):
                keep(trajectory)

        return self._evaluate(name, "", play)

    def policy(
        self, name: str, rollout: Rollout, *, version: str, batch_size: int, progress: Progress
    ) -> Result:
        """Evaluate a model. `version` tells its weights: episodes of others are not counted."""

        def play(tasks: Sequence[Task], keep: Callable[[Trajectory], None]) -> None:
            total = -(-len(self.seeds) // ranks.count())  # of which this process shows its part
            done = total - len(tasks)
            with progress.phase(f"evaluate {name}", total=total, done=done) as advance:

                def on_end(trajectory: Trajectory) -> None:
                    keep(trajectory)
                    advance(1)

                rollout.play(tasks, batch_size=batch_size, on_end=on_end)

        return self._evaluate(name, version, play)

    def _evaluate(
        self,
        name: str,
        version: str,
        play: Callable[[Sequence[Task], Callable[[Trajectory], None]], None],
    ) -> Result:
        """Play the seeds that the file does not hold yet, and sum up.

        Each process plays a share of them; each appends whole lines to the one file.
        """
        file = self.folder / f"{name}.jsonl"
        wanted = set(self.seeds)
        if ranks.is_first():
            keep_json_lines(file, lambda r: r["version"] == version and r["seed"] in wanted)
        ranks.wait()
        done = {record["seed"] for record in read_json_lines(file)}
        ranks.wait()  # before anyone adds to it

        def keep(trajectory: Trajectory) -> None:
            append_json_lines(file, [{"version": version, **_record(trajectory)}])

        remaining = ranks.share([Task(seed) for seed in self.seeds if seed not in done])
        if remaining:
            play(remaining, keep)
        ranks.wait()
        records = {record["seed"]: record for record in read_json_lines(file)}
        result = _result(name, [records[seed] for seed in self.seeds])
        self.results[name] = result
        return result

    def save(self) -> None:
        """Write the table as JSON beside the folder of episodes."""
        if not ranks.is_first():
            return
        summary: dict[str, Any] = {"seeds": [self.seeds[0], self.seeds[-1]], "policies": []}
        for result in self.results.values():
            record = asdict(result)
            del record["outcomes"]
            for key in ("win_rate", "reward"):
                estimate = getattr(result, key)
                record[key] = estimate and estimate._asdict()
            summary["policies"].append(record)
        if {"before", "after"} <= self.results.keys():
            win, reward = self.difference("before", "after")
            summary["after - before"] = {"win_rate": win._asdict(), "reward": reward._asdict()}
        write_atomically(self.folder.with_suffix(".json"), json.dumps(summary, indent=1))

    def difference(self, before: str, after: str) -> tuple[Estimate, Estimate]:
        """Paired differences of win rate and reward over the seeds."""
        first, second = self.results[before].outcomes, self.results[after].outcomes
        pairs = list(zip(first, second, strict=True))
        wins = intervals.paired_difference([a[0] for a, _ in pairs], [b[0] for _, b in pairs])
        scored = [(a[1], b[1]) for a, b in pairs if a[1] == a[1] and b[1] == b[1]]  # no NaN
        rewards = intervals.paired_difference([a for a, _ in scored], [b for _, b in scored])
        return wins, rewards

    def table(self) -> Table:
        title = f"{len(self.seeds)} unseen seeds, the same for every policy; 95 % intervals"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        table.add_column("policy", no_wrap=True)
        for column in ("n", "win rate", "mean reward"):
            table.add_column(column, justify="right", no_wrap=True)
        for result in self.results.values():
            table.add_row(
                result.policy,
                str(result.n),
                shown(result.win_rate),
                shown(result.reward),
                style="bold" if result.policy == "after" else "",
            )
        if {"before", "after"} <= self.results.keys():
            win, reward = self.difference("before", "after")
            table.add_section()
            table.add_row("after - before", "paired", shown(win, "+"), shown(reward, "+"))
        return table


@task
def evaluate(cfg: DictConfig) -> float:
    """The `evaluate` verb: a table of one scripted policy, or of a model beside all of them.

    Returns the win rate of what was asked for.
    """
    experiment = check(cfg)
    config, environment = experiment.config, experiment.environment
    run = Run.open(cfg)
    ranks.join()
    evaluation = Evaluation(run.evaluation, environment, config.num_examples)
    progress = Progress()
    try:
        if config.policy:
            asked = evaluation.scripted(config.policy)
        else:
            for name in environment.baselines:
                evaluation.scripted(name)
            asked = _evaluate_model(config, environment, run, evaluation, progress)
    except BaseException as error:
        if not interrupts.caused(error):
            raise
        raise KeyboardInterrupt(
            f"Stopped; the episodes played are in {run.evaluation}. Go on with: {resume_command()}"
        ) from None
    evaluation.save()
    progress.print(evaluation.table())
    progress.print(f"Run folder: {run.folder}")
    return asked.win_rate.value


def _evaluate_model(
    config: Config, environment: Environment, run: Run, evaluation: Evaluation, progress: Progress
) -> Result:
    from rl_experiments.policy import load_policy

    with progress.status("loading the model"):
        policy = load_policy(config, environment, run.folder)
    for note in policy.notes:
        progress.print(note)
    path = config.checkpoint.path
    name = Path(path).name if path else config.model.name
    if name in environment.baselines:
        raise UserError(f"checkpoint={path}: named like a scripted policy; rename it")
    return evaluation.policy(
        name,
        policy.rollout(config, environment, temperature=evaluation_temperature(config)),
        version=policy.path,
        batch_size=config.evaluation.batch_size,
        progress=progress,
    )


def evaluation_temperature(config: Config) -> float:
    """The training temperature unless told otherwise."""
    chosen = config.evaluation.temperature
    return config.trainer.temperature if chosen is None else chosen


def _record(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "seed": trajectory.seed,
        "end": trajectory.end,
        "won": trajectory.won,
        "reward": trajectory.reward,
        "turns": len(trajectory.turns),
        "tokens": sum(len(turn.reply_ids) for turn in trajectory.turns),
        "metrics": trajectory.metrics,
        "error": trajectory.error,
    }


def _result(name: str, records: Iterable[dict[str, Any]]) -> Result:
    records = list(records)
    rewards = [record["reward"] for record in records if record["reward"] is not None]
    nan = float("nan")
    return Result(
        policy=name,
        n=len(records),
        win_rate=intervals.rate(sum(record["won"] for record in records), len(records)),
        reward=intervals.mean(rewards) if rewards else None,
        turns=fmean(record["turns"] for record in records),
        failed=len(records) - len(rewards),
        outcomes=[(float(r["won"]), nan if r["reward"] is None else r["reward"]) for r in records],
    )
