"""The server engine against a stand-in for `vllm serve`: its start, its faults and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_experiments.config.schema import Config, Dtype
from rl_experiments.errors import UserError
from rl_experiments.inference import vllm_server
from rl_experiments.inference.sampler import Completion, Request
from rl_experiments.inference.vllm_server import ServerSampler, VllmServer
from tests.support.paths import CHECKOUT

EOS = 2

# A reply is the prompt's last token plus one, and EOS. The first token of a prompt is what befalls
# the request: hundredths of a second to wait, 503 for two failures first, 666 for the end of all.
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
        said = {"token_ids": [prompt[-1] + 1, *body["stop_token_ids"]]}
        said["logprobs"] = {"token_logprobs": [-0.5, -0.25]}
        self.answer(json.dumps({"choices": [said]}))

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
        monkeypatch.setattr(vllm_server, "serve_command", lambda path: command)
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
    found: list[Completion] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline
        found += source.collect()
    return found


def group(leader: int) -> list[int]:
    """The processes of the group that are not yet dead."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == leader and row[2][0] != "Z"]


def leader(server: VllmServer) -> int:
    assert server._process is not None
    return server._process.pid


def is_gone(leader: int) -> bool:
    deadline = time.monotonic() + 10
    while group(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not group(leader)


def test_replies_given_out_of_order_go_to_their_requests(start: Start) -> None:
    source = sampler(start("late"), version=7)
    waits = {0: 60, 1: 30, 2: 0}
    for key, wait in waits.items():
        source.submit(Request(key=key, prompt_ids=[wait, 10 * key], stream=f"reply/{key}"))
    source.engine.policy_version = 8  # of a turn that comes later
    found = collect(source, 3)
    assert [completion.key for completion in found] == [2, 1, 0]
    for completion in found:
        assert completion.token_ids == [10 * completion.key + 1, EOS]
        assert completion.logprobs == [-0.5, -0.25] and completion.policy_version == 7
    assert source.metrics()["engine/cache_use"] == 0.25
    source.end()
    assert source.collect() == []
    assert source.engine.logprobs([([9, 1], [2, 3]), ([5], [6])]) == [[-0.2, -0.3], [-0.6]]


def test_what_may_pass_is_tried_again(start: Start) -> None:
    source = sampler(start())
    source.submit(Request(key=0, prompt_ids=[503, 4], stream="a"))
    assert collect(source, 1)[0].token_ids == [5, EOS]


def test_what_cannot_pass_is_told_at_once(start: Start) -> None:
    source = sampler(start())
    source.submit(Request(key=0, prompt_ids=[400], stream="a"))
    with pytest.raises(UserError, match=r"answers 400: .*too long.*serve\.log"):
        collect(source, 1)


def test_a_server_that_dies_midway_ends_the_rollout_and_leaves_nothing(start: Start) -> None:
    server = start()
    source, group_of = sampler(server), leader(server)
    for key in range(20):
        source.submit(Request(key=key, prompt_ids=[1000 if key else 666], stream="a"))
    with pytest.raises(UserError, match=r"has ended; it said: RuntimeError: CUDA error"):
        collect(source, 20)
    assert is_gone(group_of)
    with pytest.raises(UserError, match="has ended"):
        server.logprobs([([1], [2])])


def test_a_server_that_dies_as_it_starts_is_one_line_with_the_reason(
    start: Start, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        start("dies")
    said = str(refused.value)
    assert len(said.splitlines()) == 1 and str(tmp_path / "serve.log") in said
    assert "it said: ValueError: no room on the GPU" in said


def test_a_server_that_never_answers_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "START_SECONDS", 0.2)
    with pytest.raises(UserError, match="does not answer after 0 s"):
        start("late")


def test_another_port_is_taken_when_8000_is(start: Start) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 8000))
            other.listen()
        except OSError:
            pass  # taken by somebody else, which does as well
        assert not start().url.endswith(":8000")


def test_another_port_is_tried_when_a_process_came_between(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = vllm_server._free_port()
    ports = iter([first, vllm_server._free_port()])
    monkeypatch.setattr(vllm_server, "_free_port", lambda wanted=0: next(ports))
    assert not start("beaten", name=f"beaten-at-{first}").url.endswith(f":{first}")


def test_another_runs_server_is_not_taken_for_its_own(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = start()
    port = int(theirs.url.rpartition(":")[2])
    ports = iter([port, vllm_server._free_port()])
    monkeypatch.setattr(vllm_server, "_free_port", lambda wanted=0: next(ports))
    assert start("late").url != theirs.url


def test_close_ends_all_of_it_and_may_be_called_twice(start: Start) -> None:
    server = start()
    source, group_of = sampler(server), leader(server)
    source.submit(Request(key=0, prompt_ids=[1000], stream="a"))
    assert len(group(group_of)) == 3  # the guard, the server, its child
    server.close()
    server.close()
    assert not group(group_of)


def test_nothing_stays_when_the_training_process_is_killed(start: Start, tmp_path: Path) -> None:
    start().close()  # writes the program
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import sys, time\n"
        "from tests.rl_experiments.inference.test_vllm_server import config, vllm_server\n"
        "from tests.rl_experiments.inference.test_vllm_server import Path, VllmServer\n"
        "vllm_server.serve_command = lambda path: [sys.executable, sys.argv[1], '']\n"
        "log = Path(sys.argv[1]).with_name('killed.log')\n"
        "made = VllmServer(config(), 'm', log=log, gpus=None, utilization=None, trains=False)\n"
        "print(made._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, str(parent), str(tmp_path / "stand_in.py")]
    root = str(CHECKOUT)
    path = os.pathsep.join([root, f"{root}/launchers", os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as killed:
        assert killed.stdout is not None
        group_of = int(killed.stdout.readline())
        assert len(group(group_of)) == 3
        killed.send_signal(signal.SIGKILL)
    assert is_gone(group_of)


class Client:
    """What TRL's client is asked to do."""

    said: list[Any]
    fault: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, base_url: str, group_port: int) -> None:
        Client.said = [base_url]

    def init_communicator(self, device: torch.device) -> None:
        self.said.append(device)

    def update_named_params(self, announced: Any, weights: Any) -> None:
        self.fault()
        sent = [
            (name, str(weight.dtype).removeprefix("torch."), list(weight.shape))
            for name, weight in weights
        ]
        assert sent == announced
        self.said.append(sent)

    def reset_prefix_cache(self) -> None:
        self.said.append("reset")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    from trl.generation import vllm_client

    monkeypatch.setattr(vllm_client, "VLLMClient", Client)
    return Client


def test_a_policy_in_training_is_sent_before_it_plays(start: Start, client: type[Client]) -> None:
    server = start(trains=True)
    policy = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    for version in (1, 2):
        server.load(policy, policy_version=version)
    sent = [("weight", "float32", [2, 3]), ("bias", "float32", [2])]  # as the server holds them
    joined = [server.url, torch.device("cpu")]
    assert [*joined, sent, "reset", sent, "reset"] == client.said
    assert server.policy_version == 2 and server.sync_seconds > 0


def test_weights_that_do_not_arrive_end_the_run(
    start: Start, client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(trains=True)
    policy = torch.nn.Linear(3, 2)

    def refuse() -> None:
        raise TimeoutError("no rendezvous")

    monkeypatch.setattr(client, "fault", staticmethod(refuse))
    with pytest.raises(UserError, match=r"cannot be given the weights.*no rendezvous"):
        server.load(policy, policy_version=1)
    monkeypatch.setattr(client, "fault", staticmethod(lambda: time.sleep(5)))
    monkeypatch.setattr(vllm_server, "SYNC_SECONDS", 0.1)
    with pytest.raises(UserError, match="has not taken the weights"):
        server.load(policy, policy_version=1)
    os.killpg(leader(server), signal.SIGKILL)
    monkeypatch.setattr(vllm_server, "SYNC_SECONDS", 60.0)
    with pytest.raises(UserError, match="has ended"):
        server.load(policy, policy_version=1)
    assert server.policy_version is None


def test_settings_become_options(monkeypatch: pytest.MonkeyPatch) -> None:
    made = config()
    made.vllm.enable_auto_tool_choice, made.vllm.tool_call_parser = True, "hermes"
    made.vllm.extra = {"swap_space": 4, "enable_chunked_prefill": False, "rope": {"a": 1}}
    words = vllm_server._options(made, 0.4, trains=False)
    for word in ("--enable-auto-tool-choice", "--tool-call-parser=hermes", "--block-size=32"):
        assert word in words
    assert words[-3:] == ["--swap-space=4", "--no-enable-chunked-prefill", '--rope={"a": 1}']
    assert "--gpu-memory-utilization=0.4" in words and "--max-model-len=512" in words
    assert not any("weight-transfer" in word for word in words)
    assert '--weight-transfer-config={"backend": "nccl"}' in vllm_server._options(
        made, 0.4, trains=True
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("LOCAL_RANK", "0")
    variables = vllm_server._environment([1], trains=True)
    assert variables["CUDA_VISIBLE_DEVICES"] == "6" and "LOCAL_RANK" not in variables


def test_vllm_itself_serves_what_transformers_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from transformers import AutoModelForCausalLM

    from environments.game2048.env import Game2048
    from rl_experiments.config.schema import ScratchConfig
    from rl_experiments.models.tiny import scratch_model

    if not torch.cuda.is_available():
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    untrained = ScratchConfig(warmup_episodes=20, warmup_steps=0)
    path = str(scratch_model(untrained, Game2048(), seed=0))
    model = AutoModelForCausalLM.from_pretrained(path).eval()

    def expected(prompt: list[int], reply: list[int], temperature: float) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / temperature).log_softmax(-1)
        return [float(row[token]) for row, token in zip(logprobs, reply, strict=True)]

    log = tmp_path / "serve.log"
    made = config()
    made.vllm.enable_auto_tool_choice, made.vllm.tool_call_parser = True, "hermes"
    server = VllmServer(made, path, log=log, gpus=None, utilization=0.2, trains=False)
    try:
        source = ServerSampler(server, None, eos_token_id=EOS, max_new_tokens=6, temperature=0.7)
        source.begin(None)
        prompts = {key: [1, 5, 10 + key] for key in range(20)}
        for key, prompt in prompts.items():
            source.submit(Request(key=key, prompt_ids=prompt, stream=f"reply/{key}"))
        found = collect(source, len(prompts))
        for done in found:
            assert done.token_ids[-1] == EOS or len(done.token_ids) == 6
            there = expected(prompts[done.key], done.token_ids, 0.7)
            assert done.logprobs == pytest.approx(there, abs=0.02)
        sequences = [(prompts[done.key], done.token_ids) for done in found]
        for there, (prompt, reply) in zip(server.logprobs(sequences), sequences, strict=True):
            assert there == pytest.approx(expected(prompt, reply, 1.0), abs=0.02)
    finally:
        server.close()
