"""What of vLLM's side can be tried without it: the weights it is given, what fits, what is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from rl_experiments.commands.job import task
from rl_experiments.config.schema import Config, register
from rl_experiments.config.schema import LoraConfig as LoraSettings
from rl_experiments.errors import UserError
from rl_experiments.inference.vllm_colocated import merged_weights
from rl_experiments.models.memory import ModelDims, fit, token_bytes
from rl_experiments.models.policy import without_effect
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from tests.support.program import SMALL, Program

HALF_B = ModelDims(494_000_000, 24, 896, 4864, 2, 64, 151936)
THREE_B = ModelDims(3_090_000_000, 36, 2048, 11008, 2, 128, 151936)


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
    assert not large.sleep and large.micro_batch_tokens > 64 * 8192 and large.utilization < 0.2
    tight = fit(config(), THREE_B, total=23.0)
    assert tight.sleep and 8192 <= tight.micro_batch_tokens < 8 * 8192
    asked = config(vllm__gpu_memory_utilization=0.8, fit__micro_batch_tokens=9000)
    kept = fit(asked, THREE_B, total=23.0)  # the original's settings on its A10G
    assert (kept.utilization, kept.sleep, kept.micro_batch_tokens) == (0.8, True, 9000)


def test_activations_are_kept_where_a_pass_keeps_the_gpu_busy() -> None:
    chosen = [
        fit(config(trainer__gradient_checkpointing=None), shape, total=total)
        for shape, total in ((HALF_B, 139.0), (THREE_B, 139.0), (THREE_B, 47.0), (HALF_B, 23.0))
    ]
    assert [each.gradient_checkpointing for each in chosen] == [False, False, True, True]
    assert all(each.micro_batch_tokens >= 8192 and not each.sleep for each in chosen)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_activations_reckoned_with_are_those_that_are_kept(
    lora: bool, checkpointing: bool
) -> None:
    found = [
        kept_bytes(layers, tokens, lora=lora, checkpointing=checkpointing)
        for layers in (2, 6)
        for tokens in (256, 1024)
    ]
    a_layer = ((found[3] - found[2]) - (found[1] - found[0])) / 4 / 768  # no weights, no embeddings
    asked = config(trainer__gradient_checkpointing=checkpointing)
    reckoned = [token_bytes(asked, ModelDims(0, n, 128, 512, 1, 64, 50)) for n in (2, 6)]
    assert 1.0 <= (reckoned[1] - reckoned[0]) / 4 / a_layer < (2.1 if checkpointing else 1.5)


def kept_bytes(layers: int, tokens: int, *, lora: bool, checkpointing: bool) -> int:
    """Of what autograd keeps for the backward pass."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    shape = Qwen3Config(vocab_size=50, num_hidden_layers=layers, **sizes, **heads)
    policy = Qwen3ForCausalLM(shape)
    if lora:
        adapter = LoraConfig(r=8, target_modules=list(LoraSettings().target_modules))
        policy = get_peft_model(policy.to(torch.bfloat16), adapter)
        policy.enable_input_require_grads()
    policy.train()
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros((4, tokens // 4), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        policy(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("shape", "total", "changes", "says"),
    [
        (THREE_B, 8.0, {}, "take a smaller model= or a larger gpu="),
        (
            THREE_B,
            24.0,
            {"lora": False},
            "one of these is enough: model.lora.enabled=true, a small",
        ),
        (HALF_B, 23.0, {"max_length": 262144}, "one of these is enough: model.max_length=65536,"),
        (THREE_B, 23.0, {"micro_batch_tokens": 200000}, "enough: fit.micro_batch_tokens=null,"),
        (
            THREE_B,
            24.0,
            {"lora": False, "max_length": 65536},
            "together: model.lora.enabled=true, model.max_length=16384; or a smaller model=",
        ),
    ],
)
def test_what_cannot_fit_is_told_with_what_is_enough_to_change(
    shape: ModelDims, total: float, changes: dict[str, Any], says: str
) -> None:
    tried = config()
    tried.model.lora.enabled = changes.get("lora", True)
    tried.model.max_length = changes.get("max_length", 8192)
    tried.fit.micro_batch_tokens = changes.get("micro_batch_tokens")
    with pytest.raises(UserError, match=f"model=q does not fit this GPU .*{says}"):
        fit(tried, shape, total=total)


def test_an_evaluation_needs_no_room_for_an_update() -> None:
    tried = config()
    tried.model.lora.enabled = False
    with pytest.raises(UserError):
        fit(tried, THREE_B, total=23.0)
    assert not fit(tried, THREE_B, total=23.0, trains=False).sleep


def test_an_error_of_memory_names_what_to_change() -> None:
    @task
    def fails(cfg: DictConfig) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    tried = OmegaConf.structured(config())
    tried.model.lora.enabled = False
    with pytest.raises(
        UserError, match=r"^CUDA out of memory; try model\.lora\.enabled=true, .*gpu="
    ):
        fails(tried)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["vllm.tool_call_parser=hermes"],
            "vllm.tool_call_parser has no effect with vllm.mode=colo",
        ),
        (["vllm.mode=server", "vllm.sleep=true"], "vllm.sleep has no effect with vllm.mode=server"),
        (["sampler=transformers", "vllm.block_size=64"], "vllm.block_size has no effect with samp"),
        (["vllm.block_size=64", "vllm.enforce_eager=true"], ""),
    ],
)
def test_a_setting_without_effect_in_the_mode_says_so(overrides: list[str], says: str) -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", ["name=x", "sampler=vllm", *overrides])
    found = [f"{name} has no effect {why}" for name, why in without_effect(check(cfg).config)]
    assert [line for line in found if line.startswith(says)] == found and bool(says) == bool(found)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("vllm.tensor_parallel_size=2", "needs vllm.mode=server"),
        ("vllm.enable_auto_tool_choice=true", "vllm.tool_call_parser=..."),
        ("vllm.max_model_len=100", "below model.max_length=512"),
        ("vllm.gpu_memory_utilization=1.5", "at most 1"),
    ],
)
def test_settings_of_the_engine_that_cannot_be_are_refused(
    program: Program, override: str, says: str
) -> None:
    done = program(*SMALL, override, "name=v")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr


def test_vllm_without_vllm_or_a_gpu_is_one_line(program: Program) -> None:
    done = program(*SMALL, "sampler=vllm", "name=v")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "sampler=" in done.stderr
