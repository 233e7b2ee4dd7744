"""Errors that the user can mend, and how they are worded: one line that names the setting."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from hydra.errors import CompactHydraException

_MAX_LISTED_CHOICES = 25


class UserError(CompactHydraException):
    """A mistake in the settings or a condition outside the program.

    The message is shown as one line, without a traceback; addresses in it lose their passwords.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return a hint to append to a message about a word that is not among the choices.

    It is `; did you mean X?` if a choice X is similar, else a list of the choices if they are few,
    else the empty string.
    """
    choices = sorted(set(choices))
    by_lower_case = {choice.lower(): choice for choice in choices}
    similar = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.6)
    if similar:
        return f"; did you mean {by_lower_case[similar[0]]}?"
    if 0 < len(choices) <= _MAX_LISTED_CHOICES:
        return f" (choose from: {', '.join(choices)})"
    return ""


def without_credentials(text: str) -> str:
    """Return the text with the user and the password of each address in it replaced by `***`.

    >>> without_credentials("http://me:secret@host/v1")
    'http://***@host/v1'
    """
    return re.sub(r"(?<=://)[^/\s?#@]+@", "***@", text)


def one_line(text: str) -> str:
    """Return the text with every run of white space replaced by one space."""
    return re.sub(r"\s+", " ", text).strip()
