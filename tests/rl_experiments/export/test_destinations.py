"""Where an exported model goes: a folder, S3 or the hub, complete or not at all."""

from __future__ import annotations

import json
import resource
import shutil
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from rl_experiments.checkpoints.store import CheckpointStore
from rl_experiments.commands.export import export
from rl_experiments.errors import UserError
from tests.rl_experiments.export.exporting import FILES, answers, read_card
from tests.support.faults import FaultProxy
from tests.support.program import Program
from tests.support.stores import bucket_of, moto, proxy, surroundings

__all__ = ["moto", "proxy", "surroundings"]  # fixtures


def test_from_a_store_to_s3_the_config_goes_last(
    run: Path, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = CheckpointStore.open("s3://bucket/runs", project="p", name="lora-0", setting="store")
    source.push(run / "checkpoints/checkpoint-4")
    proxy.rate, proxy.slow_seconds = 0.2, 0.05
    proxy.requests.clear()
    export(["s3://bucket/runs/p/models/lora-0", "--to", "s3://bucket/out/one"])
    assert proxy.faults
    proxy.rate = 0.0
    sent = [path for path in proxy.puts() if "/.probe" not in path]
    first = min(
        i
        for i, path in enumerate(sent)
        if path.endswith("config.json") and "_" not in path.rpartition("/")[2]
    )
    assert {path.rpartition("/")[2] for path in sent[:first]} == FILES - {"config.json"}
    bucket, there = bucket_of(proxy.url), tmp_path / "fetched"
    there.mkdir()
    for stored in bucket.objects.filter(Prefix="out/"):
        bucket.download_file(stored.key, str(there / stored.key.removeprefix("out/one/")))
    assert {path.name for path in there.iterdir()} == FILES
    wanted, _ = answers(run / "checkpoints/checkpoint-4")
    assert torch.allclose(answers(there)[0], wanted, atol=1e-4)
    assert "came without its run's evaluation" in read_card(there)[1]
    with pytest.raises(UserError, match=r"^--to=s3://bucket/out: there is something already; "):
        export(["lora", "--to", "s3://bucket/out"])


def test_an_upload_to_s3_that_breaks_off_leaves_nothing(run: Path, proxy: FaultProxy) -> None:
    def fail(method: str, path: str) -> None:
        if method == "PUT" and "model.safetensors" in path:
            proxy.refuses["PUT"] = "AccessDenied"

    proxy.before = fail
    with pytest.raises(UserError, match=r"^--to=s3://bucket/out: these credentials may not "):
        export(["lora", "--to", "s3://bucket/out"])
    assert "README.md" in " ".join(proxy.puts())
    assert list(bucket_of(proxy.url).objects.all()) == []


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"^--to=new/out: .*[Ff]ile too large"):
            export(["lora", "--to", "new/out"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new").iterdir()) == []


def test_mistakes_are_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (run / "checkpoints/checkpoint-2/adapter_model.safetensors").write_bytes(b"torn")
    unsealed = shutil.copytree(run / "checkpoints/checkpoint-4", tmp_path / "unsealed")
    (unsealed / "manifest.json").unlink()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    torn = "runs/lora/0/checkpoints/checkpoint-2"
    places = "FOLDER, s3://bucket/prefix or hub:OWNER/NAME"
    for words, message in (
        (["lora"], f"--to is missing: export CHECKPOINT --to {places}"),
        (["lora", "--to"], f"--to is missing: export CHECKPOINT --to {places}"),
        (["--to", "x"], "export takes one checkpoint: export CHECKPOINT --to x"),
        (["lora", "two", "--to", "x"], "export takes one checkpoint: export CHECKPOINT --to x"),
        (["lora", "--to", "gs://x/y"], f"--to=gs://x/y: give {places}"),
        (["lora", "--to="], f"--to=: give {places}"),
        (["lora", "--to", "full"], "--to=full: there is something already; give a new folder"),
        (
            ["lora", "--to", "full/file"],
            "--to=full/file: there is something already; give a new folder",
        ),
        (["lora", "--to", "full/file/x"], f"--to=full/file/x: File exists ({tmp_path}/full/file)"),
        (["nobody", "--to", "x"], "checkpoint=nobody: no such folder"),
        (["full", "--to", "x"], "checkpoint=full: this folder holds no checkpoint"),
        (
            [torn, "--to", "x"],
            f"checkpoint={torn}: it is damaged, or was changed since it was written; take another",
        ),
        (["unsealed", "--to", "x"], "unsealed: not a complete checkpoint of a run; take another"),
        (["lora", "--to", "hub:name"], "--to=hub:name: give hub:OWNER/NAME"),
        (
            ["lora", "--to", "hub:me/name"],
            "--to=hub:me/name: HF_TOKEN is not set; set a token that may write there",
        ),
    ):
        with pytest.raises(UserError) as refused:
            export(words)
        assert str(refused.value) == message
    assert not (tmp_path / "x").exists()


def test_the_command_line_knows_the_verb(program: Program) -> None:
    refused = program("export", "nobody", "--to=x")
    assert (refused.returncode, refused.stderr) == (1, "checkpoint=nobody: no such folder\n")


API_PATH = "/api/models/me/name"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; all files are sent within the commit."""

    requests: ClassVar[list[tuple[str, Any]]] = []
    status = 200

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers["Authorization"]))
        there = ("adapter_config.json", "notes.md")
        files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in there]
        self._answer(files if "/tree/" in self.path else {"name": "me"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        lines = [json.loads(line) for line in body.splitlines()]
        self.requests.append((self.path, lines))
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in lines[0].get("files", [])
        ]
        url = f"http://{self.headers['Host']}/me/name"
        self._answer({"files": files, "url": url, "commitUrl": url, "commitOid": "1"})

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    Hub.requests, Hub.status = [], 200
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_the-token")
    yield Hub
    server.shutdown()
    server.server_close()


def test_to_the_hub_goes_what_a_folder_would_hold(
    run: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    export(["lora", "--to", "hub:me/name"])
    assert "/me/name, private if it is new, (" in capsys.readouterr().out
    assert hub.requests[0] == ("/api/whoami-v2", "Bearer hf_the-token")
    sent = {path.partition("?")[0]: lines for path, lines in hub.requests[1:]}
    assert sent["/api/repos/create"][0]["visibility"] == "private"
    commit = [line["value"] | {"key": line["key"]} for line in sent[f"{API_PATH}/commit/main"]]
    files = {line["path"]: line["content"] for line in commit if line["key"] == "file"}
    assert files.keys() == FILES
    assert json.loads(b64decode(files["config.json"]))["model_type"] == "qwen3"
    assert 'from_pretrained("me/name")' in b64decode(files["README.md"]).decode()
    # Other weights, which would be loaded too, are deleted; what is not a model stays.
    gone = [line["path"] for line in commit if line["key"] == "deletedFile"]
    assert gone == ["adapter_config.json"]


def test_a_hub_that_refuses_or_is_not_there_is_one_line(
    run: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.status = 401
    with pytest.raises(
        UserError, match=r"^--to=hub:me/name: the hub says 401; see what HF_TOKEN permits$"
    ):
        export(["lora", "--to", "hub:me/name"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^--to=hub:me/name: the hub does not answer; connect, "):
        export(["lora", "--to", "hub:me/name"])
