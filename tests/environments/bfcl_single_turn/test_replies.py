"""Which calls BFCL reads, and that any reply is graded at once."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments import End
from environments.bfcl_single_turn import BfclSingleTurn
from environments.bfcl_single_turn.answers import right_calls
from environments.bfcl_single_turn.data import entries_of
from environments.bfcl_single_turn.replies import as_reply, parse, within_limits
from tests.environments.bfcl_single_turn.cases import (
    needs_bfcl,
    playing,
)

CALL = '{"name": "f", "arguments": {"a": 1}}'
ONE = [{"name": "f", "arguments": '{"a": 1}'}]
READ: dict[str, Any] = {
    f"<tool_call>\n{CALL}\n</tool_call>": ONE,
    f"I call it. <tool_call>{CALL}</tool_call> Done.": ONE,
    f"<think><tool_call></think><tool_call>{CALL}": ONE,
    f"[{CALL}]": ONE,
    CALL: ONE,
    f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>": ONE * 2,
    f"[{CALL}, {CALL}]": ONE * 2,
    f"<tool_call>{CALL}</tool_call><tool_call>{{</tool_call>": None,
    f"Here: [{CALL}]": None,
    f"<think>{CALL}": None,
    "[]": [],
    '{"name": "f", "arguments": "x"}': [{"name": "f", "arguments": '"x"'}],
    '{"name": 5, "arguments": {}}': None,
    '{"arguments": {}}': None,
    "[" * 50_000: None,
    '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}": None,
    " " * 70_000 + CALL: None,
}


def test_replies_are_read() -> None:
    assert {reply: parse(reply).calls for reply in READ} == READ
    assert not parse('{"name": "f", "arguments": "x"}').is_valid
    assert parse("No.").is_valid and parse("[]").is_valid


SLOW = ["[[],[]" + ",[]" * 40, "[[" + "],[" * 60, "new HashMap<>(){" + " " * 5000 + "x"]
SLOW += ["new HashMap<" * 9 + ">(){" * 9 + " " * 200, "{" + "a:[" * 90, "{a:" + ", " * 140 + "}"]


@needs_bfcl
@pytest.mark.parametrize("category", ["simple_java", "simple_javascript"])
def test_collections_that_the_checker_takes_hours_for_never_reach_it(category: str) -> None:
    kinds = ("HashMap", "ArrayList", "Array", "array", "dict")
    tried = 0
    for case in (entry.case() for entry in entries_of(category)):
        ((name, filled),) = right_calls(case)
        properties = case["function"][0]["parameters"]["properties"]
        hard = [key for key in filled if properties[key]["type"] in kinds]
        for value in SLOW if hard and tried < 60 else []:
            made = as_reply([(name, {**filled, **dict.fromkeys(hard, value)})])
            limited = within_limits(case, parse(made))
            for call in limited.calls or [] if limited.is_gradable else []:
                for text in json.loads(call["arguments"]).values():
                    assert len(text) <= 300 and all(text.count(b) <= 8 for b in "()[]{}<>")
            step = playing(case).step(made)
            # An answer of simple_java_64 is a text where a list belongs: {} passes for it.
            assert step.metrics["official"] == (case["id"] == "simple_java_64" and "x" in value)
            tried += 1
        if hard and category == "simple_java" and "new HashMap" in filled[hard[0]]:
            spaced = filled[hard[0]].replace("{{ ", "{{\n" + " " * 40)
            step = playing(case).step(as_reply([(name, {**filled, hard[0]: spaced})]))
            assert step.end is End.WON
    assert tried >= 30


PIECES = ["<tool_call>", "</tool_call>", "<think>", "</think>", "{", "}", "[", "]", '"', "NaN"]
PIECES += ['"name": ', '"arguments": ', "null", ", ", CALL, "\x00", "\ud800", "🙂", " ", "1e999"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@needs_bfcl
@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**6), TEXTS, st.lists(VALUES, min_size=1, max_size=3))
def test_arbitrary_replies_end_in_a_defined_outcome(seed: int, text: str, odd: list[Any]) -> None:
    env = BfclSingleTurn(max_prompt_chars=None, keep_unwinnable=True)
    env.reset(seed)
    rng = Random(seed)
    calls: Any = [
        (name, {key: rng.choice([value, *odd]) for key, value in given.items()})
        for name, given in right_calls(env.case)
    ]
    calls.append(("f", odd[0]))
    made = as_reply(calls[: rng.randrange(1, len(calls) + 1)])
    cut = rng.randrange(len(made))
    for reply in (text, made, made[:cut] + text + made[cut:]):
        env.reset(seed)
        step, again = env.step(reply), env.fresh()
        assert step.end in (End.WON, End.LOST, End.INVALID) and -0.2 <= step.reward <= 1.0
        assert (step.end is End.INVALID) == (step.reward == -0.2)
        again.reset(seed, member=3)
        assert again.step(reply) == step
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(reply)
