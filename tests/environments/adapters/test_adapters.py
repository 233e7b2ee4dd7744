"""Adapters: other libraries' environments behind the protocol, as far as they are installed."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from environments import End, Environment, Step, evaluation_seed, training_seed
from environments.adapters import GymnasiumText, ReasoningGym, TextArena
from environments.adapters.gymnasium.screens import plain
from environments.adapters.library import Chance
from environments.adapters.reasoning_gym.items import _HARMLESS, _REFUSED, Source
from environments.adapters.replies import last_element
from environments.adapters.rewards import bounded
from tests.support.paths import CHECKOUT

NEEDED: dict[str, Any] = {
    "reasoning_gym": ReasoningGym,
    "textarena": TextArena,
    "gymnasium": GymnasiumText,
}


def needs(library: str) -> pytest.MarkDecorator:
    missing = find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


ADAPTERS = [pytest.param(cls, id=name, marks=needs(name)) for name, cls in NEEDED.items()]


def played(env: Environment, policy: str, seed: int, *, rng: Random, member: int = 0) -> list[Step]:
    env.reset(seed, member=member)
    steps = [env.step(env.baselines[policy](env, rng))]
    while steps[-1].end is None:
        steps.append(env.step(env.baselines[policy](env, rng)))
    return steps


def reward(steps: list[Step]) -> float:
    total = sum(step.reward for step in steps)
    last = steps[-1].episode_reward
    return total if last is None else last


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr("environments.adapters.library.import_module", fail)
    with pytest.raises(ValueError, match=rf"\Aenv={name} needs {name} .*: pip install \S+==.*\Z"):
        NEEDED[name]()


@pytest.mark.parametrize("name", NEEDED)
def test_settings_file(name: str) -> None:
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


def test_thoughts_and_halves_are_no_answers() -> None:
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


def test_a_coloured_screen_becomes_text() -> None:
    assert plain("  (Down)\nSF\n\x1b[41mH\x1b[0mG\n") == "SF\nHG\nred 'H' at row 2, column 1"
    assert plain("a\x1b[34;1mRY\x1b[0mb").split("\n") == ["aRYb", "blue 'RY' at row 1, column 2"]
    assert plain("plain") == "plain"


def test_chance_replays_and_leaves_the_outer_alone() -> None:
    outer = random.getstate()
    one, other = Chance("a"), Chance("a")
    drawn = []
    for chance in (one, other, one, other):
        with chance():
            drawn.append(random.random())
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    assert random.getstate() == outer


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


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_any_text_leads_to_a_bounded_step(adapter: type[Environment]) -> None:
    rng, env, slowest = Random(0), adapter(), 0.0
    wrappings: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: f"<answer>{text}</answer>",
        lambda text: f"<action>{text}</action>",
        lambda text: f"[{text}]",
    ]
    env.reset(0)
    for index in range(800):
        text = rng.choice(wrappings)("".join(rng.choices(PIECES, k=rng.randrange(5))))
        begun = time.process_time()
        step = env.step(text)
        slowest = max(slowest, time.process_time() - begun)
        assert -1 <= step.reward <= 1 and -1 <= (step.episode_reward or 0) <= 1
        assert all(isinstance(value, float) for value in step.metrics.values())
        if step.end:
            env.reset(index)
    assert slowest < 0.5  # seen: 0.02


SKILLLESS = ["", "\x00\xff", "<answer></answer>", "<answer>0</answer>", "<action></action>", "[]"]


@needs("reasoning_gym")
def test_questions_are_scored_by_their_dataset() -> None:
    env = ReasoningGym(dataset="chain_sum+letter_counting", options={"chain_sum": {"min_terms": 3}})
    seen = set()
    for index in range(30):
        right = played(env, "oracle", evaluation_seed(index), rng=Random(0))[0]
        assert (right.end, right.reward, right.metrics["win"]) == (End.WON, 1.0, 1.0)
        seen.add(env.category)
    assert seen == {"chain_sum", "letter_counting"}
    other = [reward(played(env, "random", index, rng=Random(index))) for index in range(60)]
    assert mean(other) < 0.4
    for reply in SKILLLESS:
        earned = []
        for index in range(40):
            env.reset(evaluation_seed(2 * index))
            step = env.step(reply)
            earned.append(step.reward)
            assert (step.end is End.INVALID) == (last_element("answer", reply) in (None, ""))
        assert mean(earned) < 0.1, reply


@needs("reasoning_gym")
def test_no_question_is_in_both_parts_and_an_epoch_shows_all_numbers() -> None:
    env = ReasoningGym(dataset="coin_flip", items=60)
    training = [env.reset(training_seed(0, index)) for index in range(120)]
    held_out = {env.reset(evaluation_seed(index)) for index in range(60)}
    assert not set(training) & held_out and len(held_out) > 20
    assert training[:60] == training[60:]


@needs("reasoning_gym")
def test_no_answer_is_run_as_code(tmp_path: Path) -> None:
    library = Path(str(import_module("reasoning_gym").__file__)).parent
    runs = re.compile(r"(?:eval|parse_expr|sympify|exec)\(answer")
    for path in library.rglob("*.py"):
        if runs.search(path.read_text()):
            assert path.stem in {*_HARMLESS, *_REFUSED}, path
    trace = tmp_path / "trace"
    attack = f"open({str(trace)!r}, 'w').close()"
    for name in _HARMLESS:
        env = ReasoningGym(dataset=name, items=20)
        for answer in (
            attack,
            f"[{attack}]",
            "9**9**9**9",
            "9**(9**9)",
            "(" * 150,
            "oracle_answer",
            "answer",
        ):
            env.reset(0)
            assert env.step(f"<answer>{answer}</answer>").reward < 0.2
        assert mean(reward(played(env, "oracle", seed, rng=Random(0))) for seed in range(2)) == 1
    assert not trace.exists()


@needs("textarena")
def test_a_game_is_played_to_its_end() -> None:
    env = TextArena()
    assert "between 1 and 20" in env.reset(4)
    low, high, observation = 1, 20, ""
    for _ in range(5):
        guess = (low + high) // 2
        step = env.step(f"<think>[1]</think>[{guess}]")
        if step.end:
            break
        low, high = (guess + 1, high) if "higher" in step.observation else (low, guess - 1)
        observation = step.observation
    assert (step.end, step.reward, step.metrics["win"]) == (End.WON, 1.0, 1.0)
    assert "You have to guess" not in observation  # what was shown before is not repeated
    rewards = [reward(played(env, "random", seed, rng=Random(seed))) for seed in range(60)]
    assert mean(rewards) < 0.5
    for reply in SKILLLESS:
        env.reset(1)
        assert env.step(reply).end is None  # the game forgives one
        last = env.step(reply)
        assert last.end is End.INVALID and last.reward == 0
    limited = TextArena(max_turns=1)
    limited.reset(2)
    assert limited.step("no number").end is End.TRUNCATED


@needs("textarena")
@pytest.mark.parametrize(
    "game", ["Countdown-v0", "TowerOfHanoi-v0", "Slitherlink-v0", "2048-v0-easy"]
)
def test_other_games_take_any_reply(game: str) -> None:
    for seed in range(5):
        steps = played(TextArena(game=game, max_turns=10), "random", seed, rng=Random(seed))
        assert steps[-1].end and -1 <= reward(steps) <= 1


def solid(**more: Any) -> GymnasiumText:
    return GymnasiumText(options={"is_slippery": False}, **more)


@needs("gymnasium")
def test_a_lake_is_crossed_by_names_and_numbers() -> None:
    env = solid()
    assert env.reset(0) == "SFFF\nFHFH\nFFFH\nHFFG\nred 'S' at row 1, column 1\nState: 0"
    path = ["down", "1", "RIGHT", "<think>no</think>down", "2", "right"]
    steps = [env.step(f"<action>{action}</action>") for action in path[:3]]
    steps += [env.step("<think>left?</think><action>down</action>")]
    steps += [env.step(f"<action>{action}</action>") for action in path[4:]]
    assert [step.end for step in steps] == [None] * 5 + [End.WON]
    assert reward(steps) == 1.0 and steps[-1].metrics["num_steps"] == 6
    for reply in (*SKILLLESS, "<action>jump</action>", "<action>4</action>", "down"):
        env.reset(0)
        step = env.step(reply)
        assert (step.end, step.reward, step.episode_reward) == (End.INVALID, -1.0, -1.0)
    hole = solid()
    hole.reset(0)
    hole.step("<action>right</action>")
    assert hole.step("<action>down</action>").end is End.LOST
    short = solid(max_steps=2)
    assert played(short, "first", 0, rng=Random(0))[-1].end is End.TRUNCATED


@needs("gymnasium")
def test_the_oracle_is_best() -> None:
    for env, least in ((solid(), 1.0), (GymnasiumText(), 0.55)):
        won = [played(env, "oracle", seed, rng=Random(0))[-1].end is End.WON for seed in range(60)]
        assert mean(won) >= least
        lucky = [reward(played(env, "random", seed, rng=Random(seed))) for seed in range(60)]
        assert mean(lucky) < 0.2
    taxi = GymnasiumText(id="Taxi-v4", reward_scale=0.05, clip=2.0)
    steps = played(taxi, "oracle", 3, rng=Random(0))
    assert steps[-1].end is End.WON
    assert reward(steps) == pytest.approx(0.05 * (20 - (len(steps) - 1)))


@needs("gymnasium")
def test_later_chance_differs_by_member() -> None:
    def seen(member: int) -> list[str]:
        env = GymnasiumText()
        env.reset(2, member=member)
        return [env.step("<action>up</action>").observation for _ in range(3)]

    assert len({tuple(seen(member)) for member in range(8)}) > 1
    assert seen(3) == seen(3)


@needs("gymnasium")
def test_texts_are_played_too() -> None:
    gymnasium: Any = import_module("gymnasium")

    class Echo(gymnasium.Env):  # type: ignore[misc]
        observation_space = gymnasium.spaces.Text(20)
        action_space = gymnasium.spaces.Text(5, charset="ab")

        def reset(self, **options: Any) -> tuple[str, dict[str, Any]]:
            super().reset(seed=options.get("seed"))
            return "say ab", {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return f"said {action}", 7.0 * (action == "ab"), action == "ab", False, {}

    if "Echo-v0" not in gymnasium.registry:
        gymnasium.register("Echo-v0", entry_point=Echo)
    env = GymnasiumText(id="Echo-v0")
    assert env.reset(0) == "say ab"
    assert env.step("<action>ba</action>").observation == "said ba"
    last = env.step("<action>ab</action>")
    assert (last.end, last.reward, last.episode_reward) == (End.WON, 1.0, 1.0)
    env.reset(1)
    assert env.step("<action>abc</action>").end is End.INVALID


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


@needs("reasoning_gym")
def test_a_maker_that_finds_no_item_for_a_seed_is_passed_over() -> None:
    source = Source("maze", {}, count=5000)
    with pytest.raises(RuntimeError, match="suitable path cell"):
        source._dataset[5843]
    assert all("Navigate" in source.item(5843, held_out=part).question for part in (False, True))
