"""The stand-in as tests hold it: it serves from a thread while the released client talks to it."""

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
    """A context manager; `environment` is what a client in another process needs.

    `rpcs` counts the calls by name, `errors` holds the tracebacks of the stand-in's own mistakes.
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

    # What tests prepare

    def add_secret(self, name: str, values: dict[str, str]) -> None:
        """A secret as if made on Modal's site."""
        secret = Secret(self.state.new_id("st"), name, tuple(sorted(values)))
        self.state.secrets[secret.id] = secret
        self.state.secret_values[secret.id] = dict(values)

    def preempt_share(
        self, share: float, *, seed: int, after: tuple[float, float] = (0.0, 0.5)
    ) -> None:
        """From now on preempt this share of attempts, `after` so many seconds."""
        self._scheduler.preemptions = Preemptions(share, seed, after)

    def set_rates(self, rates: dict[str, str]) -> None:
        """The workspace's prices; none unless set, as the real keys are not known here."""
        self.state.rates = rates

    def break_images(
        self,
        *,
        containing: str,
        message: str = "task exited with failure, status = exit status: 1",
    ) -> None:
        """From now on no layer is built that has such a text in one of its Dockerfile commands."""
        self.state.broken_images[containing] = message

    def refuse(self, rpc: str, status: RPCStatus, message: str = "refused", times: int = 1) -> None:
        """Answer the next calls of this RPC, whoever makes them, with a status of gRPC's."""
        self._incoming.refuse(rpc, status, message, times)

    # What tests do to running calls

    def preempt(self, call: modal.FunctionCall[Any] | str, *, timeout: float = 120.0) -> None:
        """SIGINT, then SIGKILL after the grace; the same input runs again in a new container."""
        self._on_running(call, self._scheduler.preempt, timeout)

    def crash(self, call: modal.FunctionCall[Any] | str, *, timeout: float = 120.0) -> None:
        """SIGKILL, as when memory runs out."""
        self._on_running(call, Container.kill, timeout)

    def wait_running(self, call: modal.FunctionCall[Any] | str, *, timeout: float = 120.0) -> None:
        self._on_running(call, lambda container: None, timeout)

    # What tests look at

    @property
    def functions(self) -> dict[str, FunctionSpec]:
        """By name; the newest where several apps have one of that name."""
        functions = list(self.state.functions.values())
        # Those whose image or GPU was refused have a name only.
        return {f.name: self.state.spec(f) for f in functions if f.definition.image_id}

    @property
    def secrets(self) -> dict[str, tuple[str, ...]]:
        return {secret.name: secret.keys for secret in self.state.secrets.values()}

    @property
    def volumes(self) -> dict[str, Volume]:
        return {volume.name: volume for volume in self.state.volumes.values()}

    @property
    def apps(self) -> list[App]:
        return list(self.state.apps.values())

    @property
    def containers(self) -> int:
        """How many run now."""
        return len(self._scheduler.containers)

    def call(self, call: modal.FunctionCall[Any] | str) -> Call:
        return self.state.calls[call if isinstance(call, str) else call.object_id]

    def received(self) -> Iterator[tuple[str, bytes]]:
        """All that clients and containers ever gave, but for secrets' values: requests under the
        name of their RPC, then each `blob`, `file` that was shipped, `volume` file and `log`.
        """
        yield from self._incoming
        for blob_id, content in list(self.blobs.contents.items()):
            if not blob_id.startswith(VOLUME_BLOCK):
                yield "blob", content
        for kind in ("file", "volume"):
            for folder, _, names in os.walk(self.state.root / f"{kind}s"):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # a container may be at work
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
        make: Any = Service  # mypy does not see that it is complete
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
    """The client caches its connection for the process, and its environment beside it."""
    from modal import _environments
    from modal.client import _Client

    if _Client._client_from_env is not None:
        modal.Client.from_env().close()
    modal.Client._set_env_client(None)
    _environments.ENVIRONMENT_CACHE.clear()


def kill_strays(plane_id: str) -> None:
    """Processes that left their container's group still carry its plane's id."""
    if sys.platform != "linux":
        return
    mark = f"CONTROL_PLANE={plane_id}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
