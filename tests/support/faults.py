"""A proxy in front of an S3 server that fails as a network does, as the test tells it."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_ERRORS = {"500": "InternalError", "503": "SlowDown"}
KINDS = ("503", "500", "reset", "lost", "truncated", "slow")


class Loopback:
    """What serves on this machine, from a thread, while it is entered."""

    _server: ThreadingHTTPServer

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class FaultProxy(Loopback):
    """`rate` of the requests meet one of `kinds`; all are reset while it is `down`.

    "lost" resets after the server has done what it was asked, "truncated" ends the answer midway.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.rate = 0.0
        self.kinds: tuple[str, ...] = KINDS
        self.down = False
        self.slow = 0.2  # seconds
        self.refuses: dict[str, str] = {}  # the error's code, by method
        self.requests: list[tuple[str, str]] = []  # all: method, path
        self.faults: list[str] = []
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.copies: list[str] = []  # what the server was asked to copy by itself
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def puts(self) -> list[str]:
        """The objects that were sent or copied, in order."""
        return [path.partition("?")[0] for method, path in self.requests if method == "PUT"]

    def fate(self, method: str, path: str) -> str:
        with self._lock:
            self.requests.append((method, path))
            if self.down:
                return "reset"
            if self._random.random() >= self.rate:
                return ""
            self.faults.append(self._random.choice(self.kinds))
            return self.faults[-1]


class Handler(BaseHTTPRequestHandler):
    """Answers without a word, and can break a connection off."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would hold each answer back for 40 ms

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client went away

    def log_message(self, *args: Any) -> None:
        pass

    def reset(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.connection.close()


class _Handler(Handler):
    def answer(self) -> None:
        proxy: FaultProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.before(self.command, self.path)
        if source := self.headers.get("x-amz-copy-source"):
            proxy.copies.append(source)
        fate = proxy.fate(self.command, self.path)
        if fate == "slow":
            time.sleep(proxy.slow)
        if fate == "reset":
            return self.reset()
        if fate in _ERRORS:
            code = _ERRORS[fate]
            said = f"<Error><Code>{code}</Code><Message>a fault</Message></Error>"
            return self._send(int(fate), [("Content-Type", "application/xml")], said.encode())
        if refusal := proxy.refuses.get(self.command):
            said = f"<Error><Code>{refusal}</Code><Message>no</Message></Error>"
            return self._send(403, [("Content-Type", "application/xml")], said.encode())
        server = http.client.HTTPConnection(proxy.upstream, timeout=30)
        try:
            server.request(self.command, self.path, body, dict(self.headers.items()))
            answer = server.getresponse()
            content = answer.read()
        finally:
            server.close()
        if fate == "lost":
            return self.reset()
        if fate == "truncated" and content and self.command == "GET":
            self._send(answer.status, answer.getheaders(), content, upto=len(content) // 2)
            return self.reset()
        self._send(answer.status, answer.getheaders(), content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def _send(
        self, status: int, headers: list[tuple[str, str]], content: bytes, upto: int | None = None
    ) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # an answer to HEAD tells it without the content
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:upto])
