"""vLLM as a process of its own: `vllm serve` on this machine, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import json
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import httpx
import torch

from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference.sampler import Completion, Request
from rl_experiments.inference.vllm_colocated import import_vllm, merged_weights

T = TypeVar("T")

START_SECONDS = 600.0  # until it answers
SYNC_SECONDS = 300.0  # for one transfer of the weights
REPLY_SECONDS = 900.0  # for one turn
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
TRIES = 4  # of a request, with 0.5, 1 and 2 seconds between them
PORTS = 3  # that are tried

_HOST = "127.0.0.1"

# Keeps the server and its children in a group that ends as one: when asked to (SIGTERM), when the
# process that wanted it is gone, even by SIGKILL, and when the server is, which vLLM's own
# children outlive.
_GUARD = """
import os, signal, subprocess, sys, time
parent, grace, *command = sys.argv[1:]
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
server = subprocess.Popen(command)
while server.poll() is None and os.getppid() == int(parent) and not asked:
    time.sleep(0.1)
if not asked:
    os.killpg(0, signal.SIGTERM)
try:
    server.wait(float(grace))
except subprocess.TimeoutExpired:
    pass
os.killpg(0, signal.SIGKILL)
"""

# In the log: what vLLM puts before each line; an error, with its indented further lines.
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:]+ \[\S+\] )?", re.MULTILINE)
_ERROR = re.compile(
    r"^(?:[\w.]*(?:Error|Exception): |(?:[\w. ]+: )?error: |ERROR:\s).+(?:\n {2}\S.*)*",
    re.MULTILINE,
)
# Variables of torchrun, by which the server would join the training processes, and a key that
# TRL's client would not give.
_OURS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|VLLM_API_KEY"
)


def serve_command(path: str) -> list[str]:
    """`vllm serve PATH`; tests put a program of their own in its place."""
    if importlib.util.find_spec("vllm") is None:
        import_vllm()  # tells how to install it
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # The build for CPUs is a package of another name, without which the command fails.
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", path]


class _Unanswered(Exception):
    """A request; why is looked up in the log for the one of many that is told of."""


class VllmServer:
    """A server for the model in a folder; where a policy is trained, `load` sends it the weights.

    `gpus` are numbered as this process sees them.
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
        self.url = ""
        self._log = log
        self._log_start = 0  # of what the present process has written
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trains = trains
        self._dtype: torch.dtype = getattr(torch, (config.vllm.dtype or config.model.dtype).value)
        self._client: Any = None  # TRL's, for the weights
        self._announced: list[tuple[str, str, list[int]]] = []
        name = f"run-{uuid.uuid4().hex}"  # by which it is known from another run's server
        command = [*serve_command(path), *_options(config, utilization, trains=trains)]
        command += ["--served-model-name", path, name]
        atexit.register(self.close)
        try:
            self._start(command, _environment(gpus, trains=trains), name=name)
        except BaseException:
            self.close()
            raise
        self._loop = self._background(config.vllm.max_num_seqs)

    def sampler(self, model: Any, **settings: Any) -> ServerSampler:
        return ServerSampler(self, model, **settings)

    def load(self, model: Any, *, policy_version: int | None) -> None:
        """Send the weights where a policy is trained; else they are those of the folder."""
        started = time.perf_counter()
        if self._trains:
            model = getattr(model, "module", model)  # as data-parallel training has wrapped it
            self._bounded(lambda: self._send(model))
        self.policy_version = policy_version
        self.sync_seconds = time.perf_counter() - started

    def logprobs(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        prompts = [prompt + reply for prompt, reply in sequences]
        body = {"prompt": prompts, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        choices = self.result(self.run(self.complete(body)))["choices"]
        found = []
        for choice, (prompt, reply) in zip(choices, sequences, strict=True):
            tail = choice["prompt_logprobs"][len(prompt) :]
            found.append([entry[str(t)]["logprob"] for entry, t in zip(tail, reply, strict=True)])
        return found

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed already
                self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join(1.0)
        self._end()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Do it in the background; `result` gives what came of it."""
        if self._loop is None:
            raise RuntimeError("the server has not started")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def result(self, future: Future[T]) -> T:
        try:
            return future.result()
        except _Unanswered as error:
            raise self._failure(str(error) if self._alive() else "has ended") from None

    async def complete(self, body: dict[str, Any]) -> Any:
        """The answer of /v1/completions; what may pass is tried again while the server lives."""
        said = "has ended"
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(0.25 * 2**attempt)
            if not self._alive():
                break
            try:
                async with self._places:
                    response = await self._http.post(f"{self.url}/v1/completions", json=body)
            except httpx.TransportError as error:
                said = f"does not answer ({type(error).__name__})"
                continue
            if response.is_success:
                return response.json()
            said = f"answers {response.status_code}: {one_line(response.text)[:300]}"
            if not response.is_server_error:
                break
        raise _Unanswered(said)

    async def cache_use(self) -> float:
        """The share of its key-value cache that is in use; 0 where it does not tell."""
        with suppress(httpx.TransportError):
            text = (await self._http.get(f"{self.url}/metrics", timeout=5.0)).text
            for use in re.findall(r"^vllm:kv_cache_usage_perc\S* (\S+)", text, re.MULTILINE):
                return float(use)
        return 0.0

    def _start(self, command: list[str], environment: dict[str, str], *, name: str) -> None:
        """Returns when it answers on a port; raises a `UserError` if it does not come to that."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(GRACE_SECONDS)]
        for attempt in range(PORTS):
            port = _free_port(8000 if attempt == 0 else 0)
            self.url = f"http://{_HOST}:{port}"
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [*guard, *command, f"--host={_HOST}", f"--port={port}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            if self._answers(name):
                return
            if self._alive():  # another's server came first to the port
                self._end()
            elif "address already in use" not in self._said().lower():
                break
        raise self._failure("does not start")

    def _answers(self, name: str) -> bool:
        """Wait for its health; False when it has ended, or it is another run's that answers."""
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(base_url=self.url, trust_env=False, timeout=5.0) as client:
            while self._alive():
                with suppress(httpx.TransportError):
                    if client.get("/health").is_success:
                        return name in client.get("/v1/models").text
                if time.monotonic() > deadline:
                    raise self._failure(f"does not answer after {START_SECONDS:.0f} s")
                time.sleep(0.1)
        return False

    def _background(self, at_once: int) -> asyncio.AbstractEventLoop:
        """A loop in a thread, in which `at_once` requests are under way."""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
        ready: Future[asyncio.AbstractEventLoop] = Future()

        async def work() -> None:
            self._closed, self._places = asyncio.Event(), asyncio.Semaphore(at_once)
            # Idle connections go before the server closes them, which could be under a request.
            limits = httpx.Limits(max_connections=None, keepalive_expiry=3.0)
            self._http = httpx.AsyncClient(timeout=REPLY_SECONDS, limits=limits, trust_env=False)
            async with self._http:
                ready.set_result(asyncio.get_running_loop())
                await self._closed.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(work()), daemon=True)
        self._thread.start()
        return ready.result()

    def _end(self) -> None:
        """The process and all of its children, within seconds."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS + 1)
                break
        self._process = None

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _said(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            return _PREFIX.sub("", file.read().decode(errors="replace"))

    def _failure(self, what: str) -> UserError:
        """With the last error in the log that says more than to look at the others."""
        text = self._said()
        errors = _ERROR.findall(text)
        reasons = [error for error in errors if "root cause" not in error] or errors
        if not reasons and not self._alive():
            reasons = [line for line in text.splitlines() if line.strip()]  # its last words
        reason = f"; it said: {one_line(reasons[-1])[:300]}" if reasons else ""
        return UserError(f"vllm serve {what}{reason} (log: {self._log})")

    def _send(self, model: Any) -> None:
        """The weights as TRL sends them: announced over HTTP, then broadcast by NCCL."""
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread
            torch.cuda.synchronize()  # the weights are read on streams of their own
        if self._client is None:
            from trl.generation.vllm_client import VLLMClient

            # Where the two meet; TRL would take the address that leads to the internet.
            os.environ.setdefault("VLLM_HOST_IP", _HOST)
            client = VLLMClient(base_url=self.url, group_port=_free_port())
            client.init_communicator(device)
            dtype = str(self._dtype).removeprefix("torch.")
            for name, weight in merged_weights(model):
                self._announced.append((name, dtype, list(weight.shape)))
            self._client = client
        weights = ((n, weight.detach().to(self._dtype)) for n, weight in merged_weights(model))
        self._client.update_named_params(self._announced, weights)
        self._client.reset_prefix_cache()  # it holds keys and values of the weights before

    def _bounded(self, transfer: Callable[[], None]) -> None:
        """Do it in a thread: nothing can interrupt a broadcast whose other side has ended."""
        done: Future[None] = Future()

        def attempt() -> None:
            try:
                transfer()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        deadline = time.monotonic() + SYNC_SECONDS
        threading.Thread(target=attempt, daemon=True).start()
        while not wait([done], timeout=0.5).done:
            if not self._alive():
                raise self._failure("has ended")
            if time.monotonic() > deadline:
                raise self._failure(f"has not taken the weights after {SYNC_SECONDS:.0f} s")
        error = done.exception()
        if error is not None:
            said = f"{type(error).__name__}: {one_line(str(error))[:300]}"
            raise self._failure(f"cannot be given the weights ({said})") from error


class ServerSampler:
    """The server as a rollout's sampler: each turn is a request of its own, sent at once."""

    continuous = True

    def __init__(
        self,
        engine: VllmServer,
        model: Any,
        *,
        eos_token_id: int,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.engine = engine
        self.model = model
        self._settings = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stop_token_ids": [eos_token_id],
            "logprobs": 0,  # that of the token drawn
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        self._done: queue.SimpleQueue[Future[Completion]] = queue.SimpleQueue()
        self._cache_use = 0.0  # the most that was seen in the latest rollout
        self._watch: Future[None] | None = None

    def begin(self, policy_version: int | None) -> None:
        self.end()
        self.engine.load(self.model, policy_version=policy_version)
        self._done = queue.SimpleQueue()  # what an abandoned rollout has asked for goes nowhere
        self._cache_use = 0.0
        self._watch = self.engine.run(self._watch_cache())

    def end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def submit(self, request: Request) -> None:
        turn = self._turn(request, policy_version=self.engine.policy_version)
        self.engine.run(turn).add_done_callback(self._done.put)

    def collect(self) -> list[Completion]:
        """Those that are done; waits a moment for the first."""
        completions: list[Completion] = []
        with suppress(queue.Empty):
            while True:
                timeout = 0 if completions else 0.05
                completions.append(self.engine.result(self._done.get(timeout=timeout)))
        return completions

    def metrics(self) -> dict[str, float]:
        return {"time/sync": self.engine.sync_seconds, "engine/cache_use": self._cache_use}

    async def _turn(self, request: Request, *, policy_version: int | None) -> Completion:
        # No seed of its own: vLLM would draw turn by turn, and cannot always do so on a CPU.
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
            await asyncio.sleep(1.0)


def _options(config: Config, utilization: float | None, *, trains: bool) -> list[str]:
    """The settings as `vllm serve` takes them."""
    settings = config.vllm
    values: dict[str, Any] = {
        "dtype": (settings.dtype or config.model.dtype).value,
        "gpu_memory_utilization": utilization or settings.gpu_memory_utilization,
        "max_model_len": settings.max_model_len or config.model.max_length,
        "max_num_seqs": settings.max_num_seqs,
        "block_size": settings.block_size,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "seed": config.seed,
        "enable_prefix_caching": True,
        "enforce_eager": settings.enforce_eager,
        "enable_auto_tool_choice": settings.enable_auto_tool_choice,
        "tool_call_parser": settings.tool_call_parser,
        "generation_config": "vllm",  # the model's own would cut its distribution (top_k, top_p)
        "logprobs_mode": "processed_logprobs",  # under the temperature, as it samples
        "max_logprobs": -1,
        "disable_uvicorn_access_log": True,
        "weight_transfer_config": {"backend": "nccl"} if trains else None,
        **settings.extra,
    }
    words = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            words.append(f"--{name}={text}")
    return words


def _environment(gpus: Sequence[int] | None, *, trains: bool) -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
    variables.setdefault("VLLM_HOST_IP", _HOST)
    if trains:
        variables["VLLM_SERVER_DEV_MODE"] = "1"  # without it no weights are taken
    if gpus is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else None
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] if names else str(i) for i in gpus)
    return variables


def _free_port(wanted: int = 0) -> int:
    """The port that is wanted if nobody listens on it; else one that is free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last run's, as vLLM
        try:
            listener.bind((_HOST, wanted))
        except OSError:
            listener.bind((_HOST, 0))
        port: int = listener.getsockname()[1]
        return port
