"""An OpenAI-compatible server on loopback that replies, and fails, as a test wants."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from tests.support.faults import Handler, Loopback

Body = dict[str, Any]
_WITHHELD_SECONDS = 600.0  # longer than any test; the thread is a daemon
KINDS = (
    *("429", "500", "reset", "hang", "malformed", "page", "empty", "truncated", "lost"),
    *("no_choices", "error_inside"),
)


class OpenAIServer(Loopback):
    """`reply` makes the message (a text, or a dict with tool_calls) from a request's body.

    `rate` is the share of requests that meet a fault, one of `kinds` after the other: "lost" breaks
    off after the reply was made, "page" is a web page with status 200, "truncated" half a reply.
    """

    def __init__(self, reply: Callable[[Body], Any], *, seed: int = 0) -> None:
        self.reply = reply
        self.rate = 0.0
        self.most_faults = 1_000_000
        self.kinds: tuple[str, ...] = KINDS
        self.hang = 1.0  # seconds
        self.retry_after: str | None = "0"
        self.latency = 0.0  # seconds
        self.usage: dict[str, Any] | None = {"prompt_tokens": 100, "completion_tokens": 10}
        self.finish = ""  # why replies end; empty: as the API has it
        self.refuses: tuple[int, Body] | None = None  # status and body, for every request
        # Status and content (JSON, or a text that is sent as it is); None for the usual answer.
        self.answer: Callable[[Body], tuple[int, Any] | None] = lambda body: None
        self.withholds: Callable[[Body], bool] = lambda body: False  # requests never answered
        self.withheld: list[Body] = []
        self.requests: list[Body] = []
        self.keys: list[str] = []  # the authorization of each
        self.times: list[float] = []  # when each came, on the clock of `time.monotonic`
        self.answered: list[Body] = []  # those whose answer was sent whole
        self.faults: list[str] = []
        self.at_once = 0  # requests that are being answered
        self.most_at_once = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def begins(self, body: Body, key: str) -> str:
        """Record the request; return the fault that it meets, or an empty string."""
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            if self._random.random() >= self.rate or len(self.faults) >= self.most_faults:
                return ""
            self.faults.append(self.kinds[len(self.faults) % len(self.kinds)])
            return self.faults[-1]

    def ends(self, body: Body, *, whole: bool) -> None:
        with self._lock:
            self.at_once -= 1
            if whole:
                self.answered.append(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: OpenAIServer


class _Handler(Handler):
    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fate = owner.begins(body, self.headers.get("Authorization", ""))
        whole = False
        try:
            time.sleep(owner.latency)
            whole = self._answer(owner, body, fate)
        finally:
            owner.ends(body, whole=whole)

    def _answer(self, owner: OpenAIServer, body: Body, fate: str) -> bool:
        """Answer the request; return whether the client got a whole reply."""
        if not self.path.endswith("/chat/completions"):
            return self._send(404, {"error": {"message": "no such path"}})
        if owner.refuses:
            return self._send(*owner.refuses)
        if (odd := owner.answer(body)) is not None:
            return self._odd(*odd)
        if owner.withholds(body):
            owner.withheld.append(body)
            time.sleep(_WITHHELD_SECONDS)
            return self._broken()
        if fate == "429":
            return self._send(429, {"error": {"message": "slow down"}}, retry=owner.retry_after)
        if fate == "500":
            return self._send(500, {"error": {"message": "a fault"}})
        if fate == "reset":
            return self._broken()
        if fate == "hang":
            time.sleep(owner.hang)
            return self._broken()
        if fate == "malformed":
            return self._bytes(200, "application/json", b'{"id": "x", "choices": [{"mess')
        if fate == "page":
            return self._bytes(200, "text/html", b"<html>busy</html>")
        if fate == "empty":
            return self._bytes(200, "application/json", b"")
        if fate == "no_choices":
            return self._send(200, {**_head(body), "choices": []})
        if fate == "error_inside":
            return self._send(200, {"error": {"message": "upstream is away", "code": 502}})
        message = owner.reply(body)
        message = {"content": message} if isinstance(message, str) else dict(message)
        finish = owner.finish or ("tool_calls" if message.get("tool_calls") else "stop")
        message = {"role": "assistant", "content": None, **message}
        if body.get("stream"):
            return self._stream(owner, body, message, finish, fate)
        choice = {"index": 0, "message": message, "finish_reason": finish}
        whole = {**_head(body), "choices": [choice], "usage": _usage(owner)}
        text = json.dumps(whole).encode()
        if fate == "lost":
            return self._broken()
        if fate == "truncated":
            self._bytes(200, "application/json", text, upto=len(text) // 2)
            return self._broken()
        self._bytes(200, "application/json", text)
        return True

    def _stream(
        self, owner: OpenAIServer, body: Body, message: Body, finish: str, fate: str
    ) -> bool:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        pieces = list(_pieces(message, finish))
        if fate in ("lost", "truncated"):
            pieces = pieces[: len(pieces) // 2]
        for piece in pieces:
            choice = {"index": 0, "finish_reason": None, **piece}
            self._event({**_head(body, "chat.completion.chunk"), "choices": [choice]})
        if fate == "lost":
            return self._broken()
        if fate == "truncated":  # ends as if that were all
            return False
        if owner.usage:
            head = _head(body, "chat.completion.chunk")
            self._event({**head, "choices": [], "usage": _usage(owner)})
        self.wfile.write(b"data: [DONE]\n\n")
        return True

    def _event(self, piece: Body) -> None:
        self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.flush()

    def _odd(self, status: int, content: Any) -> bool:
        if not isinstance(content, str):
            return self._send(status, content)
        kind = "text/event-stream" if content.startswith("data:") else "text/html"
        return self._bytes(status, kind, content.encode())

    def _send(self, status: int, body: Body, *, retry: str | None = None) -> bool:
        return self._bytes(status, "application/json", json.dumps(body).encode(), retry=retry)

    def _bytes(
        self,
        status: int,
        kind: str,
        content: bytes,
        *,
        retry: str | None = None,
        upto: int | None = None,
    ) -> bool:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if retry is not None:
            self.send_header("Retry-After", retry)
        self.end_headers()
        self.wfile.write(content[:upto])
        return False

    def _broken(self) -> bool:
        self.reset()
        return False


def _head(body: Body, kind: str = "chat.completion") -> Body:
    return {"id": "x", "object": kind, "created": 0, "model": body.get("model")}


def _usage(owner: OpenAIServer) -> Body | None:
    if owner.usage is None:
        return None
    tokens = owner.usage["prompt_tokens"] + owner.usage["completion_tokens"]
    return {**owner.usage, "total_tokens": tokens}


def _pieces(message: Body, finish: str) -> Iterator[Body]:
    """Yield the message in pieces: lines, then the names of the calls, then halves of arguments."""
    yield {"delta": {"role": "assistant", "content": ""}}
    for word in (message["content"] or "").splitlines(keepends=True):
        yield {"delta": {"content": word}}
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        opened = {**call, "index": index, "function": {**function, "arguments": ""}}
        yield {"delta": {"tool_calls": [opened]}}
        half = len(function["arguments"]) // 2
        for part in (function["arguments"][:half], function["arguments"][half:]):
            piece = {"index": index, "function": {"arguments": part}}
            yield {"delta": {"tool_calls": [piece]}}
    yield {"delta": {}, "finish_reason": finish}
