"""The policy: a model with its tokenizer, and the engine that plays it where one is used."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from environments import Environment
from rl_experiments import distributed
from rl_experiments.config.schema import Config, SamplerKind, VllmConfig, VllmMode
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference.sampler import Engine, Sampler
from rl_experiments.inference.transformers_sampler import TransformersSampler
from rl_experiments.inference.vllm_colocated import VllmEngine
from rl_experiments.inference.weight_sync import check_engine_can_hold
from rl_experiments.models.adapters import adapted_note
from rl_experiments.models.loading import (
    base_model_folder,
    generation_eos,
    load_model,
    lora_config,
    merged_model_folder,
    quiet_libraries,
    resolve_model_path,
)
from rl_experiments.models.memory import MemoryPlan, plan_memory
from rl_experiments.models.memory_needs import BYTES_PER_GIB, ModelDims
from rl_experiments.models.template_check import check_template
from rl_experiments.models.tiny import best_device
from rl_experiments.paths import VLLM_LOG_FILE
from rl_experiments.rollout.renderer import RendererCache, end_of_turn
from rl_experiments.rollout.runner import RolloutRunner

_ERROR_CHARACTERS_SHOWN = 300


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer, and what plays it."""

    model: PreTrainedModel | None  # None if only the vLLM server has it
    tokenizer: PreTrainedTokenizerBase
    path: str
    engine: Engine | None = None  # None if the model itself plays
    memory_plan: MemoryPlan | None = None  # None without vLLM
    notes: tuple[str, ...] = ()  # for the user: what was chosen, which settings have no effect

    @cached_property
    def end_ids(self) -> list[int]:
        """The tokens that end a reply: the model's, the tokenizer's and the chat template's."""
        if self.model is not None:
            of_model = self.model.generation_config.eos_token_id
        else:
            of_model = generation_eos(self.path)
        ids = of_model if isinstance(of_model, list) else [of_model]
        ends = [self.tokenizer.eos_token_id, end_of_turn(self.tokenizer), *ids]
        return list(dict.fromkeys(end for end in ends if end is not None))

    def rollout(
        self, config: Config, environment: Environment, *, temperature: float, model: Any = None
    ) -> RolloutRunner:
        """Return a runner that plays this policy, or `model` where training has wrapped it."""
        played = model or self.model
        settings: dict[str, Any] = {
            "eos_token_id": self.end_ids,
            "max_new_tokens": config.trainer.max_completion_length,
            "temperature": temperature,
        }
        sampler: Sampler
        if self.engine is not None:
            sampler = self.engine.sampler(played, **settings)
        else:
            pad_token_id = self.tokenizer.pad_token_id
            sampler = TransformersSampler(played, pad_token_id=pad_token_id, **settings)
        return RolloutRunner(
            environment=environment,
            renderers=RendererCache(self.tokenizer, end_ids=self.end_ids),
            sampler=sampler,
            max_new_tokens=config.trainer.max_completion_length,
            max_length=config.model.max_length,
        )


def load_policy(
    config: Config, environment: Environment, folder: Path = Path(), *, trains: bool = False
) -> Policy:
    """Load the checkpoint, or else the model of the configuration, on the best device.

    `folder` is the run's, for the engine's log. `trains` loads the weights for training. Raises a
    `UserError` if the model cannot be loaded, does not fit the GPU, or has a chat template that
    cannot write the environment's messages.
    """
    quiet_libraries()
    path = resolve_model_path(config, environment)
    uses_server = uses_vllm(config) and config.vllm.mode is VllmMode.server
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        template_notes = check_template(tokenizer, environment, seed=config.seed)
        model = None
        if trains or not uses_server:
            model = load_model(path, config, trains=trains).to(best_device())
    except (OSError, ValueError, ImportError) as error:
        setting = "checkpoint" if config.checkpoint.path else "model.path"
        reason = one_line(str(error))[:_ERROR_CHARACTERS_SHOWN]
        raise UserError(f"{setting}={path}: cannot be loaded: {reason}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    notes = [f"{name} has no effect {reason}" for name, reason in without_effect(config)]
    notes += template_notes
    if trains and config.model.lora.enabled and not hasattr(model, "peft_config"):
        notes.append(adapted_note(model, lora_config(config.model)))
    if not uses_vllm(config):
        return Policy(model, tokenizer, path, notes=tuple(notes))
    if model is not None:
        check_engine_can_hold(model)
    base = base_model_folder(path)
    plan = plan_memory(config, ModelDims.of(base), total_gib=_memory_gib(config), trains=trains)
    if torch.cuda.is_available():
        notes.append(str(plan))
    engine: Engine
    if uses_server:
        from rl_experiments.inference.vllm_server import VllmServer

        engine = VllmServer(
            config,
            base if trains else merged_model_folder(path, config, tokenizer),
            log=folder / VLLM_LOG_FILE,
            gpus=_server_gpus(config) if trains else None,
            utilization=plan.utilization,
            trains=trains,
        )
    else:
        engine = VllmEngine(config, base, utilization=plan.utilization, sleep=plan.sleep)
    return Policy(model, tokenizer, path, engine, plan, tuple(notes))


def uses_vllm(config: Config) -> bool:
    """Return whether vLLM plays; `sampler=auto` takes it on a GPU for all models but tiny."""
    if config.sampler is SamplerKind.auto:
        return torch.cuda.is_available() and config.model.name != "tiny"
    return config.sampler is SamplerKind.vllm


def without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the name of each `vllm` setting that was changed but is not used, with the reason."""
    changed = [
        field.name
        for field in dataclasses.fields(VllmConfig)
        if getattr(config.vllm, field.name) != getattr(VllmConfig(), field.name)
    ]
    if not uses_vllm(config):
        unused, reason = set(changed), "with sampler=transformers"
        if config.sampler is SamplerKind.auto:
            reason = "here: sampler=auto takes transformers without a GPU, and for model=tiny"
    elif config.vllm.mode is VllmMode.server:
        unused, reason = {"sleep"}, "with vllm.mode=server"
    else:
        unused = {"enable_auto_tool_choice", "tool_call_parser"}
        reason = "with vllm.mode=colocate"
    yield from ((f"vllm.{name}", reason) for name in changed if name in unused)


def _server_gpus(config: Config) -> list[int]:
    """Return the GPUs of the vLLM server: the last ones of the machine; the first ones train."""
    available, served = torch.cuda.device_count(), config.vllm.tensor_parallel_size
    training = distributed.world_size()
    if available < training + served:
        raise UserError(
            f"vllm.mode=server: {training} GPU(s) train and the server needs {served} more, but "
            f"there are {available}; set gpu.count={training + served}, or vllm.mode=colocate"
        )
    return list(range(available - served, available))


def _memory_gib(config: Config) -> float:
    """Return the memory of the GPU, or of this machine if it has none."""
    if config.memory.gpu_gib is not None:
        return config.memory.gpu_gib
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / BYTES_PER_GIB)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / BYTES_PER_GIB
