"""A wrong name of another library's environment, or of its option, gets the name that is meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from environments.adapters import GymnasiumText, ReasoningGym, TextArena
from environments.bfcl_single_turn import BfclSingleTurn
from environments.settings import did_you_mean
from environments.tool_test import ToolTest


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TextArena(game="Mastermnd-v0"),
            "env.game=Mastermnd-v0: must be the name of a game of TextArena; did you mean "
            "Mastermind-v0?",
        ),
        (
            lambda: TextArena(game="wordle"),
            "env.game=wordle: must be the name of a game of TextArena; did you mean Wordle-v0?",
        ),
        (
            lambda: TextArena(options={"max_numbers": 3}),
            "env.options.max_numbers: GuessTheNumber-v0 has no such option; did you mean "
            "max_number?",
        ),
        (
            lambda: GymnasiumText(id="FrozenLake"),
            "env.id=FrozenLake: must be the name of an environment of Gymnasium; did you mean "
            "FrozenLake-v1?",
        ),
        (
            lambda: GymnasiumText(options={"is_slipery": False}),
            "env.options.is_slipery: FrozenLake-v1 has no such option; did you mean is_slippery?",
        ),
        (
            lambda: ReasoningGym(dataset="chain_sums"),
            "of reasoning-gym; did you mean chain_sum?",
        ),
        (lambda: ReasoningGym(dataset="maze+"), "of reasoning-gym; a name beside the + is missing"),
        (
            lambda: ReasoningGym(options={"min_term": 1}),
            "env.options.min_term: chain_sum has no such option; did you mean min_terms?",
        ),
        (lambda: ToolTest(offered=["paint_rom"]), "; did you mean paint_room?"),
        (lambda: BfclSingleTurn(categories=["simple_pyton"]), "; did you mean simple_python?"),
    ],
)
def test_the_name_that_is_meant_is_suggested(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        make()
    assert str(refused.value).endswith(message) and "\n" not in str(refused.value)


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert did_you_mean("xyz", ["alpha", "beta"]) == ""
    assert did_you_mean("", ["alpha"]) == did_you_mean("Nothing-v0", ["Nim-v0"]) == ""
    assert did_you_mean("Alph", ["beta", "alpha-v1"]) == "; did you mean alpha-v1?"
