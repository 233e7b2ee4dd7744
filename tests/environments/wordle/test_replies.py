"""What Wordle reads of a reply, and that any reply has a defined outcome."""

from __future__ import annotations

from collections import Counter
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments import End
from tests.environments.limits import no_hang
from tests.environments.wordle.playing import play, says, started

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


def test_the_last_guess_of_a_reply_is_read() -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("think", [True, False])
def test_arbitrary_replies_end_in_a_defined_outcome(think: bool) -> None:
    rng, env, ends = Random(0), started(think=think, guesses=2), Counter[End | None]()
    for index in range(10_000):
        reply = "".join(rng.choices(PIECES, k=rng.randrange(9)))
        if index % 2:
            reply = says(rng.choice(PIECES) if index % 4 == 1 else reply)
        if index % 1000 < len(BAITS):
            reply = BAITS[index % 1000]
        with no_hang():
            step = env.step(reply)
        assert -0.2 <= step.reward <= 2.5 and all(0 <= v <= 12 for v in step.metrics.values())
        ends[step.end] += 1
        if step.end:
            assert step.episode_reward is not None and 0 <= step.episode_reward <= 2.7
            env.reset(index)
    assert ends[None] > 1000 and ends[End.LOST] > 10 and ends[End.INVALID] > 100


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.text() | st.binary().map(lambda b: b.decode("latin-1")), min_size=1))
def test_any_text_is_a_reply(replies: list[str]) -> None:
    steps, again = (play(started(seed=5), replies) for _ in range(2))
    assert steps == again and 0 <= (steps[-1].episode_reward or 0) <= 1.0
