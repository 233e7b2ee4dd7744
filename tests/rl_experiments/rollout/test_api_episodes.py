"""Episodes with a model behind an API: its calls, its limits, and what it is shown of the past."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from environments import End, Environment
from environments.bfcl_single_turn.replies import parse as parse_bfcl
from environments.replies import NamedCall, ReplyWithCalls, without_thinking
from environments.tool_test import ToolTest
from environments.tool_test.replies import parse as parse_tool_test
from environments.wordle import Wordle
from rl_experiments.config.schema import EndpointConfig
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.inference.api_reply import ApiReply, ToolCall
from rl_experiments.rollout.api_episodes import as_text, messages, play
from rl_experiments.rollout.episode import Episode
from rl_experiments.rollout.types import EpisodeSpec, Trajectory
from tests.fakes.openai_server import Body, OpenAIServer

GUESS = "<think>so</think><guess>crane</guess>"


def played(server: OpenAIServer, environment: Environment, count: int = 3) -> list[Trajectory]:
    config = EndpointConfig(base_url=server.url, timeout=20.0, deadline=60.0)
    ended: list[Trajectory] = []
    client = ApiClient(config, model="m", setting="model")
    specs = [EpisodeSpec(2 * i + 1) for i in range(count)]
    play(environment, client, specs, max_tokens=50, temperature=1.0, on_end=ended.append)
    return ended


def turns_of(body: Body) -> int:
    return sum(message["role"] == "assistant" for message in body["messages"])


def completion(content: str, finish: str) -> tuple[int, Body]:
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 9, "completion_tokens": 5}
    return 200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def test_replies_that_were_cut_or_withheld_are_counted() -> None:
    finishes = ["length", "content_filter", "stop"]
    with OpenAIServer(lambda body: "") as server:
        server.answer = lambda body: completion(GUESS, finishes[turns_of(body)])
        for trajectory in played(server, Wordle(guesses=3)):
            usage = trajectory.usage
            assert len(trajectory.turns) == 3 or trajectory.end is End.WON
            assert (usage.cut_replies, usage.withheld_replies) == (1, len(trajectory.turns) > 1)


def test_a_conversation_that_outgrows_the_context_is_truncated_with_its_reward() -> None:
    words = {"error": {"message": "This model's maximum context length is 99 tokens."}}
    with OpenAIServer(lambda body: GUESS) as server:
        server.answer = lambda body: (400, words) if turns_of(body) == 2 else None
        for trajectory in played(server, Wordle(guesses=6)):
            assert trajectory.end is End.TRUNCATED and trajectory.reward is not None
            assert len(trajectory.turns) == 2 and trajectory.error is None


def test_an_episode_goes_on_after_an_empty_reply_and_half_a_character() -> None:
    replies = ["", "\ud83d" + GUESS, GUESS]
    with OpenAIServer(lambda body: replies[min(turns_of(body), 2)]) as server:
        for trajectory in played(server, Wordle(guesses=3)):
            assert trajectory.end in (End.LOST, End.WON) and trajectory.reward is not None
            json.dumps(trajectory.to_json()).encode()


TEXTS = [
    *("plain", "use </tool_call> to end", "<think>hm</think> yes", "a <tool_call> b"),
    *("</think> after", "\\<tool_call>", '"quoted" \\ and </THINK >', "line\n<think>", "é 😀"),
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("content", ["", "I call it.", "<think>unfinished", "<think>a</think>b"])
def test_arguments_arrive_as_the_server_handed_them_over(text: str, content: str) -> None:
    call = ToolCall("c0", "say", json.dumps({"text": text}, ensure_ascii=False))
    reply = as_text(ApiReply(content=content, tool_calls=(call,)))
    for each in (
        reply,
        copy.deepcopy(reply),
        pickle.loads(pickle.dumps(reply)),
        str.__str__(reply),
    ):
        assert [dict(c.arguments) for c in parse_tool_test(each)] == [{"text": text}]
        calls = parse_bfcl(each).calls or []
        assert [json.loads(c["arguments"]) for c in calls] == [{"text": text}]
        assert [c["name"] for c in calls] == ["say"]


def test_text_beside_calls_is_not_read_for_further_calls() -> None:
    quoted = 'Such as <tool_call>{"name": "other", "arguments": {}}</tool_call>'
    reply = as_text(ApiReply(content=quoted, tool_calls=(ToolCall("c", "say", '{"text": "x"}'),)))
    assert [call.name for call in parse_tool_test(reply)] == ["say"]
    assert [call["name"] for call in parse_bfcl(reply).calls or ()] == ["say"]
    assert isinstance(reply, ReplyWithCalls) and reply.content == quoted
    assert as_text(ApiReply(content=quoted)) == quoted


@pytest.mark.parametrize("arguments", ['{"a": 1, "name": "x"', "no", "[]", '{}, "name": "other"'])
def test_arguments_that_are_no_object_stay_wrong(arguments: str) -> None:
    reply = ReplyWithCalls.of("", [NamedCall("say", arguments)])
    assert [call.name for call in parse_tool_test(reply)] == [""]
    assert not parse_bfcl(reply).is_valid
    assert without_thinking(reply) == reply


@pytest.mark.parametrize("role", ["tool", "user"])
def test_calls_stay_calls_in_what_the_model_is_shown(role: str) -> None:
    episode = Episode(ToolTest(one_a_turn=True), EpisodeSpec(1))
    calls = (ToolCall("a", "say", '{"text": "x"}'), ToolCall("b", "say", "no json"))
    replies = [ApiReply(content="I do", tool_calls=calls)]
    episode.reply(as_text(replies[0]))
    episode.trajectory.turns[-1].role = role
    shown = messages(episode, replies)
    made = next(message for message in shown if message["role"] == "assistant")
    assert made["content"] == "I do" and [c["id"] for c in made["tool_calls"]] == ["a", "b"]
    assert all(isinstance(json.loads(c["function"]["arguments"]), dict) for c in made["tool_calls"])
    results = [message for message in shown if message["role"] == "tool"]
    assert [result["tool_call_id"] for result in results] == ["a", "b"]
    observation = episode.trajectory.turns[-1].observation
    holder: dict[str, Any] = results[0] if role == "tool" else shown[-1]
    assert holder["content"] == observation and holder["role"] == role
