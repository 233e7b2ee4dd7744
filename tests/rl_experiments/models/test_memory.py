"""How engine and update share the GPU: what is chosen, what is refused, and what is advised."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from rl_experiments.commands.job import job
from rl_experiments.config.registration import register
from rl_experiments.config.schema import Config, VllmMode
from rl_experiments.config.schema import LoraConfig as LoraSettings
from rl_experiments.errors import UserError
from rl_experiments.models.memory import MemoryPlan, out_of_memory_advice, plan_memory
from rl_experiments.models.memory_needs import MemoryNeeds, ModelDims
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check

HALF_B = ModelDims(494_000_000, 24, 896, 4864, 2, 64, 151936)
THREE_B = ModelDims(3_090_000_000, 36, 2048, 11008, 2, 128, 151936)


def test_the_sizes_are_read_from_a_models_configuration(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=500, tie_word_embeddings=True, **sizes, **heads)
    config.save_pretrained(tmp_path)
    dims = ModelDims.of(tmp_path)
    assert dims == ModelDims(dims.parameters, 3, 64, 160, 2, 16, 500)
    assert dims.parameters == pytest.approx(Qwen3ForCausalLM(config).num_parameters(), rel=0.01)
    assert dims.cache_bytes_per_token == 3 * 2 * (2 * 16) * 2  # keys and values in bf16


def settings(**changes: object) -> Config:
    """Return settings for long episodes; `vllm__sleep=True` sets `vllm.sleep`."""
    config = Config(name="x")
    config.model.name, config.model.max_length = "q", 8192
    config.trainer.per_device_train_batch_size, config.trainer.steps_per_generation = 2, 9
    config.trainer.gradient_checkpointing = True
    for key, value in changes.items():
        group, _, name = key.partition("__")
        setattr(getattr(config, group), name, value)
    return config


def test_settings_left_open_are_chosen_by_what_fits() -> None:
    large = plan_memory(settings(), HALF_B, total_gib=139.0)
    assert not large.sleep and large.micro_batch_tokens > 64 * 8192 and large.utilization < 0.2
    tight = plan_memory(settings(), THREE_B, total_gib=23.0)
    assert tight.sleep and 8192 <= tight.micro_batch_tokens < 8 * 8192


def test_settings_that_are_given_are_kept() -> None:
    given = settings(vllm__gpu_memory_utilization=0.8, memory__micro_batch_tokens=9000)
    plan = plan_memory(given, THREE_B, total_gib=23.0)  # an A10G
    assert (plan.utilization, plan.sleep, plan.micro_batch_tokens) == (0.8, True, 9000)


def test_activations_are_kept_where_a_pass_keeps_the_gpu_busy() -> None:
    open_choice = settings(trainer__gradient_checkpointing=None)
    plans = [
        plan_memory(open_choice, dims, total_gib=total)
        for dims, total in ((HALF_B, 139.0), (THREE_B, 139.0), (THREE_B, 47.0), (HALF_B, 23.0))
    ]
    assert [plan.gradient_checkpointing for plan in plans] == [False, False, True, True]
    assert all(plan.micro_batch_tokens >= 8192 and not plan.sleep for plan in plans)


def test_an_engine_that_must_not_sleep_gets_the_memory_that_it_needs() -> None:
    config = settings(vllm__sleep=False)
    # So tight that the update has room for its longest row, and hardly for a second one.
    plan = plan_memory(config, THREE_B, total_gib=30.0)
    needs = MemoryNeeds.of(config, THREE_B, gradient_checkpointing=True, trains=True)
    assert plan.utilization * 30.0 >= needs.smallest_engine
    assert engine_and_update(plan, needs, 30.0) <= 30.0


GRID = [
    settings(
        trainer__gradient_checkpointing=checkpointing,
        vllm__sleep=sleep,
        vllm__gpu_memory_utilization=utilization,
        vllm__mode=mode,
        memory__micro_batch_tokens=tokens,
        model__max_length=max_length,
    )
    for checkpointing, sleep, utilization, mode, tokens, max_length in itertools.product(
        (None, True, False),
        (None, True, False),
        (None, 0.6),
        VllmMode,
        (None, 9000),
        (512, 8192, 32768),
    )
]


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("total", [23.0, 47.0, 139.0])
@pytest.mark.parametrize("dims", [HALF_B, THREE_B])
def test_every_plan_keeps_to_the_settings_and_to_the_memory(
    dims: ModelDims, total: float, trains: bool
) -> None:
    planned = 0
    for config in GRID:
        try:
            plan = plan_memory(config, dims, total_gib=total, trains=trains)
        except UserError as error:
            assert "does not fit this GPU" in str(error)
            continue
        planned += 1
        vllm, trainer = config.vllm, config.trainer
        assert vllm.gpu_memory_utilization in (None, plan.utilization)
        assert config.memory.micro_batch_tokens in (None, plan.micro_batch_tokens)
        assert trainer.gradient_checkpointing in (None, plan.gradient_checkpointing)
        needs = MemoryNeeds.of(
            config, dims, gradient_checkpointing=plan.gradient_checkpointing, trains=trains
        )
        if vllm.mode is VllmMode.server:
            assert not plan.sleep and needs.without_activations <= total
            continue
        assert vllm.sleep in (None, plan.sleep)
        assert engine_and_update(plan, needs, total) <= total * 1.0001
    assert planned > len(GRID) / 10


def engine_and_update(plan: MemoryPlan, needs: MemoryNeeds, total: float) -> float:
    """Return the GiB that are taken during the update."""
    engine = 0.0 if plan.sleep else plan.utilization * total
    return engine + needs.without_activations + needs.longest_row


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_of_activations_agrees_with_what_autograd_keeps(
    lora: bool, checkpointing: bool
) -> None:
    kept = [
        kept_bytes(layers, tokens, lora=lora, checkpointing=checkpointing)
        for layers in (2, 6)
        for tokens in (256, 1024)
    ]
    # The difference of differences leaves out weights and embeddings.
    per_layer_and_token = ((kept[3] - kept[2]) - (kept[1] - kept[0])) / 4 / 768
    estimates = [
        ModelDims(0, layers, 128, 512, 1, 64, 50).activation_bytes_per_token(
            gradient_checkpointing=checkpointing
        )
        for layers in (2, 6)
    ]
    ratio = (estimates[1] - estimates[0]) / 4 / per_layer_and_token
    assert 1.0 <= ratio < (2.1 if checkpointing else 1.5)


def kept_bytes(layers: int, tokens: int, *, lora: bool, checkpointing: bool) -> int:
    """Return the bytes that autograd keeps for the backward pass of a small model."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=50, num_hidden_layers=layers, **sizes, **heads)
    policy = Qwen3ForCausalLM(config)
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
    ("dims", "total", "changes", "advice"),
    [
        (THREE_B, 8.0, {}, "take a smaller model= or a larger gpu="),
        (
            THREE_B,
            24.0,
            {"lora": False},
            "one of these is enough: model.lora.enabled=true, a small",
        ),
        (HALF_B, 23.0, {"max_length": 262144}, "one of these is enough: model.max_length=65536,"),
        (THREE_B, 23.0, {"micro_batch_tokens": 200000}, "enough: memory.micro_batch_tokens=null,"),
        (
            THREE_B,
            24.0,
            {"lora": False, "max_length": 65536},
            "together: model.lora.enabled=true, model.max_length=16384; or a smaller model=",
        ),
    ],
)
def test_a_run_that_cannot_fit_is_refused_with_the_changes_that_are_enough(
    dims: ModelDims, total: float, changes: dict[str, Any], advice: str
) -> None:
    config = settings()
    config.model.lora.enabled = changes.get("lora", True)
    config.model.max_length = changes.get("max_length", 8192)
    config.memory.micro_batch_tokens = changes.get("micro_batch_tokens")
    with pytest.raises(UserError, match=f"model=q does not fit this GPU .*{advice}"):
        plan_memory(config, dims, total_gib=total)


@pytest.mark.parametrize(
    "overrides",
    [
        ["fit.micro_batch_tokens=300", "fit.memory_gib=16"],
        ["memory.micro_batch_tokens=300", "memory.gpu_gib=16", "fit.memory_gib=8"],
    ],
)
def test_the_old_names_of_the_settings_are_accepted(overrides: list[str]) -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", ["name=x", *overrides])
    memory = check(cfg).config.memory
    assert (memory.micro_batch_tokens, memory.gpu_gib) == (300, 16.0)


def test_a_job_of_the_first_version_has_the_old_names_alone() -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", ["name=x", "fit.micro_batch_tokens=300"])
    with open_dict(cfg):
        del cfg["memory"]
    assert check(cfg).config.memory.micro_batch_tokens == 300
    assert "try trainer.gradient_checkpointing=true" in out_of_memory_advice(cfg)


def test_an_evaluation_needs_no_room_for_an_update() -> None:
    config = settings()
    config.model.lora.enabled = False
    with pytest.raises(UserError):
        plan_memory(config, THREE_B, total_gib=23.0)
    assert not plan_memory(config, THREE_B, total_gib=23.0, trains=False).sleep


def test_an_out_of_memory_error_names_the_settings_to_change() -> None:
    @job
    def fails(cfg: DictConfig) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    cfg = OmegaConf.structured(settings())
    cfg.model.lora.enabled = False
    with pytest.raises(
        UserError, match=r"^CUDA out of memory; try model\.lora\.enabled=true, .*gpu="
    ):
        fails(cfg)
