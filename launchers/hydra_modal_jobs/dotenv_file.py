"""The one reader of `.env` files."""

from __future__ import annotations

import codecs
import queue
import stat
import threading
from io import StringIO
from pathlib import Path

from hydra_modal_jobs.errors import LaunchRefused

_PIPE_SECONDS = 10.0  # for the program behind a pipe to write
_pipes: dict[Path, bytes] = {}  # what each pipe held, since it can be read once


def read_dotenv(path: str | None) -> dict[str, str]:
    """Return the variables of a .env file that have a value; none if there is no such file.

    The file may be UTF-8 or, with its mark, UTF-16, and it may be a pipe. Raises `LaunchRefused`,
    which names the line but does not show it, if it cannot be read.
    """
    if not path:
        return {}
    file = Path(path)
    text = _text_of(file)
    if not text:
        return {}
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    for binding in parse_stream(StringIO(text)):
        if binding.error or "\0" in (binding.value or ""):
            line = binding.original.line + _blank_lines(binding.original.string)
            raise LaunchRefused(
                f"{path}, line {line}: cannot be read; write NAME=VALUE, with the closing quote if "
                "there is an opening one"
            )
    values = dotenv_values(stream=StringIO(text))
    return {name: value for name, value in values.items() if value and name.isidentifier()}


def _text_of(file: Path) -> str:
    """Return the text of the file; empty if there is none."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode):
            content = file.read_bytes()
        elif stat.S_ISFIFO(mode):
            content = _read_pipe(file)
        else:
            return ""  # such as the folder of a virtual environment
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise LaunchRefused(f"{file}: {error.strerror or error}; make it readable") from None
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise LaunchRefused(
            f"{file}, line {line}: no text in UTF-8; save the file as such"
        ) from None


def _read_pipe(file: Path) -> bytes:
    path = file.absolute()
    if path not in _pipes:
        contents: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=lambda: contents.put(path.read_bytes()), daemon=True).start()
        try:
            _pipes[path] = contents.get(timeout=_PIPE_SECONDS)
        except queue.Empty:
            raise LaunchRefused(f"{file}: a pipe to which no program writes") from None
    return _pipes[path]


def _blank_lines(text: str) -> int:
    """Return how many empty lines the parser has put before a statement."""
    return text[: len(text) - len(text.lstrip())].count("\n")
