"""Runs that go on without their launch: interrupted, detached, attached to, resumed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.support.launching import Client, json_lines, python_path, settings, wait_for
from tests.support.paths import LAUNCHER_APP

pytestmark = pytest.mark.slow

SLOW = ["steps=15", "seconds=0.2"]


def test_an_interrupt_ends_the_jobs(client: Client, plane: ControlPlane) -> None:
    """Ctrl-C says what stops; what is done and what is saved stay, and resume goes on with it."""
    launched = client.start("x=1,2", "seconds=0,0.2", "steps=10")
    for num in (0, 2):
        launched.wait(f"[{num}] done")
    for num in (1, 3):
        launched.wait(f"[{num}] step 3")
    launched.interrupt()
    launched.to_end(code=130)
    assert "Ending 2 jobs; what is saved is kept" in launched.out
    assert "resume toy" in launched.out
    assert client.states() == ["done", "cancelled", "done", "cancelled"]
    assert "Traceback" not in launched.err
    assert plane.apps[0].stopped
    wait_for(lambda: plane.containers == 0)
    for num in (1, 3):
        assert "interrupted at step" in (client.job(num) / "log.txt").read_text()
        assert re.search(rf"^ +{num} +cancelled \(Ctrl-C\)", launched.out, re.M)

    resumed = client.runs("resume", "toy")
    assert client.states() == ["done"] * 4
    assert not re.search(r"^\[[02]\]", resumed.out, re.M)
    for num in (1, 3):
        steps = [line["step"] for line in json_lines(client.job(num) / "metrics.jsonl")]
        assert steps == list(range(1, 11))
        assert f"[{num}] from step 0" not in resumed.out
    assert "The whole run" in resumed.out


def test_a_second_ctrl_c_leaves_jobs_that_do_not_end(client: Client, plane: ControlPlane) -> None:
    """With on_interrupt=leave the first Ctrl-C leaves, and the jobs go on."""
    deaf = client.start("do=stubborn", "steps=99", "seconds=0.2", "name=deaf")
    left = client.start(*SLOW, *settings(on_interrupt="leave"))
    deaf.wait("[0] step 2")
    deaf.interrupt()
    deaf.wait("Ending 1 job;")
    left.wait("[0] step 2")
    left.interrupt()
    deaf.interrupt()
    for program in (deaf, left):
        program.to_end(code=130)
    assert "asked 1 job to end" in deaf.line
    assert "Left 1 job running" in left.line and "runs attach toy" in left.line
    assert client.states() == ["-"]

    attached = client.runs("runs", "attach", "toy")
    assert client.states() == ["done"] and "[0] step 15" in attached.out
    assert len(plane.call(client.call()).attempts) == 1


def test_ctrl_c_on_a_terminal_asks_what_to_do(client: Client) -> None:
    """The answers are to keep watching, to leave the jobs running, and to end them."""
    keyboard, terminal = os.openpty()
    launched = client.start("steps=99", "seconds=0.1", stdin=terminal)
    for times, (step, answer) in enumerate(((2, "g"), (10, "l")), start=1):
        launched.wait(f"[0] step {step}\n")
        launched.interrupt()
        launched.wait("l: leave them", times)
        os.write(keyboard, f"{answer}\n".encode())
    launched.to_end(code=130)
    os.close(keyboard)
    os.close(terminal)
    assert "Left 1 job" in launched.line
    assert client.states() == ["-"]

    attached = client.start_runs("runs", "attach", "toy")
    attached.wait("[0] step 20")
    attached.interrupt()
    attached.to_end(code=130)
    assert client.states() == ["cancelled"]


def test_a_detached_run_is_followed_by_other_processes(
    client: Client, plane: ControlPlane, tmp_path: Path
) -> None:
    """The launch ends as soon as the jobs are queued; a copy of its folder can be attached to."""
    longest = settings(detach=True, timeout=200_000, retries=2)
    launched = client.launch("x=1,2", *SLOW, *longest)
    assert "2 jobs queued on Modal" in launched.out and "runs attach toy" in launched.out
    assert client.states() == ["-", "-"] and plane.state.deployed("toy-me-toy")
    assert (plane.functions["none"].timeout, plane.functions["none"].retries) == (86400, 4)
    client.wait_step(2, 1)
    assert "2 launched" in client.runs("runs").out
    assert "step 2" in client.runs("runs", "logs", "toy", "1").out
    client.runs("runs", "pull", "toy", "1", "--checkpoints")
    assert (client.job(1) / "checkpoints/2").exists()

    elsewhere = tmp_path / "another machine"
    shutil.copytree(client.folder / "runs/toy", elsewhere / "toy")
    attached = client.runs("runs", "attach", str(elsewhere / "toy"))
    assert len(re.findall(r"^ +\d +done", attached.out, re.M)) == 2
    assert (elsewhere / "toy/1/metrics.jsonl").exists()
    assert plane.apps[0].stopped
    again = client.runs("runs", "attach", "toy")
    assert len(re.findall(r"^ +\d +done", again.out, re.M)) == 2
    assert client.states() == ["done", "done"] and "2 done" in client.runs("runs").out


def test_jobs_go_on_when_their_launch_is_killed(client: Client, plane: ControlPlane) -> None:
    """Another process attaches to them and gets all results."""
    launched = client.start("do=train,fail", *SLOW)
    launched.wait("[0] step 2")
    launched.kill()
    attached = client.runs("runs", "attach", "toy", code=1)
    assert client.states() == ["done", "failed"]
    assert len(re.findall(r"^ +\d +(?:done|failed)", attached.out, re.M)) == 2
    assert "[1] ValueError: no such luck with x=0" in attached.out
    assert [len(plane.call(client.call(num)).attempts) for num in range(2)] == [1, 1]


def test_resume_runs_what_did_not_finish(client: Client, plane: ControlPlane) -> None:
    """The configuration is that of the launch, whatever the files say now."""
    app = client.folder / "app"
    shutil.copytree(LAUNCHER_APP, app)
    client.variables["PYTHONPATH"] = python_path(app)
    switch = client.folder / "fail"
    switch.touch()
    client.launch("do=fail_while_file_exists", "x=0,1,2,3", f"text={switch}", code=1)
    assert client.states() == ["done", "failed", "done", "failed"]
    kept = [client.results()[num] for num in (0, 2)]
    calls = [client.call(num) for num in range(4)]

    switch.unlink()
    config = app / "toy/conf/config.yaml"
    config.write_text(config.read_text().replace("steps: 3", "steps: 5"))
    resumed = client.runs("resume", "toy")
    assert client.states() == ["done"] * 4
    assert [client.results()[num] for num in (0, 2)] == kept
    assert [client.call(num) == calls[num] for num in range(4)] == [True, False, True, False]
    assert [line["step"] for line in json_lines(client.job(3) / "metrics.jsonl")] == [1, 2, 3]
    assert not (client.job(3) / "error.txt").exists()
    whole = resumed.out.partition("The whole run")[2]
    assert re.findall(r"^ +\d +done +(\d)", whole, re.M) == ["0", "1", "2", "3"]
    assert "Every job of this run is done" in client.runs("resume", "toy").out
