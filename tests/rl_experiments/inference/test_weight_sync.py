"""The weights that an engine is given: the policy's, with the adapter merged out of place."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from rl_experiments.inference.weight_sync import merged_weights


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
