"""Loggers have every step once, across a kill and a resume; none of them stops a run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rl_experiments.config.schema import LoggerConfig
from rl_experiments.errors import UserError
from rl_experiments.tracking import loggers
from tests.fakes.wandb_server import API_KEY, WandbServer
from tests.rl_experiments.training.test_training import kill_when
from tests.support.program import SMALL, Program, WarmStarter

LOCAL = [name for name in ("tensorboard", "trackio") if find_spec(name)]

# Training functions of a user, which take no time.
USER_MODULE = """
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


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory,
    program_environment: dict[str, str],
    run_in: Program,
    warm: WarmStarter,
) -> tuple[Path, str, dict[str, str]]:
    """Return folder, output and variables of a run that was killed and resumed."""
    cwd = tmp_path_factory.mktemp("resumed")
    env = {**program_environment, "WANDB_MODE": "offline", "WANDB_API_KEY": API_KEY}
    env |= {"SOME_SECRET": API_KEY}
    arguments = [*SMALL, "name=one", "trainer.max_steps=8", "logger.tags=[small,${oc.env:USER,me}]"]
    arguments += [f"logger.report_to=[{','.join(['wandb', *LOCAL])}]"]
    arguments += ["gpu.region=${oc.env:SOME_SECRET}"]
    run = cwd / "runs/one/0"
    kill_when(run / "metrics.jsonl", 3, arguments, cwd=cwd, env=env, warm=warm)
    done = run_in(cwd, *arguments, "resume=true", **env)
    assert (done.returncode, done.stderr) == (0, "")
    return run, done.stdout, env


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_has_every_step_once(history: list[dict[str, Any]], run: Path) -> None:
    """Assert that W&B was sent what metrics.jsonl has."""
    assert [row["_step"] for row in history] == [record["step"] for record in records(run)]
    for row, record in zip(history, records(run), strict=True):
        metrics = {name: value for name, value in record.items() if name != "step"}
        assert {name: row.get(name) for name in metrics} == pytest.approx(metrics)


def sync(output: str, server: WandbServer, env: dict[str, str]) -> None:
    """Run the `wandb sync` command of the output: it is the reader of offline runs."""
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


@pytest.mark.slow
def test_wandb_offline_has_every_step_once_across_a_kill(
    resumed: tuple[Path, str, dict[str, str]], server: WandbServer
) -> None:
    run, output, env = resumed
    assert [folder.name[:11] for folder in (run / "wandb").glob("*run-*-*")] == ["offline-run"]
    sync(output, server, env)
    ((run_id, variables),) = server.begun.items()
    assert run_id == json.loads((run / "loggers.json").read_text())["wandb"]
    assert_has_every_step_once(server.history(run_id), run)
    assert variables["groupName"] == "one" and variables["displayName"] == "one-0"
    assert variables["project"] == "rl-experiments" and variables["tags"][0] == "small"
    config = json.loads(variables["config"])
    assert config["env"]["value"]["max_moves"] == 8
    assert config["gpu"]["value"]["region"] == "${oc.env:SOME_SECRET}"
    summary = server.summary(run_id)
    rate = json.loads((run / "evaluation.json").read_text())["policies"][-1]["win_rate"]
    assert summary["evaluation/after/win_rate"] == rate["value"]
    assert summary["evaluation/after/win_rate/high"] == pytest.approx(rate["high"])
    assert summary["learning_curve"]["_type"] == "image-file"
    pages = [path.read_text() for path in run.glob("wandb/offline-run-*/files/media/html/epi*")]
    assert len(pages) == 4 and all("<th>text</th>" in page for page in pages)


@pytest.mark.slow
@pytest.mark.skipif("tensorboard" not in LOCAL, reason="not installed")
def test_tensorboard_has_every_step_once_across_a_kill(
    resumed: tuple[Path, str, dict[str, str]],
) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(resumed[0] / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    for name in ("loss", "time/step", "end/won"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        kept = [(record["step"], record[name]) for record in records(resumed[0])]
        assert logged == [(step, pytest.approx(value)) for step, value in kept]
    assert events.Scalars("evaluation/after/win_rate")[0].step == 8
    assert events.Tags()["images"] == ["learning_curve"]


@pytest.mark.slow
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
    name, run_id, rows = json.loads(done.stdout)
    assert name == "one-0"
    assert run_id == json.loads((resumed[0] / "loggers.json").read_text())["trackio"]
    logged = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert logged == [(record["step"], record["loss"]) for record in records(resumed[0])]
    assert any("evaluation/after/win_rate" in row for row in rows)


@pytest.mark.slow
def test_no_file_holds_a_secret(resumed: tuple[Path, str, dict[str, str]]) -> None:
    folders = (resumed[0].parents[2], Path(resumed[2]["TRACKIO_DIR"]))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if API_KEY.encode() in path.read_bytes()] == []


@pytest.fixture
def user_function(tmp_path: Path) -> list[str]:
    """Return the settings of a run that a user's function trains, logged to W&B."""
    (tmp_path / "own.py").write_text(USER_MODULE)
    return ["trainer.target=own:train", "logger=wandb", "name=own"]


@pytest.mark.slow
@pytest.mark.parametrize(("end", "sent"), [("killed", []), ("failed", [1, 2])])
def test_wandb_online_goes_on_in_the_same_run(
    end: str,
    sent: list[int],
    user_function: list[str],
    program: Program,
    server: WandbServer,
) -> None:
    """Whether or not the server was sent the steps that are done again."""
    arguments = [*user_function, f"trainer.target=own:train_once_{end}", "logger.entity=team"]
    variables = {**server.variables, "WANDB_RUN_GROUP": "mine"}
    assert program(*arguments, **variables).returncode == 1
    ((run_id, _),) = server.begun.items()
    assert [row["_step"] for row in server.history(run_id)] == sent
    done = program(*arguments, "resume=true", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"/team/rl-experiments/runs/{run_id}" in done.stdout
    ((_, begun),) = server.begun.items()
    assert begun["groupName"] == "mine"
    rows = [(row["_step"], row["loss"]) for row in server.history(run_id)]
    assert rows == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


@pytest.mark.slow
def test_the_jobs_of_a_sweep_in_one_process_have_a_wandb_run_each(
    user_function: list[str], program: Program, tmp_path: Path, server: WandbServer
) -> None:
    """With a training function of the user."""
    done = program(*user_function, "seed=0,1", **server.variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.begun) == 2
    assert {begun["groupName"] for begun in server.begun.values()} == {"own"}
    for job in (0, 1):
        run = tmp_path / f"runs/own/{job}"
        run_id = json.loads((run / "loggers.json").read_text())["wandb"]
        assert_has_every_step_once(server.history(run_id), run)
        assert records(run)[0]["loss"] == job + 1
        assert json.loads((run / ".job/result.json").read_text())["value"] == 0.25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere:train", "No module named 'nowhere'"),
        ("own:nothing", "has no attribute 'nothing'"),
        ("own:lost", "returned None; return the metric"),
    ],
)
def test_a_wrong_training_function_ends_in_one_line(
    target: str, message: str, user_function: list[str], program: Program
) -> None:
    done = program(f"trainer.target={target}", "name=x")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"trainer.target={target}") and message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (None, "W&B: offline (http://127.0.0.1:9 does not answer"),
        (".", "W&B: offline ("),
        ("file_stream", "W&B: not all was sent; send it with: wandb sync "),
    ],
)
def test_a_failing_wandb_server_does_not_hold_up_the_run(
    fails: str | None, message: str, user_function: list[str], program: Program, tmp_path: Path
) -> None:
    with WandbServer(fails or "^$") as server:
        variables = {**server.variables, "WANDB_INIT_TIMEOUT": "2", "WANDB_FINISH_TIMEOUT": "2"}
        if fails is None:
            variables["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        started = time.monotonic()
        done = program(*user_function, **variables)
        # W&B's client alone would try for longer than this.
        assert time.monotonic() - started < 180
        server.shutdown()
    assert (done.returncode, done.stderr) == (0, "")
    assert message in done.stdout
    assert len(records(tmp_path / "runs/own/0")) == 3
    with WandbServer() as server:
        sync(done.stdout, server, dict(os.environ))
        (run_id,) = server.begun
        assert_has_every_step_once(server.history(run_id), tmp_path / "runs/own/0")
        server.shutdown()


@pytest.mark.slow
def test_a_logger_that_raises_is_named_and_left_out(
    user_function: list[str], program: Program, tmp_path: Path
) -> None:
    broken = tmp_path / "broken/wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('no\\nluck')")
    done = program(*user_function, from_nothing=True, PYTHONPATH=str(broken.parent))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Warning: wandb failed (no luck); the run goes on without it" in done.stdout
    assert len(records(tmp_path / "runs/own/0")) == 3


@pytest.mark.slow
def test_a_logger_that_is_unknown_or_not_installed_ends_in_one_line(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = program("logger.report_to=[wand]", "name=x")
    assert done.returncode == 1
    assert done.stderr.startswith("logger.report_to: no logger is called wand; did you mean wandb?")
    assert not (tmp_path / "runs/x/0/config.yaml").exists()
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install trackio"):
        loggers.check_installed(LoggerConfig(["trackio"]))
