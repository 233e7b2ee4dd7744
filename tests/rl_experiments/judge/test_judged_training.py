"""Training that a judge rewards, as a program: rewards, failures, mistakes, a kill and a resume."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from environments import End
from environments.game2048.rewards import episode_reward
from tests.fakes.judge_server import answer_with, tiles
from tests.fakes.openai_server import Body, OpenAIServer
from tests.rl_experiments.training.test_training import assert_same, outcome
from tests.support.program import SMALL, Program, WarmStarter

KEY = "sk-a-secret-of-the-tests"


@pytest.fixture
def key(tmp_path: Path) -> None:
    """Put the key where the programs find it."""
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")


def settings(server: OpenAIServer, *more: str) -> list[str]:
    """A small run that a judge rewards."""
    return [
        *(*SMALL, "model.scratch.warmup_steps=100", "num_examples=4", "name=one"),
        *("env.max_moves=16", "trainer.num_generations=8", "checkpoint.every_steps=4"),
        *("trainer.per_device_train_batch_size=8", "reward.credit=episode"),
        "reward.ruler.enabled=true",
        *("judge=openai", "judge.model=m", f"judge.base_url={server.url}"),
        *("judge.timeout=20", "judge.deadline=120", *more),
    ]


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / "runs/one/0" / name
    return [json.loads(line) for line in file.read_text().splitlines()]


def environment_reward(episode: dict[str, Any]) -> float:
    """Return what 2048 pays, from the metrics."""
    if episode["end"] == End.INVALID:
        return -1.0
    metrics = episode["metrics"]
    return episode_reward(
        max_value=int(metrics["max_value"]), board_value=int(metrics["board_value"]), win_value=32
    )


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_a_judge_rewards_training_and_not_the_evaluation(program: Program, tmp_path: Path) -> None:
    with OpenAIServer(answer_with(tiles)) as server:
        server.rate, server.kinds = 0.2, ("429", "500", "reset", "malformed")
        done = program(*settings(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Judge: m at {server.url}, 100% of the reward" in done.stdout
    assert f"Judge: {len(server.requests)} requests, " in done.stdout
    formats = {body["response_format"]["json_schema"]["strict"] for body in server.requests}
    assert formats == {True} and {*server.keys} == {f"Bearer {KEY}"}
    assert any("ruler/correlation" in line for line in lines(tmp_path, "metrics.jsonl"))
    for line in lines(tmp_path, "metrics.jsonl"):
        assert line["ruler/failures"] == 0 and line.get("ruler/correlation", 1.0) > 0.99
        assert line["ruler/mean"] == pytest.approx(line["reward"])
        assert line["independent_reward"] > line["reward"] > 0
        assert line["time/judge"] >= 0 and line["ruler/tokens"] > 0
    for episode in lines(tmp_path, "episodes.jsonl"):
        shown = "{end} after; max_value={max_value:g}; board_value={board_value:g}"
        judged = tiles(shown.format(end=episode["end"], **episode["metrics"]))
        assert episode["reward"] == episode["ruler_score"] == judged
        assert episode["independent_reward"] != episode["reward"]
    for episode in lines(tmp_path, "evaluation/after.jsonl"):  # the environment's own
        assert episode["reward"] == pytest.approx(environment_reward(episode))
    everything = "".join(
        path.read_text(errors="replace") for path in tmp_path.glob("runs/**/*") if path.is_file()
    )
    assert KEY not in done.stdout + done.stderr + everything


@pytest.mark.slow
@pytest.mark.usefixtures("key")
def test_too_many_failures_stop_the_run_in_one_line(program: Program, tmp_path: Path) -> None:
    def reply(body: Body) -> str:
        is_proof = "Reply with yes" in body["messages"][1]["content"]
        return answer_with(lambda _: 0.5)(body) if is_proof else "I would rather not."

    with OpenAIServer(reply) as server:
        words = settings(server, "trainer.max_steps=40", "reward.ruler.max_failures=0.7")
        done = program(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("The judge gave no scores to 6 of the last 6 groups (there is no")
    assert "reward.ruler.max_failures=0.7" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    # Until then the environment rewarded.
    assert [line["ruler/failures"] for line in lines(tmp_path, "metrics.jsonl")] == [1.0, 1.0]
    assert all(e["reward"] == e["independent_reward"] for e in lines(tmp_path, "episodes.jsonl"))


@pytest.mark.slow
@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("answer", ["words", "hang", "404"])
def test_a_judge_that_gives_no_scores_at_all_stops_before_training(
    program: Program, tmp_path: Path, answer: str
) -> None:
    with OpenAIServer(lambda body: "no") as server:
        if answer == "hang":
            server.rate, server.kinds = 1.0, ("hang",)
        if answer == "404":
            server.refuses = (404, {"error": {"message": "no such model"}})
        words = settings(server, "judge.timeout=0.3", "judge.deadline=1")
        done = program(*words)
    assert done.returncode == 1 and f"judge.base_url={server.url}: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs/one/0/evaluation").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reward.credit=turn"], "reward.credit=turn: a judge rewards whole episodes"),
        (["judge.api_key_env=NO_SUCH_KEY"], "judge.api_key_env=NO_SUCH_KEY: this variable is not"),
        (["reward.ruler.weight=0"], "reward.ruler.weight=0.0: must be above 0"),
        (["reward.ruler.max_failures=2"], "reward.ruler.max_failures=2.0: must be from 0 to 1"),
        (["judge.max_usd=1"], "judge.max_usd=1.0: needs judge.input_usd"),
        (["judge.base_url=nowhere"], "judge.base_url=nowhere: give an address"),
        (["judge=openai"], "judge.model: a value is missing"),
        (["gpu=a10g", "judge.base_url=http://localhost:8000/v1"], "is on this machine, which"),
    ],
)
def test_a_mistake_in_the_settings_ends_before_any_work(
    program: Program, tmp_path: Path, words: list[str], message: str
) -> None:
    base = ["judge=openai", "judge.model=m", "judge.base_url=http://nowhere.invalid/v1"]
    named = {word.split("=")[0] for word in words}
    given = [word for word in base if word.split("=")[0] not in named and "judge" not in named]
    credit = [] if "reward.credit" in named else ["reward.credit=episode"]
    done = program("reward.ruler.enabled=true", *credit, *given, *words)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists() or not [*(tmp_path / "runs").glob("*/0/run.json")]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights_and_pays_nothing_twice(
    run_in: Program, warm: WarmStarter, program_environment: dict[str, str], tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    with OpenAIServer(answer_with(tiles)) as server:
        words = settings(server, "trainer.max_steps=8")
        done = run_in(tmp_path / "a", *words)
        assert done.returncode == 0, done.stderr
        undisturbed = len(server.requests)
        process = warm.start(
            words, cwd=tmp_path / "b", variables=program_environment, out=os.devnull, err=os.devnull
        )
        metrics = tmp_path / "b/runs/one/0/metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = run_in(tmp_path / "b", *words, "resume=true")
        assert done.returncode == 0, done.stderr
        assert "Going on from step 4" in done.stdout
        answered = [json.dumps(body["messages"]) for body in server.answered[undisturbed:]]
    # What was under way at the kill may have been answered in vain.
    assert len(answered) - len({*answered}) <= 2
    assert len({*answered}) == undisturbed
    assert_same(outcome(tmp_path / "a/runs/one/0"), outcome(tmp_path / "b/runs/one/0"))


@pytest.mark.slow
def test_without_a_key_the_environment_rewards_and_a_line_says_why(
    program: Program, tmp_path: Path
) -> None:
    words = [
        *SMALL,
        "num_examples=4",
        "name=one",
        "reward.credit=episode",
        "reward.ruler.enabled=null",
    ]
    done = program(*words, "trainer.max_steps=2", "judge.api_key_env=NO_SUCH_KEY")
    assert done.returncode == 0, done.stderr
    assert "Judge: none, the environment rewards (judge.api_key_env=NO_SUCH_KEY" in done.stdout
    assert "ruler/mean" not in lines(tmp_path, "metrics.jsonl")[0]
    # A key that comes later does not change what the run learns from.
    (tmp_path / ".env").write_text("NO_SUCH_KEY=x\n")
    more = ["trainer.max_steps=4", "resume=true", "judge.api_key_env=NO_SUCH_KEY"]
    done = program(*words, *more)
    assert done.returncode == 0, done.stderr
    assert "(as when this run was begun)" in done.stdout
