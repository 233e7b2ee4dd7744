"""Read the one number that a short text states, with units, signs and LaTeX around it."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import pairwise

_MAX_CHARACTERS = 200  # a longer text is not read
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
_BEYOND_ASCII = re.compile(r"(?<![^\W\d_])[^\W_a-zA-Z0-9]")  # not after a letter, as in m²
_OPERATOR = rf"[+^÷·√{_TIMES}]"
_CALCULATES_BEFORE = re.compile(rf"(?:{_OPERATOR}|[-/]|[^\W\d_]\()\s*\Z")
_CALCULATES_AFTER = re.compile(
    rf"\s*(?:{_OPERATOR}|[-/]\s*(?![^\W\d_]))|[kKM](?![^\W_])"  # not before a letter, as in 18/hour
)
_INEXACT = re.compile(r"[\\<>≤≥≠≈±~]")
_WORD = re.compile(r"[^\W\d_]+")
# Words that make the number another one, or offer a second one.
_CHANGING_WORDS = {
    *("or", "either", "neither", "nor", "not", "between", "minus", "negative", "plus", "half"),
    *("squared", "cubed", "hundred", "hundreds", "thousand", "thousands", "million", "millions"),
    *("billion", "billions"),
}


def number(text: str) -> Decimal | None:
    """Return the number that a text states.

    Returns None if the text states none or several, calculates with it, or expresses doubt.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    if _INEXACT.search(text) or not _CHANGING_WORDS.isdisjoint(words(text)):
        return None
    if any(map(str.isnumeric, _BEYOND_ASCII.findall(text))):  # such as ½ and 18²
        return None
    matches = list(_NUMBER.finditer(text))
    for first, second in pairwise(matches):  # a repetition is fine: 18.00 = 18, 18 dollars (18)
        if not {"=", "("} & {*text[first.end() : second.start()]}:
            return None
    values = {_value(match, text) for match in matches}
    return values.pop() if len(values) == 1 else None


def words(text: str) -> list[str]:
    """Return the runs of letters of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def _value(match: re.Match[str], text: str) -> Decimal | None:
    """Return the number of a match, or None if the text beside it calculates with it."""
    if (
        not _WELL_GROUPED.fullmatch(match["digits"])
        or _CALCULATES_BEFORE.search(text, 0, match.start())
        or _CALCULATES_AFTER.match(text, match.end())
    ):
        return None
    return Decimal((match["sign"] or "") + match["digits"].replace(",", ""))
