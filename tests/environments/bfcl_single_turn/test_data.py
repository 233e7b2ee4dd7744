"""The cases of BFCL: the split, filters, tools, conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from environments import evaluation_seed, training_seed
from environments.bfcl_single_turn import BfclSingleTurn
from environments.bfcl_single_turn import official as installed
from environments.bfcl_single_turn.data import UNWINNABLE
from tests.environments.bfcl_single_turn.cases import (
    SINGLE_TURN,
    case_of,
    needs_bfcl,
    playing,
)


def epoch(env: BfclSingleTurn, seed_of: Callable[[int], int], count: int) -> list[str]:
    ids = []
    for index in range(count):
        observation = env.reset(seed_of(index), member=index % 8)
        assert env.category == env.case["category"] and observation
        ids.append(env.case["id"])
    return ids


@pytest.mark.slow
@needs_bfcl
def test_training_and_evaluation_share_no_request() -> None:
    env = BfclSingleTurn()
    train = epoch(env, lambda index: training_seed(7, index), 2913)
    held_out = epoch(env, evaluation_seed, 711)
    assert len({*train}) == 2913 and len({*held_out}) == 711
    requests = [
        {case_of(i)["question"][0][-1]["content"] for i in ids[:400]} for ids in (train, held_out)
    ]
    assert not requests[0] & requests[1] and not {*train} & {*held_out}
    assert not {*train, *held_out} & UNWINNABLE
    again = epoch(BfclSingleTurn(), evaluation_seed, 720)
    assert again == held_out + held_out[:9]
    assert held_out == [entry.id for entry in env.entries[1]] != sorted(held_out)


@needs_bfcl
def test_cases_are_chosen_by_settings() -> None:
    def ids(**options: Any) -> set[str]:
        env = BfclSingleTurn(**options)
        return {entry.id for part in env.entries for entry in part}

    everything = ids(max_prompt_chars=None, keep_unwinnable=True)
    assert len(everything) == 3641 and everything - ids(max_prompt_chars=None) == UNWINNABLE
    assert len(ids(categories=["live"])) < len(ids(categories=["live", "simple_java"]))
    java = ids(categories=["simple_java"], keep_unwinnable=True)
    assert java == {f"simple_java_{index}" for index in range(100)}
    short = BfclSingleTurn(max_prompt_chars=1500)
    for index in range(50):
        observation = short.reset(index)
        functions = json.dumps(short.case["function"])
        assert len(functions) + len(short.system_prompt) + len(observation) < 1600
    shares = [len(BfclSingleTurn(evaluation_share=s).entries[1]) / 3624 for s in (0.1, 0.5)]
    assert shares == pytest.approx([0.1, 0.5], abs=0.03)
    half, fifth = (BfclSingleTurn(evaluation_share=s).entries[1] for s in (0.5, 0.2))
    assert {*fifth} < {*half}


JSON_TYPES = {"string", "integer", "number", "boolean", "array", "object"}


def check_schema(schema: dict[str, Any]) -> None:
    assert schema["type"] in JSON_TYPES
    for inner in schema.get("properties", {}).values():
        check_schema(inner)
    if "type" in schema.get("items", {}):
        check_schema(schema["items"])


@pytest.mark.slow
@needs_bfcl
def test_tools_are_those_of_the_episode() -> None:
    env = BfclSingleTurn(max_prompt_chars=None)
    assert env.tools is None and env.system_prompt == "" and env.category == ""
    seen, official = set(), installed.official()
    hinted = {
        entry["id"]: entry
        for category in SINGLE_TURN
        for entry in official.load_dataset_entry(category)
    }
    for index in range(400):
        env.reset(index)
        functions = hinted[env.case["id"]]["function"]
        tools: list[dict[str, Any]] = env.tools or []
        names = [function["name"].replace(".", "_") for function in functions]
        assert [tool["function"]["name"] for tool in tools] == names
        for tool, function in zip(tools, functions, strict=True):
            assert tool["type"] == "function"
            assert tool["function"]["description"] == function["description"]
            check_schema(tool["function"]["parameters"])
        seen.add(json.dumps(env.tools))
    assert len(seen) > 300
    assert playing(case_of("live_irrelevance_120-9-0")).tools is None  # has no functions


@pytest.mark.slow
@needs_bfcl
def test_conversations_become_one_observation() -> None:
    env = BfclSingleTurn(categories=["live"], max_prompt_chars=None)
    with_system = with_turns = 0
    for index in range(2 * len(env.entries[0])):
        observation = env.reset(index)
        messages = env.case["question"][0]
        roles = [message["role"] for message in messages]
        with_system += "system" in roles
        with_turns += "assistant" in roles
        assert bool(env.system_prompt) == ("system" in roles)
        shown = f"{env.system_prompt} {observation}"
        assert all(message["content"] in shown for message in messages)
        assert ("Assistant: " in observation) >= ("assistant" in roles)
    assert with_system > 50 and with_turns > 3
