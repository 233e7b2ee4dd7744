"""A sampler on transformers' `generate`, with random streams that do not depend on the batch."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rl_experiments.inference.sampler import Completion, Engine, Request, end_ids

_MIN_SHARED_TOKENS = 8  # below it, a pass of its own for the beginning is not worth it


class TransformersSampler:
    """Plays a model with transformers' `generate`, over all queued requests at once.

    The common beginning of the prompts is computed once. A reply ends with any of `eos_token_id`.
    """

    engine: Engine | None = None
    continuous = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_id: int | Collection[int],
        pad_token_id: int,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.model = model
        self.temperature = temperature
        self._pending: list[Request] = []
        self._policy_version: int | None = None
        self._seconds = 0.0  # spent on the latest rollout
        ends = end_ids(eos_token_id)
        self._config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the logits processor draws the token
            eos_token_id=ends,
            pad_token_id=pad_token_id,
            disable_compile=True,
        )
        self._ends = frozenset(ends)
        self._pad = pad_token_id
        self._shares_beginnings = True  # until the model's cache turns out to be of another kind

    def begin(self, policy_version: int | None) -> None:
        self._policy_version = policy_version
        self._seconds = 0.0

    def end(self) -> None:
        """Do nothing: there are no resources to release."""

    def submit(self, request: Request) -> None:
        self._pending.append(request)

    def collect(self) -> list[Completion]:
        """Return the replies to all queued requests."""
        requests, self._pending = self._pending, []
        if not requests:
            raise RuntimeError("collect() was called with no request queued")
        started = time.perf_counter()
        completions = self._generate(requests)
        self._seconds += time.perf_counter() - started
        return completions

    def metrics(self) -> dict[str, float]:
        return {"time/engine": self._seconds}

    @torch.no_grad()
    def _generate(self, requests: list[Request]) -> list[Completion]:
        prompts = [request.prompt_ids for request in requests]
        draw = _Draw([Random(request.stream) for request in requests], self.temperature)
        training = self.model.training
        self.model.eval()
        try:
            shared, cache = self._shared_beginning(prompts)
            ids, mask = self._layout(prompts, shared)
            with _without_own_settings(self.model):
                out: Any = self.model.generate(
                    input_ids=ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    past_key_values=cache,
                    generation_config=self._config,
                    logits_processor=LogitsProcessorList([draw]),
                )
        finally:
            self.model.train(training)
        tokens = out[:, ids.size(1) :].tolist()
        logprobs = torch.stack(draw.logprobs, dim=1).tolist()
        completions = []
        for request, row, row_logprobs in zip(requests, tokens, logprobs, strict=True):
            end = next((i for i, token in enumerate(row) if token in self._ends), len(row) - 1)
            completions.append(
                Completion(
                    key=request.key,
                    token_ids=row[: end + 1],
                    logprobs=row_logprobs[: end + 1],
                    policy_version=self._policy_version,
                )
            )
        return completions

    def _shared_beginning(self, prompts: list[list[int]]) -> tuple[int, Any]:
        """Return how many tokens all prompts begin with, and the cache of these for each prompt.

        Returns 0 and no cache if nothing is shared. Only full attention can share: a sliding window
        would count the padding after the beginning, and a recurrent state cannot be repeated.
        """
        shared = _shared_length(prompts) if self._shares_beginnings else 0
        if not shared:
            return 0, None
        beginning = torch.tensor([prompts[0][:shared]]).to(self.model.device)
        cache = getattr(self.model(beginning, use_cache=True), "past_key_values", None)
        layers = getattr(cache, "layers", ())
        if cache is None or not layers or any(type(layer) is not DynamicLayer for layer in layers):
            self._shares_beginnings = False
            return 0, None
        cache.batch_repeat_interleave(len(prompts))
        return shared, cache

    def _layout(self, prompts: list[list[int]], shared: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of the prompts and their attention mask, each (prompts, tokens).

        Padding stands between the shared beginning and the rest; positions skip it.
        """
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            start = width - len(prompt) + shared
            ids[i, :shared], ids[i, start:] = (
                torch.tensor(prompt[:shared]),
                torch.tensor(prompt[shared:]),
            )
            mask[i, :shared], mask[i, start:] = 1, 1
        return ids, mask


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Set the model's `generation_config` aside, from which `generate` fills in what is not given.

    Qwen2.5 has a repetition penalty there, and others suppress tokens: the sampler would no longer
    be the policy. Peft hands the wrapper's settings to the model within.
    """
    models = [model]
    if hasattr(model, "get_base_model"):
        models.append(model.get_base_model())
    settings = [each.generation_config for each in models]
    for each in models:
        each.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for each, own in zip(models, settings, strict=True):
            each.generation_config = own


def _shared_length(prompts: list[list[int]]) -> int:
    """Return how many tokens all prompts begin with, fewer than any has; 0 if not worth sharing."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    shared = next((i for i in range(limit) if first[i] != last[i]), limit)
    return shared if len(prompts) > 1 and shared >= _MIN_SHARED_TOKENS else 0


class _Draw(LogitsProcessor):
    """Draws each row's token by inverse CDF with the row's own random stream.

    Only the drawn token is left to choose. So an episode is the same whichever others share its
    batch, and policies that are compared on the same seeds use common random numbers.
    """

    def __init__(self, streams: list[Random], temperature: float) -> None:
        self.streams = streams
        self.temperature = temperature
        self.logprobs: list[torch.Tensor] = []  # one tensor (rows,) for each token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits = scores.float() / (self.temperature or 1.0)
        logps = logits.log_softmax(-1)
        if self.temperature == 0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            cdf = logps.double().exp().cumsum(-1)
            uniform = torch.tensor([s.random() for s in self.streams], dtype=torch.float64)
            point = uniform.to(cdf.device).unsqueeze(1) * cdf[:, -1:]
            chosen = torch.searchsorted(cdf, point, right=True).clamp(max=cdf.size(1) - 1)
        self.logprobs.append(logps.gather(1, chosen).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
