"""The process of `vllm serve`: its command line, its start, its faults and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rl_experiments.errors import UserError
from rl_experiments.inference import vllm_process
from rl_experiments.inference.sampler import Request
from rl_experiments.inference.vllm_process import serve_environment, serve_options
from rl_experiments.network import free_port
from tests.support.paths import CHECKOUT
from tests.support.vllm_stand_in import Start, config, group_of, is_gone, processes_of, sampler
from tests.support.vllm_stand_in import start as start


def test_a_server_that_dies_as_it_starts_is_one_line_with_the_reason(
    start: Start, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        start("dies")
    message = str(refused.value)
    assert len(message.splitlines()) == 1 and str(tmp_path / "serve.log") in message
    assert "it said: ValueError: no room on the GPU" in message


def test_a_server_that_never_answers_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_process, "START_SECONDS", 0.2)
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


@pytest.mark.slow
def test_another_port_is_tried_when_a_process_came_between(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = free_port()
    ports = iter([first, free_port()])
    monkeypatch.setattr(vllm_process, "free_port", lambda preferred=0: next(ports))
    assert not start("beaten", name=f"beaten-at-{first}").url.endswith(f":{first}")


@pytest.mark.slow
def test_another_runs_server_is_not_taken_for_its_own(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = start()
    port = int(theirs.url.rpartition(":")[2])
    ports = iter([port, free_port()])
    monkeypatch.setattr(vllm_process, "free_port", lambda preferred=0: next(ports))
    assert start("late").url != theirs.url


def test_close_ends_all_of_it_and_may_be_called_twice(start: Start) -> None:
    server = start()
    source, group = sampler(server), group_of(server)
    source.submit(Request(key=0, prompt_ids=[1000], stream="a"))
    assert len(processes_of(group)) == 3  # the guard, the server, its child
    server.close()
    server.close()
    assert not processes_of(group)


@pytest.mark.slow
def test_nothing_stays_when_the_training_process_is_killed(start: Start, tmp_path: Path) -> None:
    start().close()  # writes the program
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rl_experiments.inference import vllm_process\n"
        "from rl_experiments.inference.vllm_server import VllmServer\n"
        "from tests.support.vllm_stand_in import config\n"
        "vllm_process.serve_command = lambda path: [sys.executable, sys.argv[1], '']\n"
        "log = Path(sys.argv[1]).with_name('killed.log')\n"
        "made = VllmServer(config(), 'm', log=log, gpus=None, utilization=None, trains=False)\n"
        "print(made.process.group, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, str(parent), str(tmp_path / "stand_in.py")]
    root = str(CHECKOUT)
    path = os.pathsep.join([root, f"{root}/launchers", os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as killed:
        assert killed.stdout is not None
        group = int(killed.stdout.readline())
        assert len(processes_of(group)) == 3
        killed.send_signal(signal.SIGKILL)
    assert is_gone(group)


def test_settings_become_options(monkeypatch: pytest.MonkeyPatch) -> None:
    made = config()
    made.vllm.enable_auto_tool_choice, made.vllm.tool_call_parser = True, "hermes"
    made.vllm.extra = {"swap_space": 4, "enable_chunked_prefill": False, "rope": {"a": 1}}
    options = serve_options(made, 0.4, trains=False)
    for word in ("--enable-auto-tool-choice", "--tool-call-parser=hermes", "--block-size=32"):
        assert word in options
    assert options[-3:] == ["--swap-space=4", "--no-enable-chunked-prefill", '--rope={"a": 1}']
    assert "--gpu-memory-utilization=0.4" in options and "--max-model-len=512" in options
    assert not any("weight-transfer" in word for word in options)
    assert '--weight-transfer-config={"backend": "nccl"}' in serve_options(made, 0.4, trains=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("LOCAL_RANK", "0")
    variables = serve_environment([1], trains=True)
    assert variables["CUDA_VISIBLE_DEVICES"] == "6" and "LOCAL_RANK" not in variables
