"""The parts of the reward of the tool test, each from 0 to 1, without their weights.

Each share is of the calls asked for or of the calls made, whichever are more. So a call that nobody
asked for costs as much as a missing call. The calls asked for are of different tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from environments.tool_test.replies import Call
from environments.tool_test.tools import CATALOGUE, is_typed


def exact(asked: Sequence[Call], made: Sequence[Call]) -> float:
    """Return 1 if the calls made are those asked for, in any order, and no others; else 0."""
    return float(right_calls(asked, made) == 1)


def right_names(asked: Sequence[Call], made: Sequence[Call]) -> float:
    """Return the share of right tools, whatever their arguments."""
    first = _first_by_name(made)
    return sum(call.name in first for call in asked) / max(len(asked), len(made))


def right_arguments(asked: Sequence[Call], made: Sequence[Call]) -> float:
    """Return the mean share of right arguments; only the first call of each tool counts."""
    first = _first_by_name(made)
    shares = [argument_share(call, first[call.name]) for call in asked if call.name in first]
    return sum(shares) / max(len(asked), len(made))


def right_calls(asked: Sequence[Call], made: Sequence[Call]) -> float:
    """Return the share of calls whose name and arguments are all right."""
    first = _first_by_name(made)
    right = [call for call in asked if call.name in first]
    count = sum(argument_share(call, first[call.name]) == 1 for call in right)
    return count / max(len(asked), len(made))


def argument_share(asked: Call, made: Call) -> float:
    """Return the share of arguments with the right type and, if the task gives one, value."""
    right = 0
    parameters = CATALOGUE[asked.name].parameters
    for parameter in parameters:
        if parameter.name in made.arguments:
            value = made.arguments[parameter.name]
            expected = asked.arguments.get(parameter.name, value)
            right += is_typed(value, parameter.schema) and value == expected
    return right / max(len(parameters), len(made.arguments))


def _first_by_name(made: Sequence[Call]) -> Mapping[str, Call]:
    return {call.name: call for call in reversed(made)}
