"""An engine that is not the policy is told from one that rounds, on real models in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rl_experiments.config.schema import ChecksConfig
from rl_experiments.errors import UserError
from rl_experiments.inference.weight_sync import merged_weights
from rl_experiments.training.float32_forward import float32_forward
from rl_experiments.training.sync_proof import Sync, SyncProof
from tests.support.tiny_models import VOCABULARY, tiny_model

Weights = dict[str, torch.Tensor]
Spoil = Callable[[int, Weights, Weights], Weights]
"""Takes the number of a sync, the engine's weights before it and those sent, and returns what it
has afterwards."""


@torch.no_grad()
def logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids).logits[:, 15:-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 16:, None]).flatten()


def policy(*, lora: bool) -> Any:
    # Peaked, as a pretrained model is: rounding then matters.
    model = tiny_model("qwen2", num_hidden_layers=4)
    with torch.no_grad():
        model.model.norm.weight *= 2
    model = model.to(torch.bfloat16)  # as a checkpoint's weights are
    if not lora:
        return model.float()
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))


@torch.no_grad()
def step_at_random(model: Any, size: float) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn_like(parameter)


def step_uphill(model: Any, ids: torch.Tensor, size: float) -> None:
    """Make the replies likelier by a step of equal size for each weight, as Adam's first one is."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    logits = model(input_ids=ids).logits[:, 15:-1].float().log_softmax(-1)
    loss = -logits.gather(-1, ids[:, 16:, None]).mean()
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.data -= size * gradient.sign()


def train(
    *,
    lora: bool,
    syncs: int,
    size: float = 0.01,
    spoil: Spoil | None = None,
    learns: bool = False,
    rope_theta: float | None = None,
) -> list[dict[str, float]]:
    """Move the policy at random, sync an engine after each step, and return the proof's metrics.

    `learns` makes its steps by gradient: small and all one way, so that rounding loses most.
    """
    model = policy(lora=lora)
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": rope_theta}}
    engine = tiny_model("qwen2", num_hidden_layers=4, **(rope if rope_theta else {})).bfloat16()
    torch.manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (16, 16))
    with torch.no_grad():  # replies of the policy's own
        for _ in range(16):
            logits = model(input_ids=ids).logits[:, -1].float()
            ids = torch.cat([ids, logits.softmax(-1).multinomial(1)], dim=1)
    proof, metrics, held = SyncProof(ChecksConfig()), [], dict(engine.named_parameters())
    for sync in range(1, syncs + 1):
        sent = {n: w.detach().to(torch.bfloat16).clone() for n, w in merged_weights(model)}
        weights = spoil(sync, {n: w.detach() for n, w in held.items()}, sent) if spoil else sent
        with torch.no_grad():
            for name, weight in weights.items():
                if name in held:
                    held[name].copy_(weight)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = logprobs(model, ids)
        with float32_forward(model):
            exact = logprobs(model, ids)
        with float32_forward(model, held_in=torch.bfloat16):
            held_logprobs = logprobs(model, ids)
        of_engine = logprobs(engine, ids)
        metrics.append(proof.check(Sync(sync, of_engine, rounded, exact, held_logprobs)))
        if learns:
            step_uphill(model, ids, size)
        else:
            step_at_random(model, size)
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("size", [1e-5, 0.01])
def test_rounding_is_no_fault_whatever_the_step(lora: bool, size: float) -> None:
    metrics = train(lora=lora, syncs=12, size=size)
    assert all(each["sampling/rounding_logp_difference/mean"] > 0.001 for each in metrics)


LEARNING_RATES = {True: 1e-4, False: 1e-5}  # with LoRA, and of all weights


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_changes_that_rounding_loses_are_no_fault(lora: bool) -> None:
    metrics = train(lora=lora, syncs=12, size=LEARNING_RATES[lora], learns=True)
    assert metrics[-1]["sampling/weight_rounding_logp_difference/mean"] > 0.001


def unsent(pattern: str) -> Spoil:
    def spoil(sync: int, held: Weights, sent: Weights) -> Weights:
        return sent if sync <= 3 else {n: w for n, w in sent.items() if pattern not in n}

    return spoil


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "size"), [(True, 0.002), (False, 0.0003)])
def test_frozen_weights_are_a_fault_before_the_difference_shows(lora: bool, size: float) -> None:
    with pytest.raises(UserError, match=r"not the policy after a weight sync: it shows -?\d+% of"):
        train(lora=lora, syncs=40, size=size, spoil=unsent(""))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("pattern", ["layers.1.", "v_proj"])
def test_weights_that_stay_behind_are_a_fault(lora: bool, pattern: str) -> None:
    with pytest.raises(UserError, match="not the policy after a weight sync"):
        train(lora=lora, syncs=20, size=0.005, spoil=unsent(pattern))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_an_adapter_with_another_scale_is_a_fault(factor: float) -> None:
    base = {
        n: w.detach().clone()
        for n, w in tiny_model("qwen2", num_hidden_layers=4).named_parameters()
    }
    base["model.norm.weight"] *= 2

    def spoil(sync: int, held: Weights, sent: Weights) -> Weights:
        return {n: base[n].detach() + factor * (w - base[n].detach()) for n, w in sent.items()}

    with pytest.raises(UserError, match="not the policy after a weight sync"):
        train(lora=True, syncs=12, size=0.02, spoil=spoil)


def test_another_rope_base_is_a_fault_from_the_start() -> None:
    with pytest.raises(UserError, match=r"differ by \d\.\d+ on average, where rounding makes 0\.0"):
        train(lora=False, syncs=1, rope_theta=100.0)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3-window", "qwen3-moe", "gpt2"])
def test_a_model_of_half_precision_computes_as_its_widened_copy(architecture: str) -> None:
    model = tiny_model(architecture).to(torch.bfloat16)
    ids = torch.randint(3, VOCABULARY, (2, 24))
    widened = logprobs(copy.deepcopy(model).float(), ids)
    with float32_forward(model):
        torch.testing.assert_close(logprobs(model, ids), widened, atol=1e-5, rtol=0)
    assert not torch.allclose(logprobs(model, ids), widened, atol=1e-4, rtol=0)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_the_weights_are_narrow_again_after_an_error() -> None:
    class Failing(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])[0], Failing()).to(torch.bfloat16)
    with pytest.raises(ValueError, match="no"), float32_forward(model):
        model(torch.ones(1, 2))
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
