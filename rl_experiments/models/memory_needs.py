"""GiB that the parts of a run need: weights, gradients, optimizer, activations, KV cache.

Amounts are in GiB where nothing else is said. They are estimates: weights, gradients, optimizer
states and KV cache are exact, activations follow a rule.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_experiments.config.schema import ALL_LINEAR, Config, LoraConfig, VllmMode
from rl_experiments.paths import MODEL_CONFIG_FILE

BYTES_PER_GIB = 1 << 30
RESERVE_GIB = 3.0  # for CUDA contexts, CUDA graphs and fragmentation
_ENGINE_RESERVE_GIB = 4.0  # for the engine's activations and graphs, beside its weights and cache

# Bytes of activations that autograd keeps per token and layer, for each unit of the hidden size, of
# the feed-forward size and of the size of the keys: bf16, with norms in fp32. With checkpointing
# only a layer's input is kept, in fp32 at most. tests/rl_experiments/models/test_memory.py counts.
_BYTES_PER_HIDDEN_UNIT = 41
_BYTES_PER_FEED_FORWARD_UNIT = 8
_BYTES_PER_KEY_UNIT = 17
_BYTES_PER_CHECKPOINTED_UNIT = 4

# TRL computes the loss in chunks of this many tokens, with this many bytes per logit.
_LOSS_CHUNK_TOKENS = 4096
_BYTES_PER_LOGIT = 12

_BYTES_BF16 = 2
_BYTES_FP32 = 4
_BYTES_ADAM = 8  # two moments per weight, in fp32

# The cache should hold this many times the full contexts that are played at once.
_CACHE_MARGIN = 1.5


@dataclass(frozen=True)
class ModelDims:
    """The sizes of a model that its memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, folder: str | Path) -> ModelDims:
        """Read the sizes from the `config.json` of a model's folder."""
        config: dict[str, Any] = json.loads((Path(folder) / MODEL_CONFIG_FILE).read_text())
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        kv_heads = config.get("num_key_value_heads") or heads
        layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        intermediate = config["intermediate_size"]
        feed_forward = 3 * hidden * intermediate
        embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
        parameters = layers * (attention + feed_forward + 2 * hidden) + embeddings
        return cls(parameters, layers, hidden, intermediate, kv_heads, head_dim, vocabulary)

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of KV cache per token in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _BYTES_BF16

    def activation_bytes_per_token(self, *, gradient_checkpointing: bool) -> float:
        """Return the bytes of activations kept per token until the backward pass."""
        per_layer = (
            _BYTES_PER_HIDDEN_UNIT * self.hidden
            + _BYTES_PER_FEED_FORWARD_UNIT * self.intermediate
            + _BYTES_PER_KEY_UNIT * self.kv_heads * self.head_dim
        )
        if gradient_checkpointing:  # the layers' inputs, and the one layer that is computed again
            return float(_BYTES_PER_CHECKPOINTED_UNIT * self.hidden * self.layers + per_layer)
        return float(per_layer * self.layers)


@dataclass(frozen=True)
class MemoryNeeds:
    """GiB that each part of a run takes, and how many contexts the engine plays at once."""

    weights: float  # the trainer's
    update: float  # gradients and optimizer
    logits: float  # of one chunk of the loss
    per_token: float  # activations of a token
    longest_row: float  # activations of the longest sample, which cannot be split
    engine_weights: float
    full_context: float  # KV cache of one full context
    contexts: int  # episodes whose turns the engine generates at once

    @classmethod
    def of(
        cls, config: Config, dims: ModelDims, *, gradient_checkpointing: bool, trains: bool
    ) -> MemoryNeeds:
        """Return what the settings need; without `trains` there is no update."""
        lora, vllm, trainer = config.model.lora, config.vllm, config.trainer
        if lora.enabled:
            # Two matrices of r x hidden for each module; twice that, as some modules are wider.
            names = lora.target_modules
            kinds = len(LoraConfig().target_modules if names == [ALL_LINEAR] else names)
            adapter = 2 * 2 * lora.r * dims.hidden * kinds * dims.layers
            update_bytes = adapter * (2 * _BYTES_FP32 + _BYTES_ADAM)  # its weights are counted too
        else:
            update_bytes = dims.parameters * (_BYTES_FP32 + _BYTES_ADAM)
        # Weights that are trained are kept in fp32.
        weight_bytes = _BYTES_FP32 if trains and not lora.enabled else _BYTES_BF16
        has_weights = trains or vllm.mode is VllmMode.colocate  # else the server alone has them
        activations = dims.activation_bytes_per_token(gradient_checkpointing=gradient_checkpointing)
        per_token = activations / BYTES_PER_GIB if trains else 0.0
        logits = _LOSS_CHUNK_TOKENS * dims.vocabulary * _BYTES_PER_LOGIT / BYTES_PER_GIB
        episodes = trainer.per_device_train_batch_size * trainer.steps_per_generation
        context_tokens = vllm.max_model_len or config.model.max_length
        return cls(
            weights=dims.parameters * weight_bytes / BYTES_PER_GIB if has_weights else 0.0,
            update=update_bytes / BYTES_PER_GIB if trains else 0.0,
            logits=logits if trains else 0.0,
            per_token=per_token,
            longest_row=per_token * config.model.max_length,
            engine_weights=dims.parameters * _BYTES_BF16 / BYTES_PER_GIB,
            full_context=dims.cache_bytes_per_token * context_tokens / BYTES_PER_GIB,
            contexts=min(vllm.max_num_seqs, episodes if trains else config.evaluation.batch_size),
        )

    @property
    def without_activations(self) -> float:
        """GiB of the trainer, all but activations."""
        return self.weights + self.update + self.logits + RESERVE_GIB

    @property
    def smallest_engine(self) -> float:
        """GiB with which the engine can start and play one context at a time."""
        return self.engine_weights + self.full_context + _ENGINE_RESERVE_GIB

    @property
    def comfortable_engine(self) -> float:
        """GiB with which the engine plays all contexts at once."""
        cache = _CACHE_MARGIN * self.contexts * self.full_context
        return self.engine_weights + _ENGINE_RESERVE_GIB + cache

    def table(self, total: float) -> dict[str, float]:
        """Return the GiB of each part by name, for messages; `total` is the GPU's memory."""
        return {
            "in all": total,
            "weights": self.weights,
            "gradients and optimizer": self.update,
            "the longest row's activations": self.longest_row,
            "engine's weights": self.engine_weights,
            "cache of a full context": self.full_context,
        }
