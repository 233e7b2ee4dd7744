"""The sampler draws from the policy itself, whatever the model's own settings and architecture."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from rl_experiments.inference.sampler import Completion, Request
from rl_experiments.inference.transformers_sampler import TransformersSampler
from tests.support.tiny_models import ARCHITECTURES, VOCABULARY, tiny_model

_NEW_TOKENS = 8
_ROUNDING = 1e-4  # nats


def prompts(*, shared: int) -> list[list[int]]:
    """Return prompts of unequal length whose first `shared` tokens are equal."""
    random = Random(0)
    beginning = [random.randrange(3, VOCABULARY) for _ in range(shared)]
    lengths = (3, 9, 17, 4)
    return [beginning + [random.randrange(3, VOCABULARY) for _ in range(n)] for n in lengths]


def played(model: Any, asked: list[list[int]], *, ends: Any = 1) -> list[Completion]:
    """Return the replies to the prompts, in their order."""
    sampler = TransformersSampler(
        model, eos_token_id=ends, pad_token_id=0, max_new_tokens=_NEW_TOKENS, temperature=1.0
    )
    sampler.begin(0)
    for key, prompt in enumerate(asked):
        sampler.submit(Request(key=key, prompt_ids=prompt, stream=f"stream/{key}"))
    return sorted(sampler.collect(), key=lambda completion: completion.key)


@torch.no_grad()
def largest_difference(model: Any, asked: list[list[int]], replies: list[Completion]) -> float:
    """Return how far the sampler's log-probabilities are from those of each sequence by itself."""
    differences = []
    for prompt, reply in zip(asked, replies, strict=True):
        logits = model(torch.tensor([prompt + reply.token_ids])).logits[0, len(prompt) - 1 : -1]
        of_policy = logits.log_softmax(-1).gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
        differences.append((of_policy - torch.tensor(reply.logprobs)).abs().max())
    return float(torch.stack(differences).max())


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 30])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities_are_those_of_each_sequence_by_itself(
    architecture: str, shared: int
) -> None:
    model, asked = tiny_model(architecture), prompts(shared=shared)
    replies = played(model, asked)
    assert largest_difference(model, asked, replies) < _ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.1, "do_sample": True, "top_k": 20, "top_p": 0.8},
        {"suppress_tokens": list(range(2, 60))},
        {"bad_words_ids": [[7], [8, 9]]},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 6},
        {"max_length": 5},
        {"forced_bos_token_id": 11, "begin_suppress_tokens": [12]},
        {"use_cache": False},
        {"num_beams": 3},
        {"sequence_bias": {(5,): 10.0}},
        {"exponential_decay_length_penalty": (1, 1.5)},
        {"eos_token_id": list(range(3, 90))},
    ],
    ids=lambda own: next(iter(own)),
)
@pytest.mark.parametrize("has_adapter", [False, True])
def test_no_setting_of_the_model_changes_what_is_drawn(
    own: dict[str, Any], has_adapter: bool
) -> None:
    model: Any = tiny_model("qwen2")
    if has_adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    asked = prompts(shared=10)
    expected = played(model, asked)
    settings = GenerationConfig(**own)
    model.generation_config = settings
    if has_adapter:
        model.get_base_model().generation_config = settings
    assert played(model, asked) == expected
    assert model.generation_config is settings  # as it is saved with the model


def test_a_reply_ends_with_any_of_the_ends() -> None:
    model, asked = tiny_model("qwen2"), prompts(shared=0)
    whole = played(model, asked, ends=[])
    assert {len(reply.token_ids) for reply in whole} == {_NEW_TOKENS}
    ends = {whole[0].token_ids[2], whole[1].token_ids[4]}
    for reply, full in zip(played(model, asked, ends=ends), whole, strict=True):
        length = next(
            (i + 1 for i, token in enumerate(full.token_ids) if token in ends), _NEW_TOKENS
        )
        assert reply.token_ids == full.token_ids[:length]
        assert reply.logprobs == pytest.approx(full.logprobs[:length], abs=_ROUNDING)
