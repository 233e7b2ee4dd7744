"""The stand-in for Modal's control plane, under the released client and container."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
from grpclib import Status

from tests.fakes.control_plane import ControlPlane, Settings
from tests.support.paths import CHECKOUT

JOBS = Path(__file__).parent / "control_plane" / "jobs"


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    monkeypatch.syspath_prepend(str(JOBS))
    settings = Settings(grace=1.0, container_environment={"OMP_NUM_THREADS": "1"})
    with ControlPlane(tmp_path / "plane", settings) as plane:
        yield plane
        assert plane.errors == []


def new_image() -> Any:
    image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("trl==1.16.0")
    return image.env({"COLOUR": "dark blue"}).add_local_python_source("plane_jobs")


def register(app: Any, image: Any = None, **options: Any) -> Any:
    image = image or new_image()
    return app.function(name="train", image=image, **options)(
        importlib.import_module("plane_jobs").run
    )


def new_app() -> Any:
    return modal.App(include_source=False)


def do(what: str, **arguments: Any) -> dict[str, Any]:
    return {"do": what, "with": arguments}


def elsewhere(plane: ControlPlane, program: str) -> Any:
    """What a program in another process prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, modal\n{program}"],
        env={**os.environ, **plane.environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.05)


def test_spawned_calls_return_and_log(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app, max_containers=1)
    with app.run():
        calls = [function.spawn(do("greet", name=f"job {n}")) for n in range(3)]
        results = [call.get(timeout=20) for call in calls]
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
        result = function.spawn(do("greet", name="x")).get(timeout=20)
    assert Path(result["file"]).is_relative_to(plane.state.root)
    checkout = str(CHECKOUT)
    inside = [entry for entry in result["path"] if entry.startswith(checkout)]
    assert all("site-packages" in entry or "control_plane/image" in entry for entry in inside)


def test_resources_are_recorded(plane: ControlPlane) -> None:
    app = new_app()
    volume = modal.Volume.from_name("runs", create_if_missing=True, version=2)
    register(
        app,
        gpu=["H100:8", "A100-80GB"],
        cpu=(2.0, 4.0),
        memory=4096,
        timeout=3600,
        retries=modal.Retries(max_retries=3, initial_delay=1.0),
        region="eu",
        max_containers=2,
        volumes={"/vol/runs": volume},
    )
    with app.run():
        pass
    spec = plane.functions["train"]
    assert spec.implementation == "plane_jobs:run"
    assert spec.gpus == ("H100:8", "A100-80GB")
    assert (spec.cpu, spec.memory, spec.timeout) == ((2.0, 4.0), 4096, 3600)
    assert (spec.retries, spec.max_containers, spec.regions) == (3, 2, ("eu",))
    assert spec.volumes == {"/vol/runs": "runs"}
    assert any("trl==1.16.0" in command for command in spec.image.commands)
    assert spec.image.environment["COLOUR"] == "dark blue"


def test_secrets_reach_the_container_and_only_their_names_are_kept(plane: ControlPlane) -> None:
    plane.add_secret("wandb", {"WANDB_API_KEY": "only-in-the-container"})
    app = new_app()
    function = register(app, secrets=[modal.Secret.from_name("wandb")])
    with app.run():
        call = function.spawn(do("show", variable="WANDB_API_KEY"))
        assert call.get(timeout=20)["value"] == "only-in-the-container"
        colour = function.spawn(do("show", variable="COLOUR"))
        assert colour.get(timeout=20)["value"] == "dark blue"
    assert plane.functions["train"].secrets == ("wandb",)
    assert plane.secrets == {"wandb": ("WANDB_API_KEY",)}
    registered = (plane.state.functions, plane.state.images, plane.state.secrets, plane.apps)
    assert "only-in-the-container" not in repr(registered)


def test_what_a_body_raises_is_raised_here(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    with app.run():
        with pytest.raises(ValueError, match="no such luck"):
            function.spawn(do("fail")).get(timeout=20)
        with pytest.raises(SystemExit, match="3"):
            function.spawn(do("leave", status=3)).get(timeout=20)


def test_a_crash_loop_fails_the_input_of_an_ephemeral_app(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    with app.run():
        call = function.spawn(do("die"))
        with pytest.raises(modal.exception.RemoteError, match="crashed"):
            call.get(timeout=30)
    assert [attempt.ending for attempt in plane.call(call).attempts] == ["crashed"] * 3


def test_a_module_that_was_not_shipped_fails_the_input(plane: ControlPlane) -> None:
    app = new_app()
    body = importlib.import_module("plane_jobs").run
    function = app.function(name="train", image=modal.Image.debian_slim())(body)
    with app.run(), pytest.raises(ModuleNotFoundError, match="plane_jobs"):
        function.spawn(do("greet", name="x")).get(timeout=30)


def test_a_container_that_cannot_start_is_told(plane: ControlPlane, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    volume = modal.Volume.from_name("runs", create_if_missing=True)
    app = new_app()
    function = register(app, volumes={str(tmp_path / "file" / "volume"): volume})
    with app.run(), pytest.raises(modal.exception.RemoteError, match="could not run the container"):
        function.spawn(do("greet", name="x")).get(timeout=30)
    plane.errors.clear()


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
        calls[0].get(timeout=5)
    wait_for(lambda: plane.containers == 0)


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
        assert call.get(timeout=20)["attempt"] == 3
    endings = [attempt.ending for attempt in plane.call(call).attempts]
    assert endings == ["failure", "failure", "success"]


def test_timeout_and_pending_result(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app, timeout=1)
    with app.run():
        call = function.spawn(do("sleep", seconds=60))
        with pytest.raises(TimeoutError):
            call.get(timeout=0)
        with pytest.raises(modal.exception.FunctionTimeoutError):
            call.get(timeout=20)
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
                call.get(timeout=5)
        after = function.spawn(do("measure", text="still works"))
        assert after.get(timeout=20)["length"] == 11
    assert plane.call(waiting).attempts == []


def test_a_detached_call_is_found_again_by_its_id(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    app.deploy(name="sweep-1")
    call_id = function.spawn(do("greet", name="later")).object_id

    with modal.Client.from_credentials("ak-other", "as-other") as fresh:
        call = modal.FunctionCall.from_id(call_id, client=fresh)
        assert call.get(timeout=20)["of"]["with"] == {"name": "later"}
        assert sorted(e.message for e in call.logs.stream()) == ["hello later\n", "warning later\n"]
    again = modal.Function.from_name("sweep-1", "train")
    assert again.spawn(do("measure", text="abc")).get(timeout=20)["length"] == 3

    first = plane.apps[0].id
    register(redeployed := new_app(), timeout=7)
    redeployed.deploy(name="sweep-1")
    assert [app.id for app in plane.apps] == [first]
    assert plane.functions["train"].timeout == 7

    pending = again.spawn(do("sleep", seconds=60))
    modal.App.lookup("sweep-1").stop()
    with pytest.raises(modal.exception.RemoteError):
        pending.get(timeout=5)
    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("sweep-1")
    with pytest.raises(modal.exception.Error, match="stopped"):
        again.spawn(do("measure", text="abc"))


def test_preemption_runs_the_same_input_again(plane: ControlPlane, tmp_path: Path) -> None:
    app = new_app()
    volume = modal.Volume.from_name("runs", create_if_missing=True)
    mounted = tmp_path / "mounted" / "runs"
    function = register(app, volumes={str(mounted): volume})
    with app.run():
        call = function.spawn(do("checkpoint", folder=str(mounted), seconds=60))
        wait_for(lambda: "ready" in plane.call(call).log)
        plane.preempt(call)
        assert call.get(timeout=20)["resumed"] == "on interrupt"
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
        assert call.get(timeout=20)["again"]
    assert [a.ending for a in plane.call(call).attempts] == ["crashed", "success"]


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
            call.get(timeout=30)
    endings = [[a.ending for a in plane.call(call).attempts] for call in calls]
    assert all(ending[-1] == "success" for ending in endings)
    assert 0 < sum(ending.count("preempted") for ending in endings) < 12


def test_large_arguments_go_through_the_blob_store(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app)
    text = "x" * (3 << 20)
    with app.run():
        assert function.spawn(do("measure", text="small")).get(timeout=20)["length"] == 5
        assert plane.rpcs["BlobCreate"] == 0
        result = function.spawn(do("measure", text=text)).get(timeout=20)
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


def test_rates_are_the_ones_set(plane: ControlPlane) -> None:
    plane.set_rates({"gpu": "0.001"})
    assert str(modal.Workspace.from_context().billing.rates()["gpu"]) == "0.001"


def test_options_of_a_deployed_function(plane: ControlPlane) -> None:
    app = new_app()
    function = register(app, timeout=100)
    with app.run():
        bound = function.with_options(timeout=50, gpu="L4", retries=0)
        assert bound.spawn(do("measure", text="ab")).get(timeout=20)["length"] == 2
    assert [spec.timeout for spec in (plane.functions["train"],)] == [50]
    assert plane.functions["train"].gpus == ("L4",)


@pytest.mark.parametrize("output", [False, True])
def test_an_image_that_cannot_be_built(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str], output: bool
) -> None:
    plane.break_images(containing="trl==", message="pip gave up")
    app = new_app()
    register(app)
    failure = pytest.raises(modal.exception.ImageBuildError, match=r"im-\w+ failed.*\npip gave up")
    with contextlib.ExitStack() as stack:
        stack.enter_context(failure)
        if output:
            stack.enter_context(modal.enable_output())
        stack.enter_context(app.run())
    assert ("No matching distribution found for trl==\n" in capsys.readouterr().out) is output
    assert plane.functions == {}
    assert plane.apps[0].stopped

    other = new_app()
    body = importlib.import_module("plane_jobs").run
    other.function(name="other", image=modal.Image.debian_slim())(body)
    with other.run():
        assert list(plane.functions) == ["other"]


@pytest.mark.parametrize("gpu", ["H1000", "A100-70GB", "H100:9", "A10G:8", ["H100", "h1000:2"]])
def test_gpus_that_modal_does_not_have(plane: ControlPlane, gpu: str | list[str]) -> None:
    app = new_app()
    register(app, gpu=gpu)
    wrong = (gpu if isinstance(gpu, str) else gpu[-1]).upper().removesuffix(":2")
    with (
        pytest.raises(modal.exception.InvalidError, match=f"{wrong} is not a valid GPU"),
        app.run(),
    ):
        pass
    assert plane.functions == {}


def test_gpus_that_modal_has(plane: ControlPlane) -> None:
    app = new_app()
    choices = ["h100!", "A100-80gb:8", "A10:4", "rtx-pro-6000", "B200+:2"]
    function = register(app, gpu=choices)
    with app.run():
        assert plane.functions["train"].gpus == tuple(choice.upper() for choice in choices)
        with pytest.raises(modal.exception.InvalidError, match="TPU is not a valid GPU type"):
            function.with_options(gpu="tpu").spawn(do("measure", text="ab"))


@pytest.mark.parametrize("copy", [False, True])
def test_local_files_reach_the_container(plane: ControlPlane, tmp_path: Path, copy: bool) -> None:
    folder = tmp_path / "conf"
    texts = {"a.yaml": "a: 1", "deep/b.txt": "b", "deep/c.pyc": "no", "empty": "", "run.sh": "#!"}
    texts["large.bin"] = "x" * (5 << 20)  # goes through the blob store
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "run.sh").chmod(0o755)
    image = modal.Image.debian_slim().add_local_dir(
        folder, "/root/conf", ignore=["**/*.pyc"], copy=copy
    )
    image = image.add_local_file(folder / "a.yaml", "/opt/", copy=copy)
    if copy:  # the client sends the mounts of containers in no order, those of layers in theirs
        image = image.add_local_file(folder / "deep/b.txt", "/root/conf/run.sh", copy=True)
        image = image.run_commands("true")
    app = new_app()
    function = register(app, image.add_local_python_source("plane_jobs"))
    names = [f"/root/conf/{name}" for name in texts]
    with app.run():
        result = function.spawn(do("look", files=[*names, "/opt/a.yaml"])).get(timeout=20)
    expected = {f"/root/conf/{name}": text for name, text in texts.items()}
    del expected["/root/conf/deep/c.pyc"]
    expected |= {"/opt/a.yaml": "a: 1", "/root/conf/run.sh": "b" if copy else "#!"}
    assert result["texts"] == expected


def test_modes_of_local_files(plane: ControlPlane, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh")
    script.chmod(0o555)
    app = new_app()
    function = register(app, new_image().add_local_file(script, "/root/run.sh"))
    with app.run():
        result = function.spawn(do("look", files=["/root/run.sh"])).get(timeout=20)
    assert result["modes"] == {"/root/run.sh": 0o555}


def test_all_that_was_received_but_secrets(plane: ControlPlane, tmp_path: Path) -> None:
    def where(canary: str) -> set[str]:
        return {kind for kind, content in plane.received() if canary.encode() in content}

    (tmp_path / "file").write_text("canary-file")
    volume = modal.Volume.from_name("runs", create_if_missing=True)
    mounted = tmp_path / "mounted" / "runs"
    app = new_app()
    function = register(
        app,
        new_image().add_local_file(tmp_path / "file", "/root/file"),
        secrets=[modal.Secret.from_dict({"KEY": "canary-secret", "OTHER": "canary-quiet"})],
        volumes={str(mounted): volume},
    )
    with app.run():
        function.spawn(do("measure", text="canary-argument")).get(timeout=20)
        function.spawn(do("measure", text="canary-blob" + "x" * (3 << 20))).get(timeout=20)
        assert where("canary-secret") == set()
        call = function.spawn(do("echo", variable="KEY"))
        call.get(timeout=20)
        assert [entry.message for entry in call.logs.stream()] == ["canary-secret\n"]
        files = {"file": "canary-volume"}
        function.spawn(do("write", folder=str(mounted), files=files)).get(timeout=20)
        assert b"".join(volume.read_file("file")) == b"canary-volume"
    assert where("canary-argument") == {"FunctionMap", "FunctionPutOutputs"}
    assert where("canary-blob") == {"blob"}
    assert where("canary-file") == {"MountPutFile", "file"}
    assert where("canary-secret") == {"log"}
    assert where("canary-quiet") == set()
    assert where("OTHER") >= {"SecretGetOrCreate"}, "the names of variables are kept"
    assert "volume" in where("canary-volume") and "blob" not in where("canary-volume")
    assert where(plane.apps[0].id) >= {"AppGetLogs", "AppPublish"}, "streamed answers' requests too"


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
        call.get(timeout=20)
        plane.refuse("AppGetLogs", Status.UNAVAILABLE)
        assert len(list(call.logs.stream())) == 2
    assert plane.rpcs["AppGetLogs"] >= 2
    with pytest.raises(ValueError, match="AppMake"):
        plane.refuse("AppMake", Status.UNAVAILABLE)


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
        call.get(timeout=20)
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
        pending.get(timeout=5)
    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("sweep")
    assert modal.App.lookup(app_id).app_id == app_id, "a stopped app is known by its id"


@pytest.mark.parametrize("by", ["name", "id"])
def test_the_command_line_stops_an_app(plane: ControlPlane, by: str) -> None:
    app = new_app()
    register(app)
    app.deploy(name="sweep")
    identifier = "sweep" if by == "name" else plane.apps[0].id
    command = [sys.executable, "-m", "modal", "app", "stop", "-y", identifier]
    subprocess.run(command, env={**os.environ, **plane.environment}, check=True)
    assert plane.apps[0].stopped
    assert subprocess.run(command, env={**os.environ, **plane.environment}).returncode == 1


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_a_container_wrote(plane: ControlPlane, tmp_path: Path, version: int) -> None:
    volume = modal.Volume.from_name("runs", create_if_missing=True, version=version)
    mounted = tmp_path / "mounted" / "runs"
    files = {"run-1/metrics.jsonl": "{}", "run-1/model/weights": "w" * (9 << 20), "empty": ""}
    app = new_app()
    function = register(app, volumes={str(mounted): volume})
    with app.run():
        function.spawn(do("write", folder=str(mounted), files=files)).get(timeout=20)
    volume = modal.Volume.from_name("runs")
    entries = volume.listdir("/", recursive=True)
    names = {entry.path for entry in entries if entry.type.name == "FILE"}
    assert names == set(files)
    assert {entry.path for entry in entries} == names | {"run-1", "run-1/model"}
    assert [entry.path for entry in volume.iterdir("/", recursive=False)] == ["empty", "run-1"]
    listed = {entry.path: entry.size for entry in volume.iterdir("run-1")}
    assert listed["run-1/metrics.jsonl"] == 2
    assert [entry.path for entry in volume.listdir("run-1/metrics.jsonl")] == list(files)[:1]
    for name, text in files.items():
        assert b"".join(volume.read_file(name)) == text.encode()
    for missing in ("run-2", "run-1/metrics.jsonl/x", "run-1/model"):
        with pytest.raises(FileNotFoundError):
            list(volume.read_file(missing))
    with pytest.raises(modal.exception.NotFoundError, match="run-2"):
        volume.listdir("run-2")


def test_a_volume_that_does_not_exist(plane: ControlPlane) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="nowhere"):
        modal.Volume.from_name("nowhere").hydrate()
    app = new_app()
    register(app, volumes={"/vol/runs": modal.Volume.from_name("nowhere")})
    with pytest.raises(modal.exception.NotFoundError, match="nowhere"), app.run():
        pass
    assert plane.volumes == {}
