"""Calls of functions on the stand-in for Modal: results, logs, retries, cancellation."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import modal
import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.plane_app import (
    SECONDS,
    do,
    elsewhere,
    new_app,
    plane,
    register,
)
from tests.support.paths import CHECKOUT

__all__ = ["plane"]  # a fixture


def test_spawned_calls_return_and_log(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app, max_containers=1)
    with app.run():
        calls = [function.spawn(do("greet", name=f"job {n}")) for n in range(3)]
        results = [call.get(timeout=SECONDS) for call in calls]
        for number, call in enumerate(calls):
            expected = [f"hello job {number}\n", f"warning job {number}\n"]
            assert sorted(entry.message for entry in call.logs.stream()) == expected
            assert sorted(entry.message for entry in call.logs.fetch()) == expected
            assert [entry.source for entry in call.logs.tail(1)] == ["stderr"]
            assert sorted(plane.call(call).log.splitlines(keepends=True)) == expected
    assert [result["of"]["with"]["name"] for result in results] == ["job 0", "job 1", "job 2"]
    assert len({result["pid"] for result in results}) == 1, "a warm container takes the next input"
    assert plane.apps[0].stopped


def test_containers_import_what_was_shipped(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    with app.run():
        result = function.spawn(do("greet", name="x")).get(timeout=SECONDS)
    assert Path(result["file"]).is_relative_to(plane.state.root)
    checkout = str(CHECKOUT)
    inside = [entry for entry in result["path"] if entry.startswith(checkout)]
    assert all("site-packages" in entry or "control_plane/image" in entry for entry in inside)


def test_what_a_body_raises_is_raised_here(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    with app.run():
        with pytest.raises(ValueError, match="no such luck"):
            function.spawn(do("fail")).get(timeout=SECONDS)
        with pytest.raises(SystemExit, match="3"):
            function.spawn(do("leave", status=3)).get(timeout=SECONDS)


def test_a_module_that_was_not_shipped_fails_the_input(plane: ControlPlane) -> None:
    app = new_app()
    body = importlib.import_module("plane_jobs").run
    function = app.function(name="train", image=modal.Image.debian_slim())(body)
    with app.run(), pytest.raises(ModuleNotFoundError, match="plane_jobs"):
        function.spawn(do("greet", name="x")).get(timeout=SECONDS)


def test_a_container_that_cannot_start_is_told(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    volume = modal.Volume.from_name("runs", create_if_missing=True)
    app = new_app()
    function = register(app, volumes={str(tmp_path / "file" / "volume"): volume})
    with app.run(), pytest.raises(modal.exception.RemoteError, match="could not run the container"):
        function.spawn(do("greet", name="x")).get(timeout=SECONDS)
    plane.errors.clear()


def test_a_client_in_another_process(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    with app.run():
        call_id = function.spawn(do("measure", text="abc")).object_id
        program = f"print(modal.FunctionCall.from_id('{call_id}').get()['length'])"
        assert elsewhere(plane, program) == 3


def test_failures_are_retried_on_the_server(plane: ControlPlane, tmp_path: Path) -> None:
    app = new_app()
    function = register(app, retries=modal.Retries(max_retries=2, initial_delay=0.0))
    with app.run():
        call = function.spawn(do("succeed_at", attempt=3, folder=str(tmp_path)))
        assert call.get(timeout=SECONDS)["attempt"] == 3
    endings = [attempt.ending for attempt in plane.call(call).attempts]
    assert endings == ["failure", "failure", "success"]


def test_timeout_and_pending_result(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app, timeout=3)
    with app.run():
        call = function.spawn(do("sleep", seconds=60))
        with pytest.raises(TimeoutError):
            call.get(timeout=0)
        with pytest.raises(modal.exception.FunctionTimeoutError):
            call.get(timeout=SECONDS)
        assert plane.call(call).log == "asleep\n"


@pytest.mark.parametrize("terminate", [False, True])
def test_cancel(plane: ControlPlane, terminate: bool) -> None:
    app = new_app()
    function = register(app, max_containers=1)
    with app.run():
        running, waiting = [function.spawn(do("sleep", seconds=60)) for _ in range(2)]
        plane.wait_running(running)
        for call in (waiting, running):
            call.cancel(terminate_containers=terminate)
            with pytest.raises(modal.exception.RemoteError):
                call.get(timeout=SECONDS)
        after = function.spawn(do("measure", text="still works"))
        assert after.get(timeout=SECONDS)["length"] == 11
    assert plane.call(waiting).attempts == []


def test_large_arguments_go_through_the_blob_store(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    text = "x" * (3 << 20)
    with app.run():
        assert function.spawn(do("measure", text="small")).get(timeout=SECONDS)["length"] == 5
        assert plane.rpcs["BlobCreate"] == 0
        result = function.spawn(do("measure", text=text)).get(timeout=SECONDS)
    assert result["text"] == text
    assert plane.rpcs["BlobCreate"] == 2, "the argument and the result"
    assert sorted(len(blob) > len(text) for blob in plane.blobs.contents.values()) == [True, True]


def test_max_containers_is_the_parallelism(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app, max_containers=2)
    with app.run():
        calls = [function.spawn(do("sleep", seconds=0.4)) for _ in range(4)]
        most = 0
        while any(plane.call(call).inputs[0].output is None for call in calls):
            most = max(most, plane.containers)
            time.sleep(0.02)
    assert most == 2


def test_options_of_a_deployed_function(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app, timeout=100)
    with app.run():
        bound = function.with_options(timeout=50, gpu="L4", retries=0)
        assert bound.spawn(do("measure", text="ab")).get(timeout=SECONDS)["length"] == 2
    assert [spec.timeout for spec in (plane.functions["train"],)] == [50]
    assert plane.functions["train"].gpus == ("L4",)
