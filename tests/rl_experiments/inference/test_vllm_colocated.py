"""vLLM's engine in this process has the policy's weights, or raises because it has not."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from environments.game2048 import Game2048
from environments.game2048.replies import Parser
from rl_experiments.config.schema import Config, Dtype, ScratchConfig
from rl_experiments.errors import UserError
from rl_experiments.inference.sampler import Completion, Request
from rl_experiments.inference.vllm_colocated import VllmEngine, VllmSampler
from rl_experiments.models.tiny import scratch_model
from rl_experiments.rollout.renderer import RendererCache
from rl_experiments.rollout.runner import RolloutRunner
from rl_experiments.rollout.types import EpisodeSpec

pytest.importorskip("vllm")

# Mean |difference of log-probabilities| of equal weights in float32; on a GPU the engine's
# attention multiplies in TF32 (0.0015 measured on an H200).
EXACT = 0.005 if torch.cuda.is_available() else 0.001

SEQUENCES = [(list(range(5, 5 + n)), [7, 11, 13, 17]) for n in (3, 40, 70, 150)]


def game() -> Game2048:
    return Game2048(win_value=32, max_moves=12, hints=True, parser=Parser.lenient, earlier_turns=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield scratch_model(ScratchConfig(warmup_episodes=60, warmup_steps=60), game(), seed=0)


@pytest.fixture(scope="module")
def engine(folder: Path) -> VllmEngine:
    """One a process: vLLM's process group cannot be made twice."""
    config = Config(name="x")
    config.model.dtype, config.model.max_length = Dtype.float32, 1024
    config.vllm.enforce_eager = True
    return VllmEngine(config, str(folder), utilization=0.1, sleep=True)


def policy(folder: Path, *, lora: bool) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not lora:
        return model
    # Not in the order of the layers, nor all of those that the engine keeps in one tensor.
    return get_peft_model(model, LoraConfig(r=4, target_modules=["v_proj", "q_proj", "up_proj"]))


@torch.no_grad()
def step_at_random(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.02 * torch.randn_like(parameter)


@torch.no_grad()
def logprobs(
    model: Any, prompt: list[int], reply: list[int], *, temperature: float = 1.0
) -> list[float]:
    logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    logps = (logits / temperature).log_softmax(-1)
    return [logps[i, token].item() for i, token in enumerate(reply)]


def difference(engine: VllmEngine, model: Any) -> float:
    """Mean |log-probability of the engine - that of the model|."""
    sampled = engine.logprobs(SEQUENCES)
    expected = [logprobs(model, prompt, reply) for prompt, reply in SEQUENCES]
    pairs = zip(chain(*sampled), chain(*expected), strict=True)
    return fmean(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize("lora", [False, True])
def test_after_each_step_the_engine_has_the_policys_weights(
    engine: VllmEngine, folder: Path, lora: bool
) -> None:
    torch.manual_seed(0)
    model = policy(folder, lora=lora)
    engine.load(model, policy_version=0)
    for version in range(1, 11):
        before = copy.deepcopy(model)
        step_at_random(model)
        assert difference(engine, model) > 0.01 or lora  # an adapter starts as nothing
        assert difference(engine, before) < EXACT
        engine.load(model, policy_version=version)
        assert difference(engine, model) < EXACT
        assert engine.policy_version == version
    assert difference(engine, policy(folder, lora=False)) > 0.01


@pytest.mark.parametrize(
    "name",
    ["embed_tokens.weight", "1.self_attn.qkv_proj.weight", "0.mlp.down_proj.weight", "k_norm"],
)
def test_a_weight_that_stays_behind_is_reported(
    engine: VllmEngine, folder: Path, name: str
) -> None:
    model = policy(folder, lora=False)
    engine.load(model, policy_version=0)
    step_at_random(model)

    def freeze(network: Any) -> Any:
        load = network.load_weights

        def load_the_others(weights: Any) -> None:
            (kept,) = [p for n, p in network.named_parameters() if name in n][:1]
            old = kept.clone()
            load(weights)
            kept.data.copy_(old)

        network.load_weights = load_the_others
        return network

    (network,) = engine.llm.apply_model(freeze)
    try:
        with pytest.raises(UserError, match="weights are not the policy's after a sync"):
            engine.load(model, policy_version=1)
        assert engine.policy_version == 0
    finally:
        del network.load_weights
    engine.load(model, policy_version=1)
    assert difference(engine, model) < EXACT


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_what_was_sampled_has_the_policys_log_probabilities(
    engine: VllmEngine, folder: Path, temperature: float
) -> None:
    model, tokenizer = policy(folder, lora=False), AutoTokenizer.from_pretrained(folder)
    sampler = VllmSampler(
        engine,
        model,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=6,
        temperature=temperature,
    )
    rollout = RolloutRunner(
        game(), RendererCache(tokenizer), sampler, max_new_tokens=6, max_length=1024
    )
    for played in rollout.play([EpisodeSpec(seed) for seed in range(4)], policy_version=3):
        assert played.policy_version == 3
        for turn in played.turns:
            expected = logprobs(model, turn.prompt_ids, turn.reply_ids, temperature=temperature)
            assert turn.logprobs == pytest.approx(expected, abs=1e-3)
    assert sampler.metrics()["engine/cache_use"] > 0
    # What the proof of a sync compares is at temperature 1, whatever the sampler's is.
    assert difference(engine, model) < EXACT


def replies(engine: VllmEngine, model: Any, ends: list[int]) -> list[Completion]:
    sampler = VllmSampler(engine, model, eos_token_id=ends, max_new_tokens=12, temperature=2.0)
    sampler.begin(0)
    for key in range(32):
        sampler.submit(Request(key=key, prompt_ids=[5, 6, 7], stream=str(key)))
    completions: list[Completion] = []
    while len(completions) < 32:
        completions += sampler.collect()
    sampler.end()
    return completions


def test_a_reply_ends_with_any_of_the_ends(engine: VllmEngine, folder: Path) -> None:
    model = policy(folder, lora=False)
    drawn = Counter(chain.from_iterable(each.token_ids[1:] for each in replies(engine, model, [])))
    ends = [token for token, _ in drawn.most_common(2)]
    completions = replies(engine, model, ends)
    assert {each.token_ids[-1] for each in completions if len(each.token_ids) < 12} == set(ends)
    for each in completions:
        assert not set(each.token_ids[:-1]).intersection(ends)
        assert len(each.logprobs) == len(each.token_ids)
