"""Text files of users, whatever program has written them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins in the same way
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def exists(source: str) -> bool:
    """Return whether there is a file or a folder of this name; ~ is the home folder."""
    try:
        return Path(source).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # the name is no path
        return False


def lines(source: str) -> Iterator[str]:
    """Yield the lines of a text file: UTF-8, or what a byte-order mark at its start says.

    Raises `ValueError` with the reason if the file cannot be read.
    """
    try:
        path = Path(source).expanduser()
        with path.open("rb") as file:
            start = file.read(4)
        encoding = next((name for mark, name in _ENCODINGS if start.startswith(mark)), "utf-8")
        with path.open(encoding=encoding, newline="\n") as file:
            yield from file
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except UnicodeError:
        raise ValueError("it is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    except (ValueError, RuntimeError):  # a NUL in the name; no home folder
        raise ValueError("it is not the name of a file") from None
