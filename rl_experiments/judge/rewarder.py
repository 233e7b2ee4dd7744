"""The judge of a run: it compares the groups of a rollout, while others are still being played."""

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
from rl_experiments.errors import UserError
from rl_experiments.inference.api_client import ApiClient, BudgetSpent, api_key
from rl_experiments.judge.prompt import sheet
from rl_experiments.judge.verdict import GroupScores, Outcome, compare, measured, reward
from rl_experiments.rollout.episodes import Trajectory, Turn
from rl_experiments.storage.files import read_json_lines, write_atomically

SETTING = "judge"
_FOLDER = "judge"  # in the run's
_WINDOW = 8  # groups, at least, of which too many may lack scores
_GRACE = 10.0  # seconds for the answers under way when we are stopped: they are paid for


class Judge:
    """Groups are handed over one by one, and rewarded together once they are all played.

    Its requests are made in a thread of its own.
    """

    def __init__(self, config: JudgeConfig, ruler: RulerConfig, *, rubric: str, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        answers = folder / f"answers-{distributed.rank()}.jsonl"
        self.config = _shared_out(config)
        self.ruler = ruler
        self.rubric = ruler.rubric or rubric
        self.endpoint = ApiClient(self.config, model=config.model, setting=SETTING, journal=answers)
        self._spent = folder / f"spent-{distributed.rank()}.json"
        self._count_what_was_spent(answers)
        self._playing: defaultdict[int, list[Trajectory]] = defaultdict(list)
        self._asked: dict[int, Future[GroupScores]] = {}
        self._verdicts: list[GroupScores] = []
        self._lacking: deque[bool] = deque()  # of the latest groups: which have no scores
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(config.concurrency)
        self._is_closing = False
        threading.Thread(target=self._loop.run_forever, name="judge", daemon=True).start()

    def prove(self) -> None:
        """Stop now rather than later where it gives no scores at all."""
        group = [_example("yes"), _example("no")]
        verdict = self._submit(self._compare(group, key="prove")).result()
        if verdict.outcome is Outcome.FAILED:
            raise UserError(
                f"{SETTING}.base_url={self.config.base_url}: {self.config.model} gives no scores: "
                f"{verdict.why}; see {SETTING}.model, {SETTING}.response_format and "
                f"{SETTING}.max_tokens, or set reward.ruler.enabled=false"
            )

    def take(self, trajectory: Trajectory, *, size: int) -> None:
        """Hand an episode over as it ends; its group of `size` is judged when it is whole."""
        group = self._playing[trajectory.seed]
        group.append(trajectory)
        if len(group) == size:
            group = sorted(self._playing.pop(trajectory.seed), key=lambda each: each.member)
            key = str(trajectory.seed)
            self._asked[trajectory.seed] = self._submit(self._compare(group, key=key))

    def reward(self, groups: Sequence[Sequence[Trajectory]]) -> None:
        """Give all episodes of the groups, which were handed over, their rewards."""
        self._verdicts = [self._asked.pop(group[0].seed).result() for group in groups]
        for group, verdict in zip(groups, self._verdicts, strict=True):
            reward(group, verdict, self.ruler)
        write_atomically(self._spent, json.dumps(_figures(self.endpoint)))

    def report(self, everyones: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
        """The metrics of what was rewarded last, by all processes.

        Raises a `UserError` where too many groups have no scores.
        """
        verdicts = distributed.gather(self._verdicts)
        asked = [verdict for verdict in verdicts if verdict.outcome is not Outcome.SAME]
        failed = [verdict for verdict in asked if verdict.outcome is Outcome.FAILED]
        self._refuse_too_many(asked)
        answers = [answer for verdict in verdicts for answer in verdict.answers]
        found = {
            "ruler/groups_asked": len(asked),
            "ruler/failures": len(failed) / max(1, len(asked)),
            "ruler/spent": sum(v.outcome is Outcome.SPENT for v in asked) / max(1, len(asked)),
            "ruler/tokens": sum(a.prompt_tokens + a.completion_tokens for a in answers),
            "ruler/usd": sum(answer.usd or 0.0 for answer in answers),
        }
        if answers:
            found["time/judge_latency"] = fmean(answer.seconds for answer in answers)
        return found | measured(everyones)

    def close(self) -> None:
        """Begin nothing more; wait a moment for the answers under way, which the journal keeps."""
        with suppress(Exception):
            self._submit(self._settle()).result(2 * _GRACE)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def spent(self) -> str:
        """In words, over all attempts at the run."""
        figures = _figures(self.endpoint)
        usd = f", {figures['usd']:.4f} USD" if figures["usd"] else ""
        tokens = figures["prompt_tokens"] + figures["completion_tokens"]
        return f"{figures['requests']:.0f} requests, {tokens:,.0f} tokens{usd}"

    async def _compare(self, group: Sequence[Trajectory], *, key: str) -> GroupScores:
        played = [trajectory for trajectory in group if trajectory.reward is not None]
        if len(played) < 2:
            return GroupScores(outcome=Outcome.SAME, scores=[0.5] * len(played))
        question = sheet(
            played,
            rubric=self.rubric,
            max_chars=self.ruler.max_chars,
            order=Random(f"ruler/{key}"),
        )
        if len(question.members) == 1:
            return GroupScores(outcome=Outcome.SAME, scores=[0.5] * len(played))
        try:
            async with self._places:
                if self._is_closing:
                    raise asyncio.CancelledError
                return await compare(self.endpoint, question, self.config, key=key)
        except BudgetSpent as error:
            if self.ruler.on_budget is OnBudget.stop:
                raise
            return GroupScores(outcome=Outcome.SPENT, why=str(error))

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _settle(self) -> None:
        self._is_closing = True
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if others:
            _, late = await asyncio.wait(others, timeout=_GRACE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.endpoint.close()

    def _refuse_too_many(self, asked: Sequence[GroupScores]) -> None:
        self._lacking += [verdict.outcome is Outcome.FAILED for verdict in asked]
        while len(self._lacking) > max(_WINDOW, len(asked)):
            self._lacking.popleft()
        failed, limit = sum(self._lacking), self.ruler.max_failures
        if failed / max(_WINDOW, len(asked)) > limit:
            why = next((v.why for v in reversed(asked) if v.why), "see judge/")
            raise UserError(
                f"The judge gave no scores to {failed} of the last {len(self._lacking)} groups "
                f"({why}), more than reward.ruler.max_failures={limit:g}; see {SETTING}.*, raise "
                "the share, or set reward.ruler.enabled=false in a new run"
            )

    def _count_what_was_spent(self, answers: Path) -> None:
        """Earlier attempts at the run count: by their note, or their answers if those say more."""
        meter = self.endpoint.meter
        for record in read_json_lines(answers):
            answer = record["answer"]
            meter.requests += 1
            meter.prompt_tokens += answer["prompt_tokens"]
            meter.completion_tokens += answer["completion_tokens"]
            meter.usd += answer["usd"] or 0.0
        if self._spent.exists():
            for name, value in json.loads(self._spent.read_text()).items():
                setattr(meter, name, max(value, getattr(meter, name)))


@contextmanager
def opened(
    config: Config, *, rubric: str, folder: Path, say: Callable[[str], None]
) -> Iterator[Judge | None]:
    """The judge of a run in `folder`, proven to answer; None where none is wanted."""
    ruler, settings = config.reward.ruler, config.judge
    own = folder / _FOLDER
    missing = _missing(config, own / "wanted.json")
    if missing:
        if ruler.enabled is None:
            say(f"Judge: none, the environment rewards ({missing})")
        yield None
        return
    share = f"{ruler.weight:.0%} of the reward"
    say(f"Judge: {settings.model} at {settings.base_url}, {share}")
    judge = Judge(settings, ruler, rubric=rubric, folder=own)
    try:
        if distributed.is_first():
            judge.prove()
        yield judge
        say(f"Judge: {judge.spent()}")
    finally:
        judge.close()


def _missing(config: Config, note: Path) -> str:
    """Why there is no judge; empty where there is one. A run stays with its first answer."""
    enabled, why = config.reward.ruler.enabled, "reward.ruler.enabled=false"
    if enabled is None and note.exists():
        enabled, why = json.loads(note.read_text()), "as when this run was begun"
    elif enabled is None and config.reward.credit is Credit.turn:
        enabled, why = False, "reward.credit=turn"
    elif enabled is None:
        try:
            api_key(config.judge, SETTING)
            enabled = True
        except UserError as error:
            enabled, why = False, str(error)
    if config.reward.ruler.enabled is None and distributed.is_first():
        write_atomically(note, json.dumps(enabled))
    return "" if enabled else why


def _shared_out(config: JudgeConfig) -> JudgeConfig:
    """This process's part of the budget."""
    if distributed.world_size() == 1:
        return config
    limits = {name: getattr(config, name) for name in ("max_requests", "max_total_tokens")}
    whole = {name: limit and limit // distributed.world_size() for name, limit in limits.items()}
    return replace(
        config, **whole, max_usd=config.max_usd and config.max_usd / distributed.world_size()
    )


def _figures(endpoint: ApiClient) -> dict[str, float]:
    meter = endpoint.meter
    names = ("requests", "prompt_tokens", "completion_tokens", "usd")
    return {name: getattr(meter, name) for name in names}


def _example(reply: str) -> Trajectory:
    turn = Turn("Reply with yes.", reply=reply)
    return Trajectory(seed=0, turns=[turn], end=End.WON if reply == "yes" else End.LOST, reward=0)
