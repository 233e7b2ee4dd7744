"""Trajectories as the rows that a training step takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rl_experiments.rollout.types import Trajectory


@dataclass
class TrainingSample:
    """A prompt and what follows it: replies of the policy with the environment's words between.

    `mask`, `logprobs` and `advantages` have one entry for each of `completion_ids`; mask is 1 where
    the policy wrote.
    """

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)

    def extend(self, ids: Sequence[int], *, written: bool) -> None:
        """Append tokens: `written` by the policy, or by the environment."""
        self.completion_ids += ids
        self.mask += [int(written)] * len(ids)
        if not written:
            self.logprobs += [0.0] * len(ids)
            self.advantages += [0.0] * len(ids)


def trajectory_to_samples(
    trajectory: Trajectory, advantages: Sequence[float]
) -> Iterator[TrainingSample]:
    """The longest runs of turns that share their token prefix, a row each.

    `advantages` has one value a turn. A history shown in full gives one row an episode, a bounded
    one a row a turn.
    """
    row: TrainingSample | None = None
    for turn, advantage in zip(trajectory.turns, advantages, strict=True):
        if row is not None:
            seen = row.prompt_ids + row.completion_ids
            if turn.prompt_ids[: len(seen)] == seen:
                row.extend(turn.prompt_ids[len(seen) :], written=False)
            else:
                yield row
                row = None
        if row is None:
            row = TrainingSample(list(turn.prompt_ids))
        row.extend(turn.reply_ids, written=True)
        row.logprobs += turn.logprobs or [0.0] * len(turn.reply_ids)
        row.advantages += [advantage] * len(turn.reply_ids)
    if row is not None:
        yield row


def spans(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[slice]:
    """Runs of rows, each of (prompt, completion) tokens, that are at most `most` when padded.

    Prompts are padded to the longest of a run, and so are completions. A row of more is alone.
    """
    start = prompt = completion = 0
    for end, (own_prompt, own_completion) in enumerate(sizes):
        wider = max(prompt, own_prompt), max(completion, own_completion)
        if end > start and sum(wider) * (end + 1 - start) > most:
            yield slice(start, end)
            start, wider = end, (own_prompt, own_completion)
        prompt, completion = wider
    if sizes:
        yield slice(start, len(sizes))
