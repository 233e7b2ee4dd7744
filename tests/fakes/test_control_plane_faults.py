"""What goes wrong on the stand-in for Modal: crashes, preemptions and refused requests."""

from __future__ import annotations

import os
from pathlib import Path

import modal
import pytest
from grpclib import Status

from tests.fakes.control_plane import ControlPlane, Settings
from tests.fakes.plane_app import (
    JOBS,
    SECONDS,
    do,
    gone,
    new_app,
    plane,
    register,
    wait_for,
)

__all__ = ["plane"]  # a fixture


def test_a_crash_loop_fails_the_input_of_an_ephemeral_app(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    with app.run():
        call = function.spawn(do("die"))
        with pytest.raises(modal.exception.RemoteError, match="crashed"):
            call.get(timeout=SECONDS)
    assert [attempt.ending for attempt in plane.call(call).attempts] == ["crashed"] * 3


def test_an_interrupt_ends_an_ephemeral_app(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    calls = []
    with app.run():  # swallows the interrupt
        calls.append(function.spawn(do("sleep", seconds=60)))
        plane.wait_running(calls[0])
        raise KeyboardInterrupt
    assert plane.apps[0].stopped
    with pytest.raises(modal.exception.RemoteError):
        calls[0].get(timeout=SECONDS)
    wait_for(lambda: plane.containers == 0)


def test_preemption_runs_the_same_input_again(plane: ControlPlane, tmp_path: Path) -> None:
    app = new_app()
    volume = modal.Volume.from_name("runs", create_if_missing=True)
    mounted = tmp_path / "mounted" / "runs"
    function = register(app, volumes={str(mounted): volume})
    with app.run():
        call = function.spawn(do("checkpoint", folder=str(mounted), seconds=60))
        wait_for(lambda: "ready" in plane.call(call).log)
        plane.preempt(call)
        assert call.get(timeout=SECONDS)["resumed"] == "on interrupt"
    first, second = plane.call(call).attempts
    assert (first.ending, second.ending) == ("preempted", "success")
    assert first.task_id != second.task_id
    assert (plane.volumes["runs"].folder / "saved").exists()
    assert plane.volumes["runs"].commits >= 1
    assert [(entry.path, entry.size) for entry in volume.listdir("/")] == [("saved", 12)]
    assert b"".join(volume.read_file("saved")) == b"on interrupt"


def test_a_crash_runs_the_same_input_again(plane: ControlPlane, tmp_path: Path) -> None:
    app = new_app()
    function = register(app)
    with app.run():
        call = function.spawn(do("stubborn", folder=str(tmp_path)))
        wait_for(lambda: (tmp_path / "again").exists())
        plane.crash(call)
        assert call.get(timeout=SECONDS)["again"]
    assert [a.ending for a in plane.call(call).attempts] == ["crashed", "success"]


@pytest.mark.slow
def test_nothing_outlives_the_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(JOBS))
    before = dict(os.environ)
    with ControlPlane(tmp_path / "plane", Settings(grace=0.5)) as plane:
        app = new_app()
        function = register(app)
        app.deploy(name="left")
        function.spawn(do("stubborn", folder=str(tmp_path)))
        child = tmp_path / "child"
        wait_for(lambda: child.exists() and child.read_text())
        function.spawn(do("sleep", seconds=60))
    assert plane.containers == 0
    wait_for(lambda: gone(int(child.read_text())))
    assert dict(os.environ) == before


def test_a_share_of_attempts_is_preempted(plane: ControlPlane) -> None:
    plane.preempt_share(0.5, seed=0, after=(0.1, 0.2))
    app = new_app()
    function = register(app, max_containers=2)
    with app.run():
        calls = [function.spawn(do("sleep", seconds=0.5)) for _ in range(4)]
        for call in calls:
            call.get(timeout=SECONDS)
    endings = [[a.ending for a in plane.call(call).attempts] for call in calls]
    assert all(ending[-1] == "success" for ending in endings)
    assert 0 < sum(ending.count("preempted") for ending in endings) < 12


def test_refused_calls(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    plane.refuse("AppCreate", Status.UNAUTHENTICATED, "Token missing")
    with pytest.raises(modal.exception.AuthError, match="Token missing"), app.run():
        pass
    plane.refuse("FunctionCreate", Status.UNAVAILABLE, "try again", times=2)
    with app.run():
        assert plane.rpcs["FunctionCreate"] == 3, "the client tried again"
        plane.refuse("FunctionMap", Status.UNAVAILABLE, "down", times=100)
        with pytest.raises(modal.exception.ServiceError, match="down"):
            function.spawn(do("measure", text="ab"))
        plane.refuse("FunctionMap", Status.UNAVAILABLE, times=0)
        call = function.spawn(do("greet", name="x"))
        call.get(timeout=SECONDS)
        plane.refuse("AppGetLogs", Status.UNAVAILABLE)
        assert len(list(call.logs.stream())) == 2
    assert plane.rpcs["AppGetLogs"] >= 2
    with pytest.raises(ValueError, match="AppMake"):
        plane.refuse("AppMake", Status.UNAVAILABLE)
