"""Episodes of Wordle: rewards, ends, observations, scripted policies."""

from __future__ import annotations

from itertools import product
from random import Random
from statistics import fmean
from typing import Any

import pytest

from environments import End, Step, evaluation_seed
from environments.wordle import Wordle
from tests.environments.wordle.playing import ENGLISH, play, says, started

# Secret, guesses, end, and the parts of the original reward: exact, partial, turn bonus, format.
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


def test_the_format_pays_by_its_share_and_any_readable_guess_counts() -> None:
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
    problems = {
        "crane": "No guess was found. Reply in the form asked for.",
        says("zzzzz"): "zzzzz is not in the word list.",
        says("cranes"): "A guess is one word of 5 letters, a to z.",
        says("cr4ne"): "A guess is one word of 5 letters, a to z.",
        says("crañe"): "A guess is one word of 5 letters, a to z.",
    }
    env = started("crane")
    for number, (reply, reason) in enumerate(problems.items()):
        step = env.step(reply)
        assert (step.end, step.reward) == (None, -0.2)
        assert step.observation.startswith(reason)
        assert step.observation.endswith(f"\n{6 - number} guesses left")
        assert env.step(says("slate")).end is None  # a valid guess allows another invalid one
    assert env.step(says("crane")).metrics["invalid_replies"] == 5
    env = started("crane")
    steps = [env.step(reply) for reply in (says("crate"), "?", says("zzzzz"))]
    assert [step.end for step in steps] == [None, None, End.INVALID]
    # Only the format pays: an episode that ends as invalid earns nothing for its letters.
    assert steps[-1].episode_reward == pytest.approx(0.2 * 2 / 3)
    assert started("crane", forgiven=0).step("?").end is End.INVALID
    assert started("crane", any_letters=True).step(says("zzzzz")).observation.startswith("z=X z=X")


def test_no_episode_is_longer_than_its_guesses_and_forgiven_replies() -> None:
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


def test_observations_show_the_marks() -> None:
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


def mean_reward(replies: list[str]) -> float:
    env, rewards = Wordle(), []
    for index in range(100):
        env.reset(evaluation_seed(index))
        rewards.append(play(env, replies)[-1].episode_reward or 0.0)
    return fmean(rewards)


@pytest.mark.slow
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


@pytest.mark.slow
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
            mean_guesses = fmean(step.metrics["num_guesses"] for step in ends)
            assert mean_guesses == pytest.approx(guesses, abs=0.25), name
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
