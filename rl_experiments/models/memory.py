"""Whether a training run fits its GPU, told before anything is loaded; what it leaves to choose."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rl_experiments.config.schema import Config, VllmMode
from rl_experiments.errors import UserError
from rl_experiments.paths import MODEL_CONFIG_FILE

_GIB = 1 << 30
_RESERVE = 3.0  # GiB: CUDA contexts, graphs, fragments
_ENGINE_RESERVE = 4.0  # GiB: the engine's activations and graphs beside weights and cache
# Bytes of activations that autograd keeps a token and layer, for each unit of the width of hidden
# states, of the feed-forward part and of keys: bf16, norms in fp32; with checkpointing a layer's
# input alone, in fp32 at most. tests/rl_experiments/inference/test_without_vllm.py counts them.
_KEPT_HIDDEN, _KEPT_INTERMEDIATE, _KEPT_KEYS, _KEPT_CHECKPOINTED = 41, 8, 17, 4
_LOGITS = 12  # bytes a token and vocabulary entry of the chunk whose loss is computed
_LOGIT_TOKENS = 4096  # tokens of such a chunk
_SERVER_UTILIZATION = 0.9  # of a GPU that nothing else uses
_ROOMY = 8192  # tokens at once that keep a GPU busy: more are worth no second forward pass
_SAFE = 0.8  # of the room that seems left: what is freed is not all of use again
_LAST = ("a smaller model=", "a larger gpu=")  # where no other setting helps


@dataclass(frozen=True)
class ModelDims:
    """The sizes of a model that decide on its memory."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, path: str | Path) -> ModelDims:
        """From the `config.json` of a model's folder."""
        found: dict[str, Any] = json.loads((Path(path) / MODEL_CONFIG_FILE).read_text())
        hidden, heads = found["hidden_size"], found["num_attention_heads"]
        head_dim = found.get("head_dim") or hidden // heads
        kv_heads = found.get("num_key_value_heads") or heads
        layers, vocabulary = found["num_hidden_layers"], found["vocab_size"]
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        intermediate = found["intermediate_size"]
        feed_forward = 3 * hidden * intermediate
        tables = vocabulary * hidden * (1 if found.get("tie_word_embeddings") else 2)
        parameters = layers * (attention + feed_forward + 2 * hidden) + tables
        return cls(parameters, layers, hidden, intermediate, kv_heads, head_dim, vocabulary)

    @property
    def cache_bytes(self) -> int:
        """Of keys and values, a token, in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True)
class MemoryPlan:
    """What was chosen, and what it rests on (GiB)."""

    utilization: float
    sleep: bool
    micro_batch_tokens: int
    gradient_checkpointing: bool
    parts: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in self.parts.items())
        return (
            f"GPU memory (GiB): {parts}; vllm.gpu_memory_utilization={self.utilization:.2f}, "
            f"vllm.sleep={str(self.sleep).lower()}, "
            f"fit.micro_batch_tokens={self.micro_batch_tokens}, "
            f"trainer.gradient_checkpointing={str(self.gradient_checkpointing).lower()}"
        )


def fit(config: Config, shape: ModelDims, *, total: float, trains: bool = True) -> MemoryPlan:
    """Choose what is left open so that engine and update fit `total` GiB, else say what to change.

    An estimate: weights, gradients, optimizer states and cache to the byte, activations by a rule.
    """
    if trains and config.trainer.gradient_checkpointing is None:
        kept, again = copy.deepcopy(config), copy.deepcopy(config)
        kept.trainer.gradient_checkpointing, again.trainer.gradient_checkpointing = False, True
        chosen = _choose(kept, MemoryNeeds.of(kept, shape, trains=True), total)
        if chosen and not chosen.sleep and chosen.micro_batch_tokens >= _ROOMY:
            return chosen
        return fit(again, shape, total=total)
    needs = MemoryNeeds.of(config, shape, trains=trains)
    chosen = _choose(config, needs, total)
    if chosen is not None:
        return chosen
    told = ", ".join(f"{name} {value:.1f}" for name, value in needs.told(total).items())
    raise UserError(
        f"model={config.model.name} does not fit this GPU (GiB: {told}); "
        f"{remedies(config, shape, total=total, trains=trains)}"
    )


def remedies(config: Config, shape: ModelDims, *, total: float, trains: bool = True) -> str:
    """What to change to need less: each by itself if that is enough, else all of it together."""
    enough, all_of_them = [], copy.deepcopy(config)
    changes = list(_changes(config))
    for words, change in changes:
        changed = copy.deepcopy(config)
        change(changed)
        change(all_of_them)
        if _choose(changed, MemoryNeeds.of(changed, shape, trains=trains), total):
            enough.append(words)
    if enough:
        return f"one of these is enough: {', '.join([*enough, *_LAST])}"
    if _choose(all_of_them, MemoryNeeds.of(all_of_them, shape, trains=trains), total):
        return f"together: {', '.join(words for words, _ in changes)}; or {' or '.join(_LAST)}"
    return f"take {' or '.join(_LAST)}"


def less_memory(config: Config | DictConfig) -> str:
    """What to change when a run has met the end of the GPU's memory after all."""
    settings = [words for words, _ in _changes(config)]
    lower = "vllm.gpu_memory_utilization, fit.micro_batch_tokens or trainer.num_generations lower"
    return f"try {', '.join([*settings, lower, *_LAST])}"


@dataclass(frozen=True)
class MemoryNeeds:
    """GiB that each part takes."""

    weights: float  # the trainer's
    update: float  # gradients and optimizer
    logits: float
    a_token: float  # its activations
    a_row: float  # those of the longest row, which goes through the model whole
    engine_weights: float
    a_sequence: float  # keys and values of a full context
    in_flight: int  # turns at once

    @classmethod
    def of(cls, config: Config, shape: ModelDims, *, trains: bool) -> MemoryNeeds:
        lora = config.model.lora
        adapters = 2 * lora.r * shape.hidden * len(lora.target_modules) * shape.layers * 2
        masters = 4 if trains and not lora.enabled else 2  # full training: fp32 weights
        # Gradients and Adam's two moments in fp32; an adapter's own weights beside them.
        update = adapters * (4 + 4 + 8) if lora.enabled else shape.parameters * (4 + 8)
        length = config.vllm.max_model_len or config.model.max_length
        episodes = config.trainer.per_device_train_batch_size * config.trainer.steps_per_generation
        a_token = token_bytes(config, shape) / _GIB if trains else 0.0
        own = shape.parameters * masters if config.vllm.mode is VllmMode.colocate or trains else 0
        return cls(
            weights=own / _GIB,
            update=update / _GIB if trains else 0.0,
            logits=_LOGIT_TOKENS * shape.vocabulary * _LOGITS / _GIB if trains else 0.0,
            a_token=a_token,
            a_row=a_token * config.model.max_length,
            engine_weights=shape.parameters * 2 / _GIB,
            a_sequence=shape.cache_bytes * length / _GIB,
            in_flight=min(
                config.vllm.max_num_seqs, episodes if trains else config.evaluation.batch_size
            ),
        )

    def told(self, total: float) -> dict[str, float]:
        return {
            "in all": total,
            "weights": self.weights,
            "gradients and optimizer": self.update,
            "the longest row's activations": self.a_row,
            "engine's weights": self.engine_weights,
            "cache of a full context": self.a_sequence,
        }


def _choose(config: Config, needs: MemoryNeeds, total: float) -> MemoryPlan | None:
    """Utilisation, sleep and rows that fit, or None."""
    fixed = needs.weights + needs.update + needs.logits + _RESERVE
    least_engine = needs.engine_weights + needs.a_sequence + _ENGINE_RESERVE
    asked_tokens = config.fit.micro_batch_tokens or 0
    rows = max(needs.a_row, asked_tokens * needs.a_token)  # the least of activations
    if config.vllm.mode is VllmMode.server:  # on GPUs of its own where something is trained
        engine = config.vllm.gpu_memory_utilization or _SERVER_UTILIZATION
        served = config.vllm.tensor_parallel_size * engine * total
        if fixed + rows > total or least_engine > served:
            return None
        return _fit(config, needs, total, engine, sleep=False, left=total - fixed)
    if least_engine > total - needs.weights - _RESERVE or fixed + rows > total:
        return None
    # Beside the update if both fit with room for its rows; else one after the other.
    again = config.trainer.gradient_checkpointing
    roomy = max(rows, 4 * needs.a_row if again else _ROOMY * needs.a_token)
    asked = config.vllm.gpu_memory_utilization
    taken = least_engine if asked is None else asked * total
    together = taken + fixed + roomy <= total
    sleep = config.vllm.sleep if config.vllm.sleep is not None else not together
    if not sleep and taken + fixed + rows > total:
        return None
    beside = needs.weights + _RESERVE if sleep else fixed + roomy
    wanted = needs.engine_weights + _ENGINE_RESERVE + 1.5 * needs.in_flight * needs.a_sequence
    least, most = math.ceil(wanted / total * 100), math.floor((total - beside) / total * 100)
    utilization = min(0.95, least / 100, most / 100) if asked is None else asked
    left = total - fixed - (0.0 if sleep else utilization * total)
    if left < rows:
        return None
    return _fit(config, needs, total, utilization, sleep=sleep, left=left)


def _fit(
    config: Config,
    needs: MemoryNeeds,
    total: float,
    utilization: float,
    *,
    sleep: bool,
    left: float,
) -> MemoryPlan:
    """The choice in full, `left` being the room for activations."""
    tokens = config.fit.micro_batch_tokens
    if tokens is None:
        longest = config.model.max_length
        tokens = max(longest, int(_SAFE * left / needs.a_token)) if needs.a_token else longest
    checkpointing = bool(config.trainer.gradient_checkpointing)
    return MemoryPlan(utilization, sleep, tokens, checkpointing, needs.told(total))


def _changes(config: Config | DictConfig) -> Iterator[tuple[str, Callable[[Config], None]]]:
    """Settings that would need less memory than those given, as words and as deeds."""
    vllm, trainer = config.vllm, config.trainer
    if not trainer.gradient_checkpointing:
        yield _change("trainer.gradient_checkpointing", True)
    if vllm.sleep is False:
        yield _change("vllm.sleep", True)
    if vllm.gpu_memory_utilization is not None:
        yield _change("vllm.gpu_memory_utilization", None)
    if config.fit.micro_batch_tokens is not None:
        yield _change("fit.micro_batch_tokens", None)
    if not config.model.lora.enabled:
        yield _change("model.lora.enabled", True)
    shorter = config.model.max_length // 4
    if shorter > 2 * trainer.max_completion_length:
        yield _change("model.max_length", shorter)


def _change(name: str, value: Any) -> tuple[str, Callable[[Config], None]]:
    *path, leaf = name.split(".")

    def change(config: Config) -> None:
        setattr(reduce(getattr, path, config), leaf, value)

    return f"{name}={json.dumps(value)}", change


def token_bytes(config: Config, shape: ModelDims) -> float:
    """Of activations that a token keeps until the backward pass."""
    keys = _KEPT_KEYS * shape.kv_heads * shape.head_dim
    a_layer = _KEPT_HIDDEN * shape.hidden + _KEPT_INTERMEDIATE * shape.intermediate + keys
    if config.trainer.gradient_checkpointing:  # and the layer that is computed again
        return float(_KEPT_CHECKPOINTED * shape.hidden * shape.layers + a_layer)
    return float(a_layer * shape.layers)
