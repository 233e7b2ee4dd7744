"""The tool test: calls and rewards against a slow oracle, replies, turns, tasks, settings."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import fields
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from environments import End, Step, evaluation_seed, training_seed
from environments.tool_test import ToolTest, rewards
from environments.tool_test.replies import Call, as_reply, parse
from environments.tool_test.tools import CATALOGUE, is_typed
from rl_experiments.config.schema import register
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from tests.support.paths import CHECKOUT


def started(*asked: Call, **options: Any) -> ToolTest:
    weights = {"exact_weight": 1.0, "names_weight": 0.0, "arguments_weight": 0.0}
    env = ToolTest(**{**weights, **options})
    env.reset(0)
    env.asked = asked or env.asked
    return env


def says(*calls: Call) -> str:
    return as_reply(*calls)


TIMER, LIGHT = Call("set_timer", {"minutes": 5}), Call("switch_light", {"room": "hall", "on": True})


# ---- Rewards ----


def slow_shares(asked: Sequence[Call], made: Sequence[Call]) -> dict[str, float]:
    """Call by call, each compared as text that shows the types."""

    def shown(value: Any) -> str:
        return repr(float(value)) if type(value) in (int, float) else repr(value)

    wanted = Counter((call.name, shown_all(call, shown)) for call in asked)
    found = Counter((call.name, shown_all(call, shown)) for call in made)
    most = max(len(asked), len(made))
    names = Counter(call.name for call in asked) & Counter(call.name for call in made)
    return {"exact": float(wanted == found), "names": sum(names.values()) / most}


def shown_all(call: Call, shown: Callable[[Any], str]) -> str:
    return ", ".join(sorted(f"{name}={shown(value)}" for name, value in call.arguments.items()))


@st.composite
def asked_and_made(draw: st.DrawFn) -> tuple[list[Call], list[Call]]:
    """Calls of a task, and those of somebody who is now and then mistaken."""
    rng = Random(draw(st.integers(0, 10**6)))
    names = rng.sample(list(CATALOGUE), rng.randint(1, 3))
    asked = [Call(name, CATALOGUE[name].draw(rng)) for name in names]
    made = deepcopy(asked)
    rng.shuffle(made)
    for mistake in draw(st.lists(st.sampled_from(["drop", "again", "other", "value", "extra"]))):
        index = rng.randrange(len(made)) if made else None
        if mistake == "other" or index is None:
            name = rng.choice(list(CATALOGUE))
            made.append(Call(name, CATALOGUE[name].draw(rng)))
        elif mistake == "drop":
            del made[index]
        elif mistake == "again":
            made.append(made[index])
        elif mistake == "extra":
            made[index] = Call(made[index].name, {**made[index].arguments, "more": 1})
        else:
            arguments = dict(made[index].arguments)
            key = rng.choice(list(arguments))
            arguments[key] = rng.choice([0, 1, True, 5.0, "5", "hall", [], ["7"], None, {}])
            made[index] = Call(made[index].name, arguments)
    return asked, made


@settings(max_examples=500, deadline=None)
@given(asked_and_made())
def test_rewards_match_the_oracle(calls: tuple[list[Call], list[Call]]) -> None:
    asked, made = calls
    shares = slow_shares(asked, made)
    assert rewards.exact(asked, made) == shares["exact"]
    assert rewards.right_names(asked, made) == pytest.approx(shares["names"])
    right = rewards.right_calls(asked, made)
    assert 0 <= right <= rewards.right_arguments(asked, made) <= shares["names"] <= 1
    step = started(*asked).step(says(*made))
    assert step.reward == shares["exact"]
    assert step.end is (End.WON if shares["exact"] else End.LOST if made else End.INVALID)


def test_shares_of_what_is_right() -> None:
    env = started(TIMER, LIGHT, exact_weight=4, names_weight=2, arguments_weight=1, calls_weight=8)
    dark = Call("switch_light", {"room": "hall", "on": False})
    for made, reward in (
        ([LIGHT, TIMER], 4 + 2 + 1 + 8),
        ([TIMER, dark], 2 + (1 + 1 / 2) / 2 + 8 / 2),
        ([TIMER], 2 / 2 + 1 / 2 + 8 / 2),
        ([TIMER, LIGHT, LIGHT], 15 * 2 / 3 - 4 * 2 / 3),  # as good as two of three
        ([TIMER, dark, LIGHT], 2 * 2 / 3 + (1 + 1 / 2) / 3 + 8 / 3),  # the first light counts
    ):
        env.reset(0)
        env.asked = (TIMER, LIGHT)
        assert env.step(says(*made)).reward == pytest.approx(reward)


def test_calls_just_in_case_do_not_pay() -> None:
    all_ways = [Call("switch_light", {"room": "hall", "on": on}) for on in (True, False)]
    every_minute = [Call("set_timer", {"minutes": n}) for n in range(61)]
    weights = {"names_weight": 1.0, "arguments_weight": 1.0, "calls_weight": 1.0}
    honest = started(LIGHT, **weights).step(says(LIGHT)).reward
    assert honest == 4
    assert started(LIGHT, **weights).step(says(*all_ways)).reward <= honest / 2
    assert started(TIMER, **weights).step(says(*every_minute)).reward < 0.1
    rng = Random(0)
    everything = [Call(name, tool.draw(rng)) for name, tool in CATALOGUE.items()]
    assert started(TIMER, **weights).step(says(TIMER, *everything)).reward < honest / 5


# ---- Replies ----

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
def test_what_is_no_call_in_form_is_none(reply: str) -> None:
    assert not any(call.name for call in parse(reply))
    assert started(TIMER).step(reply).end is End.INVALID
    if "<tool_call>" in reply and "<think>" not in reply:  # it counts as a call that is wrong
        assert started(TIMER).step(f"{says(TIMER)}\n{reply}").end is End.LOST


@pytest.mark.parametrize("arguments", WRONG_CALLS, ids=lambda text: text[:30])
def test_no_other_type_and_no_other_argument_is_taken(arguments: str) -> None:
    reply = f'<tool_call>{{"name": "set_timer", "arguments": {arguments}}}</tool_call>'
    assert started(TIMER).step(reply).end is End.LOST


def test_types() -> None:
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
        found = [value for value in values if is_typed(value, schema)]
        assert list(map(repr, found)) == list(map(repr, right))
    kinds = {p.schema["type"] for tool in CATALOGUE.values() for p in tool.parameters}
    assert kinds == {"boolean", "integer", "number", "string", "array"}
    for told in ToolTest().tools:
        assert told["type"] == "function" and json.loads(json.dumps(told)) == told
        function = told["function"]
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


@pytest.mark.parametrize("one_a_turn", [False, True])
def test_any_reply_has_an_outcome_at_once(one_a_turn: bool) -> None:
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
    for reply in BAITS:
        times = []
        for _ in range(3):
            env.reset(0)
            env.asked = (Call("open_lock"), TIMER)  # any digits
            begun = time.perf_counter()
            env.step(reply)
            times.append(time.perf_counter() - begun)
        assert min(times) < 0.05, reply[:30]


# ---- Turns ----


def test_one_call_a_turn() -> None:
    env = started(TIMER, LIGHT, one_a_turn=True, calls_weight=0.5)
    first = env.step(says(LIGHT))
    assert (first.observation, first.role) == ('{"result": "done"}', "tool")
    assert (first.end, first.reward) == (None, 0.25)
    second = env.step(says(TIMER))
    assert (second.end, second.reward) == (None, 0.25)
    last = env.step("All done.")
    assert (last.end, last.reward, last.episode_reward) == (End.WON, 1.0, 1.5)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("")


def test_what_goes_wrong_in_turns() -> None:
    def answers(*replies: str, **options: Any) -> list[Step]:
        env = started(TIMER, LIGHT, one_a_turn=True, names_weight=1, **options)
        steps = [env.step(reply) for reply in replies]
        assert sum(step.reward for step in steps) == pytest.approx(steps[-1].episode_reward)
        return steps

    several = answers(says(TIMER, LIGHT), "Done.")
    assert several[0].observation == '{"error": "one call a turn"}'
    assert (several[1].end, several[1].episode_reward) == (End.INVALID, 0.0)
    wrong = [says(Call("fly")), says(Call("set_timer", {"minutes": "5"})), "<tool_call>{"]
    steps = answers(*wrong, says(TIMER), says(LIGHT), "Done.")
    assert [json.loads(step.observation).get("error") for step in steps[:4]] == [
        *("there is no such tool", "minutes has the wrong type or value"),
        *("the call cannot be read", None),
    ]
    assert steps[-1].end is End.LOST
    assert steps[-1].episode_reward == pytest.approx(2 / 5)
    assert steps[-1].metrics["calls"] == 5 and steps[-1].metrics["unreadable_calls"] == 1
    assert answers(says(TIMER), says(LIGHT), says(TIMER), "Done.")[-1].end is End.LOST
    assert answers(*[says(TIMER)] * 4, max_turns=4)[-1].end is End.TRUNCATED
    assert answers("No.")[-1].end is End.INVALID
    cut = started(TIMER, LIGHT, one_a_turn=True, names_weight=1)
    cut.step(says(TIMER))
    assert (cut.truncate().end, cut.made) == (End.TRUNCATED, [TIMER])


# ---- Tasks ----

SETTINGS: list[dict[str, Any]] = [
    {},
    {"arguments": "free", "max_calls": 2},
    {"offered": ["paint_room", "switch_light"], "max_calls": 2},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_evaluation_and_training_share_no_task(options: dict[str, Any]) -> None:
    env = ToolTest(**options)

    def drawn(seed: Callable[[int], int]) -> set[frozenset[str]]:
        found = set()
        for index in range(1500):
            shown = env.reset(seed(index))
            assert env.reset(seed(index), member=5) == shown
            assert env.min_calls <= len(env.asked) <= env.max_calls
            assert env.category == f"{len(env.asked)} call{'s' * (len(env.asked) > 1)}"
            for call in env.asked:
                line = next(line for line in shown.split("\n") if line.startswith(f"- {call.name}"))
                for name, value in call.arguments.items():
                    assert f"{name}={json.dumps(value, ensure_ascii=False)}" in line
            found.add(frozenset(shown.split("\n")))
        return found

    evaluation, training = drawn(evaluation_seed), drawn(lambda index: training_seed(1, index))
    assert not evaluation & training and len(training) > len(evaluation) * 0.9
    assert len(evaluation) > (500 if not options else 5)


def test_free_arguments() -> None:
    env = started(Call("set_timer"), arguments="free")
    assert "of your choice" in env.system_prompt
    for minutes, end in ((1, End.WON), (10**9, End.WON), ("1", End.LOST)):
        env.reset(0)
        env.asked = (Call("set_timer"),)
        assert env.step(says(Call("set_timer", {"minutes": minutes}))).end is end


@pytest.mark.parametrize("one_a_turn", [False, True])
def test_baselines_show_what_skill_is_worth(one_a_turn: bool) -> None:
    found = {}
    for name, policy in ToolTest.baselines.items():
        env, rng, ends = ToolTest(one_a_turn=one_a_turn, max_turns=9), Random(0), []
        for index in range(200):
            env.reset(evaluation_seed(index))
            while not (step := env.step(policy(env, rng))).end:
                pass
            ends.append(step)
        found[name] = fmean(step.episode_reward or 0.0 for step in ends)
        assert all(not step.metrics["unreadable_calls"] for step in ends)
    assert found.pop("oracle") == 1
    assert max(found.values()) < 0.2


# ---- Settings ----

WRONG: dict[str, list[Any]] = {
    "offered": [["fly"], ["say", "say"]],
    "min_calls": [0, 9, True],
    "max_calls": [0, 9, 1.5],
    "arguments": ["any"],
    "one_a_turn": [1],
    "max_turns": [0],
    "exact_weight": [-1],
    "names_weight": [float("nan")],
    "arguments_weight": [True],
    "calls_weight": ["1", float("inf")],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named(name: str) -> None:
    for value in WRONG[name]:
        options: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=rf"\Aenv\.{name}=.*: must be [^\n]*\Z"):
            ToolTest(**options)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"env\.max_turns=3: must be from 4"):
        ToolTest(one_a_turn=True, max_turns=3)
    with pytest.raises(ValueError, match=r"env\.offered=say: must give tasks for training and"):
        ToolTest(offered=["say"], max_calls=1, arguments="free")  # type: ignore[arg-type]


def test_settings_file_and_prompt() -> None:
    names = [field.name for field in fields(ToolTest)]
    stored = OmegaConf.load(CHECKOUT / "conf/env/tool_test.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    chosen = OmegaConf.masked_copy(stored, names)
    env = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ToolTest), chosen))
    assert env == ToolTest() and isinstance(env, ToolTest)
    assert "Make all calls in one reply" in env.system_prompt
    assert "one call a turn" in ToolTest(one_a_turn=True).system_prompt
    env.reset(0)
    typed = env.reply_from_input('set_timer {"minutes": 5}')
    assert typed == says(TIMER) and env.reply_from_input("Done.") == "Done."


def test_what_the_tiny_model_learns_composes() -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        experiment = check(compose("config", overrides=["name=test", "env=tool_test"]))
    env = experiment.environment
    assert isinstance(env, ToolTest) and len(env.tools) == 2
    assert experiment.config.trainer.max_completion_length == 32
