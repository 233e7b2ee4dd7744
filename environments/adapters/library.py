"""How adapters use their libraries: import them, and give each episode a random state."""

from __future__ import annotations

import inspect
import io
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from types import ModuleType
from typing import Any

from environments.settings import did_you_mean


def load(name: str, *, env: str, install: str) -> ModuleType:
    """Import and return a library.

    Raises `ValueError` with the command that installs it if it is missing.
    """
    try:
        return import_module(name)
    except ImportError as error:
        reason = one_line(error)
        raise ValueError(
            f"env={env} needs {name} ({reason}): pip install {install}; or choose another env"
        ) from None


class RandomState:
    """The state of the global random generators that belongs to one episode.

    Code that draws from the global generators (of `random` and of numpy) thus replays exactly, and
    does not disturb other episodes.
    """

    def __init__(self, key: str) -> None:
        rng = random.Random(key)
        self._state = rng.getstate()
        self._numpy_seed = rng.getrandbits(32)
        self._numpy_state: Any = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Switch the generators to the episode's state; text printed meanwhile is dropped."""
        numpy: Any = sys.modules.get("numpy")
        outer, outer_numpy = random.getstate(), numpy and numpy.random.get_state()
        random.setstate(self._state)
        if numpy:
            if self._numpy_state is None:
                numpy.random.seed(self._numpy_seed)
            else:
                numpy.random.set_state(self._numpy_state)
        try:
            with redirect_stdout(io.StringIO()):
                yield
        finally:
            self._state = random.getstate()
            random.setstate(outer)
            if numpy:
                self._numpy_state = numpy.random.get_state()
                numpy.random.set_state(outer_numpy)


def refuse_unknown_option(error: Exception, name: str, known: Callable[[], Iterable[str]]) -> None:
    """Raise `ValueError` if the error is about an option that `name` does not have.

    `known` returns the options that it has.
    """
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if match:
        hint = did_you_mean(match[1], known())
        raise ValueError(f"env.options.{match[1]}: {name} has no such option{hint}") from None


def parameters_of(function: Any) -> list[str]:
    """Return the names of the parameters of a function or a class; none if they are not known."""
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):
        return []


def one_line(error: Exception) -> str:
    """Return the type and the message of an error as one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
