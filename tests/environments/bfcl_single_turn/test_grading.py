"""The official verdict against known cases and a slow checker."""

from __future__ import annotations

import json
import os
from random import Random
from statistics import mean
from typing import Any

import pytest

from environments.bfcl_single_turn import official as installed
from environments.bfcl_single_turn.data import Case, entries_of
from environments.bfcl_single_turn.grading import grade
from tests.environments.bfcl_single_turn.cases import (
    TRIANGLE,
    case_of,
    needs_bfcl,
    right,
)


def test_a_missing_library_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'bfcl_eval'")

    monkeypatch.setattr(installed, "import_module", fail)
    with pytest.raises(ValueError, match=r"\A.*No module named 'bfcl_eval'.*\Z") as raised:
        installed.official.__wrapped__()
    assert "pip install --no-deps bfcl-eval==2026.3.23 && pip install " in str(raised.value)
    assert "BFCL_PROJECT_ROOT" not in os.environ


BROKEN = ['{"base": 10', "", "null", "[10, 5]", '"10, 5"', '{"base": 10, "height": 5} {}', "{}"]
WRONG = ['{"base": 10}', '{"base": 10, "height": "5"}', '{"base": 10, "height": 5.0}']
WRONG += ['{"base": 10, "height": 5, "depth": 1}', '{"base": 10, "height": 6}']
WRONG += [
    '{"base": 10, "height": [5]}',
    '{"base": 10, "height": true}',
    '{"base": 10, "height": null}',
]
NOT_CALLED: list[list[dict[str, str]] | None] = [None, []]


@needs_bfcl
def test_verdicts_on_one_call() -> None:
    case, name = case_of(TRIANGLE), "calculate_triangle_area"

    def verdict(arguments: Any, name: str = name) -> bool:
        return grade(case, [{"name": name, "arguments": arguments}], None)

    assert verdict('{"base": 10, "height": 5}')
    assert verdict('{"height": 5, "base": 10, "unit": "UNITS"}')  # case and signs do not count
    assert not any(map(verdict, [*BROKEN, *WRONG, {"base": 10, "height": 5}, None]))
    assert not verdict('{"base": 10, "height": 5}', "calculate_triangle_areas")
    call = {"name": name, "arguments": '{"base": 10, "height": 5}'}
    assert not grade(case, [call, call], None)
    assert not any(grade(case, calls, text) for calls in NOT_CALLED for text in (None, "", "25"))
    assert not grade(case, [{"name": name}], None)
    assert not grade(case, [{"name": [], "arguments": "{}"}], None)


@needs_bfcl
def test_names_have_underscores_unless_the_tools_keep_dots() -> None:
    case = case_of("simple_python_1")
    (call,) = right(case)
    dotted = {**call, "name": "math.factorial"}
    assert call["name"] == case["tools"][0]["function"]["name"] == "math_factorial"
    assert grade(case, [call], None) and not grade(case, [dotted], None)
    case["tools"][0]["function"]["name"] = "math.factorial"
    assert grade(case, [dotted], None) and not grade(case, [call], None)


@needs_bfcl
@pytest.mark.parametrize("case_id", ["irrelevance_0", "live_irrelevance_0-0-0"])
def test_irrelevance_counts_what_cannot_be_decoded_as_no_call(case_id: str) -> None:
    case = case_of(case_id)
    assert all(grade(case, calls, text) for calls in NOT_CALLED for text in (None, "", "No."))
    for arguments in BROKEN:
        is_call = arguments == "{}"
        assert grade(case, [{"name": "f", "arguments": arguments}], None) != is_call
        relevant = case_of("live_relevance_0-0-0")
        assert grade(relevant, [{"name": "f", "arguments": arguments}], None) == is_call
    assert not grade(case_of("live_relevance_0-0-0"), None, "generate_image()")


@needs_bfcl
def test_parallel_calls_have_no_order() -> None:
    case = case_of("parallel_multiple_0")
    calls = right(case)
    assert len(calls) > 1 and grade(case, calls[::-1], None)
    assert not grade(case, calls[1:], None) and not grade(case, [*calls, calls[0]], None)
    assert not grade(case, [calls[0]] * len(calls), None)


@needs_bfcl
def test_other_languages_take_expressions_as_text() -> None:
    plain = 0
    for entry in (*entries_of("simple_java"), *entries_of("simple_javascript")):
        case = entry.case()
        (call,) = right(case)
        given = json.loads(call["arguments"])
        assert all(isinstance(value, str) for value in given.values())
        for name in [name for name, value in given.items() if value.isdigit() or value == "true"]:
            changed = {**given, name: json.loads(given[name])}
            assert not grade(case, [{**call, "arguments": json.dumps(changed)}], None), entry.id
            plain += 1
    assert plain > 30


EXPRESSIONS: dict[tuple[str, str], dict[Any, bool]] = {
    ("simple_java_22", "ids"): {
        "new ArrayList<>(Arrays.asList(101L, 202L, 303L))": True,
        "new ArrayList<Long>() {{ add(101L); add(202L); add(303L); }}": True,
        "new ArrayList<>(Arrays.asList(101, 202, 303))": False,  # no long ones
        "[101, 202, 303]": False,
    },
    ("simple_java_22", "newStatus"): {"2": True, "2L": False, "'2'": False, 2: False},
    ("simple_java_1", "useShortName"): {"true": True, "True": False, "false": False, True: False},
    ("simple_javascript_2", "status"): {
        "['completed', 'failed']": True,
        "new Array('completed', 'failed')": True,
        "['failed', 'completed']": False,
        "completed, failed": False,
    },
    ("simple_javascript_12", "requestConfig"): {
        "{method: 'GET'}": True,
        "{'method': 'POST'}": False,
        "{}": False,
    },
}


@needs_bfcl
@pytest.mark.parametrize("case_id, name", EXPRESSIONS)
def test_verdicts_on_expressions(case_id: str, name: str) -> None:
    case = case_of(case_id)
    (call,) = right(case)
    for value, verdict in EXPRESSIONS[case_id, name].items():
        changed = json.dumps({**json.loads(call["arguments"]), name: value})
        assert grade(case, [{**call, "arguments": changed}], None) == verdict, value


def simple_verdict(case: Case, call: dict[str, str]) -> bool:
    """Return the verdict by the rules for text, integers and booleans, written anew."""
    (answer,) = case["possible_answer"] or []
    ((name, accepted),) = answer.items()
    arguments = json.loads(call["arguments"])
    if call["name"] != name.replace(".", "_"):
        return False
    needed = {*case["function"][0]["parameters"]["required"]}
    needed |= {key for key, values in accepted.items() if "" not in values}
    if not needed <= arguments.keys() <= accepted.keys():
        return False

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return "".join(c for c in value.lower() if c not in " ,./-_*^").replace("'", '"')
        return value

    kinds = {key: {type(v) for v in values if v != ""} for key, values in accepted.items()}
    return all(
        {type(value)} == kinds[key] and plain(value) in [plain(v) for v in accepted[key]]
        for key, value in arguments.items()
    )


def is_simple(case: Case) -> bool:
    types = {"string": str, "integer": int, "boolean": bool}
    properties = case["function"][0]["parameters"]["properties"]
    (answer,) = case["possible_answer"] or []
    return all(
        key in properties
        and properties[key]["type"] in types
        and all(v == "" or type(v) is types[properties[key]["type"]] for v in values)
        and any(v != "" for v in values)
        for accepted in answer.values()
        for key, values in accepted.items()
    )


ODD: list[Any] = ["", "a b", 0, 1, -3, True, False, 2.0, None, [], {}]


@needs_bfcl
def test_verdicts_match_a_slow_checker() -> None:
    rng, verdicts = Random(0), []
    for category in ("simple_python", "live_simple"):
        for case in filter(is_simple, (entry.case() for entry in entries_of(category))):
            (call,) = right(case)
            given, accepted = json.loads(call["arguments"]), (case["possible_answer"] or [])[0]
            for _ in range(6):
                changed = dict(given)
                for key in rng.sample(sorted(given), k=min(len(given), rng.randrange(3))):
                    (values,) = accepted.values()
                    value = rng.choice([*ODD, *values[key], given[key]])
                    value = value.upper().replace(" ", "-") if isinstance(value, str) else value
                    changed[key] = value
                    if rng.random() < 0.2:
                        del changed[key]
                changed |= {"more": 1} if rng.random() < 0.1 else {}
                name = call["name"] if rng.random() < 0.9 else "other"
                made = {"name": name, "arguments": json.dumps(changed)}
                verdicts.append(grade(case, [made], None))
                assert verdicts[-1] == simple_verdict(case, made), (case["id"], made)
    assert len(verdicts) > 1000 and 0.2 < mean(verdicts) < 0.8
