"""Evaluation on unseen seeds: every policy plays the same ones, and each episode is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from environments import Environment, evaluation_seed
from rl_experiments import distributed
from rl_experiments.errors import UserError, without_credentials
from rl_experiments.evaluation import tables
from rl_experiments.evaluation.results import PolicyResult
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.paths import (
    SECONDS_FILE,
    policy_episodes_file,
    policy_file_stem,
    policy_replies_file,
)
from rl_experiments.rollout.api_episodes import play as play_api_episodes
from rl_experiments.rollout.episode import play_scripted
from rl_experiments.rollout.runner import RolloutRunner
from rl_experiments.rollout.types import EpisodeSpec, Trajectory
from rl_experiments.storage.files import (
    append_json_lines,
    keep_json_lines,
    read_json_lines,
    write_atomically,
)
from rl_experiments.terminal.progress import Progress

EpisodeWriter = Callable[[Trajectory], None]
EpisodePlayer = Callable[[Sequence[EpisodeSpec], EpisodeWriter], None]
_TRAINED = ("after", "before")  # the names that the train verb gives its policy
_FORMAT_VERSION = 1  # of evaluation.json


class Evaluation:
    """The results of several policies on one set of seeds.

    Each policy plays each seed `samples` times. Every episode is appended to the policy's file in
    `folder` as it ends, so that a stopped evaluation goes on where it was. `compared` names the
    policies of which each is compared with the first one.
    """

    def __init__(
        self,
        folder: Path,
        environment: Environment,
        num_examples: int,
        *,
        first: int = 0,
        samples: int = 1,
        environment_name: str = "",
    ) -> None:
        self.folder = folder
        self.environment_name = environment_name  # with its variant, for tables and records
        self.environment = environment
        self.seeds = [evaluation_seed(index) for index in range(first, first + num_examples)]
        self.specs = [EpisodeSpec(seed, member) for seed in self.seeds for member in range(samples)]
        self.results: dict[str, PolicyResult] = {}
        self.compared: list[str] = []
        self._reply_limits: dict[str, int] = {}  # tokens, by the name of a policy that has one
        folder.mkdir(parents=True, exist_ok=True)

    def evaluate_scripted(self, name: str) -> PolicyResult:
        """Evaluate one of the environment's scripted policies."""
        policy = self.environment.baselines[name]

        def play_episodes(specs: Sequence[EpisodeSpec], keep: EpisodeWriter) -> None:
            for trajectory in play_scripted(self.environment, policy, specs, name=name):
                keep(trajectory)

        return self._evaluate(name, "", play_episodes)

    def evaluate_model(
        self,
        name: str,
        rollout: RolloutRunner,
        *,
        version: str,
        batch_size: int,
        progress: Progress,
    ) -> PolicyResult:
        """Evaluate a model that runs here.

        `version` identifies its weights: kept episodes of other weights are dropped.
        """

        def play_episodes(specs: Sequence[EpisodeSpec], keep: EpisodeWriter) -> None:
            rollout.play(specs, batch_size=batch_size, on_end=keep)

        self._reply_limits[name] = rollout.max_new_tokens
        return self._evaluate(name, version, play_episodes, progress)

    def evaluate_api_model(
        self,
        name: str,
        client: ApiClient,
        *,
        max_tokens: int,
        temperature: float,
        progress: Progress,
    ) -> PolicyResult:
        """Evaluate a model behind an API."""

        def play_episodes(specs: Sequence[EpisodeSpec], keep: EpisodeWriter) -> None:
            play_api_episodes(
                self.environment,
                client,
                specs,
                max_tokens=max_tokens,
                temperature=temperature,
                on_end=keep,
            )

        self._reply_limits[name] = max_tokens
        version = without_credentials(f"{client.model} at {client.config.base_url}")
        return self._evaluate(name, version, play_episodes, progress)

    @property
    def has_begun(self) -> bool:
        """Whether there are episodes from which a later attempt would go on."""
        return any(self.folder.glob("*.jsonl"))

    def api_journal(self, name: str) -> Path:
        """Return the file in which this process keeps the answers of an API model."""
        return self.folder / policy_replies_file(self._stem(name), distributed.rank())

    def save(self) -> None:
        """Write the results as JSON, beside the folder of episodes and with its name."""
        if not distributed.is_first():
            return
        summary: dict[str, Any] = {
            "format_version": _FORMAT_VERSION,
            "environment": self.environment_name,
            "seeds": [self.seeds[0], self.seeds[-1]],
            "policies": [result.to_json() for result in self.results.values()],
        }
        for name, baseline in self._comparisons():
            win_rate, reward = self.results[name].minus(self.results[baseline])
            summary[f"{name} - {baseline}"] = {
                "win_rate": win_rate and win_rate._asdict(),
                "reward": reward and reward._asdict(),
            }
        write_atomically(self.folder.with_suffix(".json"), json.dumps(summary, indent=1))

    def table(self) -> Table:
        """Return the table of all results and of the differences between them."""
        return tables.main_table(
            self.results,
            self._comparisons(),
            seeds=len(self.seeds),
            environment=self.environment_name,
        )

    def details(self) -> list[Table]:
        """Return further tables: how the episodes went, pass@k, results by category."""
        candidates = (
            tables.details_table(self.results, self._seconds_played()),
            tables.pass_at_table(self.results),
            tables.category_table(self.results),
        )
        return [table for table in candidates if table]

    def notes(self) -> list[str]:
        """Return lines about replies that were cut or withheld, and why episodes failed."""
        return [
            line
            for name, result in self.results.items()
            for line in tables.notes(name, result, reply_limit=self._reply_limits.get(name, 0))
        ]

    def refuse_unmeasured(self, names: Iterable[str]) -> None:
        """Raise a `UserError` if one of these policies has no episode that did not fail."""
        for name in names:
            if self.results[name].win_rate is None:
                raise UserError(
                    f"{name}: every episode failed, so nothing was measured "
                    f"({self.results[name].commonest_failure})"
                )

    def _stem(self, name: str) -> str:
        """Return what the names of a policy's files begin with, which no other policy has."""
        names = [*self.environment.baselines, *self.compared]
        return policy_file_stem(name, names[: names.index(name)] if name in names else names)

    def _seconds_played(self) -> dict[str, float]:
        """Seconds each policy has played, summed over all attempts."""
        by_file: dict[str, float] = {}
        for record in read_json_lines(self.folder / SECONDS_FILE, "file", "seconds"):
            by_file[record["file"]] = by_file.get(record["file"], 0.0) + record["seconds"]
        files = {name: policy_episodes_file(self._stem(name)) for name in self.results}
        return {name: by_file[file] for name, file in files.items() if file in by_file}

    def _comparisons(self) -> list[tuple[str, str]]:
        """Return (policy, baseline) pairs: `after` vs `before`, else each model vs the first."""
        if {*_TRAINED} <= self.results.keys():
            return [_TRAINED]
        played = [name for name in self.compared if name in self.results]
        return [(name, played[0]) for name in played[1:]]

    def _evaluate(
        self,
        name: str,
        version: str,
        play_episodes: EpisodePlayer,
        progress: Progress | None = None,
    ) -> PolicyResult:
        """Play the episodes that the policy's file lacks, and sum up all of them.

        Each process plays a share of them and appends whole lines to the one file. Episodes that
        failed in an earlier attempt are played again.
        """
        file = self.folder / policy_episodes_file(self._stem(name))
        wanted = set(self.specs)

        def counts(record: Mapping[str, Any]) -> bool:
            if record.get("version") != version or record.get("reward") is None:
                return False
            return "seed" in record and _spec(record) in wanted

        if distributed.is_first():
            keep_json_lines(file, counts)
        distributed.barrier()
        done = {_spec(record) for record in read_json_lines(file, "seed")}
        distributed.barrier()  # until all have read the file, to which others will add
        remaining = distributed.shard([spec for spec in self.specs if spec not in done])
        if remaining:
            self._play_remaining(file, version, name, remaining, play_episodes, progress)
        distributed.barrier()
        records = {_spec(record): record for record in read_json_lines(file, "seed")}
        result = PolicyResult.from_records(name, [records[spec] for spec in self.specs], self.seeds)
        self.results[name] = result
        return result

    def _play_remaining(
        self,
        file: Path,
        version: str,
        name: str,
        remaining: Sequence[EpisodeSpec],
        play_episodes: EpisodePlayer,
        progress: Progress | None,
    ) -> None:
        """Play this process's share of the episodes, and append each to the policy's file."""
        share = -(-len(self.specs) // distributed.world_size())  # episodes, rounded up
        shown = progress or Progress(quiet=True)
        started = time.monotonic()
        done = share - len(remaining)
        with shown.phase(f"evaluate {name}", total=share, done=done) as advance:

            def keep(trajectory: Trajectory) -> None:
                append_json_lines(file, [{"version": version, **_record(trajectory)}])
                advance(1)

            try:
                play_episodes(remaining, keep)
            finally:
                if distributed.is_first():
                    # In a file of its own: times differ from run to run, the episodes do not.
                    seconds = round(time.monotonic() - started, 3)
                    record = {"file": file.name, "seconds": seconds}
                    append_json_lines(self.folder / SECONDS_FILE, [record])


def _spec(record: Mapping[str, Any]) -> EpisodeSpec:
    """Return which episode a record is of; files of early versions have no `member`."""
    return EpisodeSpec(record["seed"], record.get("member", 0))


def _record(trajectory: Trajectory) -> dict[str, Any]:
    """Return an episode as one line of the policy's file."""
    return {
        "seed": trajectory.seed,
        "member": trajectory.member,
        "category": trajectory.category,
        **({"task": trajectory.task_key} if trajectory.task_key else {}),
        "end": trajectory.end,
        "won": trajectory.won,
        "reward": trajectory.reward,
        "turns": len(trajectory.turns),
        **asdict(trajectory.usage),
        "metrics": trajectory.metrics,
        "error": trajectory.error,
    }
