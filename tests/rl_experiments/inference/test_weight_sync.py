"""The weights that an engine is given: the policy's, with the adapter merged out of place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from rl_experiments.config.schema import ModelConfig
from rl_experiments.errors import UserError
from rl_experiments.inference.weight_sync import (
    check_engine_can_hold,
    check_mergeable,
    differing_weights,
    merged_weights,
)
from rl_experiments.models.loading import lora_config
from tests.support.tiny_models import tiny_model


def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=50, tie_word_embeddings=True, **small, **heads))


def test_the_engine_is_given_the_adapter_within_the_weights_and_the_base_stays() -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    policy = get_peft_model(model(), adapter)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:  # zero at first, which would show nothing
            torch.nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    given = dict(merged_weights(policy))
    expected = dict(copy.deepcopy(policy).merge_and_unload().named_parameters())
    assert given.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(given[name], weight, atol=1e-6), name
    changed = [name for name, weight in model().named_parameters() if not given[name].equal(weight)]
    assert len(changed) == 6  # three modules of two layers
    assert all(value.equal(before[name]) for name, value in policy.state_dict().items())


def test_without_an_adapter_the_weights_are_the_models_own() -> None:
    policy = model()
    pairs = zip(merged_weights(policy), policy.parameters(), strict=True)
    assert all(given is own for (_, given), own in pairs)


_LINEAR = ["q_proj", "v_proj"]
_UNTIED = {"tie_word_embeddings": False}
# What peft can wrap: architecture, its changes, and the settings of the adapter; None for ours.
_WRAPPED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "experts": ("qwen3-moe", {}, None),
    "experts of Mixtral": ("mixtral", {}, None),
    "one parameter of experts": (
        *("qwen3-moe", {}),
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]},
    ),
    "conv1d": ("gpt2", {}, None),
    "short convolutions": ("lfm2", {}, None),
    "DoRA": ("qwen3", {}, {"target_modules": _LINEAR, "use_dora": True}),
    "biases": ("qwen2", {}, {"target_modules": _LINEAR, "lora_bias": True}),
    "rank-stabilised": ("qwen3", {}, {"target_modules": _LINEAR, "use_rslora": True}),
    "embeddings": ("qwen3", _UNTIED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "logits": ("qwen3", _UNTIED, {"target_modules": ["lm_head", "q_proj"]}),
    "a module as a whole": (
        *("qwen3", _UNTIED),
        {"target_modules": _LINEAR, "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "some tokens": (
        *("qwen3", _UNTIED),
        {"target_modules": _LINEAR, "trainable_token_indices": [5, 7, 9]},
    ),
    "some layers": ("llama", {}, {"target_modules": _LINEAR, "layers_to_transform": [1]}),
    "other ranks": ("llama", {}, {"target_modules": _LINEAR, "rank_pattern": {"q_proj": 2}}),
}


def adapted(kind: str) -> tuple[Any, Any]:
    """Return a model, and a copy of it with an adapter that changes something everywhere."""
    architecture, changes, settings = _WRAPPED[kind]
    plain = tiny_model(architecture, **changes)
    adapter = lora_config(ModelConfig(name="x")) if settings is None else LoraConfig(**settings)
    policy = get_peft_model(copy.deepcopy(plain), adapter).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return plain, policy


@pytest.mark.slow
@pytest.mark.parametrize("kind", _WRAPPED)
@torch.no_grad()
def test_a_plain_model_with_the_weights_answers_as_the_adapted_one(kind: str) -> None:
    plain, policy = adapted(kind)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    ids = torch.arange(5, 29).view(2, 12)
    wanted = policy(input_ids=ids).logits.log_softmax(-1)
    assert (plain(input_ids=ids).logits.log_softmax(-1) - wanted).abs().mean() > 1e-3
    names = [name for name, _ in plain.named_parameters()]
    weights = dict(merged_weights(policy))
    assert sorted(weights) == sorted(names)
    plain.load_state_dict(weights, strict=False)
    plain.tie_weights()
    torch.testing.assert_close(plain(input_ids=ids).logits.log_softmax(-1), wanted)
    assert all(value.equal(before[name]) for name, value in policy.state_dict().items())
    check_mergeable(policy, label="checkpoint=x")


def test_the_proof_sees_an_engine_without_the_adapter_of_the_experts() -> None:
    plain, policy = adapted("experts")
    differing = differing_weights(plain, policy)
    assert sum("experts" in name for name in differing) == 4  # two tensors of two layers
    plain.load_state_dict(dict(merged_weights(policy)), strict=False)
    assert differing_weights(plain, policy) == []


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LoraConfig(target_modules=["lm_head"]), "share, for one of them alone"),
        (LoraConfig(target_modules=["embed_tokens"]), "share, for one of them alone"),
        (
            LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
            "share, for one of them alone",
        ),
        (LoHaConfig(target_modules=["q_proj"]), "adapter is of the kind LOHA; only LoRA"),
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            "adapter is of the kind PROMPT_TUNING; only LoRA",
        ),
    ],
)
def test_an_adapter_that_is_in_no_models_weights_is_refused(adapter: Any, message: str) -> None:
    policy = get_peft_model(tiny_model("qwen2"), adapter)
    with pytest.raises(UserError, match=rf"^checkpoint=x: .*{message}") as error:
        check_mergeable(policy, label="checkpoint=x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["qwen3-moe", "mixtral"])
def test_the_engine_is_given_no_model_with_experts(architecture: str) -> None:
    with pytest.raises(UserError, match=r"^sampler=vllm: .*experts.*set sampler=transformers"):
        check_engine_can_hold(tiny_model(architecture))
    check_engine_can_hold(tiny_model("lfm2"))
