"""Answers of many servers, read as the replies that they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rl_experiments.inference.api_reply import MalformedReply, ToolCall, read_reply
from rl_experiments.inference.api_stream import is_stream, read_stream
from rl_experiments.inference.api_words import words_of

Json = dict[str, Any]


def answer(message: Json, finish: str | None = "stop", **more: Any) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}, **more}


def call(arguments: Any, name: str | None = "f", **more: Any) -> Json:
    return {"id": "c", "function": {"name": name, "arguments": arguments}, **more}


def stream_of(*deltas: Json, finish: str | None = "stop", done: bool = True) -> str:
    chunks: list[Json] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return ": a comment\r\n" + "".join(events) + ("data: [DONE]\n\n" if done else "")


def calls_in(*pieces: Json) -> list[tuple[str, str]]:
    text = stream_of(*({"tool_calls": [piece]} for piece in pieces))
    reply = read_reply(read_stream(text), seconds=0)
    assert len({call.id for call in reply.tool_calls}) == len(reply.tool_calls)
    return [(call.name, call.arguments) for call in reply.tool_calls]


@pytest.mark.parametrize(
    ("finish", "is_cut", "is_withheld"),
    [
        ("stop", False, False),
        (None, False, False),
        ("tool_calls", False, False),
        ("length", True, False),
        ("MAX_TOKENS", True, False),
        ("model_length", True, False),
        ("model_context_window_exceeded", True, False),
        ("content_filter", False, True),
        ("SAFETY", False, True),
    ],
)
def test_the_reason_of_the_end_is_kept(finish: str | None, is_cut: bool, is_withheld: bool) -> None:
    reply = read_reply(answer({"content": "x"}, finish), seconds=0)
    assert (reply.is_cut, reply.is_withheld) == (is_cut, is_withheld)


@pytest.mark.parametrize(
    ("body", "words", "status"),
    [
        (answer({"content": ""}, "error"), "finish_reason error", None),
        (answer({"content": "half"}, "insufficient_system_resource"), "insufficient", None),
        (answer({"content": "half"}, "abort"), "finish_reason abort", None),
        (answer({"content": "x"}, error={"code": 502, "message": "it is away"}), "it is away", 502),
        ({"error": {"message": "no", "code": "429"}}, "no", 429),
        ({"error": "Unexpected endpoint"}, "Unexpected endpoint", None),
        ({"choices": []}, "no completion", None),
        ({"detail": "Not here"}, "Not here", None),
        ("<html><title>Sign in</title></html>", "Sign in", None),
        ("", "it is empty", None),
        (answer({"content": 7}), "its content is 7", None),
        (answer({"tool_calls": [{"function": {"arguments": "{}"}}]}), "without a name", None),
    ],
)
def test_what_is_no_reply_of_the_model_is_told_in_the_servers_words(
    body: Any, words: str, status: int | None
) -> None:
    with pytest.raises(MalformedReply) as raised:
        read_reply(body, seconds=0)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert raised.value.status_code == status


def test_an_error_beside_the_choice_is_no_reply() -> None:
    body = answer({"content": "half an ans"}, "error")
    body["choices"][0]["error"] = {"code": 502, "message": "Upstream lost the connection"}
    with pytest.raises(MalformedReply, match="Upstream lost the connection"):
        read_reply(body, seconds=0)


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ('{"x": 1}', '{"x": 1}'),
        ({"x": 1}, '{"x": 1}'),
        ('"{}"', '"{}"'),  # a model that writes text for an object is wrong here as anywhere
        (None, ""),
        ({}, "{}"),
        ("not json", "not json"),
        ('{"x": "\ud83d"}', '{"x": "�"}'),
    ],
)
def test_arguments_are_json_text_in_whatever_form_they_come(given: Any, arguments: str) -> None:
    reply = read_reply(answer({"content": None, "tool_calls": [call(given)]}), seconds=0)
    assert reply.tool_calls == (ToolCall("c", "f", arguments),)
    chunks = stream_of({"tool_calls": [call(given)]})
    assert read_reply(read_stream(chunks), seconds=0).tool_calls == reply.tool_calls


def test_calls_have_ids_of_their_own_and_the_first_apis_form_is_read() -> None:
    calls = [call("{}", id=""), call("{}", id="x"), call("{}", id="x")]
    ids = [c.id for c in read_reply(answer({"tool_calls": calls}), seconds=0).tool_calls]
    assert "x" in ids and "" not in ids and len({*ids}) == 3
    old = answer({"content": None, "function_call": {"name": "f", "arguments": "{}"}})
    assert read_reply(old, seconds=0).tool_calls == (ToolCall("call_0", "f", "{}"),)


A, B = '{"x": 1}', '{"y": 2}'


@pytest.mark.parametrize(
    "pieces",
    [
        [call(A, "a", id="1", index=0), call(B, "b", id="2", index=1)],
        [call(A, "a", id="1", index=0), call(B, "b", id="2", index=0)],
        [call(A, "a", id="1"), call(B, "b", id="2")],
        [call(A, "a", id=""), call(B, "b", id="")],
        [call(A, "a", id=None, index=0), call(B, "b", id=None, index=0)],
        [call(A, "a", id="same", index=0), call(B, "b", id="same", index=1)],
        [call(json.loads(A), "a", id="1"), call(json.loads(B), "b", id="2")],
        # Pieces, of which the later ones have an index alone, an id alone, or neither.
        [
            *(call("", "a", id="1", index=0), call(A[:4], "", id=None, index=0)),
            *(call(A[4:], "", id=None, index=0), call(B, "b", id="2", index=1)),
        ],
        [
            *(call("", "a", id="1", index=0), call("", "b", id="2", index=0)),
            *(call(B, "", id="2", index=0), call(A, "", id="1", index=0)),
        ],
        [
            *(call(A[:4], "a", id="1"), call(A[4:], None, id=None)),
            *(call(B[:4], "b", id="2"), call(B[4:], None, id=None)),
        ],
        # The id and the name in every piece; a call that opens with {}; arguments sent again.
        [
            *(call(A[:4], "a", id="1", index=0), call(A[4:], "a", id="1", index=0)),
            *(call("{}", "b", id="2", index=1), call(B, "", id=None, index=1)),
            call(B, "", id=None, index=1),
        ],
        [
            *(call(A[:4], "a", id="1", index=0), call(A[4:], "", id="another", index=0)),
            call(B, "b", id="2", index=1),
        ],
    ],
)
def test_streamed_calls_are_put_together_by_id_and_index(pieces: list[Json]) -> None:
    assert calls_in(*pieces) == [("a", A), ("b", B)]


def test_a_stream_makes_the_reply_that_a_whole_answer_would() -> None:
    text = stream_of({"role": "assistant", "content": "one "}, {"content": "\ud83d"})
    text = text.replace("data: [DONE]", 'data: {"choices": [], "usage": {"prompt_tokens": 3, ')
    text = text.replace("\n\n", "\n\n", 1).rstrip() + '"completion_tokens": 2}}\n\ndata: [DONE]\n\n'
    assert is_stream(text)
    reply = read_reply(read_stream(text), seconds=0)
    assert (reply.content, reply.prompt_tokens, reply.completion_tokens) == ("one �", 3, 2)
    halves = stream_of({"content": "\ud83d"}, {"content": "\ude00!"}, finish=None)
    assert read_reply(read_stream(halves), seconds=0).content == "😀!"
    cut = read_reply(read_stream(stream_of({"content": "x"}, finish="length")), seconds=0)
    assert cut.is_cut and not cut.is_usage_known


def test_a_stream_that_breaks_off_or_tells_an_error_is_no_reply() -> None:
    with pytest.raises(MalformedReply, match="broke off"):
        read_stream(stream_of({"content": "x"}, finish=None, done=False))
    error = 'data: {"error": {"message": "the engine died", "code": 500}}\n\n'
    for text in (error, stream_of({"content": "x"}, finish=None, done=False) + error):
        with pytest.raises(MalformedReply, match="the engine died") as raised:
            read_reply(read_stream(text), seconds=0)
        assert raised.value.status_code == 500
    with pytest.raises(MalformedReply, match="Not here"):
        read_reply(read_stream('data: {"detail": "Not here"}\n\n'), seconds=0)


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"total_tokens": 9}, {"prompt_tokens": 0, "completion_tokens": 0}, {"a": "b"}, []],
)
def test_unknown_usage_is_the_most_that_it_may_be(usage: Any) -> None:
    body = {**answer({"content": "x"}), "usage": usage}
    reply = read_reply(body, seconds=0, max_prompt_tokens=90, max_completion_tokens=40)
    assert (reply.prompt_tokens, reply.completion_tokens) == (90, 40) and not reply.is_usage_known


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "so"}]
    assert read_reply(answer({"content": parts}), seconds=0).content == "so"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"error": {"message": "a\n  b"}}, "a b"),
        ({"error": "plain"}, "plain"),
        ([{"error": {"message": "in a list"}}], "in a list"),
        ({"detail": [{"msg": "field required"}]}, "field required"),
        ({"object": "error", "message": "vLLM's form"}, "vLLM's form"),
        (
            {"error": {"message": "Provider error", "metadata": {"raw": '{"error": "too long"}'}}},
            "Provider error: too long",
        ),
        ("<html><style>x{}</style><h1>502 Bad Gateway</h1><hr>nginx</html>", "502 Bad Gateway ngi"),
        ({"odd": 1}, '{"odd": 1}'),
        ({"error": {"message": "\x1b[31mred\x1b[0m \x1b]0;title\x07"}}, r"red \x1b]0;title\x07"),
    ],
)
def test_the_servers_own_words_are_shown_in_one_line(said: Any, words: str) -> None:
    assert words in words_of(said) and "\n" not in words_of(said)
