"""Many episodes played at once with a sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from environments import Environment
from rl_experiments.inference.sampler import Completion, Request, Sampler
from rl_experiments.rollout.episode import Episode
from rl_experiments.rollout.renderer import RendererCache
from rl_experiments.rollout.types import EpisodeSpec, Trajectory

T = TypeVar("T")


@dataclass
class RolloutRunner:
    """Plays episodes with a sampler: an episode's next turn is queued as soon as it is known."""

    environment: Environment
    renderers: RendererCache
    sampler: Sampler
    max_new_tokens: int  # of a reply
    max_length: int  # tokens of prompt and reply together
    slow_workers: int = 32  # threads in which environments wait that are slow
    on_begin: Callable[[], None] | None = None  # called when the sampler is ready to play
    # Of the latest `play`:
    environment_seconds: float = 0.0  # summed over episodes
    seconds: float = 0.0  # from the sampler's readiness to the end of the last episode
    tokens: int = 0  # generated

    def play(
        self,
        specs: Sequence[EpisodeSpec],
        *,
        policy_version: int | None = None,
        batch_size: int | None = None,
        on_end: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """Play the episodes, at most `batch_size` at once, and return them in the given order.

        `on_end` gets each episode as it ends. `policy_version` names the weights that play.
        """
        self.environment_seconds, self.tokens = 0.0, 0
        self.sampler.begin(policy_version)
        if self.on_begin:
            self.on_begin()
        started = time.perf_counter()
        waiting = list(enumerate(specs))[::-1]
        playing: set[int] = set()
        generating: dict[int, Episode] = {}  # their present turn is with the sampler
        ended: dict[int, Trajectory] = {}
        pool = EnvironmentPool(self.slow_workers if self.environment.is_slow else 0)
        with closing(pool):
            while waiting or playing:
                while waiting and (batch_size is None or len(playing) < batch_size):
                    key, spec = waiting.pop()
                    playing.add(key)
                    pool.start(key, partial(Episode, self.environment, spec))
                min_count = 0 if generating else 1
                if not self.sampler.continuous:  # then it is given a whole batch at a time
                    min_count = len(playing)
                for key, episode, seconds in pool.finished(min_count=min_count):
                    self.environment_seconds += seconds
                    if self._submit(key, episode):
                        generating[key] = episode
                        continue
                    playing.remove(key)
                    ended[key] = episode.trajectory
                    if on_end:
                        on_end(episode.trajectory)
                for completion in self.sampler.collect() if generating else ():
                    episode = generating.pop(completion.key)
                    text = self._record(episode, completion)
                    reply = partial(episode.reply, text, completion.token_ids)
                    pool.start(completion.key, partial(_episode_after, reply, episode))
        self.seconds = time.perf_counter() - started
        self.sampler.end()
        return [ended[key] for key in range(len(specs))]

    def take_turn(self, episode: Episode) -> None:
        """Play one turn of one episode; the sampler must have begun."""
        if self._submit(0, episode):
            completions: list[Completion] = []
            while not completions:
                completions = self.sampler.collect()
            text = self._record(episode, completions[0])
            episode.reply(text, completions[0].token_ids)

    def _submit(self, key: int, episode: Episode) -> bool:
        """Queue the episode's present turn; return False when it is over, or has grown too long."""
        if episode.over:
            return False
        visible, turns = episode.visible_turns(), episode.trajectory.turns
        renderer = episode.renderer(self.renderers)
        if len(turns) > 1 and len(visible) == len(turns):  # the whole history is shown
            prompt_ids = renderer.extend(turns[-2].prompt_ids, *visible[-2:])
        else:
            prompt_ids = renderer.prompt(visible)
        if len(prompt_ids) + self.max_new_tokens > self.max_length:
            episode.truncate()
            return False
        trajectory = episode.trajectory
        trajectory.turns[-1].prompt_ids = prompt_ids
        stream = f"reply/{trajectory.seed}/{trajectory.member}/{len(trajectory.turns)}"
        self.sampler.submit(Request(key=key, prompt_ids=prompt_ids, stream=stream))
        return True

    def _record(self, episode: Episode, completion: Completion) -> str:
        """Record the reply's tokens and which weights wrote them; return the reply's text."""
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
        renderer = episode.renderer(self.renderers)
        if len(turn.reply_ids) >= self.max_new_tokens:
            trajectory.usage.cut_replies += not renderer.is_finished(turn.reply_ids)
        return renderer.reply_text(completion.token_ids)


def first_replies(
    rollout: RolloutRunner, sampler: Sampler, *, seeds: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, reply) token ids of the seeds' first turns, whose replies `sampler` writes.

    The sampler's engine must be ready. An episode whose prompt is too long is left out.
    """
    prompts = {}
    for key, seed in enumerate(seeds):
        episode = Episode(rollout.environment, EpisodeSpec(seed))
        if episode.over:
            continue
        prompt_ids = episode.renderer(rollout.renderers).prompt(episode.visible_turns())
        if len(prompt_ids) + rollout.max_new_tokens <= rollout.max_length:
            prompts[key] = prompt_ids
            sampler.submit(Request(key=key, prompt_ids=prompt_ids, stream=f"probe/{seed}"))
    replies: dict[int, list[int]] = {}
    while len(replies) < len(prompts):
        replies |= {each.key: each.token_ids for each in sampler.collect()}
    return [(prompts[key], replies[key]) for key in prompts if replies[key]]


class EnvironmentPool:
    """Moves environments on: at once in this thread, or in `workers` threads where they wait."""

    def __init__(self, workers: int) -> None:
        self._threads = ThreadPoolExecutor(workers, "environment") if workers else None
        self._under_way = 0
        # The episode's key, and a function that returns or raises what came of the move.
        self._moved: SimpleQueue[tuple[int, Callable[[], tuple[Episode, float]]]] = SimpleQueue()

    def start(self, key: int, move: Callable[[], Episode]) -> None:
        """Begin a move, which returns its episode."""
        timed = partial(_timed, move)
        self._under_way += 1
        if self._threads is None:
            result = timed()
            self._moved.put((key, lambda: result))
        else:
            future = self._threads.submit(timed)
            future.add_done_callback(lambda future: self._moved.put((key, future.result)))

    def finished(self, *, min_count: int) -> Iterator[tuple[int, Episode, float]]:
        """Yield (key, episode, seconds) of the moves that are done; wait for at least `min_count`.

        Fewer are waited for if fewer are under way.
        """
        to_wait_for = min(min_count, self._under_way)
        while to_wait_for > 0 or not self._moved.empty():
            key, result = self._moved.get()
            self._under_way -= 1
            to_wait_for -= 1
            yield key, *result()

    def close(self) -> None:
        """Drop the moves that have not begun."""
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _episode_after(reply: Callable[[], None], episode: Episode) -> Episode:
    reply()
    return episode


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return the call's result, and the seconds it took."""
    started = time.perf_counter()
    return call(), time.perf_counter() - started
