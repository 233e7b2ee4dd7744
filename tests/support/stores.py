"""Real S3 servers for the tests, and the variables that lead to them."""

from __future__ import annotations

import functools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rl_experiments.checkpoints.manifest import finalize
from rl_experiments.checkpoints.store import CheckpointStore
from tests.support.faults import FaultProxy

KEY, SECRET = "the-key", "the-secret-5up3r"


@contextmanager
def moto_server() -> Iterator[str]:
    """Run an S3 server that obeys conditions and takes any credentials; yield its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of a server without a bucket."""
    with moto_server() as address:
        yield address


@contextmanager
def rclone_server(folder: Path) -> Iterator[str]:
    """Run an S3 server that checks credentials and ignores conditions; yield its address."""
    (folder / "bucket").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(sys.executable).with_name("rclone")
    keys = ["--auth-key", f"{KEY},{SECRET}", "--config", os.devnull]
    server = subprocess.Popen(
        [program, "serve", "s3", folder, "--addr", address, *keys], stderr=subprocess.DEVNULL
    )
    host, _, port = address.partition(":")
    until(lambda: socket.socket().connect_ex((host, int(port))) == 0)
    yield f"http://{address}"
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with an empty bucket."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as address:
        yield address


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set the test's credentials, and keep those of the machine away."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@functools.cache
def bucket_of(url: str) -> Any:
    """Return boto3's view of the bucket of a server."""
    import boto3  # type: ignore[import-untyped]

    return boto3.resource("s3", endpoint_url=url).Bucket("bucket")


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy without faults in front of an empty bucket; AWS_ENDPOINT_URL names it."""
    bucket = bucket_of(moto)
    bucket.create()
    bucket.objects.delete()
    with FaultProxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def until(condition: Callable[[], object], limit_seconds: float = 120) -> None:
    """Wait for a condition; the limit only ends a test that hangs."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def open_store(url: str = "s3://bucket/prefix", name: str = "run") -> CheckpointStore:
    """Return the checkpoint store of a run, which soon tries again after a fault."""
    store = CheckpointStore.open(url, project="project", name=name, setting="checkpoint.store")
    store.objects.first_pause_seconds = 0.05
    return store


def make_checkpoint(folder: Path, step: int, *, size: int = 100_000, score: float = 0.0) -> Path:
    """Write a finished checkpoint; all but its tokenizer differs from other checkpoints."""
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "more").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(os.urandom(size))
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "tokenizer.json").write_text("token " * 20_000)
    (checkpoint / "optimizer.pt").write_bytes(os.urandom(1000))
    (checkpoint / "more" / "step.txt").write_text(str(step))
    return finalize(folder, step=step, metrics={"score": score})


def contents(checkpoint: Path) -> dict[str, bytes]:
    """Return the files of a checkpoint by their paths in it, without its manifest."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    named = {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if name != "manifest.json"}


@pytest.fixture(params=["moto", "rclone", "folder"])
def store_url(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """The address of an empty place in a store of each kind."""
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "moto":
        request.getfixturevalue("proxy")
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("rclone"))
    return f"s3://bucket/{tmp_path.name}"
