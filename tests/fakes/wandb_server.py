"""A stand-in for W&B's server on loopback, which keeps what runs send to it."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

API_KEY = "canary" + "0123456789" * 4


class WandbServer(ThreadingHTTPServer):
    """As much of W&B's server as its client needs to begin, resume and upload runs.

    Requests whose path matches the pattern `fails` are answered with 500. `begun` holds, by run id,
    the variables with which a run was begun; `lines` the numbered lines of each file of a run.
    """

    daemon_threads = True

    def __init__(self, fails: str = "^$") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fails = fails
        self.begun: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_address[1]}",
            "WANDB_API_KEY": API_KEY,
            "WANDB_ERROR_REPORTING": "false",
        }

    def history(self, run: str) -> list[dict[str, Any]]:
        return list(self.lines[run]["wandb-history.jsonl"].values())

    def summary(self, run: str) -> dict[str, Any]:
        summary: dict[str, Any] = self.lines[run]["wandb-summary.json"][0]
        return summary


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        failed = re.search(self.server.fails, self.path)
        answer = b"{}" if failed else json.dumps(self._answer(body)).encode()
        self.send_response(500 if failed else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_HEAD = do_GET = do_PUT = do_POST

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, body: bytes) -> Any:
        if self.path.endswith("/file_stream"):
            lines = self.server.lines[self.path.split("/")[-2]]
            for name, chunk in (json.loads(body).get("files") or {}).items():
                for number, line in enumerate(chunk["content"], chunk["offset"]):
                    lines[name][number] = json.loads(line)
        elif self.path.endswith("/graphql"):
            request = json.loads(body)
            return {"data": self._data(request["query"], request.get("variables") or {})}
        return {}

    def _data(self, query: str, given: dict[str, Any]) -> Any:
        entity = {"id": "e", "name": given.get("entity") or "own"}
        if "RunResumeStatus" in query:
            bucket = self._bucket(given["name"]) if given["name"] in self.server.begun else None
            model = {"id": "m", "name": given["project"], "entity": entity, "bucket": bucket}
            return {"model": model}
        if "UpsertBucket" in query:
            new = given["name"] not in self.server.begun
            known = self.server.begun.get(given["name"], {})
            values = {name: value for name, value in given.items() if value is not None}
            self.server.begun[given["name"]] = known | values
            project = {"id": "p", "name": given["project"], "entity": entity}
            bucket = {**self._bucket(given["name"]), "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if "CreateRunFiles" in query:
            url = f"{self.server.variables['WANDB_BASE_URL']}/upload"
            files = [{"name": name, "uploadUrl": url} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {"viewer": {"id": "v", "entity": "own", "flags": "{}", "teams": {"edges": []}}}

    def _bucket(self, name: str) -> dict[str, Any]:
        files = self.server.lines[name]
        tails = {
            f"{kind}Tail": json.dumps(list(map(json.dumps, files[f"wandb-{kind}.jsonl"].values())))
            for kind in ("history", "events")
        }
        counts = {f"{k}LineCount": len(files[f"wandb-{k}.jsonl"]) for k in ("history", "events")}
        known = {"id": "b", "name": name, "displayName": name, "config": "{}", "logLineCount": 0}
        summary = json.dumps(files["wandb-summary.json"].get(0, {}))
        return {**known, **tails, **counts, "summaryMetrics": summary, "wandbConfig": '{"t": 1}'}
