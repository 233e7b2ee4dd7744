"""Episodes played by a policy: the turns, their tokens, rewards and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from queue import SimpleQueue
from random import Random
from typing import Any, TypeVar

from environments import End, Environment, ScriptedPolicy, Step
from rl_experiments.inference.sampler import Completion, Request, Sampler
from rl_experiments.rollout.renderer import ChatTurn, Renderer, RendererCache

T = TypeVar("T")


@dataclass
class Turn:
    """One observation, the reply to it and what it earned; tokens are empty for scripted play."""

    observation: str
    role: str = "user"
    reply: str = ""
    reward: float = 0.0
    prompt_ids: list[int] = field(default_factory=list)
    reply_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # one a reply token


@dataclass
class Usage:
    """What the replies took, where a model wrote them."""

    prompt_tokens: int = 0
    tokens: int = 0  # of the replies
    usd: float | None = None

    def add(self, prompt_tokens: int, tokens: int, usd: float | None = None) -> None:
        self.prompt_tokens += prompt_tokens
        self.tokens += tokens
        if usd is not None:
            self.usd = (self.usd or 0.0) + usd


@dataclass
class Trajectory:
    """The record of one episode. `reward` is None when the episode failed."""

    seed: int
    member: int = 0
    system_prompt: str = ""
    tools: list[dict[str, Any]] | None = None
    category: str = ""
    turns: list[Turn] = field(default_factory=list)
    end: End | None = None
    reward: float | None = None
    independent_reward: float | None = None  # the environment's, where a judge rewards
    ruler_score: float | None = None  # the judge's
    policy_version: int | None = None  # the optimizer steps that made the weights which played
    metrics: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    error: str | None = None

    @property
    def won(self) -> bool:
        return self.end is End.WON

    def to_json(self) -> dict[str, Any]:
        """The episode without its tokens, for people and for files."""
        record = asdict(self)
        del record["usage"]
        for turn in record["turns"]:
            turn["tokens"] = len(turn.pop("reply_ids"))
            del turn["prompt_ids"], turn["logprobs"]
        return record


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode to play."""

    seed: int
    member: int = 0


class Episode:
    """An environment in play with the record of it."""

    def __init__(self, environment: Environment, task: EpisodeSpec) -> None:
        self.environment = environment.fresh()
        self.trajectory = Trajectory(task.seed, task.member)
        self._exchanges: list[ChatTurn] = []
        self._chat: Renderer | None = None
        try:
            self._observe(self.environment.reset(task.seed, member=task.member), "user")
            self.trajectory.system_prompt = self.environment.system_prompt
            self.trajectory.tools = self.environment.tools
            self.trajectory.category = self.environment.category
        except Exception as error:
            self.fail(error)

    @property
    def over(self) -> bool:
        return self.trajectory.end is not None

    def chat(self, chats: RendererCache) -> Renderer:
        """Its format, by the system prompt and the tools of its task."""
        if self._chat is None:
            self._chat = chats.of(self.trajectory.system_prompt, self.trajectory.tools)
        return self._chat

    def exchanges(self) -> list[ChatTurn]:
        """The turns that the policy sees."""
        return visible(self._exchanges, self.environment)

    def reply(self, text: str, reply_ids: Sequence[int] = ()) -> None:
        turn = self.trajectory.turns[-1]
        turn.reply = text
        last = self._exchanges[-1]
        self._exchanges[-1] = ChatTurn(last.observation, last.role, reply_ids)
        try:
            self._take(self.environment.step(text))
        except Exception as error:
            self.fail(error)

    def truncate(self) -> None:
        """End before the present turn is played: it no longer fits."""
        self.trajectory.turns.pop()
        try:
            self._end(self.environment.truncate())
        except Exception as error:
            self.fail(error)

    def _take(self, step: Step) -> None:
        self.trajectory.turns[-1].reward = step.reward
        if step.end is None:
            self._observe(step.observation, step.role)
        else:
            self._end(step)

    def _observe(self, observation: str, role: str) -> None:
        self.trajectory.turns.append(Turn(observation, role))
        self._exchanges.append(ChatTurn(observation, role))

    def _end(self, step: Step) -> None:
        total = sum(turn.reward for turn in self.trajectory.turns)
        self.trajectory.end = step.end
        self.trajectory.metrics = dict(step.metrics)
        self.trajectory.reward = total if step.episode_reward is None else step.episode_reward

    def fail(self, error: Exception) -> None:
        """End without a reward."""
        self.trajectory.end = End.FAILED
        self.trajectory.error = f"{type(error).__name__}: {error}"


def visible(exchanges: list[ChatTurn], environment: Environment) -> list[ChatTurn]:
    """The present turn, the last of them, and as many before it as the environment shows."""
    shown = environment.earlier_turns_shown
    return exchanges if shown is None else exchanges[-1 - shown :]


def play_scripted(
    environment: Environment, policy: ScriptedPolicy, tasks: Iterable[EpisodeSpec], *, name: str
) -> Iterable[Trajectory]:
    """Episodes of a scripted policy, whose luck comes from (name, seed, member)."""
    for task in tasks:
        episode = Episode(environment, task)
        rng = Random(f"{name}/{task.seed}/{task.member}")
        while not episode.over:
            episode.reply(policy(episode.environment, rng))
        yield episode.trajectory


@dataclass
class RolloutRunner:
    """Plays episodes with a sampler: an episode's next turn is queued as soon as it is known."""

    environment: Environment
    chats: RendererCache
    sampler: Sampler
    max_new_tokens: int
    max_length: int  # tokens of prompt and reply together
    slow_workers: int = 32  # threads in which slow environments wait
    on_begin: Callable[[], None] | None = None  # when the sampler is ready to play the policy
    # Of the latest `play`:
    environment_seconds: float = 0.0
    seconds: float = 0.0  # from the sampler's readiness to the last episode's end
    tokens: int = 0  # generated

    def play(
        self,
        tasks: Sequence[EpisodeSpec],
        *,
        policy_version: int | None = None,
        batch_size: int | None = None,
        on_end: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """The tasks' trajectories, in order; at most `batch_size` episodes are in play at once."""
        self.environment_seconds, self.tokens = 0.0, 0
        self.sampler.begin(policy_version)
        if self.on_begin:
            self.on_begin()
        started = time.perf_counter()
        waiting = list(enumerate(tasks))[::-1]
        playing: set[int] = set()
        queued: dict[int, Episode] = {}  # whose turn the sampler is at
        done: dict[int, Trajectory] = {}
        moves = _Moves(self.slow_workers if self.environment.is_slow else 0)
        with closing(moves):
            while waiting or playing:
                while waiting and (batch_size is None or len(playing) < batch_size):
                    key, task = waiting.pop()
                    playing.add(key)
                    moves.start(key, partial(Episode, self.environment, task))
                # A sampler that takes a batch at a time is given the whole of it.
                awaited = 0 if queued else 1
                if not self.sampler.continuous:
                    awaited = len(playing)
                for key, episode, seconds in moves.finished(least=awaited):
                    self.environment_seconds += seconds
                    if self._submit(key, episode):
                        queued[key] = episode
                        continue
                    playing.remove(key)
                    done[key] = episode.trajectory
                    if on_end:
                        on_end(episode.trajectory)
                for completion in self.sampler.collect() if queued else ():
                    episode = queued.pop(completion.key)
                    text = self._record(episode, completion)
                    reply = partial(episode.reply, text, completion.token_ids)
                    moves.start(completion.key, partial(_after, reply, episode))
        self.seconds = time.perf_counter() - started
        self.sampler.end()
        return [done[key] for key in range(len(tasks))]

    def take_turn(self, episode: Episode) -> None:
        """Play one turn of one episode, for somebody who watches."""
        if self._submit(0, episode):
            completions: list[Completion] = []
            while not completions:
                completions = self.sampler.collect()
            text = self._record(episode, completions[0])
            episode.reply(text, completions[0].token_ids)

    def _submit(self, key: int, episode: Episode) -> bool:
        """Queue the episode's present turn; False when it is over, or has grown too long."""
        if episode.over:
            return False
        exchanges, turns, chat = (
            episode.exchanges(),
            episode.trajectory.turns,
            episode.chat(self.chats),
        )
        if len(turns) > 1 and len(exchanges) == len(turns):  # all is shown
            prompt_ids = chat.following(turns[-2].prompt_ids, *exchanges[-2:])
        else:
            prompt_ids = chat.prompt(exchanges)
        if len(prompt_ids) + self.max_new_tokens > self.max_length:
            episode.truncate()
            return False
        trajectory = episode.trajectory
        trajectory.turns[-1].prompt_ids = prompt_ids
        stream = f"reply/{trajectory.seed}/{trajectory.member}/{len(trajectory.turns)}"
        self.sampler.submit(Request(key=key, prompt_ids=prompt_ids, stream=stream))
        return True

    def _record(self, episode: Episode, completion: Completion) -> str:
        """Note the reply's tokens and what wrote them; returns its text."""
        trajectory = episode.trajectory
        if len(trajectory.turns) == 1:
            trajectory.policy_version = completion.policy_version
        elif trajectory.policy_version != completion.policy_version:
            raise RuntimeError("the policy's weights changed in the middle of an episode")
        turn = trajectory.turns[-1]
        turn.reply_ids = completion.token_ids
        turn.logprobs = completion.logprobs
        self.tokens += len(completion.token_ids)
        trajectory.usage.add(len(turn.prompt_ids), len(completion.token_ids))
        return episode.chat(self.chats).reply_text(completion.token_ids)


def probe(rollout: RolloutRunner, *, seeds: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Fixed prompts with replies, as token ids: first turns of the seeds, answered at random."""
    policy = rollout.environment.baselines["random"]
    found = []
    for seed in seeds:
        episode = Episode(rollout.environment, EpisodeSpec(seed))
        if not episode.over:
            reply = policy(episode.environment, Random(f"probe/{seed}"))
            chat = episode.chat(rollout.chats)
            found.append((chat.prompt(episode.exchanges()), chat.reply_ids(reply)))
    return found


class _Moves:
    """Where environments move: here and now, or in threads if they wait for others."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, "environment") if workers else None
        self._under_way = 0
        self._done: SimpleQueue[tuple[int, Callable[[], tuple[Episode, float]]]] = SimpleQueue()

    def start(self, key: int, move: Callable[[], Episode]) -> None:
        timed = partial(_timed, move)
        self._under_way += 1
        if self._pool is None:
            found = timed()
            self._done.put((key, lambda: found))
        else:
            future = self._pool.submit(timed)
            future.add_done_callback(lambda future: self._done.put((key, future.result)))

    def finished(self, *, least: int) -> Iterator[tuple[int, Episode, float]]:
        """The episodes that have moved, with the seconds it took; waits until there are `least`."""
        least = min(least, self._under_way)
        while least > 0 or not self._done.empty():
            key, result = self._done.get()
            self._under_way -= 1
            least -= 1
            yield key, *result()

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _after(reply: Callable[[], None], episode: Episode) -> Episode:
    reply()
    return episode


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started
