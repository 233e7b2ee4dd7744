"""Cases of BFCL, right calls for them, and episodes that ask them."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest

from environments import evaluation_seed, training_seed
from environments.bfcl_single_turn import BfclSingleTurn
from environments.bfcl_single_turn import official as installed
from environments.bfcl_single_turn.answers import right_calls
from environments.bfcl_single_turn.data import Case, entries_of

SINGLE_TURN: list[str] = []
MISSING = ""
try:
    SINGLE_TURN = installed.official().single_turn
except ValueError as error:
    MISSING = str(error)
needs_bfcl = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def case_of(case_id: str) -> Case:
    """Return the case with an id."""
    category = case_id.rsplit("_", 1)[0]
    return next(entry for entry in entries_of(category) if entry.id == case_id).case()


def right(case: Case) -> list[dict[str, str]]:
    """Return the calls that the benchmark expects, as the grader takes them."""
    return [{"name": n, "arguments": json.dumps(given)} for n, given in right_calls(case)]


def playing(case: Case) -> BfclSingleTurn:
    """Return an environment at the start of the episode that asks a case."""
    env = BfclSingleTurn(max_prompt_chars=None, keep_unwinnable=True)
    env.reset(_seeds()[case["id"]])
    assert env.case["id"] == case["id"]
    return env


@lru_cache(maxsize=1)
def _seeds() -> dict[str, int]:
    """Return a seed for the id of each case."""
    training, evaluation = BfclSingleTurn(max_prompt_chars=None, keep_unwinnable=True).entries
    return {
        **{entry.id: training_seed(0, index) for index, entry in enumerate(training)},
        **{entry.id: evaluation_seed(index) for index, entry in enumerate(evaluation)},
    }


TRIANGLE = "simple_python_0"  # calculate_triangle_area(base=10, height=5, unit="units"?)
