"""What of vLLM's side can be tried without it: the weights it is given, what fits, what is said."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from rl_experiments.errors import UserError
from rl_experiments.fit import Shape, fit
from rl_experiments.schema import Config
from rl_experiments.vllm_engine import merged_weights
from tests.conftest import SMALL, Program

HALF_B = Shape(494_000_000, 24, 896, 2, 64, 151936)
THREE_B = Shape(3_090_000_000, 36, 2048, 2, 128, 151936)


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


def config(**changes: object) -> Config:
    made = Config(name="x")
    made.model.name, made.model.max_length = "q", 8192
    made.trainer.per_device_train_batch_size, made.trainer.steps_per_generation = 2, 9
    made.trainer.gradient_checkpointing = True
    for key, value in changes.items():
        part, _, leaf = key.partition("__")
        setattr(getattr(made, part), leaf, value)
    return made


def test_what_is_left_open_is_chosen_by_what_fits() -> None:
    large = fit(config(), HALF_B, total=139.0)
    assert not large.sleep and large.micro_batch_rows == 64 and large.utilization < 0.2
    tight = fit(config(), THREE_B, total=23.0)
    assert tight.sleep and 1 <= tight.micro_batch_rows < 64
    asked = config(vllm__gpu_memory_utilization=0.8, fit__micro_batch_rows=2)
    kept = fit(asked, THREE_B, total=23.0)  # the original's settings on its A10G
    assert (kept.utilization, kept.sleep, kept.micro_batch_rows) == (0.8, True, 2)


@pytest.mark.parametrize(
    ("shape", "total", "says"),
    [
        (THREE_B, 8.0, ["model=q does not fit", "model.max_length=8192", "a larger gpu="]),
        (THREE_B, 23.0, ["model.lora.enabled=true"]),
    ],
)
def test_what_cannot_fit_is_told_with_what_to_change(
    shape: Shape, total: float, says: list[str]
) -> None:
    tried = config()
    tried.model.lora.enabled = "model.lora.enabled=true" not in says
    with pytest.raises(UserError) as refused:
        fit(tried, shape, total=total)
    assert all(word in str(refused.value) for word in says)


def test_vllm_without_vllm_or_a_gpu_is_one_line(program: Program) -> None:
    done = program(*SMALL, "sampler=vllm", "name=v")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "sampler=" in done.stderr
