"""Evaluation on unseen seeds: every policy plays the same ones, and each episode is kept."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from environments import Environment, evaluation_seed
from rl_experiments import distributed
from rl_experiments.evaluation import results
from rl_experiments.evaluation.results import Result
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.rollout.api_episodes import play as play_conversations
from rl_experiments.rollout.episodes import EpisodeSpec, RolloutRunner, Trajectory, play_scripted
from rl_experiments.storage.files import (
    append_json_lines,
    keep_json_lines,
    read_json_lines,
    write_atomically,
)
from rl_experiments.terminal.progress import Progress

RecordWriter = Callable[[Trajectory], None]
_TRAINED = ("after", "before")
_SECONDS = "seconds.jsonl"


class Evaluation:
    """The results of policies on one set of seeds, kept in the run's folder as they are played.

    Each seed is played `samples` times by each policy.
    """

    def __init__(
        self,
        folder: Path,
        environment: Environment,
        num_examples: int,
        *,
        first: int = 0,
        samples: int = 1,
    ) -> None:
        self.folder = folder
        self.environment = environment
        self.seeds = [evaluation_seed(index) for index in range(first, first + num_examples)]
        self.tasks = [EpisodeSpec(seed, member) for seed in self.seeds for member in range(samples)]
        self.results: dict[str, Result] = {}
        self.compared: list[str] = []  # the policies of which each is compared with the first
        folder.mkdir(parents=True, exist_ok=True)

    def scripted(self, name: str) -> Result:
        """Evaluate one of the environment's scripted policies."""
        policy = self.environment.baselines[name]

        def play(tasks: Sequence[EpisodeSpec], keep: RecordWriter) -> None:
            for trajectory in play_scripted(self.environment, policy, tasks, name=name):
                keep(trajectory)

        return self._evaluate(name, "", play)

    def policy(
        self,
        name: str,
        rollout: RolloutRunner,
        *,
        version: str,
        batch_size: int,
        progress: Progress,
    ) -> Result:
        """Evaluate a model. `version` tells its weights: episodes of others are not counted."""

        def play(tasks: Sequence[EpisodeSpec], keep: RecordWriter) -> None:
            rollout.play(tasks, batch_size=batch_size, on_end=keep)

        return self._evaluate(name, version, play, progress)

    def endpoint(
        self,
        name: str,
        endpoint: ApiClient,
        *,
        max_tokens: int,
        temperature: float,
        progress: Progress,
    ) -> Result:
        """Evaluate a model behind an endpoint."""

        def play(tasks: Sequence[EpisodeSpec], keep: RecordWriter) -> None:
            play_conversations(
                self.environment,
                endpoint,
                tasks,
                max_tokens=max_tokens,
                temperature=temperature,
                on_end=keep,
            )

        version = f"{endpoint.model} at {endpoint.config.base_url}"
        return self._evaluate(name, version, play, progress)

    @property
    def has_begun(self) -> bool:
        """Whether there are episodes that a later attempt would go on from."""
        return any(self.folder.glob("*.jsonl"))

    def replies(self, name: str) -> Path:
        """Where this process keeps the answers of an endpoint."""
        own = "" if distributed.is_first() else f"-{distributed.rank()}"
        return self.folder / f"{_file_name(name)}.replies{own}.jsonl"

    def save(self) -> None:
        """Write the results as JSON beside the folder of episodes."""
        if not distributed.is_first():
            return
        policies = [result.to_json() for result in self.results.values()]
        summary: dict[str, Any] = {"seeds": [self.seeds[0], self.seeds[-1]], "policies": policies}
        for name, less in self._pairs():
            estimates = self.results[name].difference(self.results[less])
            found = {
                key: estimate and estimate._asdict()
                for key, estimate in zip(("win_rate", "reward"), estimates, strict=True)
            }
            summary[f"{name} - {less}"] = found
        write_atomically(self.folder.with_suffix(".json"), json.dumps(summary, indent=1))

    def table(self) -> Table:
        return results.main_table(self.results, self._pairs(), seeds=len(self.seeds))

    def details(self) -> list[Table]:
        """How it went, and what there is on pass@k and on categories."""
        tables = (
            results.details_table(self.results, self._seconds()),
            results.pass_table(self.results),
            results.category_table(self.results),
        )
        return [table for table in tables if table]

    def _seconds(self) -> dict[str, float]:
        """That each policy has played for, in all attempts."""
        found: dict[str, float] = {}
        for spent in read_json_lines(self.folder / _SECONDS):
            found[spent["file"]] = found.get(spent["file"], 0.0) + spent["seconds"]
        files = {name: f"{_file_name(name)}.jsonl" for name in self.results}
        return {name: found[file] for name, file in files.items() if file in found}

    def _pairs(self) -> list[tuple[str, str]]:
        """What is compared: the policy after with that before, else the models with the first."""
        if {*_TRAINED} <= self.results.keys():
            return [_TRAINED]
        played = [name for name in self.compared if name in self.results]
        return [(name, played[0]) for name in played[1:]]

    def _evaluate(
        self,
        name: str,
        version: str,
        play: Callable[[Sequence[EpisodeSpec], RecordWriter], None],
        progress: Progress | None = None,
    ) -> Result:
        """Play the seeds that the file does not hold yet, and sum up.

        Each process plays a share of them; each appends whole lines to the one file. Episodes
        that failed are played again.
        """
        file = self.folder / f"{_file_name(name)}.jsonl"
        wanted = set(self.tasks)
        if distributed.is_first():
            keep_json_lines(
                file,
                lambda r: (
                    r["version"] == version and _task(r) in wanted and r["reward"] is not None
                ),
            )
        distributed.barrier()
        done = {_task(record) for record in read_json_lines(file)}
        distributed.barrier()  # before anyone adds to it
        remaining = distributed.shard([task for task in self.tasks if task not in done])
        if remaining:
            total = -(
                -len(self.tasks) // distributed.world_size()
            )  # of which this process shows its part
            began = total - len(remaining)
            shown = progress or Progress(quiet=True)
            started = time.monotonic()
            with shown.phase(f"evaluate {name}", total=total, done=began) as advance:

                def keep(trajectory: Trajectory) -> None:
                    append_json_lines(file, [{"version": version, **_record(trajectory)}])
                    advance(1)

                try:
                    play(remaining, keep)
                finally:
                    if distributed.is_first():  # apart: what is the clock's differs from run to run
                        seconds = round(time.monotonic() - started, 3)
                        spent = {"file": file.name, "seconds": seconds}
                        append_json_lines(self.folder / _SECONDS, [spent])
        distributed.barrier()
        records = {_task(record): record for record in read_json_lines(file)}
        result = Result.of(name, [records[task] for task in self.tasks], self.seeds)
        self.results[name] = result
        return result


def _file_name(policy: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", policy)


def _task(record: Mapping[str, Any]) -> EpisodeSpec:
    return EpisodeSpec(record["seed"], record.get("member", 0))


def _record(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "seed": trajectory.seed,
        "member": trajectory.member,
        "category": trajectory.category,
        "end": trajectory.end,
        "won": trajectory.won,
        "reward": trajectory.reward,
        "turns": len(trajectory.turns),
        **asdict(trajectory.usage),
        "metrics": trajectory.metrics,
        "error": trajectory.error,
    }
