"""A stand-in for `vllm serve`, and what tests of the server share."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rl_experiments.config.schema import Config, Dtype
from rl_experiments.inference import vllm_process
from rl_experiments.inference.sampler import Completion
from rl_experiments.inference.vllm_server import ServerSampler, VllmServer

EOS = 2
_DEADLINE_SECONDS = 120.0  # that only catch a hang

# A reply is the prompt's last token plus one, and EOS. The first token of a prompt decides what
# happens to the request: 503 fails twice before it succeeds, 400 is refused, 666 ends the server,
# and any other number is the hundredths of a second that the reply takes.
STAND_IN = """
import json, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

behaviour, words = sys.argv[1], sys.argv[2:]
options = dict(word[2:].split("=", 1) for word in words if "=" in word)
names = words[words.index("--served-model-name") + 1 :][:2]
if behaviour == "dies":
    print("(EngineCore pid=7) ERROR 11-22 20:44:31 [core.py:14] Traceback (most recent call last):")
    print("(EngineCore pid=7) ERROR 11-22 20:44:31 [core.py:14] ValueError: no room on the GPU")
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
if behaviour == "beaten" and options["port"] == sys.argv[0].split("beaten-at-")[1][:-3]:
    sys.exit("OSError: [Errno 98] Address already in use")
if behaviour == "late":
    time.sleep(1)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as vLLM's engine
refused = []

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_GET(self):
        known = {"/health": "", "/v1/models": json.dumps(names)}
        self.answer(known.get(self.path, 'vllm:kv_cache_usage_perc{engine="0"} 0.25'))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"]
        if "prompt_logprobs" in body:
            entries = [[None, *({str(t): {"logprob": -t / 10}} for t in p[1:])] for p in prompt]
            return self.answer(json.dumps({"choices": [{"prompt_logprobs": e} for e in entries]}))
        if prompt[0] == 503 and len(refused) < 2:
            refused.append(1)
            return self.answer("busy", status=503)
        if prompt[0] == 400:
            return self.answer('{"error": "too long"}', status=400)
        if prompt[0] == 666:
            print("RuntimeError: CUDA error: an illegal memory access", flush=True)
            server.server_close()
            import os; os._exit(1)
        if prompt[0] != 503:
            time.sleep(prompt[0] / 100)
        choice = {"token_ids": [prompt[-1] + 1, *body["stop_token_ids"]]}
        choice["logprobs"] = {"token_logprobs": [-0.5, -0.25]}
        self.answer(json.dumps({"choices": [choice]}))

    def answer(self, text, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

ThreadingHTTPServer.request_queue_size = 128
server = ThreadingHTTPServer((options["host"], int(options["port"])), Handler)
server.serve_forever()
"""

Start = Callable[..., VllmServer]


def config() -> Config:
    made = Config(name="x")
    made.model.name, made.model.dtype, made.model.max_length = "q", Dtype.float32, 512
    made.vllm.block_size, made.vllm.enforce_eager = 32, True  # as vLLM on a CPU wants it
    return made


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """`start("late")` starts the stand-in with that behaviour."""
    servers: list[VllmServer] = []

    def begin(behaviour: str = "", *, trains: bool = False, name: str = "stand_in") -> VllmServer:
        program = tmp_path / f"{name}.py"
        program.write_text(STAND_IN)
        command = [sys.executable, str(program), behaviour]
        monkeypatch.setattr(vllm_process, "serve_command", lambda path: command)
        log = tmp_path / "serve.log"
        server = VllmServer(config(), "m", log=log, gpus=None, utilization=0.5, trains=trains)
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.close()


def sampler(server: VllmServer, *, version: int | None = None) -> ServerSampler:
    made = ServerSampler(server, None, eos_token_id=EOS, max_new_tokens=8, temperature=1.0)
    made.begin(version)
    return made


def collect(source: ServerSampler, count: int) -> list[Completion]:
    """Return `count` completions as they come."""
    completions: list[Completion] = []
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while len(completions) < count:
        assert time.monotonic() < deadline
        completions += source.collect()
    return completions


def processes_of(group: int) -> list[int]:
    """Return the ids of the processes of the group that are not yet dead."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == group and row[2][0] != "Z"]


def group_of(server: VllmServer) -> int:
    assert server.process.group is not None
    return server.process.group


def is_gone(group: int) -> bool:
    """Tell whether the group's processes end; they are given time."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while processes_of(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of(group)
