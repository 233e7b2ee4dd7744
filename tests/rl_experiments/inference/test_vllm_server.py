"""The server engine against a stand-in for `vllm serve`: requests, weights, faults."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_experiments.errors import UserError
from rl_experiments.inference import vllm_server
from rl_experiments.inference.sampler import Request
from rl_experiments.inference.vllm_server import ServerSampler, VllmServer
from tests.support.vllm_stand_in import EOS, Start, collect, config, group_of, is_gone, sampler
from tests.support.vllm_stand_in import start as start


@pytest.mark.slow
def test_replies_given_out_of_order_go_to_their_requests(start: Start) -> None:
    source = sampler(start("late"), version=7)
    waits = {0: 60, 1: 30, 2: 0}
    for key, wait in waits.items():
        source.submit(Request(key=key, prompt_ids=[wait, 10 * key], stream=f"reply/{key}"))
    source.engine.policy_version = 8  # of a turn that comes later
    completions = collect(source, 3)
    assert [completion.key for completion in completions] == [2, 1, 0]
    for completion in completions:
        assert completion.token_ids == [10 * completion.key + 1, EOS]
        assert completion.logprobs == [-0.5, -0.25] and completion.policy_version == 7
    assert source.metrics()["engine/cache_use"] == 0.25
    source.end()
    assert source.collect() == []
    assert source.engine.logprobs([([9, 1], [2, 3]), ([5], [6])]) == [[-0.2, -0.3], [-0.6]]


@pytest.mark.slow
def test_a_busy_server_is_asked_again(start: Start) -> None:
    source = sampler(start())
    source.submit(Request(key=0, prompt_ids=[503, 4], stream="a"))
    assert collect(source, 1)[0].token_ids == [5, EOS]


def test_a_refused_request_is_reported_at_once(start: Start) -> None:
    source = sampler(start())
    source.submit(Request(key=0, prompt_ids=[400], stream="a"))
    with pytest.raises(UserError, match=r"answers 400: .*too long.*serve\.log"):
        collect(source, 1)


@pytest.mark.slow
def test_a_server_that_dies_midway_ends_the_rollout_and_leaves_nothing(start: Start) -> None:
    server = start()
    source, group = sampler(server), group_of(server)
    for key in range(20):
        source.submit(Request(key=key, prompt_ids=[1000 if key else 666], stream="a"))
    with pytest.raises(UserError, match=r"has ended; it said: RuntimeError: CUDA error"):
        collect(source, 20)
    assert is_gone(group)
    with pytest.raises(UserError, match="has ended"):
        server.logprobs([([1], [2])])


class Client:
    """A stand-in for TRL's client that records what it is asked to do."""

    calls: list[Any]
    fault: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, base_url: str, group_port: int) -> None:
        Client.calls = [base_url]

    def init_communicator(self, device: torch.device) -> None:
        self.calls.append(device)

    def update_named_params(self, announced: Any, weights: Any) -> None:
        self.fault()
        sent = [
            (name, str(weight.dtype).removeprefix("torch."), list(weight.shape))
            for name, weight in weights
        ]
        assert sent == announced
        self.calls.append(sent)

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")


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
    assert [*joined, sent, "reset", sent, "reset"] == client.calls
    assert server.policy_version == 2 and server.sync_seconds > 0


@pytest.mark.slow
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
    released = threading.Event()
    monkeypatch.setattr(client, "fault", staticmethod(lambda: released.wait(60)))
    monkeypatch.setattr(vllm_server, "SYNC_SECONDS", 0.1)
    with pytest.raises(UserError, match="has not taken the weights"):
        server.load(policy, policy_version=1)
    os.killpg(group_of(server), signal.SIGKILL)
    monkeypatch.setattr(vllm_server, "SYNC_SECONDS", 60.0)
    with pytest.raises(UserError, match="has ended"):
        server.load(policy, policy_version=1)
    released.set()
    assert server.policy_version is None


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
        completions = collect(source, len(prompts))
        for done in completions:
            assert done.token_ids[-1] == EOS or len(done.token_ids) == 6
            there = expected(prompts[done.key], done.token_ids, 0.7)
            assert done.logprobs == pytest.approx(there, abs=0.02)
        sequences = [(prompts[done.key], done.token_ids) for done in completions]
        for there, (prompt, reply) in zip(server.logprobs(sequences), sequences, strict=True):
            assert there == pytest.approx(expected(prompt, reply, 1.0), abs=0.02)
    finally:
        server.close()
