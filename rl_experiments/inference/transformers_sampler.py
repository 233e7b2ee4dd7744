"""A sampler on transformers' `generate`, whose luck belongs to the episode, not to the batch."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rl_experiments.inference.sampler import Completion, Engine, Request


class TransformersSampler:
    """`model.generate` over all queued requests at once, their common beginning computed once."""

    engine: Engine | None = None
    continuous = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_id: int,
        pad_token_id: int,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.model = model
        self.temperature = temperature
        self._pending: list[Request] = []
        self._policy_version: int | None = None
        self._seconds = 0.0  # of the latest rollout
        self._config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the logits processor has drawn the token already
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            disable_compile=True,
        )
        self._eos = eos_token_id
        self._pad = pad_token_id

    def begin(self, policy_version: int | None) -> None:
        self._policy_version = policy_version
        self._seconds = 0.0

    def end(self) -> None:
        """It holds nothing."""

    def submit(self, request: Request) -> None:
        self._pending.append(request)

    def collect(self) -> list[Completion]:
        """The replies to all that is queued."""
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
        shared = _shared_length(prompts)
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            # Padding stands between the shared beginning and the rest; positions skip it.
            start = width - len(prompt) + shared
            ids[i, :shared], ids[i, start:] = (
                torch.tensor(prompt[:shared]),
                torch.tensor(prompt[shared:]),
            )
            mask[i, :shared], mask[i, start:] = 1, 1
        draw = _Draw([Random(request.stream) for request in requests], self.temperature)
        device = self.model.device
        training = self.model.training
        self.model.eval()
        cache = None
        if shared:
            cache = self.model(ids[:1, :shared].to(device), use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(prompts))
        out: Any = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            past_key_values=cache,
            generation_config=self._config,
            logits_processor=LogitsProcessorList([draw]),
        )
        self.model.train(training)
        tokens = out[:, width:].tolist()
        logprobs = torch.stack(draw.logprobs, dim=1).tolist()
        completions = []
        for request, row, row_logprobs in zip(requests, tokens, logprobs, strict=True):
            length = row.index(self._eos) + 1 if self._eos in row else len(row)
            completions.append(
                Completion(
                    key=request.key,
                    token_ids=row[:length],
                    logprobs=row_logprobs[:length],
                    policy_version=self._policy_version,
                )
            )
        return completions


def _shared_length(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with, short of the whole of any; 0 if not worth sharing."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    shared = next((i for i in range(limit) if first[i] != last[i]), limit)
    return shared if len(prompts) > 1 and shared >= 8 else 0


class _Draw(LogitsProcessor):
    """Draws each row's token by inverse CDF from the row's own stream, and leaves only that token.

    So an episode is the same whichever others share its batch, and two policies that are compared
    on the same seeds share their luck (common random numbers).
    """

    def __init__(self, streams: list[Random], temperature: float) -> None:
        self.streams = streams
        self.temperature = temperature
        self.logprobs: list[torch.Tensor] = []  # one (rows,) tensor a token

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
