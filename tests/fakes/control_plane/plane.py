"""The stand-in as tests use it: it serves from a thread, for the client in the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import modal
from grpclib import Status as RPCStatus
from grpclib.server import Server

from tests.fakes.control_plane.blobs import BlobStore
from tests.fakes.control_plane.containers import Container
from tests.fakes.control_plane.incoming import Incoming
from tests.fakes.control_plane.objects import VOLUME_BLOCK
from tests.fakes.control_plane.records import App, Call, FunctionSpec, Secret, State, Volume
from tests.fakes.control_plane.scheduler import Preemptions, Scheduler, Settings
from tests.fakes.control_plane.service import Service

T = TypeVar("T")


class ControlPlane:
    """The stand-in for Modal, a context manager.

    `environment` has the variables of a client in another process, `rpcs` counts the requests by
    the name of their RPC, and `errors` has the tracebacks of errors in the stand-in itself.
    """

    def __init__(self, root: Path, settings: Settings | None = None) -> None:
        self.id = uuid.uuid4().hex
        self.state = State(root)
        self.blobs = BlobStore()
        self._incoming = Incoming(root / "requests")
        self.rpcs = self._incoming.counts
        self.environment: dict[str, str] = {}
        self._scheduler = Scheduler(self.state, settings or Settings(), self.id, self._serve)
        self.errors = self._scheduler.errors
        self._saved: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: Server | None = None

    def __enter__(self) -> ControlPlane:
        (self.state.root / "files").mkdir(parents=True)
        # A socket's path must be short, pytest's folders are not.
        self._scheduler.sockets = Path(tempfile.mkdtemp(prefix="plane-"))
        self._thread.start()
        try:
            port = self._await(self._start())
        except BaseException:
            self._stop()
            raise
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
        self.environment = {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{port}",
            "MODAL_TOKEN_ID": "ak-stand-in",
            "MODAL_TOKEN_SECRET": "as-stand-in",
            "MODAL_DISABLE_API_PROXY": "1",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }
        self._saved = dict(os.environ)
        for name in [name for name in os.environ if name.startswith("MODAL_")]:
            del os.environ[name]
        os.environ.update(self.environment)
        forget_client()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            forget_client()
        finally:
            os.environ.clear()
            os.environ.update(self._saved)
            self._stop()

    # Before calls run

    def add_secret(self, name: str, values: dict[str, str]) -> None:
        """Add a secret, as on Modal's site."""
        secret = Secret(self.state.new_id("st"), name, tuple(sorted(values)))
        self.state.secrets[secret.id] = secret
        self.state.secret_values[secret.id] = dict(values)

    def preempt_share(
        self, share: float, *, seed: int, after: tuple[float, float] = (0.0, 0.5)
    ) -> None:
        """From now on preempt this share of attempts, each `after` (least, most) seconds."""
        self._scheduler.preemptions = Preemptions(share, seed, after)

    def set_rates(self, rates: dict[str, str]) -> None:
        """Set the prices of the workspace, which has none else."""
        self.state.rates = rates

    def break_images(
        self,
        *,
        containing: str,
        message: str = "task exited with failure, status = exit status: 1",
    ) -> None:
        """From now on fail to build a layer with a Dockerfile command that contains this text."""
        self.state.broken_images[containing] = message

    def refuse(self, rpc: str, status: RPCStatus, message: str = "refused", times: int = 1) -> None:
        """Answer the next requests of this RPC, whoever sends them, with this status."""
        self._incoming.refuse(rpc, status, message, times)

    # While calls run

    def preempt(self, call: modal.FunctionCall[Any] | str, *, timeout: float = 120.0) -> None:
        """Preempt the call: SIGINT, SIGKILL after the grace, then a new container takes over."""
        self._on_running(call, self._scheduler.preempt, timeout)

    def crash(self, call: modal.FunctionCall[Any] | str, *, timeout: float = 120.0) -> None:
        """Kill the container of the call, as when memory runs out."""
        self._on_running(call, Container.kill, timeout)

    def wait_running(self, call: modal.FunctionCall[Any] | str, *, timeout: float = 120.0) -> None:
        """Wait until a container works on the call."""
        self._on_running(call, lambda container: None, timeout)

    # What the stand-in has seen

    @property
    def functions(self) -> dict[str, FunctionSpec]:
        """The functions by name; of those with the same name, the newest."""
        functions = list(self.state.functions.values())
        # A function whose image or GPU was refused has no definition.
        return {f.name: self.state.spec(f) for f in functions if f.definition.image_id}

    @property
    def secrets(self) -> dict[str, tuple[str, ...]]:
        """The names of the variables of each secret."""
        return {secret.name: secret.keys for secret in self.state.secrets.values()}

    @property
    def volumes(self) -> dict[str, Volume]:
        """The volumes by name."""
        return {volume.name: volume for volume in self.state.volumes.values()}

    @property
    def apps(self) -> list[App]:
        """All apps, stopped ones too, the oldest first."""
        return list(self.state.apps.values())

    @property
    def containers(self) -> int:
        """The number of containers that run."""
        return len(self._scheduler.containers)

    def call(self, call: modal.FunctionCall[Any] | str) -> Call:
        """Return the record of a call."""
        return self.state.calls[call if isinstance(call, str) else call.object_id]

    def received(self) -> Iterator[tuple[str, bytes]]:
        """Yield all that clients and containers have sent, except the values of secrets: requests
        under the name of their RPC, then each "blob", shipped "file", file of a "volume" and "log".
        """
        yield from self._incoming
        for blob_id, content in list(self.blobs.contents.items()):
            if not blob_id.startswith(VOLUME_BLOCK):
                yield "blob", content
        for kind in ("file", "volume"):
            for folder, _, names in os.walk(self.state.root / f"{kind}s"):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # a container may have deleted it
                        yield kind, Path(folder, name).read_bytes()
        for app in self.apps:
            logs: defaultdict[tuple[str, int], str] = defaultdict(str)
            for line in list(app.logs):
                logs[line.task_id, line.descriptor] += line.text
            for text in logs.values():
                yield "log", text.encode()

    def _on_running(
        self,
        call: modal.FunctionCall[Any] | str,
        action: Callable[[Container], None],
        timeout: float,
    ) -> None:
        record = self.call(call)

        async def act() -> None:
            while (container := self._scheduler.running(record)) is None or container.leaving:
                await self.state.changed.wait(timeout)
            action(container)

        self._await(asyncio.wait_for(act(), timeout))

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> int:
        await self.blobs.start()
        listener = socket.create_server(("127.0.0.1", 0))
        self._server = Server([self._service(None)])
        await self._server.start(sock=listener)
        port: int = listener.getsockname()[1]
        return port

    def _service(self, container: Container | None) -> Service:
        make: Any = Service  # `complete` adds methods that mypy does not see
        service: Service = make(
            self._scheduler,
            container,
            blobs=self.blobs.contents,
            blob_url=self.blobs.url_of,
            incoming=self._incoming,
        )
        return service

    async def _serve(self, container: Container, path: Path) -> None:
        container.server = Server([self._service(container)])
        await container.server.start(path=str(path))

    def _stop(self) -> None:
        try:
            self._await(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            kill_strays(self.id)
            for link in self.state.links:
                link.unlink(missing_ok=True)
            shutil.rmtree(self._scheduler.sockets, ignore_errors=True)

    async def _close(self) -> None:
        await self._scheduler.close()
        if self._server is not None:
            self._server.close()
        await self.blobs.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=2) if others else None


def forget_client() -> None:
    """Have Modal's client forget the connection and the environment that it has cached."""
    from modal import _environments
    from modal.client import _Client

    if _Client._client_from_env is not None:
        modal.Client.from_env().close()
    modal.Client._set_env_client(None)
    _environments.ENVIRONMENT_CACHE.clear()


def kill_strays(plane_id: str) -> None:
    """Kill what has left its container's process group; its variables name the plane."""
    if sys.platform != "linux":
        return
    mark = f"CONTROL_PLANE={plane_id}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
