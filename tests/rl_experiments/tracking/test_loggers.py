"""Loggers: every step once, across a kill and a resume; none of them stops a run."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from rl_experiments.config.schema import LoggerConfig
from rl_experiments.errors import UserError
from rl_experiments.tracking import loggers
from tests.rl_experiments.training.test_training import kill_when
from tests.support.program import SMALL, Program, command

LOCAL = [name for name in ("tensorboard", "trackio") if find_spec(name)]
CANARY = "canary" + "0123456789" * 4  # the key

# A training function of the user's own, which takes no time.
OWN = """
import os, signal

def train(config, run):
    run.rewind()
    for step in (1, 2, 3):
        run.log_metrics(step, {"loss": config.seed + 1 / step, "time/step": 0.1})
    return 0.25

def train_once_killed(config, run):
    if config.resume:
        return train(config, run)
    run.log_metrics(1, {"loss": 1.0, "time/step": 0.2})
    run.log_metrics(2, {"loss": 0.5, "time/step": 0.2})
    os.kill(os.getpid(), signal.SIGKILL)

def train_once_failed(config, run):
    os.kill = lambda *_: 1 / 0
    return train_once_killed(config, run)

def lost(config, run):
    pass
"""


class Server(ThreadingHTTPServer):
    """As much of W&B's server as its client needs to begin runs, to resume and to upload them."""

    daemon_threads = True

    def __init__(self, fails: str = "^$") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fails = fails  # the requests that are answered 500: what their paths match
        self.begun: dict[str, dict[str, Any]] = {}  # what was told of each run
        self.lines: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_address[1]}",
            "WANDB_API_KEY": CANARY,
            "WANDB_ERROR_REPORTING": "false",
        }

    def history(self, run: str) -> list[dict[str, Any]]:
        return list(self.lines[run]["wandb-history.jsonl"].values())

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.lines[run]["wandb-summary.json"][0]
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

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
            asked = json.loads(body)
            return {"data": self._data(asked["query"], asked.get("variables") or {})}
        return {}

    def _data(self, query: str, given: dict[str, Any]) -> Any:
        entity = {"id": "e", "name": given.get("entity") or "own"}
        if "RunResumeStatus" in query:
            bucket = self._bucket(given["name"]) if given["name"] in self.server.begun else None
            model = {"id": "m", "name": given["project"], "entity": entity, "bucket": bucket}
            return {"model": model}
        if "UpsertBucket" in query:
            new = given["name"] not in self.server.begun
            told = {name: value for name, value in given.items() if value is not None}
            self.server.begun[given["name"]] = self.server.begun.get(given["name"], {}) | told
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


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, program_environment: dict[str, str]
) -> tuple[Path, str, dict[str, str]]:
    """A run that was killed and resumed with every local logger: folder, output, variables."""
    cwd = tmp_path_factory.mktemp("resumed")
    env = {**program_environment, "WANDB_MODE": "offline", "WANDB_API_KEY": CANARY}
    env |= {"TRACKIO_DIR": str(cwd / "trackio"), "SOME_SECRET": CANARY}
    arguments = [*SMALL, "name=one", "trainer.max_steps=8", "logger.tags=[small,${oc.env:USER,me}]"]
    arguments += [f"logger.report_to=[{','.join(['wandb', *LOCAL])}]"]
    arguments += ["gpu.region=${oc.env:SOME_SECRET}"]
    run = cwd / "runs/one/0"
    kill_when(run / "metrics.jsonl", 3, arguments, cwd=cwd, env=env)
    done = subprocess.run(
        command([*arguments, "resume=true"]), cwd=cwd, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return run, done.stdout, env


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_has_every_step_once(history: list[dict[str, Any]], run: Path) -> None:
    """What W&B was sent is what metrics.jsonl has."""
    assert [row["_step"] for row in history] == [record["step"] for record in records(run)]
    for row, record in zip(history, records(run), strict=True):
        told = {name: value for name, value in record.items() if name != "step"}
        assert {name: row.get(name) for name in told} == pytest.approx(told)


def sync(output: str, server: Server, env: dict[str, str]) -> None:
    """Do what the run told its user to: `wandb sync` is the reader of offline runs."""
    command = next(line for line in output.splitlines() if ": wandb sync" in line)
    words = shlex.split(command.partition(": wandb ")[2])
    variables = {k: v for k, v in env.items() if k != "WANDB_MODE"} | server.variables
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *words],
        cwd=words[1],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_wandb_offline_has_every_step_once_across_a_kill(
    resumed: tuple[Path, str, dict[str, str]], server: Server
) -> None:
    run, output, env = resumed
    assert [folder.name[:11] for folder in (run / "wandb").glob("*run-*-*")] == ["offline-run"]
    sync(output, server, env)
    ((identity, told),) = server.begun.items()
    assert identity == json.loads((run / "loggers.json").read_text())["wandb"]
    assert_has_every_step_once(server.history(identity), run)
    assert told["groupName"] == "one" and told["displayName"] == "one-0"
    assert told["project"] == "rl-experiments" and told["tags"][0] == "small"
    config = json.loads(told["config"])
    assert config["env"]["value"]["max_moves"] == 8
    assert config["gpu"]["value"]["region"] == "${oc.env:SOME_SECRET}"
    summary = server.summary(identity)
    rate = json.loads((run / "evaluation.json").read_text())["policies"][-1]["win_rate"]
    assert summary["evaluation/after/win_rate"] == rate["value"]
    assert summary["evaluation/after/win_rate/high"] == pytest.approx(rate["high"])
    assert summary["learning_curve"]["_type"] == "image-file"
    pages = [path.read_text() for path in run.glob("wandb/offline-run-*/files/media/html/epi*")]
    assert len(pages) == 4 and all("<th>text</th>" in page for page in pages)


@pytest.mark.skipif("tensorboard" not in LOCAL, reason="not installed")
def test_tensorboard_has_every_step_once_across_a_kill(
    resumed: tuple[Path, str, dict[str, str]],
) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(resumed[0] / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    for name in ("loss", "time/step", "end/won"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        kept = [(record["step"], record[name]) for record in records(resumed[0])]
        assert told == [(step, pytest.approx(value)) for step, value in kept]
    assert events.Scalars("evaluation/after/win_rate")[0].step == 8
    assert events.Tags()["images"] == ["learning_curve"]


@pytest.mark.skipif("trackio" not in LOCAL, reason="not installed")
def test_trackio_has_every_step_once_across_a_kill(
    resumed: tuple[Path, str, dict[str, str]],
) -> None:
    read = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage as S;"
        "(run,) = trackio.Api().runs('rl-experiments');"
        "print(json.dumps([run.name, run.id, S.get_logs(run.project, run.name, run_id=run.id)]))"
    )
    done = subprocess.run([sys.executable, "-c", read], env=resumed[2], capture_output=True)
    name, identity, rows = json.loads(done.stdout)
    assert name == "one-0"
    assert identity == json.loads((resumed[0] / "loggers.json").read_text())["trackio"]
    told = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert told == [(record["step"], record["loss"]) for record in records(resumed[0])]
    assert any("evaluation/after/win_rate" in row for row in rows)


def test_no_file_holds_a_secret(resumed: tuple[Path, str, dict[str, str]]) -> None:
    files = [path for path in resumed[0].parents[2].rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    (tmp_path / "own.py").write_text(OWN)
    return ["trainer.target=own:train", "logger=wandb", "name=own"]


@pytest.mark.parametrize(
    ("end", "code", "sent"), [("killed", -signal.SIGKILL, []), ("failed", 1, [1, 2])]
)
def test_wandb_online_goes_on_in_the_same_run(
    end: str, code: int, sent: list[int], own: list[str], program: Program, server: Server
) -> None:
    """Also with what the server had, or had not, been sent of the steps that are done again."""
    arguments = [*own, f"trainer.target=own:train_once_{end}", "logger.entity=team"]
    variables = {**server.variables, "WANDB_RUN_GROUP": "mine"}
    assert program(*arguments, **variables).returncode == code
    ((identity, _),) = server.begun.items()
    assert [row["_step"] for row in server.history(identity)] == sent
    done = program(*arguments, "resume=true", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"/team/rl-experiments/runs/{identity}" in done.stdout
    ((_, told),) = server.begun.items()
    assert told["groupName"] == "mine"
    rows = [(row["_step"], row["loss"]) for row in server.history(identity)]
    assert rows == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_a_training_function_of_the_users_own(
    own: list[str], program: Program, tmp_path: Path, server: Server
) -> None:
    """As a sweep in one process, whose jobs have each a W&B run of their own."""
    done = program(*own, "seed=0,1", **server.variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.begun) == 2
    assert {told["groupName"] for told in server.begun.values()} == {"own"}
    for job in (0, 1):
        run = tmp_path / f"runs/own/{job}"
        identity = json.loads((run / "loggers.json").read_text())["wandb"]
        assert_has_every_step_once(server.history(identity), run)
        assert records(run)[0]["loss"] == job + 1
        assert json.loads((run / ".job/result.json").read_text())["value"] == 0.25


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere:train", "No module named 'nowhere'"),
        ("own:nothing", "has no attribute 'nothing'"),
        ("own:lost", "returned None; return the metric"),
    ],
)
def test_a_target_that_will_not_do_is_one_line(
    target: str, says: str, own: list[str], program: Program
) -> None:
    done = program(f"trainer.target={target}", "name=x")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"trainer.target={target}") and says in done.stderr


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (None, "W&B: offline (http://127.0.0.1:9 does not answer"),
        (".", "W&B: offline ("),
        ("file_stream", "W&B: not all was sent; send it with: wandb sync "),
    ],
)
def test_a_wandb_server_that_fails_costs_seconds(
    fails: str | None, says: str, own: list[str], program: Program, tmp_path: Path
) -> None:
    with Server(fails or "^$") as server:
        variables = {**server.variables, "WANDB_INIT_TIMEOUT": "2", "WANDB_FINISH_TIMEOUT": "2"}
        if fails is None:
            variables["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        begun = time.monotonic()
        done = program(*own, **variables)
        assert time.monotonic() - begun < 20
        server.shutdown()
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout
    assert len(records(tmp_path / "runs/own/0")) == 3
    with Server() as server:
        sync(done.stdout, server, dict(os.environ))
        (identity,) = server.begun
        assert_has_every_step_once(server.history(identity), tmp_path / "runs/own/0")
        server.shutdown()


def test_a_logger_that_breaks_is_named_and_left_out(
    own: list[str], program: Program, tmp_path: Path
) -> None:
    broken = tmp_path / "broken/wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('no\\nluck')")
    done = program(*own, from_nothing=True, PYTHONPATH=str(broken.parent))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Warning: wandb failed (no luck); the run goes on without it" in done.stdout
    assert len(records(tmp_path / "runs/own/0")) == 3


def test_a_logger_that_is_not_there_is_one_line(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = program("logger.report_to=[wand]", "name=x")
    assert done.returncode == 1
    assert done.stderr.startswith("logger.report_to: no logger is called wand; did you mean wandb?")
    assert not (tmp_path / "runs/x/0/config.yaml").exists()
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install trackio"):
        loggers.check_installed(LoggerConfig(["trackio"]))
