"""The questions of GSM8K from a hub, and without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.environments.gsm8k.questions import ROWS

README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train.jsonl}
---
"""
COMMIT = "a" * 40
ON_HUB = {
    "README.md": README,
    "main/train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS[:20]),
    "main/test.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS[20:25]),
    "socratic/train.jsonl": json.dumps({"question": "?", "answer": "#### 0"}),
}


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that one data set needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, tail = self.path.partition("?")[0].partition("/openai/gsm8k")
        kind, _, name = tail.strip("/").partition("/")
        name = name.partition("/")[2]  # after the revision
        if path == "/":
            self.reply("")
        elif kind == "resolve" and name in ON_HUB:
            self.reply(ON_HUB[name])
        elif path == "/api/datasets" and kind == "revision":
            self.reply(json.dumps({"id": "openai/gsm8k", "sha": COMMIT, "siblings": []}))
        elif path == "/api/datasets" and kind == "tree":
            sizes = {file: len(text) for file, text in ON_HUB.items() if file.startswith(name)}
            entries = [
                {"type": "file", "path": f, "size": size, "oid": COMMIT}
                for f, size in sizes.items()
            ]
            self.reply(json.dumps(entries))
        else:
            self.reply("", status=404)

    do_HEAD = do_GET

    def reply(self, text: str, *, status: int = 200) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(text)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SHOW = """
import sys
from environments.gsm8k import Gsm8k
from environments.gsm8k.data import questions
for _ in sys.stdin:
    questions.cache_clear()
    try:
        read = Gsm8k().questions
        line = f"{len(read.training)} {len(read.evaluation)} {read.evaluation[0].question}"
    except ValueError as error:
        line = str(error)
    print(line, flush=True)
"""


@pytest.mark.slow
def test_questions_come_from_the_hub_and_later_without_it(tmp_path: Path) -> None:
    """The `datasets` library itself reads them, in a process of its own."""
    ours = {k: v for k, v in os.environ.items() if not re.search("proxy|OFFLINE", k, re.IGNORECASE)}
    with hub() as endpoint:
        child = subprocess.Popen(
            [sys.executable, "-c", SHOW],
            env={**ours, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert child.stdin and child.stdout

        def shown() -> str:
            print("again", file=child.stdin, flush=True)
            assert child.stdout
            return child.stdout.readline()

        first = shown()
    assert first.startswith("20 5 Ann has 2")
    assert shown() == first
    shutil.rmtree(tmp_path / "home")
    refused = shown()
    assert refused.startswith("env.data=openai/gsm8k: the Hugging Face hub cannot be reached")
    assert "set env.data to a .jsonl file" in refused
    rest, _ = child.communicate()
    assert (rest, child.returncode) == ("", 0)
