"""The judge over HTTP: whatever it answers, each attempt gets its own score or no one does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environments import End
from rl_experiments.config.schema import Config, Fallback, JudgeConfig, OnBudget, RulerConfig
from rl_experiments.errors import UserError
from rl_experiments.judge.rewarder import open_judge
from tests.fakes.judge_server import answer_with, attempts, entries
from tests.fakes.openai_server import KINDS, Body, OpenAIServer
from tests.rl_experiments.judge.groups import (
    GROUP_SIZE,
    attempt,
    count_scored,
    group,
    rewarded,
    running_judge,
    true_scores,
    worth,
)

RIGHT = answer_with(worth)


def altered(body: Body, change: Callable[[list[dict[str, Any]]], Any]) -> str:
    """Return the right answer after `change`, which returns new entries or changes them."""
    scores = entries(body, worth)
    return json.dumps({"scores": change(scores) or scores})


READABLE: dict[str, Callable[[Body], str]] = {
    "reordered": lambda body: altered(body, lambda e: e[::-1]),
    "integer ids": lambda body: altered(body, lambda e: [{**x, "id": int(x["id"])} for x in e]),
    "strings": lambda body: altered(body, lambda e: [{**x, "score": str(x["score"])} for x in e]),
    "fenced": lambda body: f"```json\n{RIGHT(body)}\n```",
    "prose": lambda body: f"Attempt [1] is {{fine}}.\n{RIGHT(body)}\nThat is all.",
    "thought": lambda body: f'<think>{{"scores": [{{"id": 1}}]}}</think>{RIGHT(body)}',
    "a bare list": lambda body: json.dumps(entries(body, worth)),
    "nested": lambda body: json.dumps({"answer": json.loads(RIGHT(body))}),
}


@pytest.mark.parametrize("kind", READABLE)
def test_scores_reach_their_attempts_whatever_the_form_of_the_answer(
    kind: str, tmp_path: Path
) -> None:
    with OpenAIServer(READABLE[kind]) as server, running_judge(server, tmp_path) as judge:
        groups = rewarded(judge, [group(seed) for seed in range(6)])
        assert count_scored(groups) == 6
        assert len(server.requests) == 6
        orders = {tuple(sorted(attempts(body).values())) for body in server.requests}
        assert len(orders) == 6
        assert any([*attempts(b).values()] != sorted(attempts(b).values()) for b in server.requests)


WRONG: dict[str, tuple[Callable[[Body], str], str]] = {
    "missing": (lambda body: altered(body, lambda e: e[1:]), "id 1 is missing"),
    "duplicate": (lambda body: altered(body, lambda e: [*e, e[0]]), "id 1 is there twice"),
    "swapped": (
        lambda body: altered(body, lambda e: [*e[:-1], {**e[-1], "id": "1"}]),
        "id 1 is there twice; id 4 is missing",
    ),
    "unknown": (
        lambda body: altered(body, lambda e: [*e, {**e[0], "id": "9"}]),
        "id '9' is unk",
    ),
    "too high": (
        lambda body: altered(body, lambda e: e[0].update(score=7)),
        "score of id 1 is no",
    ),
    "negative": (
        lambda body: altered(body, lambda e: e[2].update(score=-0.1)),
        "score of id 3",
    ),
    "NaN": (
        lambda body: altered(body, lambda e: e[1].update(score=float("nan"))),
        "of id 2",
    ),
    "no number": (
        lambda body: altered(body, lambda e: e[1].update(score="high")),
        "of id 2",
    ),
    "boolean": (
        lambda body: altered(body, lambda e: e[1].update(score=True)),
        "score of id 2",
    ),
    "null": (lambda body: altered(body, lambda e: e[1].update(score=None)), "score of id 2"),
    "prose alone": (lambda body: "They are all fine.", "no whole JSON"),
    "broken off": (lambda body: RIGHT(body)[:-30], "no whole JSON"),
    "two answers": (
        lambda body: RIGHT(body) + altered(body, lambda e: e[0].update(score=0)),
        "several lists of scores",
    ),
    "a score twice": (
        lambda body: RIGHT(body).replace('"score"', '"score": 1, "score"', 1),
        "no whole JSON",
    ),
    "nothing": (lambda body: "", "no whole JSON"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_after_two_wrong_answers_no_attempt_of_the_group_is_scored(
    kind: str, tmp_path: Path
) -> None:
    answer, fault = WRONG[kind]

    def reply(body: Body) -> str:
        is_hopeless = "task 2" in body["messages"][1]["content"]
        return answer(body) if len(body["messages"]) == 2 or is_hopeless else RIGHT(body)

    with OpenAIServer(reply) as server, running_judge(server, tmp_path) as judge:
        groups = rewarded(judge, [group(seed) for seed in (1, 2, 3)])
        assert count_scored(groups) == 2
        assert groups[1][0].ruler_score is None
        assert len(server.requests) == 6
        again = [body["messages"] for body in server.requests if len(body["messages"]) > 2]
        assert len(again) == 3 and all(fault in messages[3]["content"] for messages in again)
        assert judge.report(groups)["ruler/failures"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_no_reward_is_lost_or_misplaced_whatever_fault_the_service_has(tmp_path: Path) -> None:
    with (
        OpenAIServer(RIGHT) as server,
        running_judge(server, tmp_path, timeout=1.0) as judge,
    ):
        server.rate, server.hang = 0.4, 2.0
        groups = rewarded(judge, [group(seed) for seed in range(40)])
        assert {*server.faults} == {*KINDS}
        assert count_scored(groups) == 40
        meter = judge.client.spend
        assert meter.requests == len(server.requests) == 40 + len(server.faults)


@pytest.mark.slow
def test_a_request_without_an_answer_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    is_over = threading.Event()

    def reply(body: Body) -> str:
        if "task 2" in body["messages"][1]["content"]:
            is_over.wait(300)  # until the judge has given up, unless it never does
        return RIGHT(body)

    with OpenAIServer(reply) as server:
        with running_judge(server, tmp_path, timeout=1.0, deadline=3.0) as judge:
            groups = rewarded(judge, [group(seed) for seed in (1, 2, 3)])
            is_over.set()
        assert count_scored(groups) == 2
        assert groups[1][0].ruler_score is None


@pytest.mark.parametrize("on_budget", OnBudget)
def test_no_request_exceeds_the_budget(tmp_path: Path, on_budget: OnBudget) -> None:
    ruler = RulerConfig(enabled=True, on_budget=on_budget)
    with OpenAIServer(RIGHT) as server:
        server.rate, server.kinds = 0.3, ("500",)
        with running_judge(server, tmp_path, ruler=ruler, max_requests=12) as judge:
            groups = [group(seed) for seed in range(20)]
            if on_budget is OnBudget.stop:
                with pytest.raises(UserError, match=r"judge\.max_requests=12 is spent"):
                    rewarded(judge, groups)
            else:
                assert 4 <= count_scored(rewarded(judge, groups)) <= 12
                assert judge.report(groups)["ruler/spent"] > 0
            assert len(server.requests) == 12
        # A second attempt pays for nothing again; what the first has spent counts.
        known = len(server.answered)
        server.rate = 0.0
        with running_judge(server, tmp_path, ruler=ruler, max_requests=15) as judge:
            groups = [group(seed) for seed in range(20)]
            if on_budget is OnBudget.stop:
                with pytest.raises(UserError, match="is spent"):
                    rewarded(judge, groups)
            else:
                assert count_scored(rewarded(judge, groups)) == known + 3
                assert len(server.requests) == 15


def test_equal_attempts_are_shown_once_and_a_group_of_them_is_not_asked_about(
    tmp_path: Path,
) -> None:
    with OpenAIServer(RIGHT) as server, running_judge(server, tmp_path) as judge:
        twins = [attempt(1, m, f"worth 0.{m // 2 + 3}") for m in range(GROUP_SIZE)]
        alike = [attempt(2, m, "worth 0.3") for m in range(GROUP_SIZE)]
        broken = [attempt(3, m, f"worth 0.{m + 1}") for m in range(GROUP_SIZE)]
        broken[1].reward, broken[1].end = None, End.FAILED
        rewarded(judge, [twins, alike, broken])
        shown = sorted(len(attempts(body)) for body in server.requests)
    assert shown == [2, 3]
    assert [t.ruler_score for t in twins] == [0.3, 0.3, 0.4, 0.4]
    assert [t.ruler_score for t in alike] == [0.5] * GROUP_SIZE
    assert [t.ruler_score for t in broken] == [0.1, None, 0.3, 0.4]
    assert broken[1].reward is None


def test_a_group_is_scored_as_soon_as_it_is_whole(tmp_path: Path) -> None:
    with OpenAIServer(RIGHT) as server, running_judge(server, tmp_path) as judge:
        for episode in group(1)[::-1]:
            assert not server.requests
            judge.add(episode, group_size=GROUP_SIZE)
        deadline = time.monotonic() + 60
        while not server.answered:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_rewards_are_mixed_by_weight_and_fall_back_as_set(tmp_path: Path) -> None:
    def reply(body: Body) -> str:
        return "no" if "task 2" in body["messages"][1]["content"] else RIGHT(body)

    ruler = RulerConfig(enabled=True, weight=0.5, fallback=Fallback.none)
    with OpenAIServer(reply) as server, running_judge(server, tmp_path, ruler=ruler) as judge:
        first, second = rewarded(judge, [group(1), group(2)])
        metrics = judge.report([first, second])
    assert [t.reward for t in first] == [
        pytest.approx(0.5 * t.member + 0.5 * score)
        for t, score in zip(first, true_scores(first), strict=True)
    ]
    assert [t.reward for t in second] == [None] * GROUP_SIZE
    assert [t.independent_reward for t in second] == [0.0, 1.0, 2.0, 3.0]
    # The judge prefers what the environment rewards least.
    assert metrics["ruler/correlation"] == pytest.approx(-1.0)
    assert metrics["ruler/tokens"] == 3 * 110 and metrics["ruler/ties"] == 0.0


@pytest.mark.parametrize("kept", ["false", '{"format_version": 1, "enabled": false}'])
def test_a_run_without_a_judge_stays_without_one(kept: str, tmp_path: Path) -> None:
    """Also a run of an early version, whose file was the bare decision."""
    config = Config(judge=JudgeConfig(base_url="http://127.0.0.1:9/v1", model="m"))
    config.reward.ruler.enabled = None
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge/wanted.json").write_text(kept)
    lines: list[str] = []
    with open_judge(config, rubric="", folder=tmp_path, say=lines.append) as judge:
        assert judge is None
    assert lines == ["Judge: none, the environment rewards (as when this run was begun)"]


def test_the_spend_of_an_early_version_counts(tmp_path: Path) -> None:
    spend = {"requests": 3, "prompt_tokens": 30, "completion_tokens": 12, "usd": 0.5}
    (tmp_path / "spent-0.json").write_text(json.dumps(spend))
    with OpenAIServer(RIGHT) as server, running_judge(server, tmp_path) as judge:
        assert judge.spent() == "3 requests, 42 tokens, 0.5000 USD"
