r"""From a reply to the one number it answers with, and whether that is the right one.

No alarm and no state, so it works in any thread; a reply of any length takes a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise

from environments.gsm8k.numbers import number, words
from environments.replies import without_thinking

_MOST_CHARACTERS = 1 << 18  # of a reply that is read at all
_READ = 1 << 15  # of them, from the end of what is no thinking
_MOST_MARKS = 64
_MOST_CORRECTED = 5  # other numbers that may have been marked before the answer

_MARK = re.compile(r"####|\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DIGIT = re.compile(r"[0-9]")
# With one of them two marked numbers are a choice; with any other word the later corrects.
_CHOICE = {"or", "either", "maybe", "perhaps", "possibly", "alternatively", "could", "might"}


def grade(text: str, gold: str) -> bool:
    r"""Whether a reply answers with the gold number, given alone or as GSM8K's answer field.

    >>> [grade(reply, "18") for reply in (r"\boxed{\$18.00}", "#### 18 eggs", "#### 9*2", "18")]
    [True, True, False, False]
    """
    return parse(text) == gold_number(gold)


def gold_number(gold: str) -> Decimal:
    """The number of an answer field ("... #### 18") or of a number alone; ValueError if none."""
    found = number(gold.rpartition("####")[2])
    if found is None:
        raise ValueError(f"{gold[-40:]!r} does not end in a number")
    return found


def parse(text: str) -> Decimal | None:
    r"""The number in the last \boxed{} or after the last ####, outside the thinking.

    None without one, when it is no single number, and when the reply offers several: side by side,
    with an "or" between them, or more in a row than anyone corrects.
    """
    if len(text) > _MOST_CHARACTERS:
        return None
    marked = list(_marked(without_thinking(text)[-_READ:]))
    if not marked or len(marked) > _MOST_MARKS:
        return None
    numbers = [number(content) for content, _ in marked]
    for (earlier, later), (content, between) in zip(pairwise(numbers), marked, strict=False):
        if earlier != later and not _is_corrected(earlier, content, between):
            return None
    corrected = {*numbers} - {None, numbers[-1]}
    return numbers[-1] if len(corrected) <= _MOST_CORRECTED else None


def as_reply(number: object) -> str:
    r"""Write a reply that answers with a number.

    >>> as_reply(18)
    '\\boxed{18}'
    """
    return f"\\boxed{{{number}}}"


def _marked(text: str) -> Iterator[tuple[str, str]]:
    """What is marked as the answer, each time, with the text from there to the next mark."""
    spans = list(_spans(text))
    following = [*(begin for begin, _, _ in spans), len(text)][1:]
    for (_, start, end), next_begin in zip(spans, following, strict=True):
        yield text[start:end], text[end:next_begin]


def _spans(text: str) -> Iterator[tuple[int, int, int]]:
    """Of each marked answer the beginning of its mark, and its own start and end.

    A line after #### that has no digit is a heading.
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
    """Where each brace that is opened is closed."""
    opened: list[int] = []
    found = {}
    for brace in _BRACE.finditer(text) if "\\boxed" in text else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            found[opened.pop()] = brace.start()
    return found


def _is_corrected(earlier: Decimal | None, content: str, between: str) -> bool:
    """Whether another answer may follow this one; what is no number may stand beside one."""
    said = {*words(between)}
    if not _CHOICE.isdisjoint(said | {*words(content)}):
        return False
    return earlier is None or bool(said - {"and"})
