"""The one number that a short text states, with what people put around it."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import pairwise

_MOST_CHARACTERS = 200
_TIMES = "\N{MULTIPLICATION SIGN}"
_BRACED = r"\\text(?:bf|it|rm|normal)?\s*\{|\\math(?:bf|it|rm)\s*\{|\\(?:mbox|boldsymbol)\s*\{"
_REPLACED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"</?[A-Za-z_]\w*>|<\|\w+\|>", " "),
        # LaTeX
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"(?<=[0-9])\\,(?=[0-9]{3})", ","),
        (_BRACED, " "),
        (r"\\(?:left|right|quad|qquad|displaystyle|degree)(?![A-Za-z])", " "),
        (r"\^\s*\{?\s*\\circ(?![A-Za-z])", " "),
        (r"(?<=[0-9])~", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\[\\,;:> ()\[\]]", " "),
        # Units, bold, quotes
        (r"(?<=[A-Za-z}])\s*\^\s*\{?[23](?![0-9])", " "),  # square feet
        (r"(?<=[0-9])\s*\*+\s*(?=\.?[0-9]|\()", _TIMES),
        (r"[{}*_`#\"']", " "),
        (r"[$€£¥₹¢]", ""),
        ("[\N{MINUS SIGN}\N{EN DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}]", "-"),
        (r"\A\s*-\s+", "-"),
    )
]
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-+])?(?P<digits>[0-9][0-9,]*(?:\.[0-9]+)?|(?<![.\w])\.[0-9]+)"
)
_WELL_GROUPED = re.compile(r"(?:[0-9]{1,40}|[0-9]{1,3}(?:,[0-9]{3}){1,12})?(?:\.[0-9]{1,40})?,*")
_BEYOND_ASCII = re.compile(r"(?<![^\W\d_])[^\W_a-zA-Z0-9]")  # not that after a letter, as in m²
_OPERATOR = rf"[+^÷·√{_TIMES}]"
_CALCULATES_BEFORE = re.compile(rf"(?:{_OPERATOR}|[-/]|[^\W\d_]\()\s*\Z")
_CALCULATES_AFTER = re.compile(
    rf"\s*(?:{_OPERATOR}|[-/]\s*(?![^\W\d_]))|[kKM](?![^\W_])"  # a letter follows in 18/hour
)
_INEXACT = re.compile(r"[\\<>≤≥≠≈±~]")
_WORD = re.compile(r"[^\W\d_]+")
# They make it another number, or offer one.
_CHANGING = {
    *("or", "either", "neither", "nor", "not", "between", "minus", "negative", "plus", "half"),
    *("squared", "cubed", "hundred", "hundreds", "thousand", "thousands", "million", "millions"),
    *("billion", "billions"),
}


def number(text: str) -> Decimal | None:
    """None when the text calculates, doubts, or names several numbers."""
    if len(text) > _MOST_CHARACTERS:
        return None
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    if _INEXACT.search(text) or not _CHANGING.isdisjoint(words(text)):
        return None
    if any(map(str.isnumeric, _BEYOND_ASCII.findall(text))):  # as ½ and 18²
        return None
    found = list(_NUMBER.finditer(text))
    for first, second in pairwise(found):  # the same once more: 18.00 = 18, 18 dollars (18)
        if not {"=", "("} & {*text[first.end() : second.start()]}:
            return None
    values = {_value(match, text) for match in found}
    return values.pop() if len(values) == 1 else None


def words(text: str) -> list[str]:
    """Runs of letters, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def _value(match: re.Match[str], text: str) -> Decimal | None:
    """The number, unless what stands beside it calculates with it."""
    if (
        not _WELL_GROUPED.fullmatch(match["digits"])
        or _CALCULATES_BEFORE.search(text, 0, match.start())
        or _CALCULATES_AFTER.match(text, match.end())
    ):
        return None
    return Decimal((match["sign"] or "") + match["digits"].replace(",", ""))
