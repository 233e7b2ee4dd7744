"""Sums of numbers, worked out exactly, for the datasets that ask for one."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

_NUMBER = re.compile(r"[0-9]+")


def is_right_sum(text: str, numbers: Sequence[int], target: int) -> bool:
    """Return whether a sum uses each of the numbers once and gives exactly the target.

    A division that is written // must leave no remainder.

    >>> [is_right_sum(text, [7, 2], 3) for text in ("7//2", "7-2-2", "5-2")]
    [False, False, False]
    """
    if Counter(map(int, _NUMBER.findall(text))) != Counter(numbers):
        return False
    try:
        return _value(ast.parse(text.strip(), mode="eval").body) == target
    except (ArithmeticError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _value(node: ast.expr) -> Fraction:
    """Return the value of a sum. Raises `ValueError` for anything else."""
    match node:
        case ast.Constant(value=int() as value):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            return _result(_value(left), operator, _value(right))
    raise ValueError("it is not a sum of numbers")


def _result(left: Fraction, operator: ast.operator, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv() if (left / right).denominator == 1:
            return left / right
    raise ValueError("it divides with a remainder, or it is not a sum")
