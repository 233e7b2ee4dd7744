"""Micro-batches hold each sample once, and their weighted losses add up to the whole's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from rl_experiments.config.schema import LossType
from rl_experiments.training.collate import collate
from rl_experiments.training.micro_batches import (
    Batch,
    backward_all_but_last,
    loss_weight,
    micro_batches,
    rows_at_once,
    trim_padding,
)
from rl_experiments.training.samples import TrainingSample


def batch() -> Batch:
    """Return samples of very different lengths; token ids tell them apart."""
    samples = []
    for number, (prompt, completion) in enumerate([(9, 1), (2, 8), (3, 1), (2, 7), (8, 2)], 1):
        samples.append(
            TrainingSample(
                [number] * prompt,
                [number] * completion,
                mask=[1] * completion,
                logprobs=[-0.1 * number] * completion,
                advantages=[1.0] * completion,
            )
        )
    device = torch.device("cpu")
    counts = {"num_items_in_batch": 19, "row_scale": torch.tensor(1.0)}
    return {**collate(samples, pad_token_id=0, device=device), **counts}


def test_micro_batches_hold_each_sample_once_and_are_as_narrow_as_they_can_be() -> None:
    parts = micro_batches(batch(), 24)
    numbers = [row[-1].item() for part in parts for row in part["prompt_ids"]]
    assert sorted(numbers) == [1, 2, 3, 4, 5] and len(parts) > 1
    for part in parts:
        rows, columns = part["prompt_ids"].shape
        assert rows == 1 or rows * (columns + part["completion_ids"].size(1)) <= 24
        assert part["prompt_mask"][:, 0].any() and part["completion_mask"][:, -1].any()
        assert part["advantages"].shape == part["completion_ids"].shape
        assert part["num_items_in_batch"] == 19


def test_rows_are_trimmed_on_the_side_where_they_are_padded() -> None:
    part = trim_padding(batch(), torch.tensor([2, 1]))
    assert part["prompt_ids"].tolist() == [[3, 3, 3], [0, 2, 2]]
    assert part["completion_ids"].tolist() == [[3] + [0] * 7, [2] * 8]


@pytest.mark.parametrize("loss_type", [each.value for each in LossType])
def test_the_weights_of_means_add_up_to_one(loss_type: str) -> None:
    whole = batch()
    weights = [loss_weight(part, whole, loss_type) for part in micro_batches(whole, 24)]
    sums_of_tokens = loss_type in ("dapo", "cispo", "vespo")
    assert sum(weights) == pytest.approx(len(weights) if sums_of_tokens else 1.0)


class OneProcess:
    """The part of accelerate's `Accelerator` that micro-batches use."""

    device = torch.device("cpu")

    def no_sync(self, model: object) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(loss)


def test_the_gradient_is_that_of_the_whole_mini_batch() -> None:
    weight = torch.ones(10, requires_grad=True)

    def loss_of(part: Batch) -> torch.Tensor:
        loss: torch.Tensor = (weight[part["completion_ids"]] ** 2 * part["tool_mask"]).sum()
        return loss

    torch.autograd.backward(loss_of(batch()))
    whole, weight.grad = weight.grad, None
    parts = micro_batches(batch(), 24)
    loss = backward_all_but_last(parts, loss_of, model=None, accelerator=OneProcess())
    torch.autograd.backward(loss)
    assert loss.item() == 19.0
    assert whole is not None and weight.grad is not None and weight.grad.equal(whole)


@pytest.mark.parametrize(("row_tokens", "rows"), [(10, 10), (30, 3), (1000, 1)])
def test_at_least_one_row_goes_through_the_model(row_tokens: int, rows: int) -> None:
    assert rows_at_once(row_tokens, 100) == rows
