"""Weights that are trained are float32, in which small updates are not lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.trainers import small_trainer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("lora", ["true", "false"])
def test_a_small_learning_rate_moves_all_trained_weights(
    tmp_path: Path, dtype: str, lora: str
) -> None:
    trainer = small_trainer(
        tmp_path,
        f"model.dtype={dtype}",
        f"model.lora.enabled={lora}",
        "trainer.learning_rate=1e-5",
        "trainer.max_steps=2",
        "checks.max_logp_difference=1",
    )
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    trainer.train()
    # Only weights with a gradient can move: others are embeddings of tokens that never came.
    moved = total = 0
    for name, weight in trained.items():
        if "embed" not in name and "lora_A" not in name:  # A moves once B is no longer zero
            moved += int((weight != before[name]).sum())
            total += weight.numel()
    assert moved > 0.9 * total
