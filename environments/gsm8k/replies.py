r"""Replies of GSM8K: parse the one number that a reply answers with, grade it, write a reply.

The parser has no alarm and no state, so it works in any thread, and a reply of any length takes it
a few milliseconds.
"""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

from environments.gsm8k.numbers import number, words
from environments.replies import without_thinking

_MAX_CHARACTERS = 1 << 18  # a longer reply is not read
_READ_CHARACTERS = 1 << 15  # read from the end of a reply, without its thinking
_MAX_MARKS = 64  # a reply with more marked answers has none
_MAX_CORRECTIONS = 5  # other numbers that may be marked before the answer

_HASHES = "####"
_MARK = re.compile(rf"{_HASHES}|\\boxed\s*\{{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DIGIT = re.compile(r"[0-9]")
# A heading that announces the answer, which stands in the next line.
_ANNOUNCEMENT = re.compile(
    r"\W*(?:(?:so|the|my|your|our|is)\W+)*(?:final\W+)?(?:answer|result)(?:\W+is)?\W*",
    re.IGNORECASE,
)
# A heading that counts: "Step 2: ...", "Option 1 or 2".
_LABEL = re.compile(
    r"\W*(?:step|part|option|case|method|approach|way|phase|stage|check|section|point|scenario"
    r"|solution|attempt|example|question|problem|note|verification)s?\W{0,4}(?:no\W+)?[0-9]",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"\W*[0-9]{1,2}(?:[.):]|[.]?\*\*)\W{0,4}\s\W{0,4}[^\W\d_]")  # "2. Add up"
_WORDS_OF_AN_ANSWER = {
    "so",
    "therefore",
    "thus",
    "the",
    "my",
    "final",
    "answer",
    "result",
    "is",
    "x",
}
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

    Four hashes are a heading too, so where both are used the box is the answer. Returns None if
    nothing is marked, if the marked text is not one number, and if the reply offers several
    numbers: side by side, with an "or" between them, or after too many corrections.

    >>> parse("#### Step 1: 16 - 7\n\\boxed{9}\n\n#### 3 key points")
    Decimal('9')
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    text = without_thinking(text)[-_READ_CHARACTERS:]
    marks = _without_headings(text, _marks(text))
    if not marks or len(marks) > _MAX_MARKS:
        return None
    marks = _without_remarks(text, marks)
    numbers = [number(mark.content(text)) for mark in marks]
    for (earlier, later), (mark, following) in zip(pairwise(numbers), pairwise(marks), strict=True):
        between = text[mark.end : following.begin]
        if earlier != later and not _is_corrected(earlier, mark.content(text), between):
            return None
    corrected = {*numbers} - {None, numbers[-1]}
    return numbers[-1] if len(corrected) <= _MAX_CORRECTIONS else None


def as_reply(answer: object) -> str:
    r"""Write a reply that answers with a number.

    >>> as_reply(18)
    '\\boxed{18}'
    """
    return f"\\boxed{{{answer}}}"


class _Mark(NamedTuple):
    """A marked answer: where its mark begins, and where the answer starts and ends."""

    begin: int
    start: int
    end: int
    is_box: bool

    def content(self, text: str) -> str:
        return text[self.start : self.end]


def _marks(text: str) -> list[_Mark]:
    """Return the marked answers. A line with #### and no digit is a heading, not an answer."""
    closings = _closings(text)
    matches = list(_MARK.finditer(text))
    limits = [*(mark.start() for mark in matches), len(text)][1:]
    marks = []
    for mark, limit in zip(matches, limits, strict=True):
        if mark[0] != _HASHES:
            end = closings.get(mark.end() - 1, -1)
            if end >= 0:
                marks.append(_Mark(mark.start(), mark.end(), end, is_box=True))
            continue
        start, end = _line(text, mark.end(), limit)
        if _ANNOUNCEMENT.fullmatch(text, start, end):
            start, end = _line(text, end, limit)
        if _DIGIT.search(text, start, end):
            marks.append(_Mark(mark.start(), start, end, is_box=False))
    return marks


def _line(text: str, start: int, limit: int) -> tuple[int, int]:
    """Return the start and the end of the first line before the limit that is not empty."""
    content = text[start:limit].lstrip()
    start = limit - len(content)
    return start, start + len(content.partition("\n")[0])


def _without_headings(text: str, marks: list[_Mark]) -> list[_Mark]:
    """Return the marks without the lines with #### that are headings of the solution.

    Lines above the last box are headings, unless the box is in the same line.
    """
    boxes = [mark.begin for mark in marks if mark.is_box]
    answers = []
    for mark, following in pairwise([*marks, None]):
        assert mark is not None
        is_above = bool(boxes) and mark.begin < boxes[-1]
        is_heading = (
            _LABEL.match(text, mark.start, mark.end)
            or (following and _NUMBERED.match(text, mark.start, mark.end))
            or (is_above and not (following and following.begin <= mark.end))
        )
        if mark.is_box or not is_heading:
            answers.append(mark)
    return answers


def _without_remarks(text: str, marks: list[_Mark]) -> list[_Mark]:
    """Return the marks without the lines with #### that say more than a number beside an answer.

    Beside a box, such a line is a heading. So is one above a line that has a number alone, unless
    it offers a choice.
    """
    last_box = max((index for index, mark in enumerate(marks) if mark.is_box), default=-1)
    is_bare = [mark.is_box or _is_bare(mark.content(text)) for mark in marks]
    last_bare = max((index for index, bare in enumerate(is_bare) if bare), default=-1)
    answers = []
    for index, mark in enumerate(marks):
        is_remark = not is_bare[index] and (
            index > last_box >= 0
            or (last_box < 0 and index < last_bare and not _is_choice(mark.content(text)))
        )
        if not is_remark:
            answers.append(mark)
    return answers


def _is_bare(content: str) -> bool:
    """Return whether a text is a number with at most the words that introduce an answer."""
    return {*words(content)} <= _WORDS_OF_AN_ANSWER and number(content) is not None


def _is_choice(content: str) -> bool:
    return not _CHOICE_WORDS.isdisjoint(words(content))


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
    if _is_choice(between) or _is_choice(content):
        return False
    return earlier is None or bool({*words(between)} - {"and"})
