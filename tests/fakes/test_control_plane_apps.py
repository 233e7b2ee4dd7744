"""Apps on the stand-in for Modal: deployed, looked up and stopped."""

from __future__ import annotations

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
    run_python,
)

__all__ = ["plane"]  # a fixture


def test_a_detached_call_is_found_again_by_its_id(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    app.deploy(name="sweep-1")
    call_id = function.spawn(do("greet", name="later")).object_id

    with modal.Client.from_credentials("ak-other", "as-other") as fresh:
        call = modal.FunctionCall.from_id(call_id, client=fresh)
        assert call.get(timeout=SECONDS)["of"]["with"] == {"name": "later"}
        assert sorted(e.message for e in call.logs.stream()) == ["hello later\n", "warning later\n"]
    again = modal.Function.from_name("sweep-1", "train")
    assert again.spawn(do("measure", text="abc")).get(timeout=SECONDS)["length"] == 3

    first = plane.apps[0].id
    register(redeployed := new_app(), timeout=7)
    redeployed.deploy(name="sweep-1")
    assert [app.id for app in plane.apps] == [first]
    assert plane.functions["train"].timeout == 7

    pending = again.spawn(do("sleep", seconds=60))
    modal.App.lookup("sweep-1").stop()
    with pytest.raises(modal.exception.RemoteError):
        pending.get(timeout=SECONDS)
    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("sweep-1")
    with pytest.raises(modal.exception.Error, match="stopped"):
        again.spawn(do("measure", text="abc"))


def test_apps_by_name_and_id_from_another_process(plane: ControlPlane) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="nowhere"):
        modal.App.lookup("nowhere")
    app = new_app()
    function = register(app)
    app.deploy(name="sweep")
    app_id = plane.apps[0].id
    again = new_app()
    register(again)
    again.deploy(name="sweep")
    assert [app.id for app in plane.apps] == [app_id], "the name's app is used again"
    assert elsewhere(plane, "print(json.dumps(modal.App.lookup('sweep').app_id))") == app_id

    calls = [function.spawn(do("greet", name=f"job {n}")) for n in range(2)]
    for call in calls:
        call.get(timeout=SECONDS)
    program = f"""
entries = modal.App.lookup({app_id!r}).logs.stream(timeout=2)
print(json.dumps([[entry.message, entry.source, entry.context_ids] for entry in entries]))
"""
    seen = elsewhere(plane, program)
    for number, call in enumerate(calls):
        own = [(text, source) for text, source, ids in seen if call.object_id in ids]
        assert sorted(own) == [
            (f"hello job {number}\n", "stdout"),
            (f"warning job {number}\n", "stderr"),
        ]

    pending = function.spawn(do("sleep", seconds=60))
    plane.wait_running(pending)
    assert elsewhere(plane, "print(json.dumps(modal.App.lookup('sweep').stop()))") is None
    assert plane.apps[0].stopped
    with pytest.raises(modal.exception.RemoteError):
        pending.get(timeout=SECONDS)
    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("sweep")
    assert modal.App.lookup(app_id).app_id == app_id, "a stopped app is known by its id"


@pytest.mark.parametrize("by", ["name", "id"])
def test_the_command_line_stops_an_app(plane: ControlPlane, by: str) -> None:
    app = new_app()
    register(app)
    app.deploy(name="sweep")
    identifier = "sweep" if by == "name" else plane.apps[0].id
    command = ["-m", "modal", "app", "stop", "-y", identifier]
    assert run_python(plane, *command)[0] == 0
    assert plane.apps[0].stopped
    assert run_python(plane, *command)[0] == 1
