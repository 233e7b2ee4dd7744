"""What all adapters share: replies, rewards, random states, replays, settings."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from environments import End, Environment
from environments.adapters import GymnasiumText, ReasoningGym, TextArena
from environments.adapters.library import RandomState
from environments.adapters.replies import last_element
from environments.adapters.rewards import bounded
from tests.environments.adapters.playing import ADAPTERS, NEEDED, needs, played
from tests.environments.limits import no_hang
from tests.support.paths import CHECKOUT


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_library_is_named_with_its_install_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr("environments.adapters.library.import_module", fail)
    with pytest.raises(ValueError, match=rf"\Aenv={name} needs {name} .*: pip install \S+==.*\Z"):
        NEEDED[name]()


@pytest.mark.parametrize("name", NEEDED)
def test_the_yaml_has_the_settings_of_the_class(name: str) -> None:
    cls = NEEDED[name]
    stored = OmegaConf.load(CHECKOUT / f"conf/env/{name}.yaml")
    names = [field.name for field in fields(cls)]
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    assert stored._target_ == f"environments.adapters.{cls.__name__}"
    defaults = OmegaConf.to_container(OmegaConf.structured(cls))
    assert OmegaConf.to_container(OmegaConf.masked_copy(stored, names)) == defaults


@given(st.lists(st.sampled_from(["<a>", "</a>", "1", " 2 ", "\n", "<a", ">"])))
def test_the_last_element_is_read(pieces: list[str]) -> None:
    reply = "".join(pieces)
    match = re.search(r"(?s)\A.*<a>(.*)</a>", reply)
    assert last_element("a", reply) == (match[1].strip() if match else None)


def test_thoughts_and_unclosed_elements_are_not_answers() -> None:
    for reply in (
        "",
        "1",
        "<a>1",
        "1</a>",
        "</a>1<a>",
        "<think><a>1</a></think>",
        "<a>1</a></think>",
    ):
        assert last_element("a", reply) is None, reply
    assert last_element("a", "<a>1</a>, no: <a>\n2 </a>") == "2"


def test_rewards_are_bounded() -> None:
    cases = {5: 1.0, -5.5: -1.0, 0.25: 0.25, float("nan"): 0.0, float("inf"): 1.0, True: 1.0}
    assert {given: bounded(given, -1, 1) for given in cases} == cases
    assert bounded("text", -1, 1) == bounded(None, -1, 1) == 0.0


def test_the_random_state_replays_and_leaves_the_outer_one_alone() -> None:
    outer = random.getstate()
    one, other = RandomState("a"), RandomState("a")
    drawn = []
    for state in (one, other, one, other):
        with state.active():
            drawn.append(random.random())
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    assert random.getstate() == outer


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_replay_is_exact_and_a_group_shares_the_start(adapter: type[Environment]) -> None:
    for seed in range(4):
        records = []
        for outside in range(2):
            random.seed(outside)
            records.append(played(adapter().fresh(), "random", seed, rng=Random(seed), member=1))
        assert records[0] == records[1]
        assert len({adapter().reset(seed, member=member) for member in range(3)}) == 1
    env = adapter()
    env.reset(0)
    assert env.truncate().end is End.TRUNCATED
    with pytest.raises(RuntimeError, match="call reset"):
        env.step("")


PIECES = [
    "<answer>",
    "</answer>",
    "<action>",
    "</action>",
    "<think>",
    "[",
    "]",
    "[5]",
    "12",
    "left",
]
PIECES += ["\x00", "\ud800", "🙂", "9**9**9", "(", "\n", "-1", "9" * 5000, "<answer>" * 2000]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_any_text_leads_to_a_bounded_step(adapter: type[Environment]) -> None:
    rng, env = Random(0), adapter()
    wrappings: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: f"<answer>{text}</answer>",
        lambda text: f"<action>{text}</action>",
        lambda text: f"[{text}]",
    ]
    env.reset(0)
    for index in range(800):
        text = rng.choice(wrappings)("".join(rng.choices(PIECES, k=rng.randrange(5))))
        with no_hang():
            step = env.step(text)
        assert -1 <= step.reward <= 1 and -1 <= (step.episode_reward or 0) <= 1
        assert all(isinstance(value, float) for value in step.metrics.values())
        if step.end:
            env.reset(index)


WRONG = [
    *((ReasoningGym, s) for s in ("dataset=nothing", "items=0", "dataset=simple_integration")),
    *((TextArena, s) for s in ("game=Nothing-v0", "game=TicTacToe-v0", "max_turns=0", "clip=-1")),
    *((TextArena, s) for s in ("invalid_reward=nan", "game=Chess-v0")),
    *((GymnasiumText, s) for s in ("id=Nothing-v0", "id=CartPole-v1", "max_steps=1.5", "clip=inf")),
    *((GymnasiumText, s) for s in ("reward_scale=-1", "win_above=x", "actions=[a,b]")),
]
LIBRARIES = {cls: name for name, cls in NEEDED.items()}


@pytest.mark.parametrize(
    "cls, setting",
    [pytest.param(cls, s, id=s, marks=needs(LIBRARIES[cls])) for cls, s in WRONG],
)
def test_a_wrong_setting_is_named(cls: type[Environment], setting: str) -> None:
    given = OmegaConf.to_container(OmegaConf.from_dotlist([setting]))
    assert isinstance(given, dict)
    name = setting.split("=")[0]
    with pytest.raises(ValueError, match=rf"\Aenv\.{name}=.*: must be .*\Z"):
        cls(**{str(key): value for key, value in given.items()})


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**80))
def test_any_seed_is_taken(seed: int) -> None:
    for name, cls in NEEDED.items():
        if find_spec(name):
            assert cls().reset(seed)
