"""Which calls the tool test reads, which types fit, and that any reply has an outcome."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from environments import End
from environments.tool_test import ToolTest
from environments.tool_test.replies import Call, parse
from environments.tool_test.tools import CATALOGUE, is_typed
from tests.environments.limits import no_hang
from tests.environments.tool_test.playing import TIMER, says, started

GOOD = '{"name": "set_timer", "arguments": {"minutes": 5}}'
READ = [
    f"<tool_call>\n{GOOD}\n</tool_call>",
    f"<tool_call>{GOOD}</tool_call>",
    f"Here you are.<tool_call> \n\t{GOOD} \r\n</tool_call>\nDone.",
    '<tool_call>{"arguments":{"minutes":5},"name":"set_timer"}</tool_call>',
    f"<think><tool_call>{GOOD}{GOOD}</tool_call></think><tool_call>{GOOD}</tool_call>",
    f"<tool_call>{GOOD}</tool_call></tool_call>",
]
UNREAD = [
    *(GOOD, "", "set_timer(5)", f"```json\n{GOOD}\n```", f"<think><tool_call>{GOOD}</tool_call>"),
    *(f"<tool_call>{GOOD}", f"{GOOD}</tool_call>", f"<TOOL_CALL>{GOOD}</TOOL_CALL>"),
    *(
        f"<tool_call>{body}</tool_call>"
        for body in ("", "{}", "5", f"[{GOOD}]", GOOD * 2, GOOD[:-1])
    ),
    '<tool_call>{"name": "set_timer", "arguments": "{\\"minutes\\": 5}"}</tool_call>',
    '<tool_call>{"name": "set_timer", "parameters": {"minutes": 5}}</tool_call>',
    '<tool_call>{"name": "set_timer", "arguments": {"minutes": 5}, "id": 1}</tool_call>',
    '<tool_call>{"name": "say", "name": "set_timer", "arguments": {"minutes": 5}}</tool_call>',
    '<tool_call>{"name": ["set_timer"], "arguments": {"minutes": 5}}</tool_call>',
    "<tool_call>{'name': 'set_timer', 'arguments': {'minutes': 5}}</tool_call>",
]
WRONG_CALLS = [
    *('{"minutes": 5.0}', '{"minutes": "5"}', '{"minutes": true}', '{"minutes": [5]}', "{}"),
    *('{"minutes": null}', '{"minutes": 5, "seconds": 0}', '{"Minutes": 5}', '{"minutes": 6}'),
    *('{"minutes": 1e999}', f'{{"minutes": {"9" * 4000}}}'),
]


@pytest.mark.parametrize("reply", READ)
def test_a_call_is_read_whatever_the_space_around_it(reply: str) -> None:
    assert parse(reply) == [TIMER]
    assert started(TIMER).step(reply).end is End.WON


@pytest.mark.parametrize("reply", UNREAD, ids=lambda reply: reply[:40])
def test_a_malformed_call_does_not_count(reply: str) -> None:
    assert not any(call.name for call in parse(reply))
    assert started(TIMER).step(reply).end is End.INVALID
    if "<tool_call>" in reply and "<think>" not in reply:  # it counts as a call that is wrong
        assert started(TIMER).step(f"{says(TIMER)}\n{reply}").end is End.LOST


@pytest.mark.parametrize("arguments", WRONG_CALLS, ids=lambda text: text[:30])
def test_wrong_types_and_superfluous_arguments_are_wrong(arguments: str) -> None:
    reply = f'<tool_call>{{"name": "set_timer", "arguments": {arguments}}}</tool_call>'
    assert started(TIMER).step(reply).end is End.LOST


def test_values_fit_their_schemas() -> None:
    values: list[Any] = [True, 1, 1.5, "hall", "garden", [1], ["hall"], [], None, {}, float("inf")]
    room = {"type": "string", "enum": ["hall"]}
    cases: list[tuple[dict[str, Any], list[Any]]] = [
        ({"type": "boolean"}, [True]),
        ({"type": "integer"}, [1]),
        ({"type": "number"}, [1, 1.5]),
        ({"type": "string"}, ["hall", "garden"]),
        (room, ["hall"]),
        ({"type": "array", "items": room, "maxItems": 1}, [["hall"], []]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, [[]]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, [[1], []]),
    ]
    for schema, right in cases:
        fitting = [value for value in values if is_typed(value, schema)]
        assert list(map(repr, fitting)) == list(map(repr, right))
    kinds = {p.schema["type"] for tool in CATALOGUE.values() for p in tool.parameters}
    assert kinds == {"boolean", "integer", "number", "string", "array"}
    for schema in ToolTest().tools:
        assert schema["type"] == "function" and json.loads(json.dumps(schema)) == schema
        function = schema["function"]
        tool = CATALOGUE[function["name"]]
        properties = function["parameters"]["properties"]
        assert function["parameters"]["required"] == [*properties]
        for seed in range(50):
            drawn = tool.draw(Random(seed))
            assert drawn.keys() == properties.keys()
            assert all(is_typed(drawn[name], properties[name]) for name in drawn)


MANY = 1 << 16
DEEP = '{"a":' * 20_000
BAITS = ["<tool_call>" * 9000, f"<tool_call>{'[' * MANY}</tool_call>", says(TIMER) * 1000]
BAITS += [f"<tool_call>{DEEP}</tool_call>", "<think>" * 15_000, "</tool_call>" * 9000]
BAITS += [f"<tool_call>{'9' * MANY}</tool_call>", f'<tool_call>"{MANY * "a"}', says(TIMER) * 5000]
BAITS += [f"<tool_call>[{'1,' * 30_000}1]</tool_call>", f"<tool_call>{' ' * MANY}</tool_call>"]
LONG = Call("open_lock", {"digits": [1] * 40_000})
WIDE = Call("open_lock", {f"digits{n}": 1 for n in range(5000)})
BAITS += [says(LONG), says(WIDE), says(*[Call("open_lock", {"digits": [1] * 2000})] * 20)]
PIECES = ["<tool_call>", "</tool_call>", GOOD, '"name"', "set_timer", "{", "}", '"', ":", "[", "]"]
PIECES += ["<think>", "</think>", "5", "true", "NaN", "\n", " ", "\\", "\ud800", "\x00", "🙂"]


@pytest.mark.slow
@pytest.mark.parametrize("one_a_turn", [False, True])
def test_any_reply_has_an_outcome(one_a_turn: bool) -> None:
    rng, env, ends = Random(0), started(TIMER, one_a_turn=one_a_turn), Counter[End | None]()
    for index in range(10_000):
        reply = "".join(rng.choices(PIECES, k=rng.randrange(9)))
        if index % 3 == 0:
            reply = f"<tool_call>{reply}</tool_call>"
        step = env.step(reply)
        assert -1 <= step.reward <= 1 and len(step.observation) < 100
        ends[step.end] += 1
        if step.end:
            assert 0 <= (step.episode_reward or 0) <= 1
            env.reset(index % 100)
    assert ends[End.INVALID] and ends[End.LOST] and bool(ends[None]) == one_a_turn
    with no_hang():
        for reply in BAITS:
            env.reset(0)
            env.asked = (Call("open_lock"), TIMER)  # any digits
            assert env.step(reply).end is not End.WON
