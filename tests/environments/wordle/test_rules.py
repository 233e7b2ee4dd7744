"""Wordle's marks against a slow oracle, the word lists, and which words are held out."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments import evaluation_seed, training_seed
from environments.wordle import Wordle
from environments.wordle.data import word_list
from environments.wordle.game import consistent, feedback
from tests.environments.wordle.playing import ENGLISH, started
from tests.support.paths import CHECKOUT

FEW_LETTERS = st.text("abc", min_size=5, max_size=5)


def slow_feedback(secret: str, guess: str) -> str:
    """Mark each letter of the alphabet: its greens, then as many yellows as copies remain."""
    marks = ["X"] * 5
    for letter in set(guess):
        places = [i for i in range(5) if guess[i] == letter]
        greens = [i for i in places if secret[i] == letter]
        yellows = [i for i in places if i not in greens][: secret.count(letter) - len(greens)]
        for mark, where in (("G", greens), ("Y", yellows)):
            for i in where:
                marks[i] = mark
    return "".join(marks)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(FEW_LETTERS, FEW_LETTERS)
def test_feedback_matches_the_oracle(secret: str, guess: str) -> None:
    assert feedback(secret, guess) == slow_feedback(secret, guess)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_the_word_lists() -> None:
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
