"""What the adapters share of other people's libraries: the import, and their use of chance."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from types import ModuleType
from typing import Any


def load(name: str, *, env: str, install: str) -> ModuleType:
    """Raises a `ValueError` with the command that installs what is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        reason = one_line(error)
        raise ValueError(
            f"env={env} needs {name} ({reason}): pip install {install}; or choose another env"
        ) from None


class Chance:
    """The global generators of one episode: what draws from them replays, and disturbs no other."""

    def __init__(self, key: str) -> None:
        rng = random.Random(key)
        self._state = rng.getstate()
        self._numpy_seed = rng.getrandbits(32)
        self._numpy_state: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, the generators are the episode's, and what is printed is dropped."""
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


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
