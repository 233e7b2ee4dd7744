"""Training samples as padded tensors, under the names that TRL's loss reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rl_experiments.training.samples import TrainingSample


def collate(
    samples: Sequence[TrainingSample], *, pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the batch for TRL's loss; every tensor is of shape (samples, tokens).

    Prompts are padded on the left and completions on the right. `tool_mask` is TRL's name for the
    mask of the tokens that the policy generated. `advantages` has one value per token, from which
    TRL's loss takes credit by turn as well as by episode.
    """
    logprobs = pad([sample.logprobs for sample in samples], device=device)
    return collate_tokens(samples, pad_token_id=pad_token_id, device=device) | {
        "tool_mask": pad([sample.mask for sample in samples], device=device),
        "advantages": pad([sample.advantages for sample in samples], device=device),
        "sampling_per_token_logps": logprobs,
        # The importance ratio is taken against the sampler itself, which the guards compare with
        # the trainer's policy.
        "old_per_token_logps": logprobs,
    }


def collate_tokens(
    samples: Sequence[TrainingSample], *, pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the tokens of prompts and completions with their attention masks."""
    prompts = [sample.prompt_ids for sample in samples]
    completions = [sample.completion_ids for sample in samples]
    ones_of_prompts = [[1] * len(prompt) for prompt in prompts]
    ones_of_completions = [[1] * len(completion) for completion in completions]
    return {
        "prompt_ids": pad(prompts, value=pad_token_id, on_left=True, device=device),
        "prompt_mask": pad(ones_of_prompts, on_left=True, device=device),
        "completion_ids": pad(completions, value=pad_token_id, device=device),
        "completion_mask": pad(ones_of_completions, device=device),
    }


def pad(
    rows: Sequence[Sequence[Any]],
    *,
    device: torch.device,
    value: float = 0,
    on_left: bool = False,
) -> torch.Tensor:
    """Return rows of different lengths as one tensor, of float32 if they hold floats, else int64.

    There must be at least one row, and the first row must not be empty.
    """
    dtype = np.float32 if isinstance(rows[0][0], float) else np.int64
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=dtype)
    for target, row in zip(padded, rows, strict=True):
        target[slice(-len(row), None) if on_left else slice(len(row))] = row
    return torch.from_numpy(padded).to(device)
