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

from tests.support.faults import FaultProxy

KEY, SECRET = "the-key", "the-secret-5up3r"


@contextmanager
def moto_server() -> Iterator[str]:
    """An S3 server that honours conditions and takes any credentials; its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as address:
        yield address


@contextmanager
def rclone_server(folder: Path) -> Iterator[str]:
    """An S3 server that checks credentials and ignores conditions; its address."""
    (folder / "bucket").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(sys.executable).with_name("rclone")
    keys = ["--auth-key", f"{KEY},{SECRET}", "--config", os.devnull]
    server = subprocess.Popen(
        [program, "serve", "s3", folder, "--addr", at, *keys], stderr=subprocess.DEVNULL
    )
    host, _, port = at.partition(":")
    until(lambda: socket.socket().connect_ex((host, int(port))) == 0)
    yield f"http://{at}"
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as address:
        yield address


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    import boto3  # type: ignore[import-untyped]

    return boto3.resource("s3", endpoint_url=url).Bucket("bucket")


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of an empty bucket."""
    bucket = bucket_of(moto)
    bucket.create()
    bucket.objects.delete()
    with FaultProxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def until(condition: Callable[[], object], limit: float = 20) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
