"""The judge of a run: it scores groups of a rollout while others are still being played."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from environments import End
from rl_experiments import distributed
from rl_experiments.config.schema import Config, Credit, JudgeConfig, OnBudget, RulerConfig
from rl_experiments.errors import UserError, without_credentials
from rl_experiments.inference.api_budget import BudgetSpent
from rl_experiments.inference.api_client import ApiClient, api_key
from rl_experiments.judge.prompt import build_prompt
from rl_experiments.judge.rewards import apply_scores, score_metrics
from rl_experiments.judge.scoring import GroupScores, ScoringStatus, score_group
from rl_experiments.paths import (
    JUDGE_ENABLED_FILE,
    JUDGE_FOLDER,
    judge_answers_file,
    judge_spending_file,
)
from rl_experiments.rollout.types import Trajectory, Turn
from rl_experiments.storage.files import read_json_lines, read_json_object, write_atomically

SETTING = "judge"  # the config group, as messages name it
_MIN_RECENT_GROUPS = 8  # over which the share of failures is taken
_DRAIN_SECONDS = 10.0  # to wait at the end for replies that are already paid for
_EQUAL_SCORE = 0.5  # of attempts that look the same
_FORMAT_VERSION = 1  # of the files beside the journal
_SPEND_FIELDS = ("requests", "prompt_tokens", "completion_tokens", "usd")  # kept over attempts


class Judge:
    """Scores groups as they become whole, and rewards them once all have been played.

    Requests are made in a thread of the judge's own. `folder` keeps the replies and what was spent,
    so that a resumed run pays for nothing twice.
    """

    def __init__(self, config: JudgeConfig, ruler: RulerConfig, *, rubric: str, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        journal = folder / judge_answers_file(distributed.rank())
        self.config = _share_of_budget(config)
        self.ruler = ruler
        self.rubric = ruler.rubric or rubric
        self.client = ApiClient(self.config, model=config.model, setting=SETTING, journal=journal)
        self._spend_file = folder / judge_spending_file(distributed.rank())
        self._count_earlier_spend(journal)
        self._unfinished: defaultdict[int, list[Trajectory]] = defaultdict(list)  # by seed
        self._pending: dict[int, Future[GroupScores]] = {}  # by seed
        self._last_scores: list[GroupScores] = []  # of the groups that were rewarded last
        self._recent_failures: deque[bool] = deque()  # a group each, the latest last
        self._loop = asyncio.new_event_loop()
        self._concurrency = asyncio.Semaphore(config.concurrency)
        threading.Thread(target=self._loop.run_forever, name="judge", daemon=True).start()

    def check_connection(self) -> None:
        """Raise a `UserError` if the judge does not score an easy group."""
        group = [_example("yes"), _example("no")]
        result = self._submit(self._score(group, key="prove")).result()
        if result.status is ScoringStatus.FAILED:
            raise UserError(
                f"{SETTING}.base_url={self.config.base_url}: {self.config.model} gives no scores: "
                f"{result.reason}; see {SETTING}.model, {SETTING}.response_format and "
                f"{SETTING}.max_tokens, or set reward.ruler.enabled=false"
            )

    def add(self, trajectory: Trajectory, *, group_size: int) -> None:
        """Add an episode that has ended; the last of its group has the group scored."""
        group = self._unfinished[trajectory.seed]
        group.append(trajectory)
        if len(group) == group_size:
            del self._unfinished[trajectory.seed]
            group.sort(key=lambda episode: episode.member)
            scores = self._submit(self._score(group, key=str(trajectory.seed)))
            self._pending[trajectory.seed] = scores

    def reward(self, groups: Sequence[Sequence[Trajectory]]) -> None:
        """Wait for the scores of groups whose episodes were all added, and set their rewards."""
        self._last_scores = [self._pending.pop(group[0].seed).result() for group in groups]
        for group, scores in zip(groups, self._last_scores, strict=True):
            apply_scores(group, scores, self.ruler)
        write_atomically(
            self._spend_file, json.dumps({"format_version": _FORMAT_VERSION, **self._spend()})
        )

    def report(self, all_groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
        """Return the metrics of the groups that all processes rewarded last.

        Raises a `UserError` where too many of the latest groups have no scores.
        """
        scored = distributed.gather(self._last_scores)
        asked = [each for each in scored if each.status is not ScoringStatus.IDENTICAL]
        self._refuse_too_many_failures(asked)

        def share(status: ScoringStatus) -> float:
            return sum(each.status is status for each in asked) / max(1, len(asked))

        replies = [reply for each in scored for reply in each.replies]
        metrics = {
            "ruler/groups_asked": len(asked),
            "ruler/failures": share(ScoringStatus.FAILED),
            "ruler/spent": share(ScoringStatus.OVER_BUDGET),
            "ruler/tokens": sum(reply.prompt_tokens + reply.completion_tokens for reply in replies),
            "ruler/usd": sum(reply.usd or 0.0 for reply in replies),
        }
        if replies:
            metrics["time/judge_latency"] = fmean(reply.seconds for reply in replies)
        return metrics | score_metrics(all_groups)

    def close(self) -> None:
        """Ask nothing more, and wait a moment for replies under way, which the journal keeps."""
        with suppress(Exception):
            self._submit(self._close()).result(2 * _DRAIN_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def spent(self) -> str:
        """Return what the run has spent on the judge in all attempts, in words."""
        spend = self._spend()
        usd = f", {spend['usd']:.4f} USD" if spend["usd"] else ""
        tokens = spend["prompt_tokens"] + spend["completion_tokens"]
        return f"{spend['requests']:.0f} requests, {tokens:,.0f} tokens{usd}"

    async def _score(self, group: Sequence[Trajectory], *, key: str) -> GroupScores:
        """Return the scores of the episodes in the group that did not fail."""
        played = [trajectory for trajectory in group if trajectory.reward is not None]
        equal = GroupScores(status=ScoringStatus.IDENTICAL, scores=[_EQUAL_SCORE] * len(played))
        if len(played) < 2:
            return equal
        prompt = build_prompt(
            played,
            rubric=self.rubric,
            max_chars=self.ruler.max_chars,
            order=Random(f"ruler/{key}"),
        )
        if len(prompt.members) == 1:
            return equal
        try:
            async with self._concurrency:
                return await score_group(self.client, prompt, self.config, key=key)
        except BudgetSpent as error:
            if self.ruler.on_budget is OnBudget.stop:
                raise
            return GroupScores(status=ScoringStatus.OVER_BUDGET, reason=str(error))

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _close(self) -> None:
        await self.client.drain(_DRAIN_SECONDS)
        waiting = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self.client.close()

    def _refuse_too_many_failures(self, asked: Sequence[GroupScores]) -> None:
        """Raise a `UserError` if too many of the latest groups, with `asked`, have no scores."""
        window = max(_MIN_RECENT_GROUPS, len(asked))
        self._recent_failures += [each.status is ScoringStatus.FAILED for each in asked]
        while len(self._recent_failures) > window:
            self._recent_failures.popleft()
        failures, limit = sum(self._recent_failures), self.ruler.max_failures
        if failures / window > limit:
            reason = next((each.reason for each in reversed(asked) if each.reason), "see judge/")
            raise UserError(
                f"The judge gave no scores to {failures} of the last "
                f"{len(self._recent_failures)} groups ({reason}), more than "
                f"reward.ruler.max_failures={limit:g}; see {SETTING}.*, raise the share, or set "
                "reward.ruler.enabled=false in a new run"
            )

    def _count_earlier_spend(self, journal: Path) -> None:
        """Count what earlier attempts at the run have spent.

        The file of the spend may be older than the journal, and lost replies are in no journal, so
        the larger of both counts.
        """
        spend = self.client.spend
        for record in read_json_lines(journal, "answer"):
            reply = record["answer"]
            spend.requests += 1
            spend.prompt_tokens += reply["prompt_tokens"]
            spend.completion_tokens += reply["completion_tokens"]
            spend.usd += reply["usd"] or 0.0
        if self._spend_file.exists():
            kept = read_json_object(
                self._spend_file,
                *_SPEND_FIELDS,
                remedy="it says what the judge has cost: restore it, or delete it to count the "
                "answers that are kept",
            )
            for name in _SPEND_FIELDS:
                setattr(spend, name, max(kept[name], getattr(spend, name)))

    def _spend(self) -> dict[str, float]:
        spend = self.client.spend
        return {name: getattr(spend, name) for name in _SPEND_FIELDS}


@contextmanager
def open_judge(
    config: Config, *, rubric: str, folder: Path, say: Callable[[str], None]
) -> Iterator[Judge | None]:
    """Yield the judge of the run in `folder`, proven to answer; None where the settings want none.

    `say` is given lines for the user.
    """
    ruler, settings = config.reward.ruler, config.judge
    judge_folder = folder / JUDGE_FOLDER
    reason = _reason_for_no_judge(config, judge_folder / JUDGE_ENABLED_FILE)
    if reason:
        if ruler.enabled is None:
            say(f"Judge: none, the environment rewards ({reason})")
        yield None
        return
    share = f"{ruler.weight:.0%} of the reward"
    say(without_credentials(f"Judge: {settings.model} at {settings.base_url}, {share}"))
    judge = Judge(settings, ruler, rubric=rubric, folder=judge_folder)
    try:
        if distributed.is_first():
            judge.check_connection()
            for note in judge.client.notes:
                say(note)
        yield judge
        say(f"Judge: {judge.spent()}")
    finally:
        judge.close()


def _reason_for_no_judge(config: Config, decision_file: Path) -> str:
    """Return why the run has no judge; empty where it has one.

    Where the setting leaves the choice open (null), the run's first decision is kept in
    `decision_file`: what a run learns from never changes in its middle.
    """
    enabled, reason = config.reward.ruler.enabled, "reward.ruler.enabled=false"
    if enabled is None and decision_file.exists():
        enabled, reason = _read_decision(decision_file), "as when this run was begun"
    elif enabled is None and config.reward.credit is Credit.turn:
        enabled, reason = False, "reward.credit=turn"
    elif enabled is None:
        try:
            api_key(config.judge, SETTING)
            enabled = True
        except UserError as error:
            enabled, reason = False, str(error)
    if config.reward.ruler.enabled is None and distributed.is_first():
        decision = {"format_version": _FORMAT_VERSION, "enabled": enabled}
        write_atomically(decision_file, json.dumps(decision))
    return "" if enabled else reason


def _read_decision(file: Path) -> bool:
    """Return whether the run was begun with a judge; early versions wrote the bare value."""
    decision = json.loads(file.read_text())
    return bool(decision["enabled"] if isinstance(decision, dict) else decision)


def _share_of_budget(config: JudgeConfig) -> JudgeConfig:
    """Return the settings with this process's equal share of each limit."""
    processes = distributed.world_size()
    if processes == 1:
        return config
    limits = {name: getattr(config, name) for name in ("max_requests", "max_total_tokens")}
    whole = {name: limit and limit // processes for name, limit in limits.items()}
    return replace(config, **whole, max_usd=config.max_usd and config.max_usd / processes)


def _example(reply: str) -> Trajectory:
    turn = Turn("Reply with yes.", reply=reply)
    return Trajectory(seed=0, turns=[turn], end=End.WON if reply == "yes" else End.LOST, reward=0)
