"""Trajectories become training samples, and samples become padded tensors."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_experiments.rollout.types import Trajectory, Turn
from rl_experiments.training.collate import collate, pad
from rl_experiments.training.samples import (
    TrainingSample,
    split_by_tokens,
    trajectory_to_samples,
)

CPU = torch.device("cpu")


def turn(prompt_ids: list[int], reply_ids: list[int], logprob: float) -> Turn:
    """Return a turn whose reply tokens all have the same log-probability."""
    return Turn("", prompt_ids=prompt_ids, reply_ids=reply_ids, logprobs=[logprob] * len(reply_ids))


def test_turns_with_a_common_history_are_one_sample() -> None:
    trajectory = Trajectory(0, turns=[turn([1, 2, 3], [7, 8], -1.0)])
    trajectory.turns.append(turn([1, 2, 3, 7, 8, 4, 5, 6], [7], -2.0))
    (sample,) = trajectory_to_samples(trajectory, [0.5, -0.5])
    assert sample == TrainingSample(
        prompt_ids=[1, 2, 3],
        completion_ids=[7, 8, 4, 5, 6, 7],
        mask=[1, 1, 0, 0, 0, 1],
        logprobs=[-1.0, -1.0, 0.0, 0.0, 0.0, -2.0],
        advantages=[0.5, 0.5, 0.0, 0.0, 0.0, -0.5],
    )


def test_turns_without_a_common_history_are_a_sample_each() -> None:
    trajectory = Trajectory(0, turns=[turn([1, 2], [7], -1.0), turn([3], [8, 9], -2.0)])
    assert list(trajectory_to_samples(trajectory, [0.5, -0.5])) == [
        TrainingSample([1, 2], [7], [1], [-1.0], [0.5]),
        TrainingSample([3], [8, 9], [1, 1], [-2.0, -2.0], [-0.5, -0.5]),
    ]


def test_prompts_are_padded_on_the_left_and_completions_on_the_right() -> None:
    samples = [
        TrainingSample([1, 2], [7], [1], [-1.0], [0.5]),
        TrainingSample([3], [8, 9], [1, 1], [-2.0, -3.0], [-0.5, -0.5]),
        TrainingSample.without_loss(5),
    ]
    batch = collate(samples, pad_token_id=0, device=CPU)
    assert batch["prompt_ids"].tolist() == [[1, 2], [0, 3], [0, 5]]
    assert batch["prompt_mask"].tolist() == [[1, 1], [0, 1], [0, 1]]
    assert batch["completion_ids"].tolist() == [[7, 0], [8, 9], [5, 0]]
    assert batch["completion_mask"].tolist() == [[1, 0], [1, 1], [1, 0]]
    assert batch["tool_mask"].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert batch["sampling_per_token_logps"].tolist() == [[-1, 0], [-2, -3], [0, 0]]
    assert batch["advantages"].tolist() == [[0.5, 0], [-0.5, -0.5], [0, 0]]


def test_padding_keeps_the_type_of_the_numbers() -> None:
    assert pad([[1], [2, 3]], value=9, device=CPU).dtype == torch.int64
    assert pad([[1.0], [2.0, 3.0]], device=CPU).dtype == torch.float32


@given(
    sizes=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), max_size=40),
    max_tokens=st.integers(1, 8000),
)
def test_no_part_of_a_mini_batch_is_larger_than_allowed(
    sizes: list[tuple[int, int]], max_tokens: int
) -> None:
    parts = [sizes[part] for part in split_by_tokens(sizes, max_tokens)]
    assert [size for part in parts for size in part] == sizes
    for part in parts:  # as tensors: prompts and completions are padded apart
        padded = len(part) * (max(p for p, _ in part) + max(c for _, c in part))
        assert padded <= max_tokens or len(part) == 1
