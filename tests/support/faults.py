"""A proxy in front of an S3 server that fails as a network does, when a test asks for it."""

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
    """A server on this machine that runs in a thread inside a `with` block."""

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
    """Passes requests on, but a share `rate` of them meets a fault of one of `kinds`.

    "lost" breaks off after the server has done what it was asked; "truncated" ends the answer
    midway; "slow" delays it. While the proxy is `down`, every connection is broken off.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.rate = 0.0
        self.kinds: tuple[str, ...] = KINDS
        self.down = False
        self.slow_seconds = 0.2
        self.refuses: dict[str, str] = {}  # by method: the code of the error that it meets
        self.expired: set[str] = set()  # access keys that are refused
        self.requests: list[tuple[str, str]] = []  # method and path of each, in order
        self.faults: list[str] = []  # the kinds that happened, in order
        # Called with method and path before a request is handled.
        self.before: Callable[[str, str], None] = lambda method, path: None
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def puts(self) -> list[str]:
        """Return the paths of the objects that were sent, in order."""
        return [path.partition("?")[0] for method, path in self.requests if method == "PUT"]

    def fate(self, method: str, path: str) -> str:
        """Note a request; return the kind of fault that it meets, or ""."""
        with self._lock:
            self.requests.append((method, path))
            if self.down:
                return "reset"
            if self._random.random() >= self.rate:
                return ""
            self.faults.append(self._random.choice(self.kinds))
            return self.faults[-1]


class Handler(BaseHTTPRequestHandler):
    """Writes no log, and can break a connection off."""

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
        """Break the connection off with a TCP reset."""
        self.close_connection = True
        self.wfile.flush()
        at_once = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.connection.close()


class _Handler(Handler):
    def answer(self) -> None:
        proxy: FaultProxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.before(self.command, self.path)
        fate = proxy.fate(self.command, self.path)
        if fate == "slow":
            time.sleep(proxy.slow_seconds)
        if fate == "reset":
            return self.reset()
        if fate in _ERRORS:
            code = _ERRORS[fate]
            return self._send_error(int(fate), code)
        if refusal := proxy.refuses.get(self.command):
            return self._send_error(403, refusal)
        signature = self.headers.get("Authorization", "")
        if any(f"Credential={key}/" in signature for key in proxy.expired):
            return self._send_error(400, "ExpiredToken")
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

    def _send_error(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>a fault</Message></Error>"
        self._send(status, [("Content-Type", "application/xml")], content.encode())

    def _send(
        self, status: int, headers: list[tuple[str, str]], content: bytes, upto: int | None = None
    ) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # an answer to HEAD has the length, but no content
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:upto])
