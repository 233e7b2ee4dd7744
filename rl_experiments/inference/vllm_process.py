"""The process of `vllm serve`: its command line, its start on a free port, its log and its end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference.vllm_colocated import import_vllm
from rl_experiments.network import LOOPBACK, free_port

START_SECONDS = 600.0  # until the server answers
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
_PREFERRED_PORT = 8000
_MAX_PORTS = 3  # that are tried
_POLL_SECONDS = 0.1
_PROBE_SECONDS = 5.0  # for one answer while it starts
_MAX_REASON_LENGTH = 300  # characters of the log that are shown

# Keeps the server and its children in a process group that ends as one: on SIGTERM, when the
# process that started it is gone (even by SIGKILL), and when the server is gone, whose children
# would outlive it.
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

# In the log: what vLLM puts before each line; an error with the indented lines that continue it.
_LOG_PREFIX = re.compile(r"^\(\w+ pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:]+ \[\S+\] )?", re.MULTILINE)
_LOG_ERROR = re.compile(
    r"^(?:[\w.]*(?:Error|Exception): |(?:[\w. ]+: )?error: |ERROR:\s).+(?:\n {2}\S.*)*",
    re.MULTILINE,
)
# Variables that the server must not inherit: torchrun's, by which it would join the training
# processes, and a key that TRL's client would not send.
_DROPPED_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|VLLM_API_KEY"
)


class VllmProcess:
    """A server in a process group of its own, which ends with this process."""

    def __init__(self, log: Path) -> None:
        self.url = ""
        self._log = log
        self._log_start = 0  # bytes that earlier processes have written
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def group(self) -> int | None:
        """The id of the process group; None when it has been ended."""
        return self._process.pid if self._process else None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, command: list[str], environment: dict[str, str], *, name: str) -> None:
        """Start the server on a free port, and return when it answers.

        `name` is among the models that it serves, and no other server's. Raises a `UserError` with
        the reason from the log if it does not come to answer.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(GRACE_SECONDS)]
        for attempt in range(_MAX_PORTS):
            port = free_port(_PREFERRED_PORT if attempt == 0 else 0)
            self.url = f"http://{LOOPBACK}:{port}"
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [*guard, *command, f"--host={LOOPBACK}", f"--port={port}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            if self._wait_for_answer(name):
                return
            if self.is_alive:  # another run's server answers on this port
                self.end()
            elif "address already in use" not in self._log_text().lower():
                break
        raise self.failure("does not start")

    def end(self) -> None:
        """End the process and all of its children, within seconds."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS + 1)
                break
        self._process = None

    def failure(self, what: str) -> UserError:
        """Return the message that `vllm serve` does `what`, with the reason from its log.

        The reason is the last error that does not merely refer to others as the root cause.
        """
        text = self._log_text()
        errors = _LOG_ERROR.findall(text)
        reasons = [error for error in errors if "root cause" not in error] or errors
        if not reasons and not self.is_alive:
            reasons = [line for line in text.splitlines() if line.strip()]
        reason = f"; it said: {one_line(reasons[-1])[:_MAX_REASON_LENGTH]}" if reasons else ""
        return UserError(f"vllm serve {what}{reason} (log: {self._log})")

    def _wait_for_answer(self, name: str) -> bool:
        """Wait until a server answers; False when ours has ended, or another run's answers."""
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(base_url=self.url, trust_env=False, timeout=_PROBE_SECONDS) as client:
            while self.is_alive:
                with suppress(httpx.TransportError):
                    if client.get("/health").is_success:
                        return name in client.get("/v1/models").text
                if time.monotonic() > deadline:
                    raise self.failure(f"does not answer after {START_SECONDS:.0f} s")
                time.sleep(_POLL_SECONDS)
        return False

    def _log_text(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            return _LOG_PREFIX.sub("", file.read().decode(errors="replace"))


def serve_command(path: str) -> list[str]:
    """Return the command `vllm serve PATH`; tests put a program of their own in its place."""
    if importlib.util.find_spec("vllm") is None:
        import_vllm()  # raises, and says how to install it
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # The build for CPUs is a package of another name, without which the command fails.
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", path]


def serve_options(config: Config, utilization: float | None, *, trains: bool) -> list[str]:
    """Return the settings as options of `vllm serve`.

    `utilization` is the share of the GPU's memory, if not the settings'. With `trains`, the server
    takes new weights.
    """
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
    options = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            options.append(f"--{name}={text}")
    return options


def serve_environment(gpus: Sequence[int] | None, *, trains: bool) -> dict[str, str]:
    """Return the server's environment variables; it sees the given GPUs, or all (None)."""
    variables = {
        name: value for name, value in os.environ.items() if not _DROPPED_VARIABLES.fullmatch(name)
    }
    variables.setdefault("VLLM_HOST_IP", LOOPBACK)
    if trains:
        variables["VLLM_SERVER_DEV_MODE"] = "1"  # without it no weights are taken
    if gpus is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else None
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] if names else str(i) for i in gpus)
    return variables
