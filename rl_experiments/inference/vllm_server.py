"""vLLM as a server of its own on this machine (`vllm serve`), asked over HTTP."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import torch

from rl_experiments.config.schema import Config
from rl_experiments.errors import one_line
from rl_experiments.inference import vllm_process
from rl_experiments.inference.sampler import Completion, Request, end_ids
from rl_experiments.inference.vllm_process import VllmProcess, serve_environment, serve_options
from rl_experiments.inference.weight_sync import merged_weights
from rl_experiments.network import LOOPBACK, free_port
from rl_experiments.retry import RetryPolicy

T = TypeVar("T")

SYNC_SECONDS = 300.0  # for one transfer of the weights
REPLY_SECONDS = 900.0  # for one turn
_MAX_ATTEMPTS = 4  # of a request
_KEEPALIVE_SECONDS = 3.0  # less than the server's, which might close a connection under a request
_METRICS_SECONDS = 5.0  # for the server's metrics
_CACHE_POLL_SECONDS = 1.0
_ALIVE_POLL_SECONDS = 0.5  # while weights are transferred
_COLLECT_SECONDS = 0.05  # that `collect` waits for the first completion
_MAX_REASON_LENGTH = 300  # characters of an answer that are shown


class _RequestFailed(Exception):
    """A request failed. The caller reports one of many, with its cause from the server's log."""

    def __init__(self, reason: str, *, is_temporary: bool) -> None:
        super().__init__(reason)
        self.is_temporary = is_temporary


class VllmServer:
    """A server for the model in a folder; where a policy is trained, `load` sends it the weights.

    `gpus` are numbered as this process sees them; None means all of them.
    """

    def __init__(
        self,
        config: Config,
        path: str,
        *,
        log: Path,
        gpus: Sequence[int] | None,
        utilization: float | None,
        trains: bool,
    ) -> None:
        self.policy_version: int | None = None
        self.sync_seconds = 0.0
        self.process = VllmProcess(log)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trains = trains
        self.dtype: torch.dtype = getattr(torch, (config.vllm.dtype or config.model.dtype).value)
        self._weights_client: Any = None  # TRL's
        self._announced: list[tuple[str, str, list[int]]] = []  # name, dtype, shape of each weight
        name = f"run-{uuid.uuid4().hex}"  # tells this server from that of another run
        command = [
            *vllm_process.serve_command(path),
            *serve_options(config, utilization, trains=trains),
            *("--served-model-name", path, name),
        ]
        atexit.register(self.close)
        try:
            self.process.start(command, serve_environment(gpus, trains=trains), name=name)
        except BaseException:
            self.close()
            raise
        self._loop = self._start_loop(config.vllm.max_num_seqs)

    @property
    def url(self) -> str:
        return self.process.url

    def sampler(self, model: Any, **settings: Any) -> ServerSampler:
        """Return a sampler that plays `model` with this server."""
        return ServerSampler(self, model, **settings)

    def load(self, model: Any, *, policy_version: int | None) -> None:
        """Send the weights where a policy is trained; otherwise they are those of the folder."""
        started = time.perf_counter()
        if self._trains:
            model = getattr(model, "module", model)  # as data-parallel training has wrapped it
            self._run_with_limit(lambda: self._send(model))
        self.policy_version = policy_version
        self.sync_seconds = time.perf_counter() - started

    def logprobs(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Return the log-probabilities of each reply's tokens, of (prompt, reply) token ids."""
        prompts = [prompt + reply for prompt, reply in sequences]
        body = {"prompt": prompts, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        choices = self.result(self.submit(self.complete(body)))["choices"]
        logprobs = []
        for choice, (prompt, reply) in zip(choices, sequences, strict=True):
            tail = choice["prompt_logprobs"][len(prompt) :]
            logprobs.append(
                [entry[str(token)]["logprob"] for entry, token in zip(tail, reply, strict=True)]
            )
        return logprobs

    def close(self) -> None:
        """End the server; may be called more than once."""
        atexit.unregister(self.close)
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join(1.0)
        self.process.end()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run the coroutine in the background; `result` returns or raises what came of it."""
        if self._loop is None:
            raise RuntimeError("the server has not started")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def result(self, future: Future[T]) -> T:
        """Return the future's result; raises a `UserError` if the server did not answer."""
        try:
            return future.result()
        except _RequestFailed as error:
            reason = str(error) if self.process.is_alive else "has ended"
            raise self.process.failure(reason) from None

    async def complete(self, body: dict[str, Any]) -> Any:
        """Return the answer of /v1/completions; it is asked again while the server lives."""
        policy = RetryPolicy(
            max_attempts=_MAX_ATTEMPTS,
            is_temporary=lambda error: isinstance(error, _RequestFailed) and error.is_temporary,
        )
        return await policy.call_async(self._request, body)

    async def cache_use(self) -> float:
        """Return the share of the key-value cache in use; 0 where the server does not state it."""
        with suppress(httpx.TransportError):
            text = (await self._http.get(f"{self.url}/metrics", timeout=_METRICS_SECONDS)).text
            for use in re.findall(r"^vllm:kv_cache_usage_perc\S* (\S+)", text, re.MULTILINE):
                return float(use)
        return 0.0

    async def _request(self, body: dict[str, Any]) -> Any:
        if not self.process.is_alive:
            raise _RequestFailed("has ended", is_temporary=False)
        try:
            async with self._slots:
                response = await self._http.post(f"{self.url}/v1/completions", json=body)
        except httpx.TransportError as error:
            reason = f"does not answer ({type(error).__name__})"
            raise _RequestFailed(reason, is_temporary=True) from error
        if response.is_success:
            return response.json()
        text = one_line(response.text)[:_MAX_REASON_LENGTH]
        reason = f"answers {response.status_code}: {text}"
        raise _RequestFailed(reason, is_temporary=response.is_server_error)

    def _start_loop(self, max_requests: int) -> asyncio.AbstractEventLoop:
        """Return an event loop in a thread, in which at most `max_requests` are under way."""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
        ready: Future[asyncio.AbstractEventLoop] = Future()

        async def work() -> None:
            self._closed, self._slots = asyncio.Event(), asyncio.Semaphore(max_requests)
            limits = httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS)
            self._http = httpx.AsyncClient(timeout=REPLY_SECONDS, limits=limits, trust_env=False)
            async with self._http:
                ready.set_result(asyncio.get_running_loop())
                await self._closed.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)
        self._thread.start()
        return ready.result()

    def _send(self, model: Any) -> None:
        """Send the weights as TRL does: announced over HTTP, then broadcast by NCCL."""
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread
            torch.cuda.synchronize()  # the broadcast reads the weights on streams of its own
        if self._weights_client is None:
            from trl.generation.vllm_client import VLLMClient

            # Where the two meet; TRL would take the address that leads to the internet.
            os.environ.setdefault("VLLM_HOST_IP", LOOPBACK)
            client = VLLMClient(base_url=self.url, group_port=free_port())
            client.init_communicator(device)
            dtype = str(self.dtype).removeprefix("torch.")
            for name, weight in merged_weights(model):
                self._announced.append((name, dtype, list(weight.shape)))
            self._weights_client = client
        weights = ((n, weight.detach().to(self.dtype)) for n, weight in merged_weights(model))
        self._weights_client.update_named_params(self._announced, weights)
        self._weights_client.reset_prefix_cache()  # it holds keys and values of the old weights

    def _run_with_limit(self, transfer: Callable[[], None]) -> None:
        """Run the transfer in a thread: a broadcast whose other side has ended never returns."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                transfer()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        deadline = time.monotonic() + SYNC_SECONDS
        threading.Thread(target=run, daemon=True).start()
        while not wait([done], timeout=_ALIVE_POLL_SECONDS).done:
            if not self.process.is_alive:
                raise self.process.failure("has ended")
            if time.monotonic() > deadline:
                raise self.process.failure(f"has not taken the weights after {SYNC_SECONDS:.0f} s")
        error = done.exception()
        if error is not None:
            reason = f"{type(error).__name__}: {one_line(str(error))[:_MAX_REASON_LENGTH]}"
            raise self.process.failure(f"cannot be given the weights ({reason})") from error


class ServerSampler:
    """The server as a rollout's sampler: each turn is a request of its own, sent at once."""

    continuous = True

    def __init__(
        self,
        engine: VllmServer,
        model: Any,
        *,
        eos_token_id: int | Collection[int],
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.engine = engine
        self.model = model
        self._settings = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stop_token_ids": end_ids(eos_token_id),
            "logprobs": 0,  # of the drawn token alone
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        self._done: queue.SimpleQueue[Future[Completion]] = queue.SimpleQueue()
        self._cache_use = 0.0  # the largest share that was seen in the latest rollout
        self._cache_watch: Future[None] | None = None

    def begin(self, policy_version: int | None) -> None:
        self.end()
        self.engine.load(self.model, policy_version=policy_version)
        self._done = queue.SimpleQueue()  # replies to an abandoned rollout go nowhere
        self._cache_use = 0.0
        self._cache_watch = self.engine.submit(self._watch_cache())

    def end(self) -> None:
        if self._cache_watch is not None:
            self._cache_watch.cancel()

    def submit(self, request: Request) -> None:
        turn = self._turn(request, policy_version=self.engine.policy_version)
        self.engine.submit(turn).add_done_callback(self._done.put)

    def collect(self) -> list[Completion]:
        """Return the turns that are done; wait a moment for the first."""
        completions: list[Completion] = []
        with suppress(queue.Empty):
            while True:
                timeout = 0 if completions else _COLLECT_SECONDS
                completions.append(self.engine.result(self._done.get(timeout=timeout)))
        return completions

    def metrics(self) -> dict[str, float]:
        return {"time/sync": self.engine.sync_seconds, "engine/cache_use": self._cache_use}

    async def _turn(self, request: Request, *, policy_version: int | None) -> Completion:
        # The request has no seed: vLLM would draw turn by turn, and cannot always do so on a CPU.
        body = {**self._settings, "prompt": request.prompt_ids}
        choice = (await self.engine.complete(body))["choices"][0]
        return Completion(
            key=request.key,
            token_ids=choice["token_ids"],
            logprobs=choice["logprobs"]["token_logprobs"],
            policy_version=policy_version,
        )

    async def _watch_cache(self) -> None:
        while True:
            self._cache_use = max(self._cache_use, await self.engine.cache_use())
            await asyncio.sleep(_CACHE_POLL_SECONDS)
