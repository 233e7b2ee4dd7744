"""Wordle: marks against a slow oracle, words, rewards, replies, ends, baselines, settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean
from time import perf_counter
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from environments import End, Step, evaluation_seed, training_seed
from environments.wordle import Wordle
from environments.wordle.data import word_list
from environments.wordle.game import consistent, feedback
from rl_experiments.config.schema import register
from rl_experiments.paths import CONF_DIR
from rl_experiments.preflight import check
from tests.support.paths import CHECKOUT

ENGLISH = word_list("english", 0.2)
FEW_LETTERS = st.text("abc", min_size=5, max_size=5)


def slow_feedback(secret: str, guess: str) -> str:
    """Letter by letter of the alphabet: its greens, then as many yellows as copies remain."""
    marks = ["X"] * 5
    for letter in set(guess):
        places = [i for i in range(5) if guess[i] == letter]
        greens = [i for i in places if secret[i] == letter]
        yellows = [i for i in places if i not in greens][: secret.count(letter) - len(greens)]
        for mark, where in (("G", greens), ("Y", yellows)):
            for i in where:
                marks[i] = mark
    return "".join(marks)


def started(secret: str = "", seed: int = 0, **options: Any) -> Wordle:
    env = Wordle(**options)
    env.reset(seed)
    env.secret = secret or env.secret
    return env


def says(word: str) -> str:
    return f"<think>so</think>\n<guess>{word}</guess>"


def play(env: Wordle, replies: list[str]) -> list[Step]:
    """The steps of the replies, the last of them over and over, to the end."""
    steps: list[Step] = []
    while not steps or steps[-1].end is None:
        steps.append(env.step(replies[min(len(steps), len(replies) - 1)]))
    return steps


@settings(max_examples=500, deadline=None)
@given(FEW_LETTERS, FEW_LETTERS)
def test_feedback_matches_the_oracle(secret: str, guess: str) -> None:
    assert feedback(secret, guess) == slow_feedback(secret, guess)


def test_feedback_on_words_and_by_hand() -> None:
    rng = Random(0)
    for secret, guess in zip(*(rng.choices(ENGLISH.words, k=50_000) for _ in "sg"), strict=True):
        assert feedback(secret, guess) == slow_feedback(secret, guess), (secret, guess)
    by_hand = {
        ("abbey", "babbb"): "YYGXX",
        ("abbey", "kebab"): "XYGYY",
        ("crane", "eerie"): "XXYXG",
        ("crane", "crane"): "GGGGG",
        ("speed", "erase"): "YXXYY",
        ("level", "hello"): "XGYYX",
        ("there", "eeeee"): "XXGXG",
    }
    assert {pair: feedback(*pair) for pair in by_hand} == by_hand
    with pytest.raises(ValueError):
        feedback("crane", "cranes")


def test_consistent_words_are_those_with_the_same_marks() -> None:
    rng, words = Random(1), ENGLISH.words[::9]
    for _ in range(100):
        secret, guesses = rng.choice(words), rng.sample(words, rng.randrange(4))
        board = tuple((guess, slow_feedback(secret, guess)) for guess in guesses)
        left = consistent(words, board)
        assert secret in left
        assert left == tuple(
            w for w in words if all(slow_feedback(w, g) == marks for g, marks in board)
        )


def test_the_words() -> None:
    assert len(ENGLISH.words) == len(ENGLISH.known) == 4633
    assert {"crane", "abaci", "zippy", "civic"} <= ENGLISH.known
    assert all(len(w) == 5 and w.isascii() and w.isalpha() and w.islower() for w in ENGLISH.words)
    tiny = word_list("tiny", 0.0)
    assert len(tiny.words) == 12 and tiny.known < ENGLISH.known
    assert {*tiny.training} == {*tiny.evaluation} == tiny.known
    assert "SCOWL" in (CHECKOUT / "environments/wordle/words/LICENSE").read_text()


def test_words_held_out_are_never_trained_on() -> None:
    env = Wordle()

    def epoch(first_seed: int, count: int) -> set[str]:
        secrets = []
        for seed in range(first_seed, first_seed + 2 * count, 2):
            env.reset(seed)
            secrets.append(env.secret)
        assert secrets != sorted(secrets)
        return set(secrets)

    evaluated = epoch(evaluation_seed(0), len(ENGLISH.evaluation))
    trained = epoch(training_seed(7, 0), len(ENGLISH.training))
    assert len(evaluated) == 886  # an epoch asks for each word once
    assert not evaluated & trained
    assert evaluated | trained == ENGLISH.known


def test_a_word_stays_on_its_side_in_any_list(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(reversed(ENGLISH.words[::7])) + "\n\n")
    mine = word_list(str(file), 0.2)
    assert {*mine.evaluation} == {*ENGLISH.evaluation} & mine.known
    assert started(words=str(file)).secret in mine.known


# Secret, guesses, how it ends, then the original's parts: exact, partial, turn bonus, format.
ORIGINAL = [
    ("crane", "crane", End.WON, 1.0, 1.0, 1 / 2, 0.2),
    ("crane", "slate crate crane", End.WON, 1.0, 1.0, 1 / 4, 0.2),
    ("abbey", "crane slate plane stone store abbey", End.WON, 1.0, 1.0, 1 / 7, 0.2),
    ("crane", "slate slate slate slate slate crate", End.LOST, 0.0, 0.8, 0.0, 0.2),
    ("crane", "crate crate crate crate crate react", End.LOST, 0.0, 0.2 + 0.3, 0.0, 0.2),
    ("crane", "crate crate crate crate crate pupil", End.LOST, 0.0, 0.0, 0.0, 0.2),
]


@pytest.mark.parametrize("case", ORIGINAL, ids=lambda case: case[1][-17:])
def test_original_rewards(case: tuple[str, str, End, float, float, float, float]) -> None:
    secret, guesses, end, *parts = case
    replies = [says(word) for word in guesses.split()]
    step = play(started(secret), replies)[-1]
    assert step.end is end and step.episode_reward == pytest.approx(sum(parts))
    names = ("exact_weight", "partial_weight", "turn_weight", "format_weight")
    for name, part in zip(names, parts, strict=True):  # each part by itself, ten times its weight
        weights: dict[str, Any] = {
            **dict.fromkeys(names, 0.0),
            name: 2.0 if name == "format_weight" else 10.0,
        }
        alone = play(started(secret, **weights), replies)[-1]
        assert alone.episode_reward == pytest.approx(10 * part), name


def test_format_pays_by_its_share_and_the_guess_counts_all_the_same() -> None:
    replies = [
        says("slate"),
        "<guess>crate</guess>",
        "I say <GUESS>[Crane]</guess>!",
        says("crane"),
    ]
    steps = play(started("crane"), replies)
    assert [step.end for step in steps] == [None, None, End.WON]
    assert steps[-1].metrics == {
        **{"win": 1, "num_guesses": 3, "green": 5, "yellow": 0, "invalid_replies": 0},
        "format": pytest.approx(1 / 3),
    }
    assert steps[-1].episode_reward == pytest.approx(1 + 1 + 1 / 4 + 0.2 / 3)


def test_turn_rewards_pay_no_letter_twice() -> None:
    words = ["crate", "slate", "crate", "crane"]
    rewards = [step.reward for step in play(started("crane"), [says(word) for word in words])]
    assert rewards == pytest.approx([0.8, 0.0, 0.0, 1 + 0.2 + 1 / 5])
    lame = play(started("crane"), ["crane", "<guess>crate</guess>", says("crane")])
    assert [step.reward for step in lame] == pytest.approx([-0.2, 0.8 - 0.2, 1 + 0.2 + 1 / 4])


def test_an_invalid_reply_is_forgiven_once_in_a_row() -> None:
    said = {
        "crane": "No guess was found. Reply in the form asked for.",
        says("zzzzz"): "zzzzz is not in the word list.",
        says("cranes"): "A guess is one word of 5 letters, a to z.",
        says("cr4ne"): "A guess is one word of 5 letters, a to z.",
        says("crañe"): "A guess is one word of 5 letters, a to z.",
    }
    env = started("crane")
    for number, (reply, reason) in enumerate(said.items()):
        step = env.step(reply)
        assert (step.end, step.reward) == (None, -0.2)
        assert step.observation.startswith(reason)
        assert step.observation.endswith(f"\n{6 - number} guesses left")
        assert env.step(says("slate")).end is None  # after which one is forgiven again
    assert env.step(says("crane")).metrics["invalid_replies"] == 5
    env = started("crane")
    steps = [env.step(reply) for reply in (says("crate"), "?", says("zzzzz"))]
    assert [step.end for step in steps] == [None, None, End.INVALID]
    # The format's share is all it gets: the letters of a game that was given up pay nothing.
    assert steps[-1].episode_reward == pytest.approx(0.2 * 2 / 3)
    assert started("crane", forgiven=0).step("?").end is End.INVALID
    assert started("crane", any_letters=True).step(says("zzzzz")).observation.startswith("z=X z=X")


def test_no_episode_is_longer_than_its_guesses_and_what_is_forgiven() -> None:
    for guesses, forgiven in product((1, 6), (0, 1, 3)):
        env = started("crane", guesses=guesses, forgiven=forgiven)
        replies = [*["?"] * forgiven, says("slate")] * guesses
        steps = play(env, replies)
        assert steps[-1].end is End.LOST and len(steps) == guesses * (forgiven + 1)
        env.reset(0)
        steps = play(env, ["?"])
        assert steps[-1].end is End.INVALID and len(steps) == forgiven + 1
        with pytest.raises(RuntimeError, match="call reset"):
            env.step("?")


def test_a_cut_episode_keeps_its_last_guess() -> None:
    env = started("crane")
    env.step(says("react"))
    step = env.truncate()
    assert step.end is End.TRUNCATED and step.metrics["win"] == 0.0
    assert step.episode_reward == pytest.approx(0.2 + 3 * 0.1 + 0.2)
    assert started().truncate().episode_reward == 0.0


def test_what_is_shown() -> None:
    everything, present = started("crane"), started("crane", earlier_turns=0)
    for env in (everything, present):
        assert env.reset(0) == "6 guesses left"
        env.secret = "crane"
        env.step(says("slate"))
    last, both = "r=Y e=Y a=G c=Y t=X\n4 guesses left", "s=X l=X a=G t=X e=G\n"
    assert everything.step(says("react")).observation == last
    assert present.step(says("react")).observation == both + last
    assert present.step("?").observation.endswith(f"asked for.\n{both}{last}")
    assert (everything.earlier_turns_shown, present.earlier_turns_shown) == (None, 0)
    assert everything.step(says("crane")).observation.endswith("The word is crane.")


def test_prompt_and_category() -> None:
    prompt = Wordle().system_prompt
    assert "<think>" in prompt and "<guess>crane</guess>" in prompt and "abaci" not in prompt
    tiny = Wordle(words="tiny", held_out=0.0, think=False, guesses=3)
    assert "<think>" not in tiny.system_prompt and "in 3 guesses" in tiny.system_prompt
    assert all(word in tiny.system_prompt for word in tiny.list.words)
    assert [started(word).category for word in ("crane", "abbey")] == ["distinct", "repeated"]


LENIENT = {
    "I say <guess>crane</guess>, no: <GUESS> Slate </guess >.": "slate",
    "<think><guess>crane</guess></think>": None,
    "<guess>crane</guess><think><guess>slate</guess></think>": "crane",
    "<think><guess>crane</guess>": None,
    "<guess>crane</guess></think><guess>[slate]</guess>": "slate",
    "<guess>crane</guess><guess></guess>": None,
    "<guess>crane slate</guess>": None,
    "[crane]": None,
    "": None,
}
FORMAT = {
    says("crane"): (True, False),
    "\n<guess>CRANE</guess> ": (False, True),
    "<think>a < b </think><guess>crane</guess>": (True, False),
    "<think>a</think>b<guess>crane</guess>": (False, False),
    "<think><think>a</think><guess>crane</guess>": (False, False),
    "<think>a</think></think><guess>crane</guess>": (False, False),
    "<guess>crane</guess><guess>crane</guess>": (False, False),
    "crane": (False, False),
}


def test_what_is_read_of_a_reply() -> None:
    for reply, word in LENIENT.items():
        env = started("crane")
        env.step(reply)
        assert [guess for guess, _ in env.board] == ([word] if word else []), reply
    for reply, expected in FORMAT.items():
        shares = []
        for think in (True, False):
            env = started("slate", think=think)
            env.step(reply)
            shares.append(env.truncate().metrics["format"] == 1.0)
        assert tuple(shares) == expected, reply
    for think, typed in product((True, False), (" Crane\n", "<guess>crane</guess>")):
        env = started("crane", think=think)
        assert env.step(env.reply_from_input(typed)).end is End.WON


PIECES = [
    "<guess>",
    "</guess>",
    "<Guess\t>",
    "</ GUESS\n>",
    "<think>",
    "</think>",
    "crane",
    "slate",
]
PIECES += [
    "zzzzz",
    "[",
    "]",
    " ",
    "\n",
    "\xff\x00",
    "\x0b",
    "\x85",
    "\ud800",
    "🙂",
    "<",
    "é",
    "CRANE",
]
BAITS = [piece * 20_000 for piece in ("<guess>", "<think>", "<guess>crane", "< /", " ", "</think>")]
BAITS += [f"<{' ' * 90_000}guess>crane</guess>", "<guess>" + "[" * 90_000, "<think>" + "<" * 90_000]
BAITS += ["<guess>crane</guess>" * 60_000, "x" * 2_000_000, "<think>" + "a" * 99_000 + "</think>"]


@pytest.mark.parametrize("think", [True, False])
def test_arbitrary_replies_end_in_a_defined_outcome(think: bool) -> None:
    rng, env, ends = Random(0), started(think=think, guesses=2), Counter[End | None]()
    for index in range(10_000):
        reply = "".join(rng.choices(PIECES, k=rng.randrange(9)))
        if index % 2:
            reply = says(rng.choice(PIECES) if index % 4 == 1 else reply)
        if index % 1000 < len(BAITS):
            reply = BAITS[index % 1000]
        before = perf_counter()
        step = env.step(reply)
        seconds = perf_counter() - before
        assert index >= 1000 or seconds < 0.05, reply[:80]
        assert -0.2 <= step.reward <= 2.5 and all(0 <= v <= 12 for v in step.metrics.values())
        ends[step.end] += 1
        if step.end:
            assert step.episode_reward is not None and 0 <= step.episode_reward <= 2.7
            env.reset(index)
    assert ends[None] > 1000 and ends[End.LOST] > 10 and ends[End.INVALID] > 100


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text() | st.binary().map(lambda b: b.decode("latin-1")), min_size=1))
def test_any_text_is_a_reply(replies: list[str]) -> None:
    steps, again = (play(started(seed=5), replies) for _ in range(2))
    assert steps == again and 0 <= (steps[-1].episode_reward or 0) <= 1.0


def mean_reward(replies: list[str]) -> float:
    env, rewards = Wordle(), []
    for index in range(100):
        env.reset(evaluation_seed(index))
        rewards.append(play(env, replies)[-1].episode_reward or 0.0)
    return fmean(rewards)


def test_replies_without_skill_stay_far_below_the_oracle() -> None:
    everything = "".join(f"<guess>{word}</guess>" for word in ENGLISH.words)
    noise = Random(0).randbytes(300).decode("latin-1")
    without_skill = {
        "empty": [""],
        "noise": [noise],
        "prompt": [Wordle().system_prompt],
        "format only": [says("")],
        "always the same": [says("slate")],
        "one after another": [says(word) for word in ("stare", "cloud", "pinky")],
        "all at once": [everything],
    }
    for name, replies in without_skill.items():
        assert mean_reward(replies) < 0.6, name
    assert mean_reward([""]) == mean_reward([noise]) == 0.0


# Shares of won games and the mean of guesses, over 5,000 games.
BASELINES = {"random": (0.001, 6.0), "random_consistent": (0.927, 4.39), "entropy": (0.991, 3.84)}


def test_scripted_baselines() -> None:
    shares: dict[str, float] = {}
    env, rng = Wordle(), Random(1)
    for name, policy in env.baselines.items():
        ends = []
        for index in range(100):
            env.reset(evaluation_seed(index))
            while not (step := env.step(policy(env, rng))).end:
                pass
            assert step.metrics["format"] == 1.0 and not step.metrics["invalid_replies"]
            ends.append(step)
        shares[name] = fmean(step.metrics["win"] for step in ends)
        if name in BASELINES:
            win, guesses = BASELINES[name]
            assert shares[name] == pytest.approx(win, abs=0.1), name
            found = fmean(step.metrics["num_guesses"] for step in ends)
            assert found == pytest.approx(guesses, abs=0.25), name
        else:
            assert {step.episode_reward for step in ends} == {2.7}
    assert shares["random"] < shares["random_consistent"] < shares["oracle"] == 1.0


def test_a_group_has_one_secret_and_a_replay_is_exact() -> None:
    guesses = [says(word) for word in Random(3).sample(ENGLISH.words, 6)]

    def game(member: int, seed: int) -> list[Step]:
        env = Wordle()
        env.reset(seed, member=member)
        return play(env, guesses)

    assert all(game(member, 5) == game(0, 5) for member in range(4))
    assert game(0, 5) != game(0, 7)


WRONG = """guesses=0 guesses=2.5 guesses=true guesses=101 forgiven=-1 earlier_turns=-1 think=7
any_letters=x held_out=1 held_out=-0.1 held_out=nan held_out=1e-09 exact_weight=-1
partial_weight=inf
turn_weight=nan format_weight=101 words=nowhere.txt words=/"""


@pytest.mark.parametrize("setting", WRONG.split())
def test_a_wrong_setting_is_named(setting: str) -> None:
    name, value = setting.split("=")
    with pytest.raises(ValueError, match=rf"(?i)\Aenv\.{name}={value}: must be .*\Z"):
        Wordle(**{str(k): v for k, v in OmegaConf.from_dotlist([setting]).items()})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"crane\nslates\n", "line 2, 'slates', is no word of 5 letters a to z"),
        (b"crane\n\nslate\n Crane\n", "line 4, 'crane', is twice in the list"),
        (b"cr ne\nslate", "line 1, 'cr ne', is no word"),
        (b"crane\n", "must be a file of two words or more"),
        (b"", "must be a file of two words or more"),
        (b"\xff\xfe", "must be english, tiny, or a text file with one word a line"),
    ],
)
def test_a_wrong_file_of_words_is_told(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        Wordle(words=str(file))
    assert str(error.value).startswith(f"env.words={file}: {problem}"), error.value
    assert "\n" not in str(error.value)


def test_settings_file() -> None:
    names = [field.name for field in fields(Wordle)]
    stored = OmegaConf.load(CONF_DIR / "env/wordle.yaml")
    assert isinstance(stored, DictConfig) and {*stored} == {"name", "_target_", *names}
    chosen = OmegaConf.masked_copy(stored, names)
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Wordle), chosen)) == Wordle()


def test_the_experiments_compose() -> None:
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        tiny = check(compose("config", ["env=wordle", "name=x"]))
        original = compose("config", ["experiment=wordle", "name=x"])
    assert isinstance(tiny.environment, Wordle) and not tiny.environment.think
    assert {*tiny.environment.list.training} == {*tiny.environment.list.evaluation}
    assert original.trainer.learning_rate == 3e-6 and original.vllm.block_size == 16
    assert "1.5B" in original.model.path and original.env.guesses == 6
