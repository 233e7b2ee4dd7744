"""Servers that want a request otherwise, refuse it, or are not there at all."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError
from rl_experiments.inference.api_client import ApiClient, api_key
from rl_experiments.inference.api_errors import ApiError, FullContext
from rl_experiments.inference.api_reply import ApiReply
from tests.fakes.openai_server import Body, OpenAIServer

USER = [{"role": "user", "content": "hello"}]
LATER = [*USER, {"role": "assistant", "content": "x"}, {"role": "user", "content": "go on"}]
Outcome = ApiReply | Exception


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_experiments.retry.pause_seconds", lambda *args, **kwargs: 0.01)


def client_of(url: str, *, journal: Path | None = None, **settings: Any) -> ApiClient:
    config = EndpointConfig(base_url=url, timeout=20.0, deadline=60.0)
    for name, value in settings.items():
        setattr(config, name, value)
    return ApiClient(config, model="m", setting="model", journal=journal)


def ask(client: ApiClient, count: int = 1, messages: Any = USER, **more: Any) -> list[Outcome]:
    """Ask for replies at once; return each, or the error in its place."""

    async def ask_all() -> list[Any]:
        requests = (
            client.ask(messages, key=str(i), max_tokens=50, temperature=0.7, **more)
            for i in range(count)
        )
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        await client.drain(30)
        await client.close()
        return outcomes

    return asyncio.run(ask_all())


def says(words: str, **more: Any) -> Body:
    return {"error": {"message": words, **more}}


def refusing(*rules: tuple[Callable[[Body], bool], int, Any]) -> Callable[[Body], Any]:
    """Return an answer that refuses requests by the first rule that applies."""

    def answer(body: Body) -> tuple[int, Any] | None:
        return next(((status, said) for rule, status, said in rules if rule(body)), None)

    return answer


@pytest.mark.parametrize(
    ("field", "status", "words"),
    [
        ("max_tokens", 400, "Unsupported parameter: 'max_tokens' is not supported with this model. "
         "Use 'max_completion_tokens' instead."),
        ("max_tokens", 400, "max_tokens is no longer a field; give max_completion_tokens"),
        ("max_tokens", 422, "Unrecognized request argument supplied: max_tokens"),
        ("temperature", 400, "Unsupported value: 'temperature' does not support 0.7 with this "
         "model. Only the default (1) value is supported."),
        ("temperature", 400, "invalid temperature: only 1 is allowed for this model"),
        ("temperature", 400, "temperature must be 1.0 for this model"),
        ("temperature", 400, "`temperature` is deprecated for this model"),
        ("stream_options", 400, "Extra inputs are not permitted: stream_options"),
        ("stream_options", 422, "Unknown field stream_options"),
    ],
)  # fmt: skip
def test_a_field_that_the_server_does_not_take_is_sent_otherwise(
    field: str, status: int, words: str
) -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = refusing((lambda body: field in body, status, says(words)))
        client = client_of(server.url, stream=field == "stream_options")
        outcomes = ask(client, 6)
    assert [getattr(reply, "content", reply) for reply in outcomes] == ["yes"] * 6
    assert len(server.requests) == 7  # the first request alone met the refusal
    assert field not in server.requests[-1]
    if field == "max_tokens":
        assert server.requests[-1]["max_completion_tokens"] == 50
    assert [field in note for note in client.notes] == [True] * (field == "temperature")


def test_several_fields_are_learned_one_by_one() -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = refusing(
            (lambda body: "max_tokens" in body, 400, says("'max_tokens' is not supported")),
            (lambda body: "temperature" in body, 400, says("temperature: only 1 is supported")),
        )
        (reply,) = ask(client_of(server.url))
    assert isinstance(reply, ApiReply) and len(server.requests) == 3


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_completion_tokens": 9}, {"max_completion_tokens": 9, "temperature": 0.7}),
        ({"max_tokens": None, "max_completion_tokens": 9, "temperature": None},
         {"max_completion_tokens": 9}),
        ({"max_tokens": None}, {"temperature": 0.7}),
        ({"temperature": 0.1, "top_p": 0.5, "stop": None},
         {"max_tokens": 50, "temperature": 0.1, "top_p": 0.5, "stop": None}),
    ],
)  # fmt: skip
def test_the_bodys_fields_come_first_and_null_leaves_one_out(given: Body, sent: Body) -> None:
    with OpenAIServer(lambda body: "yes") as server:
        ask(client_of(server.url, body=given))
    assert server.requests == [{"model": "m", "messages": USER, **sent}]


def test_a_limit_that_is_too_large_is_the_servers_to_tell() -> None:
    words = "max_tokens is too large: 50. This model supports at most 40 completion tokens"
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = refusing((lambda body: True, 400, says(words)))
        (error,) = ask(client_of(server.url))
    assert isinstance(error, ApiError) and words in str(error) and len(server.requests) == 1


@pytest.mark.parametrize("blank", ["", "  \n", None])
def test_no_message_is_empty(blank: str | None) -> None:
    messages = [
        *({"role": "user", "content": blank}, {"role": "assistant", "content": blank}),
        {"role": "assistant", "content": blank, "tool_calls": [{"id": "c"}]},
        {"role": "tool", "tool_call_id": "c", "content": blank},
    ]
    with OpenAIServer(lambda body: "yes") as server:
        ask(client_of(server.url), messages=messages)
    sent = [message["content"] for message in server.requests[0]["messages"]]
    assert all(content and content.strip() for content in (sent[0], sent[1], sent[3]))
    assert sent[2] is None


FULL = [
    (400, {"object": "error", "message": "This model's maximum context length is 8192 tokens."}),
    (400, says("too much", code="context_length_exceeded")),
    (400, says("prompt is too long: 210000 tokens > 200000 maximum")),
    (400, says("the request exceeds the available context size, try increasing it")),
    (400, says("The input token count (9000) exceeds the maximum number of tokens allowed (8000)")),
    (413, says("Input is too long for requested model")),
    (400, says("Please reduce the length of the messages or completion")),
    (400, says("input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000")),
    (400, says("This model's maximum prompt length is 131072 but the request contains 140000")),
    (422, says("`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4100")),
    (400, says("'max_tokens' is too large: 50. This model's maximum context length is 99 tokens "
               "and your request has 60 input tokens")),
]  # fmt: skip


@pytest.mark.parametrize(("status", "said"), FULL)
def test_a_full_context_is_an_end_and_no_failure(status: int, said: Body) -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = refusing((lambda body: True, status, said))
        outcomes = ask(client_of(server.url), 4, LATER)
    assert all(isinstance(outcome, FullContext) for outcome in outcomes)
    assert len(server.requests) == 4


def test_a_limit_that_leaves_no_room_from_the_start_is_a_setting_that_is_wrong() -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = refusing((lambda body: True, *FULL[-1]))
        (error,) = ask(client_of(server.url))
        assert isinstance(error, ApiError) and not isinstance(error, FullContext)
        server.answer = refusing((lambda b: True, 413, says("Request too large: tokens per min")))
        (error,) = ask(client_of(server.url), 1, LATER)
        assert not isinstance(error, FullContext)


@pytest.mark.parametrize(
    ("status", "said", "requests"),
    [
        (401, says("Incorrect API key provided"), 1),
        (402, says("Insufficient credits"), 1),
        (404, says("No endpoints found that support tool use"), 1),
        (404, "<html><head><title>404 Not Found</title></head></html>", 1),
        (405, {"detail": "Method Not Allowed"}, 1),
        (429, says("You exceeded your current quota", code="insufficient_quota"), 1),
        (400, {"object": "error", "message": '"auto" tool choice requires --tool-call-parser'}, 3),
        (403, says("Your plan has no access to this model"), 3),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Input should be an integer"}]}, 3),
        (200, says("model 7 is unknown", code=400), 3),
        (501, says("not implemented"), 3),
    ],
)
def test_what_every_request_would_meet_ends_all_with_the_servers_words(
    status: int, said: Any, requests: int
) -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = refusing((lambda body: True, status, said))
        outcomes = ask(client_of(server.url), requests)
    message = str(outcomes[-1])
    assert isinstance(outcomes[-1], UserError) and "model.base_url=http://127.0.0.1" in message
    known = ["Incorrect", "credits", "support tool", "404 Not", "Method Not", "your current quota"]
    known += ["requires --tool-call-parser", "Your plan", "should be an integer", "7 is unknown"]
    known += ["not implemented"]
    assert any(each in message for each in known) and "\n" not in message
    assert len(server.requests) == requests


def test_requests_that_only_some_meet_do_not_end_all() -> None:
    numbers = itertools.count(1)  # of the requests, which come at once
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = refusing(
            (lambda body: 1 < next(numbers) < 7, 400, says("this one is not allowed here"))
        )
        outcomes = ask(client_of(server.url), 7)
    assert sum(isinstance(outcome, ApiError) for outcome in outcomes) == 5


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"error": "Unexpected endpoint or method. (POST /chat/completions)"}, "Unexpected endp"),
        ("<html><title>Sign in</title><body>to the portal</body></html>", "Sign in to the portal"),
        ({"message": "Welcome"}, "Welcome"),
        ("", "it is empty"),
    ],
)
def test_an_address_of_something_else_is_not_tried_until_the_deadline(
    said: Any, words: str
) -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = lambda body: (200, said)
        (error,) = ask(client_of(server.url, deadline=300.0))
    assert isinstance(error, ApiError) and words in str(error) and len(server.requests) == 3


def test_a_fault_of_the_server_that_never_ends_is_not_tried_until_the_deadline() -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = lambda body: (500, says("the chat template has no end"))
        (error,) = ask(client_of(server.url, deadline=300.0))
        assert "the chat template has no end" in str(error) and len(server.requests) == 5
        server.answer = lambda body: (503, says("loading")) if len(server.requests) < 15 else None
        (reply,) = ask(client_of(server.url, deadline=300.0))
        assert isinstance(reply, ApiReply)


def test_a_server_that_has_answered_is_given_until_the_deadline() -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.answer = lambda body: None if len(server.requests) in (1, 6) else (200, says("away"))
        client = client_of(server.url)
        assert [type(each) for each in ask(client, 2)] == [ApiReply, ApiReply]
    assert len(server.requests) == 6


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/v1", "http://nowhere.invalid/v1"])
def test_a_server_that_is_not_there_is_told_soon(address: str) -> None:
    with socket.socket() as taken:  # bound, but nothing listens
        taken.bind(("127.0.0.1", 0))
        url = address.format(port=taken.getsockname()[1])
        client = client_of(url, deadline=600.0, max_total_tokens=100_000)
        started = time.monotonic()
        (error, *_) = ask(client, 3)
    assert isinstance(error, UserError) and f"model.base_url={url}: the connection" in str(error)
    assert time.monotonic() - started < 300 and client.spend.tokens == 0


@pytest.mark.parametrize(
    ("key", "is_taken"),
    [("sk-abc\n", True), (" sk-abc ", True), ("sk-\u2019x", False), ("sk-a\nsk-b", False),
     ("sk-\x00a", False), ("\u201csk-abc\u201d", False), ("sk abc", False)],
)  # fmt: skip
def test_a_key_that_cannot_be_sent_is_named_before_anything_is_asked(
    key: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {"SOME_KEY": key})
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", api_key_env="SOME_KEY")
    if is_taken:
        assert api_key(config, "model") == "sk-abc"
        return
    with pytest.raises(UserError, match=r"model\.api_key_env=SOME_KEY: the key in SOME_KEY") as got:
        api_key(config, "model")
    assert key not in str(got.value)


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    (error,) = ask(client_of("http://127.0.0.1:9/v1"))
    assert isinstance(error, UserError) and "a proxy is set in ALL_PROXY" in str(error)


@pytest.mark.parametrize("stream", [False, True])
def test_limits_hold_where_the_server_does_not_tell_its_use(stream: bool) -> None:
    with OpenAIServer(lambda body: "yes") as server:
        server.usage = None
        limited = {"max_usd": 1e-3, "input_usd": 1.0, "output_usd": 10.0}
        for limits in ({"max_total_tokens": 300}, limited):
            del server.requests[:]
            client = client_of(server.url, stream=stream, **limits)
            outcomes = ask(client, 6)
            known = [each.is_usage_known for each in outcomes if isinstance(each, ApiReply)]
            assert 0 < len(known) == len(server.requests) < 6 and not any(known)
            assert all("is spent" in str(e) for e in outcomes if not isinstance(e, ApiReply))
            assert client.spend.tokens <= 300 or client.spend.usd <= 1e-3


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_character_reaches_neither_the_next_request_nor_the_journal(
    stream: bool, tmp_path: Path
) -> None:
    journal = tmp_path / "replies.jsonl"
    with OpenAIServer(lambda body: "so \ud83d") as server:
        (reply,) = ask(client_of(server.url, journal=journal, stream=stream))
        assert isinstance(reply, ApiReply) and reply.content == "so �"
        messages = [*USER, {"role": "assistant", "content": "half \ude00"}]
        (later,) = ask(client_of(server.url, stream=stream), messages=messages)
        assert isinstance(later, ApiReply)
    # A journal of an early version has the reply as it came.
    journal.write_text(journal.read_text().replace("\\ufffd", "\\ud83d"))
    assert "ud83d" in journal.read_text()
    (again,) = ask(client_of(server.url, journal=journal, stream=stream))
    assert isinstance(again, ApiReply) and json.dumps(again.content) == '"so \\ufffd"'
