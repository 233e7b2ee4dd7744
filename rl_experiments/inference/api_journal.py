"""The replies of a model behind an API, kept in a file so that none is paid for twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl_experiments.inference.api_reply import ApiReply, ToolCall
from rl_experiments.inference.api_words import well_formed
from rl_experiments.storage.files import append_json_lines, read_json_lines


class ApiJournal:
    """The replies by request, one JSON line each; without a file they are kept in memory alone."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._replies: dict[str, ApiReply] = {}
        if file:
            self._replies = {
                record["key"]: _reply_of(record["answer"])
                for record in read_json_lines(file, "key", "answer")
            }

    def get(self, request: str) -> ApiReply | None:
        """Return the reply to the request with this id, if there is one."""
        return self._replies.get(request)

    def add(self, request: str, reply: ApiReply) -> None:
        """Keep the reply to the request with this id."""
        self._replies[request] = reply
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            append_json_lines(self._file, [{"key": request, "answer": asdict(reply)}])


def request_id(base_url: str | None, key: str, body: dict[str, Any]) -> str:
    """Return the id of a request: a digest of its address, its key and everything it asks."""
    text = json.dumps([base_url, key, body], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _reply_of(record: dict[str, Any]) -> ApiReply:
    record = well_formed(record)  # replies of early versions came as they were
    calls = tuple(ToolCall(**call) for call in record["tool_calls"])
    return ApiReply(**{**record, "tool_calls": calls})
