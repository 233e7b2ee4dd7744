r"""Replies of GSM8K: parse the one number that a reply answers with, grade it, write a reply.

The parser has no alarm and no state, so it works in any thread, and a reply of any length takes it
a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise

from environments.gsm8k.numbers import number, words
from environments.replies import without_thinking

_MAX_CHARACTERS = 1 << 18  # a longer reply is not read
_READ_CHARACTERS = 1 << 15  # read from the end of a reply, without its thinking
_MAX_MARKS = 64  # a reply with more marked answers has none
_MAX_CORRECTIONS = 5  # other numbers that may be marked before the answer

_MARK = re.compile(r"####|\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DIGIT = re.compile(r"[0-9]")
# With one of these words two marked numbers are a choice between them. With any other words the
# later number corrects the earlier one.
_CHOICE_WORDS = {"or", "either", "maybe", "perhaps", "possibly", "alternatively", "could", "might"}


def grade(text: str, gold: str) -> bool:
    r"""Return whether a reply answers with the gold number.

    `gold` is a number or an answer field of GSM8K, which ends in "#### 18".

    >>> [grade(reply, "18") for reply in (r"\boxed{\$18.00}", "#### 18 eggs", "#### 9*2", "18")]
    [True, True, False, False]
    """
    return parse(text) == gold_number(gold)


def gold_number(gold: str) -> Decimal:
    """Return the number of an answer field, which is a number or ends in "#### 18".

    Raises `ValueError` if there is none.
    """
    value = number(gold.rpartition("####")[2])
    if value is None:
        raise ValueError(f"{gold[-40:]!r} does not end in a number")
    return value


def parse(text: str) -> Decimal | None:
    r"""Return the number in the last \boxed{} or after the last ####, outside the thinking.

    Returns None if nothing is marked, if the marked text is not one number, and if the reply offers
    several numbers: side by side, with an "or" between them, or after too many corrections.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    marked = list(_marked_answers(without_thinking(text)[-_READ_CHARACTERS:]))
    if not marked or len(marked) > _MAX_MARKS:
        return None
    numbers = [number(content) for content, _ in marked]
    for (earlier, later), (content, between) in zip(pairwise(numbers), marked, strict=False):
        if earlier != later and not _is_corrected(earlier, content, between):
            return None
    corrected = {*numbers} - {None, numbers[-1]}
    return numbers[-1] if len(corrected) <= _MAX_CORRECTIONS else None


def as_reply(answer: object) -> str:
    r"""Write a reply that answers with a number.

    >>> as_reply(18)
    '\\boxed{18}'
    """
    return f"\\boxed{{{answer}}}"


def _marked_answers(text: str) -> Iterator[tuple[str, str]]:
    """Yield the text of each marked answer, and the text between it and the next mark."""
    spans = list(_spans(text))
    following = [*(begin for begin, _, _ in spans), len(text)][1:]
    for (_, start, end), next_begin in zip(spans, following, strict=True):
        yield text[start:end], text[end:next_begin]


def _spans(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield for each marked answer: the start of its mark, and its own start and end.

    A line with #### and no digit is a heading, not an answer.
    """
    closings = _closings(text)
    marks = list(_MARK.finditer(text))
    limits = [*(mark.start() for mark in marks), len(text)][1:]
    for mark, limit in zip(marks, limits, strict=True):
        start = mark.end()
        if mark[0] != "####":
            end = closings.get(start - 1, -1)
        else:
            content = text[start:limit].lstrip()
            start = limit - len(content)
            end = start + len(content.partition("\n")[0])
            if not _DIGIT.search(text, start, end):
                continue
        if end >= 0:
            yield mark.start(), start, end


def _closings(text: str) -> dict[int, int]:
    """Return the position of the closing brace for the position of each opening one."""
    opened: list[int] = []
    closings = {}
    for brace in _BRACE.finditer(text) if "\\boxed" in text else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closings[opened.pop()] = brace.start()
    return closings


def _is_corrected(earlier: Decimal | None, content: str, between: str) -> bool:
    """Return whether the words between two marked answers let the later one correct the earlier.

    An earlier answer that is not a number (None) needs no words of correction.
    """
    words_between = {*words(between)}
    if not _CHOICE_WORDS.isdisjoint(words_between | {*words(content)}):
        return False
    return earlier is None or bool(words_between - {"and"})
