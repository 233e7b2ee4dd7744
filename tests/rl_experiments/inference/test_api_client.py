"""Models behind OpenAI-compatible addresses, over real HTTP on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environments import Environment, evaluation_seed
from environments.game2048 import Game2048
from environments.tool_test import ToolTest
from environments.wordle import Wordle
from rl_experiments.config.registration import register
from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError
from rl_experiments.evaluation.results import PolicyResult
from rl_experiments.evaluation.runner import Evaluation
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.preflight import compose_and_check
from rl_experiments.rollout.episode import Episode
from rl_experiments.rollout.types import EpisodeSpec
from rl_experiments.terminal.progress import Progress
from tests.fakes.openai_server import KINDS, Body, OpenAIServer
from tests.support.forked import ForkedProcess
from tests.support.program import Program, WarmStarter

KEY = "sk-a-secret-of-the-tests"
WORDS = ("crane", "slate", "audio", "mount")


def turns_of(body: Body) -> int:
    """The model's replies so far, in the conversation of a request."""
    return sum(message["role"] == "assistant" for message in body["messages"])


def guess(body: Body) -> str:
    """Word number n as the n-th guess, whatever the answer."""
    return f"<think>so</think>\n<guess>{WORDS[turns_of(body) % len(WORDS)]}</guess>"


def wait_until(condition: Callable[[], bool], *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def call(body: Body) -> Body:
    """Return the calls that the tool test asks for, as the API makes them."""
    asked = body["messages"][1]["content"]
    lines = re.findall(r"^- (\w+): (.*)$", asked, re.MULTILINE)
    calls = [(name, "{" + re.sub(r"(\w+)=", r'"\1": ', given) + "}") for name, given in lines]
    return {"tool_calls": [_call(number, *each) for number, each in enumerate(calls)]}


def _call(number: int, name: str, arguments: str) -> Body:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def evaluated(
    server: OpenAIServer, folder: Path, environment: Environment, count: int = 20, **settings: Any
) -> PolicyResult:
    """Let the model at the server play; a second call goes on where the first has stopped."""
    config = EndpointConfig(base_url=server.url, deadline=60.0)
    for key, value in settings.items():
        setattr(config, key, value)
    evaluation = Evaluation(folder / "runs/e/0/evaluation", environment, count)
    journal = evaluation.api_journal("a/model")
    client = ApiClient(config, model="a/model", setting="model", journal=journal)
    return evaluation.evaluate_api_model(
        "a/model", client, max_tokens=128, temperature=1.0, progress=Progress(quiet=True)
    )


def settings(server: OpenAIServer, *more: str, num_examples: int = 20) -> list[str]:
    return [
        *("evaluate", "env=wordle", "env.guesses=3", "name=e", f"num_examples={num_examples}"),
        *("model=openai", "model.name=a/model", f"model.base_url={server.url}"),
        *("policies=[model]", "model.deadline=60", *more),
    ]


def episodes(folder: Path, name: str = "a_model") -> list[dict[str, Any]]:
    lines = (folder / f"runs/e/0/evaluation/{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def expected(index: int) -> float | None:
    """Return the reward of the evaluation episode of this index, as `guess` plays it."""
    episode = Episode(Wordle(guesses=3), EpisodeSpec(evaluation_seed(index)))
    while not episode.over:
        turns = [{"role": "assistant"}] * (len(episode.trajectory.turns) - 1)
        episode.reply(guess({"messages": turns}))
    return episode.trajectory.reward


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_every_example_is_scored_once_whatever_the_server_does(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rl_experiments.retry.pause_seconds", lambda *args, **kwargs: 0.05)
    given: dict[str, Any] = {"stream": stream, "timeout": 2.0, "api_key_env": "OPENAI_API_KEY"}
    with OpenAIServer(guess, seed=stream) as server:
        server.rate, server.most_faults, server.hang = 1.0, 2 * len(KINDS), 4.0
        result = evaluated(server, tmp_path, Wordle(guesses=3), **given)
        assert {*server.faults} == {*KINDS}
    played = episodes(tmp_path)
    assert sorted(e["seed"] for e in played) == [evaluation_seed(i) for i in range(20)]
    assert [e["reward"] for e in sorted(played, key=lambda e: e["seed"])] == [
        expected(index) for index in range(20)
    ]
    # Each turn was answered once.
    asked = Counter(json.dumps(body["messages"]) for body in server.answered)
    turns = sum(episode["turns"] for episode in played)
    assert asked.total() == turns
    assert sum(e["prompt_tokens"] for e in played) == 100 * turns
    assert (result.n, result.failed, result.cut_replies) == (20, 0, 0)
    everything = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )
    assert everything and KEY not in everything
    assert {*server.keys} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("one_a_turn", [False, True])
def test_tools_are_called_by_the_api(tmp_path: Path, stream: bool, one_a_turn: bool) -> None:
    def reply(body: Body) -> Any:
        whole = call(body)
        if not one_a_turn:
            return whole
        results = sum(message["role"] == "tool" for message in body["messages"])
        calls = whole["tool_calls"][results : results + 1]
        return {"tool_calls": calls} if calls else "done"

    with OpenAIServer(reply) as server:
        evaluated(server, tmp_path, ToolTest(one_a_turn=one_a_turn), 6, stream=stream)
    assert [episode["won"] for episode in episodes(tmp_path)] == [True] * 6
    names = {tool["function"]["name"] for tool in server.requests[0]["tools"]}
    assert names == {tool["function"]["name"] for tool in ToolTest().tools}
    if one_a_turn:
        last = max(server.requests, key=lambda body: len(body["messages"]))["messages"]
        answered = [m["tool_call_id"] for m in last if m["role"] == "tool"]
        made = [c["id"] for m in last if m.get("tool_calls") for c in m["tool_calls"]]
        assert answered == made and len(answered) >= 2


def test_a_stopped_evaluation_goes_on_without_paying_twice(
    program: Program, program_environment: dict[str, str], warm: WarmStarter, tmp_path: Path
) -> None:
    def start(arguments: list[str]) -> ForkedProcess:
        return warm.start(
            arguments,
            cwd=tmp_path,
            variables=program_environment,
            out=os.devnull,
            err=tmp_path / "errors",
        )

    with OpenAIServer(guess) as server:
        server.latency = 0.15
        words = settings(server, "model.concurrency=4")
        process = start(words)
        wait_until(lambda: len(server.answered) >= 20)
        server.latency, asked = 3.0, len(server.requests)
        # Four replies are under way, for which the client waits when it is stopped.
        wait_until(lambda: server.at_once == 4 and len(server.requests) >= asked + 4)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
        assert "resume e" in (tmp_path / "errors").read_text()
        assert len(server.answered) < 60 and server.most_at_once == 4
        # Killed while four episodes wait for the reply to their last guess: the replies to the
        # guesses before are known afterwards.
        server.latency = 0.0
        server.withholds = lambda body: turns_of(body) == 2
        again = [*words, "resume=true"]
        killed = start(again)
        wait_until(lambda: len(server.withheld) == 4)
        killed.kill()
        killed.wait()
        server.withholds = lambda body: False
        done = program(*again)
        assert done.returncode == 0, done.stderr
        assert "answers known from before" in done.stdout
        done = program(*again, "trainer.max_completion_length=64")
        assert done.returncode == 1 and "trainer.max_completion_length" in done.stderr
    played = episodes(tmp_path)
    assert len({episode["seed"] for episode in played}) == len(played) == 20
    assert len(server.answered) == sum(episode["turns"] for episode in played)


@pytest.mark.slow
def test_an_episode_without_an_answer_fails_and_is_played_again_at_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl_experiments.retry.pause_seconds", lambda *args, **kwargs: 0.05)
    boards: list[str] = []

    def reply(body: Body) -> Any:
        boards.append(body["messages"][1]["content"])
        return {"content": 7} if boards[-1] == boards[0] else "<move>left</move>"  # 7 is no text

    settings: dict[str, Any] = {"deadline": 1.0, "concurrency": 1}
    with OpenAIServer(reply) as server:
        result = evaluated(server, tmp_path, Game2048(max_moves=3), 3, **settings)
        played = episodes(tmp_path)
        error = next(e["error"] for e in played if e["end"] == "failed")
        assert len(played) == 3 and "no completion" in error and "model.deadline=1" in error
        assert result.failed == 1 and result.commonest_failure == error
        paid, boards[0] = len(server.answered), ""
        result = evaluated(server, tmp_path, Game2048(max_moves=3), 3, **settings)
        assert result.failed == 0 and len(server.answered) - paid == 3  # of that episode alone
    assert Counter(e["end"] for e in episodes(tmp_path)) == {"truncated": 3}


@pytest.mark.slow
def test_where_every_episode_failed_there_is_a_reason_and_no_figure(
    program: Program, tmp_path: Path
) -> None:
    with OpenAIServer(lambda body: {"content": 7}) as server:
        done = program(*settings(server, "model.deadline=1", num_examples=2))
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "a/model: every episode failed, so nothing was measured" in done.stderr
    assert "its content is 7" in done.stdout and "its content is 7" in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["a/model"])
    assert row.split() == ["a/model", "2", "-", "-"]
    (policy,) = json.loads((tmp_path / "runs/e/0/evaluation.json").read_text())["policies"]
    assert policy["win_rate"] is None and policy["failed"] == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((401, {"error": {"message": f"wrong key {KEY}"}}), "refuses the key"),
        ((400, {"error": {"message": f"max_tokens is above {KEY}"}}), "max_tokens is above ***"),
    ],
)
def test_an_error_that_every_request_meets_is_one_line(
    program: Program, answer: tuple[int, Body], says: str
) -> None:
    with OpenAIServer(guess) as server:
        server.refuses = answer
        done = program(*settings(server, num_examples=40), OPENAI_API_KEY=KEY)
    assert done.returncode == 1
    assert says in done.stderr and "model.base_url=" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and KEY not in done.stderr + done.stdout
    assert len(server.requests) <= 3


@pytest.mark.slow
def test_limits_hold_to_the_request_and_the_cent(tmp_path: Path) -> None:
    prices: dict[str, Any] = {"input_usd": 10.0, "output_usd": 100.0}
    with OpenAIServer(guess) as server:
        with pytest.raises(UserError, match=r"model\.max_requests=25 is spent \(25 requests"):
            evaluated(server, tmp_path, Wordle(guesses=3), **prices, max_requests=25)
        assert len(server.requests) == 25
        # 0.002 USD each; the most that a request may cost is reserved before it is made.
        with pytest.raises(UserError, match=r"model\.max_usd=0\.06 is spent"):
            evaluated(server, tmp_path, Wordle(guesses=3), **prices, max_usd=0.06)
        assert 20 <= len(server.requests) - 25 <= 30
        result = evaluated(server, tmp_path, Wordle(guesses=3), **prices)
    turns = sum(episode["turns"] for episode in episodes(tmp_path))
    assert len(server.requests) == turns
    assert result.usd == pytest.approx(0.002 * turns)


@pytest.mark.slow
def test_retry_after_is_honoured_by_all(tmp_path: Path) -> None:
    with OpenAIServer(guess) as server:
        server.retry_after, server.kinds = "1", ("429",)
        server.rate, server.most_faults = 1.0, 4
        evaluated(server, tmp_path, Wordle(guesses=3), 6, concurrency=4)
    first_refused, next_one = server.times[:2]
    assert len(server.faults) == 4 and next_one - first_refused >= 0.95


@pytest.mark.slow
def test_policies_play_the_same_seeds(program: Program, tmp_path: Path) -> None:
    with OpenAIServer(guess) as server:
        server.finish = "length"
        words = ["env.words=tiny", "env.guesses=4", "evaluation.samples=2"]
        done = program(
            *[w for w in settings(server) if w not in ("env.guesses=3", "policies=[model]")],
            *(*words, "policies=[random,oracle,model,another]"),
        )
        assert done.returncode == 0, done.stderr
        assert {body["model"] for body in server.requests} == {"a/model", "another"}
    saved = json.loads((tmp_path / "runs/e/0/evaluation.json").read_text())
    names = [policy["policy"] for policy in saved["policies"]]
    assert names == ["random", "oracle", "a/model", "another"]
    random, oracle, model, another = saved["policies"]
    assert oracle["win_rate"]["value"] == 1.0 and oracle["episodes"] == 40
    assert model["win_rate"] == another["win_rate"]
    lines = (tmp_path / "runs/e/0/evaluation/random.jsonl").read_text().splitlines()
    won: Counter[int] = Counter()
    for line in lines:
        won[json.loads(line)["seed"]] += json.loads(line)["won"]
    assert random["pass_at"]["2"]["value"] == pytest.approx(sum(map(bool, won.values())) / 20)
    assert random["pass_at"]["1"]["value"] == pytest.approx(random["win_rate"]["value"])
    gain = saved["oracle - random"]["win_rate"]["value"]
    assert gain == pytest.approx(1.0 - random["win_rate"]["value"])
    assert saved["policies"][2]["cut_replies"] == saved["policies"][2]["replies"] > 0
    cut = "replies were cut at trainer.max_completion_length=128"
    for words_of in (cut, "pass@2", "oracle - random", "another - random", "reply tokens"):
        assert words_of in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.base_url=ftp://x"], "model.base_url=ftp://x: give an address"),
        (["model.base_url=https://nowhere.invalid/v1"], "model.api_key_env=OPENAI_API_KEY: this"),
        (["model.max_usd=1"], "model.max_usd=1.0: needs model.input_usd"),
        (["model.input_usd=1"], "model.input_usd and model.output_usd: give both"),
        (["model.concurrency=0"], "model.concurrency=0: must be at least 1"),
        (["policies=[random,randum,x]", "model=tiny"], "randum is no scripted policy"),
        (["policies=[random,random]"], "random is listed twice"),
    ],
)
def test_mistakes_are_reported_before_any_request(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no .env is
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = [word.split("=")[0] for word in words]
    base = ["env=wordle", "gpu=local", "model=openai", "model.name=m"]
    if "model" in given:
        base = base[:2]
    elif "model.base_url" not in given:
        base.append("model.base_url=http://127.0.0.1:9/v1")
    register()
    with pytest.raises(UserError, match=re.escape(says)):
        compose_and_check([*base, *words], example="", name="test")


def test_an_endpoint_is_not_trained(program: Program) -> None:
    done = program("model=openai", "model.name=m", "model.base_url=http://127.0.0.1:9/v1")
    assert done.returncode == 1 and "can be evaluated, not trained" in done.stderr
