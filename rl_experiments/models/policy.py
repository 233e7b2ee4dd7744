"""The model that plays and learns, its tokenizer, and the rollouts that it makes."""

from __future__ import annotations

import atexit
import dataclasses
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from environments import Environment
from rl_experiments import distributed
from rl_experiments.checkpoints.store import fetched, is_remote
from rl_experiments.config.schema import (
    Config,
    LoraConfig,
    ModelConfig,
    SamplerKind,
    VllmConfig,
    VllmMode,
)
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference.sampler import Engine, Sampler
from rl_experiments.inference.transformers_sampler import TransformersSampler
from rl_experiments.inference.vllm_colocated import VllmEngine
from rl_experiments.models.memory import MemoryPlan, ModelDims, fit
from rl_experiments.models.tiny import best_device, cache_folder, scratch_model
from rl_experiments.paths import ADAPTER_CONFIG_FILE, MODEL_CONFIG_FILE, VLLM_LOG_FILE
from rl_experiments.rollout.renderer import RendererCache
from rl_experiments.rollout.runner import RolloutRunner


@dataclass(frozen=True)
class Policy:
    model: PreTrainedModel | None  # None where a server alone has it
    tokenizer: PreTrainedTokenizerBase
    path: str
    engine: Engine | None = None  # what plays, where it is not the model itself
    fit: MemoryPlan | None = None
    notes: tuple[str, ...] = ()  # what was chosen, and what has no effect

    def rollout(
        self, config: Config, environment: Environment, *, temperature: float, model: Any = None
    ) -> RolloutRunner:
        """Rollouts of this policy, or of `model` where training has wrapped it."""
        played = model or self.model
        settings: dict[str, Any] = {
            "eos_token_id": self.tokenizer.eos_token_id,
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
            renderers=RendererCache(self.tokenizer),
            sampler=sampler,
            max_new_tokens=config.trainer.max_completion_length,
            max_length=config.model.max_length,
        )


def load_policy(
    config: Config, environment: Environment, folder: Path = Path(), *, trains: bool = False
) -> Policy:
    """The checkpoint, else the model of the configuration, on the best device there is.

    `folder` is the run's, for what an engine has to say.
    """
    _quieten()
    path = _path(config, environment)
    serves = uses_vllm(config) and config.vllm.mode is VllmMode.server
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = None
        if trains or not serves:
            model = _model(path, config, trains=trains).to(best_device())
    except (OSError, ValueError, ImportError) as error:
        setting = "checkpoint" if config.checkpoint.path else "model.path"
        raise UserError(
            f"{setting}={path}: cannot be loaded: {one_line(str(error))[:300]}"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    notes = [f"{name} has no effect {why}" for name, why in without_effect(config)]
    if not uses_vllm(config):
        return Policy(model, tokenizer, path, notes=tuple(notes))
    base = _base_folder(path)
    chosen = fit(config, ModelDims.of(base), total=_memory_gib(config), trains=trains)
    if torch.cuda.is_available():
        notes.append(str(chosen))
    engine: Engine
    if serves:
        from rl_experiments.inference.vllm_server import VllmServer

        engine = VllmServer(
            config,
            base if trains else _whole_folder(path, config, tokenizer),
            log=folder / VLLM_LOG_FILE,
            gpus=_served_gpus(config) if trains else None,
            utilization=chosen.utilization,
            trains=trains,
        )
    else:
        engine = VllmEngine(config, base, utilization=chosen.utilization, sleep=chosen.sleep)
    return Policy(model, tokenizer, path, engine, chosen, tuple(notes))


def _model(path: str, config: Config, *, trains: bool) -> PreTrainedModel:
    """The model, or an adapter around its base: transformers alone would round it to the base's
    type, and training would begin another one.
    """
    adapter = Path(path) / ADAPTER_CONFIG_FILE
    is_adapter = adapter.exists()
    model = AutoModelForCausalLM.from_pretrained(
        json.loads(adapter.read_text())["base_model_name_or_path"] if is_adapter else path,
        dtype=_weights_dtype(config),
        attn_implementation=config.model.attn_implementation,
    )
    if not is_adapter:
        return model
    from peft import PeftModel

    if trains and config.model.lora.enabled:
        _check_adapter(path, config.model.lora)
    adapted = PeftModel.from_pretrained(model, path, is_trainable=trains)
    if trains and not config.model.lora.enabled:
        return adapted.merge_and_unload().requires_grad_(True)
    return adapted


def _check_adapter(path: str, lora: LoraConfig) -> None:
    """What is trained on is what the checkpoint has."""
    found = json.loads((Path(path) / ADAPTER_CONFIG_FILE).read_text())
    own = {"r": lora.r, "alpha": lora.alpha, "target_modules": sorted(lora.target_modules)}
    its = {"r": found["r"], "alpha": found["lora_alpha"]}
    its["target_modules"] = sorted(found["target_modules"])
    for name, value in own.items():
        if value != its[name]:
            shown = [",".join(v) if isinstance(v, list) else v for v in (value, its[name])]
            raise UserError(
                f"model.lora.{name}={shown[0]}: checkpoint={path} has an adapter with "
                f"{name}={shown[1]}, which training goes on with; give that"
            )


def _path(config: Config, environment: Environment) -> str:
    """Where the policy's weights are: a folder, or a name that the hub knows."""
    if config.checkpoint.path:
        path = config.checkpoint.path
        if is_remote(path):
            path = str(
                distributed.broadcast_from_first(
                    distributed.is_first() and fetched(path, cache_folder())
                )
            )
    elif config.model.scratch is not None:
        made = distributed.is_first() and scratch_model(
            config.model.scratch, environment, seed=config.seed
        )
        path = str(distributed.broadcast_from_first(made))
    else:
        path = str(config.model.path)
    if not Path(path).is_dir() and not _is_cached(path) and not _hub_answers():
        raise UserError(
            f"model.path={path}: not on this machine, and the Hugging Face hub does not answer; "
            "connect, or name a folder (model=tiny needs neither)"
        )
    return path


def uses_vllm(config: Config) -> bool:
    """Whether vLLM plays: where it is asked for, and by default for a model of use on a GPU."""
    if config.sampler is SamplerKind.auto:
        return torch.cuda.is_available() and config.model.name != "tiny"
    return config.sampler is SamplerKind.vllm


def without_effect(config: Config) -> Iterator[tuple[str, str]]:
    """The engine's settings that were given and do nothing here, each with the reason."""
    given = [
        field.name
        for field in dataclasses.fields(VllmConfig)
        if getattr(config.vllm, field.name) != getattr(VllmConfig(), field.name)
    ]
    if not uses_vllm(config):
        idle, why = {*given}, "with sampler=transformers"
        if config.sampler is SamplerKind.auto:
            why = "here: sampler=auto takes transformers without a GPU, and for model=tiny"
    elif config.vllm.mode is VllmMode.server:
        idle, why = {"sleep"}, "with vllm.mode=server"
    else:
        idle, why = {"enable_auto_tool_choice", "tool_call_parser"}, "with vllm.mode=colocate"
    yield from ((f"vllm.{name}", why) for name in given if name in idle)


def _served_gpus(config: Config) -> list[int]:
    """The last of the GPUs that this process may use; the first ones train."""
    count, size = torch.cuda.device_count(), config.vllm.tensor_parallel_size
    if count < distributed.world_size() + size:
        raise UserError(
            f"vllm.mode=server: the server needs {size} beside the GPU that trains, and there are "
            f"{count}; set gpu.count={distributed.world_size() + size}, or vllm.mode=colocate"
        )
    return list(range(count - size, count))


def _whole_folder(path: str, config: Config, tokenizer: PreTrainedTokenizerBase) -> str:
    """A folder of the whole model: an adapter is added to its base, for as long as we run."""
    if not (Path(path) / ADAPTER_CONFIG_FILE).exists():
        return path
    made = tempfile.mkdtemp(prefix="rl_experiments-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    _model(path, config, trains=False).merge_and_unload().save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def _base_folder(name: str) -> str:
    """The folder of the whole model that a name, or an adapter's folder, stands for."""
    adapter = Path(name) / ADAPTER_CONFIG_FILE
    if adapter.exists():
        name = json.loads(adapter.read_text())["base_model_name_or_path"]
    if Path(name).is_dir():
        return name
    return str(Path(cached_file(name, MODEL_CONFIG_FILE)).parent)


def _memory_gib(config: Config) -> float:
    """Of the GPU; without one, of this machine."""
    if config.fit.memory_gib is not None:
        return config.fit.memory_gib
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / (1 << 30))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _weights_dtype(config: Config) -> torch.dtype:
    """Weights that are trained are kept in fp32: bf16 would lose small updates."""
    if torch.cuda.is_available() and not config.model.lora.enabled:
        return torch.float32
    found: torch.dtype = getattr(torch, config.model.dtype.value)
    return found


def lora_config(model: ModelConfig) -> Any:
    """The adapter to train, as peft takes it; None to train all weights."""
    if not model.lora.enabled:
        return None
    from peft import LoraConfig

    lora = model.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )


def _is_cached(name: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, MODEL_CONFIG_FILE), str)
    except HFValidationError:
        raise UserError(f"model.path={name}: neither a folder nor the name of a model") from None


def _hub_answers() -> bool:
    """Whether the hub can be reached, without the minute of retries that a download would make."""
    if constants.is_offline_mode():
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=10)
    except httpx.TransportError:
        return False
    return True


def _quieten() -> None:
    """Keep the libraries' chatter out of the terminal; errors still come as exceptions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
