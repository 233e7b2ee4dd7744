"""How the engine and the update share a GPU's memory, worked out before anything is loaded."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from omegaconf import DictConfig

from rl_experiments.config.schema import Config, VllmMode
from rl_experiments.errors import UserError
from rl_experiments.models.memory_needs import RESERVE_GIB, MemoryNeeds, ModelDims

_SERVER_UTILIZATION = 0.9  # of a GPU that only the server uses
_MAX_COLOCATED_UTILIZATION = 0.95
# Tokens at once that keep a GPU busy. To have room for more is not worth a second forward pass.
_BUSY_GPU_TOKENS = 8192
# Rows of the longest length for which there should be room when activations are checkpointed.
_COMFORTABLE_ROWS = 4
# Share of the estimated room for activations that is used; fragmentation takes the rest.
_USABLE_SHARE = 0.8

_LAST_RESORTS = ("a smaller model=", "a larger gpu=")


@dataclass(frozen=True)
class MemoryPlan:
    """A way to share the GPU between engine and update."""

    utilization: float  # the engine's share of the GPU, from 0 to 1
    sleep: bool  # whether the engine gives its memory to the update
    micro_batch_tokens: int
    gradient_checkpointing: bool
    parts: dict[str, float]  # GiB by name, for people

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in self.parts.items())
        return (
            f"GPU memory (GiB): {parts}; vllm.gpu_memory_utilization={self.utilization:.2f}, "
            f"vllm.sleep={str(self.sleep).lower()}, "
            f"memory.micro_batch_tokens={self.micro_batch_tokens}, "
            f"trainer.gradient_checkpointing={str(self.gradient_checkpointing).lower()}"
        )


def plan_memory(
    config: Config, dims: ModelDims, *, total_gib: float, trains: bool = True
) -> MemoryPlan:
    """Return the first plan that fits a GPU of `total_gib`; settings that are given are kept.

    Raises a `UserError` that says what to change if no plan fits.
    """
    plan = _first_plan(config, dims, total_gib, trains)
    if plan is not None:
        return plan
    checkpointing = _checkpointing_choices(config, trains)[-1]
    needs = MemoryNeeds.of(config, dims, gradient_checkpointing=checkpointing, trains=trains)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in needs.table(total_gib).items())
    raise UserError(
        f"model={config.model.name} does not fit this GPU (GiB: {parts}); "
        f"{_remedies(config, dims, total_gib, trains)}"
    )


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A way to share the GPU that the settings allow, with what it wants."""

    needs: MemoryNeeds
    gradient_checkpointing: bool
    sleep: bool
    engine_limit: float  # GiB that the engine could have while it plays
    engine_in_update: float  # GiB that the engine keeps during the update
    activations: float  # GiB that should be free for the update's activations
    min_tokens: int = 0  # a plan with smaller micro-batches is not worth choosing

    def fits(self, total: float, plan: MemoryPlan) -> bool:
        """Return whether engine and update fit `total` GiB, each in its turn or side by side."""
        trainer = self.needs.without_activations + self.activations
        return (
            self.needs.smallest_engine <= self.engine_limit
            and self.engine_in_update + trainer <= total
            and plan.micro_batch_tokens >= self.min_tokens
        )

    def plan(self, config: Config, total: float) -> MemoryPlan:
        """Return the plan in full; it holds only if the candidate fits."""
        needs, vllm = self.needs, config.vllm
        if vllm.mode is VllmMode.server:
            utilization = vllm.gpu_memory_utilization or _SERVER_UTILIZATION
        elif vllm.gpu_memory_utilization is not None:
            utilization = vllm.gpu_memory_utilization
        else:  # all that the engine can use, as far as the trainer leaves it
            trainer = needs.weights + RESERVE_GIB
            if not self.sleep:
                trainer = needs.without_activations + self.activations
            utilization = min(
                _MAX_COLOCATED_UTILIZATION,
                math.ceil(needs.comfortable_engine / total * 100) / 100,
                math.floor((total - trainer) / total * 100) / 100,
            )
        room = total - needs.without_activations
        if self.engine_in_update:
            room -= utilization * total
        tokens = config.memory.micro_batch_tokens
        if tokens is None:
            tokens = config.model.max_length
            if needs.per_token:
                tokens = max(tokens, int(_USABLE_SHARE * room / needs.per_token))
        return MemoryPlan(
            utilization=utilization,
            sleep=self.sleep,
            micro_batch_tokens=tokens,
            gradient_checkpointing=self.gradient_checkpointing,
            parts=needs.table(total),
        )


def _first_plan(config: Config, dims: ModelDims, total: float, trains: bool) -> MemoryPlan | None:
    """Return the plan of the first candidate that fits, or None."""
    for candidate in _candidates(config, dims, total, trains):
        plan = candidate.plan(config, total)
        if candidate.fits(total, plan):
            return plan
    return None


def _candidates(
    config: Config, dims: ModelDims, total: float, trains: bool
) -> Iterator[_Candidate]:
    """Yield the ways to share the GPU, the fastest first.

    The engine stays beside the update if there is room to spare; else it sleeps during the update.
    Only with `vllm.sleep=false` does it stay where the room is tight. Where the settings leave
    gradient checkpointing open, activations are kept only if that takes neither sleep nor small
    micro-batches.
    """
    vllm, asked_tokens = config.vllm, config.memory.micro_batch_tokens or 0
    is_server = vllm.mode is VllmMode.server  # on its own GPUs where a policy is trained
    choices = _checkpointing_choices(config, trains)
    for checkpointing in choices:
        needs = MemoryNeeds.of(config, dims, gradient_checkpointing=checkpointing, trains=trains)
        tight = max(needs.longest_row, asked_tokens * needs.per_token)
        spare = _BUSY_GPU_TOKENS * needs.per_token
        if checkpointing:
            spare = _COMFORTABLE_ROWS * needs.longest_row
        is_optional = checkpointing != choices[-1]  # a choice with less memory is left
        ways: list[tuple[bool, float]] = []  # whether the engine sleeps; GiB for activations
        if is_server:
            ways.append((False, tight))
        if not is_server and vllm.sleep is not True:
            ways.append((False, max(tight, spare)))
        if not is_server and not is_optional:
            ways.append((vllm.sleep is not False, tight))
        for sleep, activations in ways:
            engine = needs.smallest_engine
            if vllm.gpu_memory_utilization is not None:
                engine = vllm.gpu_memory_utilization * total
            limit = total - needs.weights - RESERVE_GIB
            if is_server:
                utilization = vllm.gpu_memory_utilization or _SERVER_UTILIZATION
                limit = vllm.tensor_parallel_size * utilization * total
            yield _Candidate(
                needs=needs,
                gradient_checkpointing=checkpointing,
                sleep=sleep,
                engine_limit=limit,
                engine_in_update=0.0 if is_server or sleep else engine,
                activations=activations,
                min_tokens=_BUSY_GPU_TOKENS if is_optional else 0,
            )


def _checkpointing_choices(config: Config, trains: bool) -> list[bool]:
    """Return the values of `trainer.gradient_checkpointing` to try, the preferred one first."""
    checkpointing = config.trainer.gradient_checkpointing
    if checkpointing is None and trains:
        return [False, True]
    return [bool(checkpointing)]


def out_of_memory_advice(config: Config | DictConfig) -> str:
    """Return what to change after a run has used up the GPU's memory all the same."""
    settings = [words for words, _ in _smaller_settings(config)]
    lower = (
        "a lower vllm.gpu_memory_utilization, memory.micro_batch_tokens or trainer.num_generations"
    )
    return f"try {', '.join([*settings, lower, *_LAST_RESORTS])}"


def _remedies(config: Config, dims: ModelDims, total: float, trains: bool) -> str:
    """Return the changes that would make the run fit: each that is enough by itself, else all."""
    config = copy.deepcopy(config)
    config.trainer.gradient_checkpointing = _checkpointing_choices(config, trains)[-1]
    all_changed = copy.deepcopy(config)
    changes = list(_smaller_settings(config))
    enough = []
    for words, change in changes:
        changed = copy.deepcopy(config)
        change(changed)
        change(all_changed)
        if _first_plan(changed, dims, total, trains):
            enough.append(words)
    if enough:
        return f"one of these is enough: {', '.join([*enough, *_LAST_RESORTS])}"
    if _first_plan(all_changed, dims, total, trains):
        together = ", ".join(words for words, _ in changes)
        return f"together: {together}; or {' or '.join(_LAST_RESORTS)}"
    return f"take {' or '.join(_LAST_RESORTS)}"


def _smaller_settings(
    config: Config | DictConfig,
) -> Iterator[tuple[str, Callable[[Config], None]]]:
    """Yield settings that need less memory, as `name=value` and as a function that applies it."""
    vllm, trainer = config.vllm, config.trainer
    if not trainer.gradient_checkpointing:
        yield _setting("trainer.gradient_checkpointing", True)
    if vllm.sleep is False:
        yield _setting("vllm.sleep", True)
    if vllm.gpu_memory_utilization is not None:
        yield _setting("vllm.gpu_memory_utilization", None)
    memory = getattr(config, "memory", None)  # absent in a resumed job of version 0.1
    if memory is not None and memory.micro_batch_tokens is not None:
        yield _setting("memory.micro_batch_tokens", None)
    if not config.model.lora.enabled:
        yield _setting("model.lora.enabled", True)
    shorter = config.model.max_length // 4
    if shorter > 2 * trainer.max_completion_length:
        yield _setting("model.max_length", shorter)


def _setting(name: str, value: Any) -> tuple[str, Callable[[Config], None]]:
    *path, leaf = name.split(".")

    def apply(config: Config) -> None:
        setattr(reduce(getattr, path, config), leaf, value)

    return f"{name}={json.dumps(value)}", apply
