"""Adapters reach the layers that a model has, and it is said which."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import equal

from rl_experiments.config.schema import LoraConfig, ModelConfig
from rl_experiments.errors import UserError
from rl_experiments.models.adapters import adapted_note, check_targets
from rl_experiments.models.loading import lora_config
from tests.support.tiny_models import tiny_model

_NAMES = {
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "lfm2": {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"},
    "gpt2": {"c_attn", "c_fc", "c_proj"},
}


def model_config(*names: str) -> ModelConfig:
    """Return settings with these names of layers, or with the defaults."""
    lora = LoraConfig(target_modules=list(names)) if names else LoraConfig()
    return ModelConfig(name="x", lora=lora)


@pytest.mark.parametrize("names", [(), ("all-linear",)])
@pytest.mark.parametrize("architecture", _NAMES)
def test_the_defaults_reach_every_linear_layer(architecture: str, names: tuple[str, ...]) -> None:
    settings = model_config(*names)
    check_targets(tiny_model(architecture), settings.lora)
    adapted = get_peft_model(tiny_model(architecture), lora_config(settings))
    reached = {
        name.rpartition(".")[2]
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert reached == _NAMES[architecture]


@pytest.mark.parametrize(
    ("architecture", "names", "unknown"),
    [
        ("phi3", ["q_proj", "o_proj"], "q_proj"),
        ("qwen2", ["q_proj", "wq"], "wq"),
        ("gpt2", ["c_attn", "fc1", "fc2"], "fc1, fc2"),
        ("qwen3", ["all-linear", "q_proj"], "all-linear"),
        ("llama", ["proj"], "proj"),  # the end of a name is no name
    ],
)
def test_a_name_that_no_layer_has_is_refused(
    architecture: str, names: list[str], unknown: str
) -> None:
    message = rf"model\.lora\.target_modules: the model has no linear layer named {unknown}; it has"
    with pytest.raises(UserError, match=message):
        check_targets(tiny_model(architecture), LoraConfig(target_modules=names))


def test_the_layer_of_the_logits_is_refused_where_it_is_the_embeddings() -> None:
    lora = LoraConfig(target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match=r"model\.lora\.target_modules: lm_head shares its weight"):
        check_targets(tiny_model("qwen2"), lora)
    check_targets(
        tiny_model("phi3", tie_word_embeddings=False), LoraConfig(target_modules=["lm_head"])
    )


def test_paths_of_layers_are_names_too() -> None:
    settings = model_config("self_attn.q_proj", "model.layers.1.mlp.up_proj")
    check_targets(tiny_model("qwen2"), settings.lora)


def test_the_note_says_what_is_adapted() -> None:
    model = tiny_model("phi3")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    note = adapted_note(model, lora_config(model_config()))
    assert note == (
        "LoRA adapts 2 o_proj, 2 qkv_proj, 2 gate_up_proj, 2 down_proj: "
        "100% of the weights between the embeddings"
    )
    assert "LoRA adapts 2 q_proj: " in adapted_note(
        tiny_model("qwen2"), lora_config(model_config("q_proj"))
    )
    assert all(equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_note_counts_experts() -> None:
    note = adapted_note(tiny_model("qwen3-moe"), lora_config(model_config()))
    assert "2 gate_up_proj" in note and "2 down_proj" in note
