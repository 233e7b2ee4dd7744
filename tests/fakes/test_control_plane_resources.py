"""Images, GPUs, secrets, files and volumes on the stand-in for Modal."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

import modal
import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.plane_app import (
    SECONDS,
    do,
    new_app,
    new_image,
    plane,
    register,
)

__all__ = ["plane"]  # a fixture


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
        assert call.get(timeout=SECONDS)["value"] == "only-in-the-container"
        colour = function.spawn(do("show", variable="COLOUR"))
        assert colour.get(timeout=SECONDS)["value"] == "dark blue"
    assert plane.functions["train"].secrets == ("wandb",)
    assert plane.secrets == {"wandb": ("WANDB_API_KEY",)}
    registered = (plane.state.functions, plane.state.images, plane.state.secrets, plane.apps)
    assert "only-in-the-container" not in repr(registered)


def test_rates_are_the_ones_set(plane: ControlPlane) -> None:
    plane.set_rates({"gpu": "0.001"})
    assert str(modal.Workspace.from_context().billing.rates()["gpu"]) == "0.001"


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
        result = function.spawn(do("look", files=[*names, "/opt/a.yaml"])).get(timeout=SECONDS)
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
        result = function.spawn(do("look", files=["/root/run.sh"])).get(timeout=SECONDS)
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
        function.spawn(do("measure", text="canary-argument")).get(timeout=SECONDS)
        function.spawn(do("measure", text="canary-blob" + "x" * (3 << 20))).get(timeout=SECONDS)
        assert where("canary-secret") == set()
        call = function.spawn(do("echo", variable="KEY"))
        call.get(timeout=SECONDS)
        assert [entry.message for entry in call.logs.stream()] == ["canary-secret\n"]
        files = {"file": "canary-volume"}
        function.spawn(do("write", folder=str(mounted), files=files)).get(timeout=SECONDS)
        assert b"".join(volume.read_file("file")) == b"canary-volume"
    assert where("canary-argument") == {"FunctionMap", "FunctionPutOutputs"}
    assert where("canary-blob") == {"blob"}
    assert where("canary-file") == {"MountPutFile", "file"}
    assert where("canary-secret") == {"log"}
    assert where("canary-quiet") == set()
    assert where("OTHER") >= {"SecretGetOrCreate"}, "the names of variables are kept"
    assert "volume" in where("canary-volume") and "blob" not in where("canary-volume")
    assert where(plane.apps[0].id) >= {"AppGetLogs", "AppPublish"}, "streamed answers' requests too"


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_a_container_wrote(plane: ControlPlane, tmp_path: Path, version: int) -> None:
    volume = modal.Volume.from_name("runs", create_if_missing=True, version=version)
    mounted = tmp_path / "mounted" / "runs"
    files = {"run-1/metrics.jsonl": "{}", "run-1/model/weights": "w" * (9 << 20), "empty": ""}
    app = new_app()
    function = register(app, volumes={str(mounted): volume})
    with app.run():
        function.spawn(do("write", folder=str(mounted), files=files)).get(timeout=SECONDS)
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
