"""Whether a training run fits its GPU, told before anything is loaded; what it leaves to choose."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_experiments.errors import UserError
from rl_experiments.schema import Config

_GIB = 1 << 30
_RESERVE = 3.0  # GiB: CUDA contexts, graphs, fragments
_ENGINE_RESERVE = 4.0  # GiB: the engine's activations and graphs beside weights and cache
# Bytes of activations kept a token and layer, in units of the hidden size, bf16: attention and
# feed-forward inputs and outputs without checkpointing; the layer's input alone with it.
_KEPT, _KEPT_CHECKPOINTED = 34, 2
_LOGITS = 12  # bytes a token and vocabulary entry of the chunk whose loss is computed
_LOGIT_TOKENS = 4096  # tokens of such a chunk


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide on its memory."""

    parameters: int
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, path: str | Path) -> Shape:
        """From the `config.json` of a model's folder."""
        found: dict[str, Any] = json.loads((Path(path) / "config.json").read_text())
        hidden, heads = found["hidden_size"], found["num_attention_heads"]
        head_dim = found.get("head_dim") or hidden // heads
        kv_heads = found.get("num_key_value_heads") or heads
        layers, vocabulary = found["num_hidden_layers"], found["vocab_size"]
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        feed_forward = 3 * hidden * found["intermediate_size"]
        tables = vocabulary * hidden * (1 if found.get("tie_word_embeddings") else 2)
        parameters = layers * (attention + feed_forward + 2 * hidden) + tables
        return cls(parameters, layers, hidden, kv_heads, head_dim, vocabulary)

    @property
    def cache_bytes(self) -> int:
        """Of keys and values, a token, in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True)
class Fit:
    """What was chosen, and what it rests on (GiB)."""

    utilization: float
    sleep: bool
    micro_batch_rows: int
    parts: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in self.parts.items())
        return (
            f"GPU memory (GiB): {parts}; vllm.gpu_memory_utilization={self.utilization:.2f}, "
            f"vllm.sleep={str(self.sleep).lower()}, fit.micro_batch_rows={self.micro_batch_rows}"
        )


def fit(config: Config, shape: Shape, *, total: float) -> Fit:
    """Choose what is left open so that engine and update fit `total` GiB, else say what to change.

    An estimate: weights, gradients, optimizer states and cache to the byte, activations by a rule.
    """
    lora = config.model.lora
    adapters = 2 * lora.r * shape.hidden * len(lora.target_modules) * shape.layers * 2
    trained = adapters if lora.enabled else shape.parameters
    weights = shape.parameters * (2 if lora.enabled else 4) / _GIB  # full training: fp32 masters
    update = trained * (4 + 4 + 8) / _GIB if lora.enabled else trained * (4 + 8) / _GIB
    engine_weights = shape.parameters * 2 / _GIB
    length = config.vllm.max_model_len or config.model.max_length
    a_row = _row_bytes(config, shape) / _GIB
    logits = _LOGIT_TOKENS * shape.vocabulary * _LOGITS / _GIB
    fixed = weights + update + logits + _RESERVE
    wanted = config.trainer.per_device_train_batch_size * config.trainer.steps_per_generation
    in_flight = min(config.vllm.max_num_seqs, wanted)
    a_sequence = shape.cache_bytes * length / _GIB
    least_engine = engine_weights + a_sequence + _ENGINE_RESERVE
    rows = config.fit.micro_batch_rows or 1
    parts = {
        "in all": total,
        "weights": weights,
        "gradients and optimizer": update,
        "a row's activations": a_row,
        "engine's weights": engine_weights,
        "cache of a full context": a_sequence,
    }
    if least_engine > total - weights - _RESERVE or fixed + rows * a_row > total:
        raise UserError(_cannot(config, parts))
    # Beside the update if both fit with room for its rows; else one after the other.
    asked = config.vllm.gpu_memory_utilization
    taken = least_engine if asked is None else asked * total
    together = taken + fixed + max(rows, 4) * a_row <= total
    sleep = config.vllm.sleep if config.vllm.sleep is not None else not together
    if not sleep and taken + fixed + rows * a_row > total:
        raise UserError(_cannot(config, parts, hint="vllm.sleep=true, "))
    left_to_engine = total - (weights + _RESERVE if sleep else fixed + max(rows, 4) * a_row)
    engine = min(left_to_engine, engine_weights + _ENGINE_RESERVE + 1.5 * in_flight * a_sequence)
    utilization = _upwards(engine / total) if asked is None else asked
    left = total - fixed - (0.0 if sleep else utilization * total)
    if config.fit.micro_batch_rows is None:
        rows = max(1, min(int(left / a_row), 64))
    if left < rows * a_row:
        raise UserError(_cannot(config, parts, hint="vllm.gpu_memory_utilization, "))
    return Fit(utilization, sleep, rows, parts)


def _row_bytes(config: Config, shape: Shape) -> float:
    kept = _KEPT_CHECKPOINTED if config.trainer.gradient_checkpointing else _KEPT
    a_token = kept * shape.hidden * shape.layers
    if config.trainer.gradient_checkpointing:
        a_token += _KEPT * shape.hidden  # the layer that is computed again
    return float(a_token * config.model.max_length)


def _upwards(share: float) -> float:
    return min(0.95, math.ceil(share * 100) / 100)


def _cannot(config: Config, parts: dict[str, float], *, hint: str = "") -> str:
    told = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
    adapters = "" if config.model.lora.enabled else "model.lora.enabled=true, "
    checkpointing = (
        "" if config.trainer.gradient_checkpointing else "trainer.gradient_checkpointing=true, "
    )
    return (
        f"model={config.model.name} does not fit this GPU (GiB: {told}); {hint}{adapters}"
        f"{checkpointing}a smaller model=, model.max_length={config.model.max_length} lower, "
        "or a larger gpu="
    )
