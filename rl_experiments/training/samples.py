"""Trajectories as training samples: sequences of tokens with an advantage for each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rl_experiments.rollout.types import Trajectory


@dataclass
class TrainingSample:
    """A prompt, and the completion after it: the policy's replies with observations between them.

    `mask`, `logprobs` and `advantages` have one entry per completion token. The mask is 1 for
    tokens that the policy generated and 0 for tokens of an observation, whose log-probability and
    advantage are 0. `logprobs` are those of the sampler when it generated the tokens.

    A sample of two turns with advantages 0.5 and -0.5, whose replies are [7, 8] and [7]:

        prompt_ids      1 2 3
        completion_ids        7    8    4  5  6   7
        mask                  1    1    0  0  0   1
        advantages            0.5  0.5  0  0  0  -0.5
    """

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)

    @classmethod
    def without_loss(cls, token_id: int) -> TrainingSample:
        """Return the shortest sample that the loss ignores, to fill up a batch."""
        return cls([token_id], [token_id], mask=[0], logprobs=[0.0], advantages=[0.0])

    def add_observation(self, token_ids: Sequence[int]) -> None:
        """Append tokens that the environment wrote."""
        self.completion_ids += token_ids
        self.mask += [0] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids)
        self.advantages += [0.0] * len(token_ids)

    def add_reply(
        self, token_ids: Sequence[int], *, logprobs: Sequence[float], advantage: float
    ) -> None:
        """Append tokens that the policy generated."""
        self.completion_ids += token_ids
        self.mask += [1] * len(token_ids)
        self.logprobs += logprobs or [0.0] * len(token_ids)
        self.advantages += [advantage] * len(token_ids)


def trajectory_to_samples(
    trajectory: Trajectory, advantages: Sequence[float]
) -> Iterator[TrainingSample]:
    """Yield the training samples of an episode; `advantages` has one value per turn.

    Consecutive turns form one sample as long as each prompt begins with all tokens before it. So
    an episode whose history is shown in full is one sample, and one whose history is bounded is
    one sample per turn, except that the first turns may share one.
    """
    sample: TrainingSample | None = None
    for turn, advantage in zip(trajectory.turns, advantages, strict=True):
        if sample is not None:
            tokens_so_far = sample.prompt_ids + sample.completion_ids
            if turn.prompt_ids[: len(tokens_so_far)] == tokens_so_far:
                sample.add_observation(turn.prompt_ids[len(tokens_so_far) :])
            else:
                yield sample
                sample = None
        if sample is None:
            sample = TrainingSample(list(turn.prompt_ids))
        sample.add_reply(turn.reply_ids, logprobs=turn.logprobs, advantage=advantage)
    if sample is not None:
        yield sample


def split_by_tokens(sizes: Sequence[tuple[int, int]], max_tokens: int) -> Iterator[slice]:
    """Yield consecutive slices of samples that hold at most `max_tokens` tokens after padding.

    `sizes` has the number of (prompt, completion) tokens of each sample. Within a slice prompts are
    padded to the longest prompt, and completions to the longest completion. A sample that is larger
    than `max_tokens` is in a slice of its own.
    """
    start = longest_prompt = longest_completion = 0
    for end, (prompt, completion) in enumerate(sizes):
        width = max(longest_prompt, prompt) + max(longest_completion, completion)
        if end > start and width * (end + 1 - start) > max_tokens:
            yield slice(start, end)
            start, longest_prompt, longest_completion = end, 0, 0
        longest_prompt = max(longest_prompt, prompt)
        longest_completion = max(longest_completion, completion)
    if sizes:
        yield slice(start, len(sizes))
