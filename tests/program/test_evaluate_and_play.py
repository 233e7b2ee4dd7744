"""The verbs evaluate and play: what they print is what their episodes were."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import pytest

from environments import evaluation_seed
from environments.game2048 import Game2048
from tests.support.program import Program, command
from tests.support.results import json_lines, table_row


def summary(episodes: list[dict[str, Any]]) -> list[float]:
    """Return n, the win rate with Wilson's interval, the mean reward with its interval."""
    n, z = len(episodes), NormalDist().inv_cdf(0.975)
    p = sum(episode["end"] == "won" for episode in episodes) / n
    # Wilson: the rates q whose distance to p is z standard errors at q, |p - q| = z sqrt(q(1-q)/n).
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = (b * b - 4 * a * c) ** 0.5
    rewards = [episode["reward"] for episode in episodes]
    mean, half = fmean(rewards), z * stdev(rewards) / n**0.5
    wilson = [(-b - root) / (2 * a), (-b + root) / (2 * a)]
    return [n, p, *wilson, mean, mean - half, mean + half]


def test_evaluate_prints_what_its_episodes_say(program: Program, tmp_path: Path) -> None:
    asked = ["evaluate", "policy=merge_greedy", "num_examples=50"]
    first = program(*asked, "name=a")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs/a/0"
    file = folder / "evaluation/merge_greedy.jsonl"
    episodes = json_lines(file)
    assert [episode["seed"] for episode in episodes] == [evaluation_seed(i) for i in range(50)]
    printed = table_row(first.stdout, "merge_greedy")
    assert printed == pytest.approx(summary(episodes), abs=0.00051)
    assert 0 < printed[1] < 1  # else the intervals would show little
    saved = json.loads((folder / "evaluation.json").read_text())["policies"]
    figures = [*saved[0]["win_rate"].values(), *saved[0]["reward"].values()]
    assert [saved[0]["n"], *figures] == pytest.approx(summary(episodes), rel=1e-5)
    assert saved[0]["turns"] == fmean(episode["turns"] for episode in episodes)
    assert [policy["policy"] for policy in saved] == ["merge_greedy"]
    second = program(*asked, "name=b")
    assert table_row(second.stdout, "merge_greedy") == printed
    assert (tmp_path / "runs/b/0/evaluation/merge_greedy.jsonl").read_text() == file.read_text()

    whole, result = file.read_text(), (folder / "evaluation.json").read_text()
    lines = whole.splitlines(keepends=True)
    marked = lines[0].replace("{", '{"kept": 1, ', 1)
    file.write_text("".join([marked, *lines[1:20]]) + lines[20][: len(lines[20]) // 2])
    (folder / "evaluation.json").unlink()
    resumed = program(*asked, "name=a", "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    assert table_row(resumed.stdout, "merge_greedy") == printed
    assert (folder / "evaluation.json").read_text() == result
    assert file.read_text() == "".join([marked, *lines[1:]])  # what was played is not replayed


def test_a_sweep_has_a_folder_for_each_job(program: Program, tmp_path: Path) -> None:
    done = program("evaluate", "policy=random,random_legal", "num_examples=20", "name=s")
    assert done.returncode == 0, done.stderr
    for number, policy in enumerate(["random", "random_legal"]):
        saved = json.loads((tmp_path / f"runs/s/{number}/evaluation.json").read_text())
        assert [(p["policy"], p["n"]) for p in saved["policies"]] == [(policy, 20)]
        assert table_row(done.stdout, policy)[0] == 20


def test_a_sweep_with_a_job_that_is_wrong_does_not_begin(program: Program, tmp_path: Path) -> None:
    done = program("evaluate", "policy=random,randm", "num_examples=20", "name=s")
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "policy=randm" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_play_by_hand_through_a_pipe(program_environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        command(["play", "seed=3", "env.max_moves=2"]),
        input="l\n<move>up</move>\nn\n",
        cwd=tmp_path,
        env=program_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert Game2048().reset(evaluation_seed(3)) in done.stdout
    assert re.search(r"<move>left</move>.*<move>up</move>.*truncated: reward", done.stdout, re.S)
    assert list(tmp_path.iterdir()) == []


def test_play_shows_a_policy_through_a_pipe(program: Program) -> None:
    done = program("play", "policy=merge_greedy", "seed=3", "env.win_value=16")
    assert done.returncode == 0 and done.stderr == ""
    assert Game2048().reset(evaluation_seed(3)) in done.stdout
    assert re.search(r"won: reward 2.000 after \d+ turns", done.stdout)
