"""What is known of a server before its first answer: whether its address and key are right."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from types import TracebackType

# While nothing has been answered yet, a mistake in the settings is likelier than an outage: this
# many attempts, or requests, that end alike are enough.
_MAX_ALIKE = 3
_MAX_ALIKE_INTERNAL = 5  # attempts that the server answers with a fault of its own (500)


class FirstContact:
    """Has requests sent one by one until the server has reacted, and counts what ends alike.

    So a wrong key or a field that the server does not take meets one request, not all of them.
    """

    def __init__(self) -> None:
        self.is_answered = False  # a reply of the model has come
        self.is_reached = False  # a connection came about
        self._is_open = False  # requests need not wait for each other
        self._lock = asyncio.Lock()
        self._refusals: Counter[str] = Counter()

    async def enter(self) -> Turn:
        """Wait until a request may be sent; the turn is over when its `with` block ends."""
        if self._is_open:
            return Turn(None)
        await self._lock.acquire()
        turn = Turn(self._lock)
        if self._is_open:
            turn.end()
        return turn

    def open(self) -> None:
        """Let all requests be sent: the server has reacted, be it that it is busy."""
        self._is_open = True

    def answered(self) -> None:
        """Note that the model has replied."""
        self.is_reached = self.is_answered = self._is_open = True

    def is_hopeless(self, outcomes: list[str], outcome: str, *, is_internal: bool) -> bool:
        """Add how an attempt at a request ended; tell whether further ones would end alike."""
        outcomes.append(outcome)
        count = _MAX_ALIKE_INTERNAL if is_internal else _MAX_ALIKE
        return not self.is_answered and outcomes[-count:] == [outcome] * count

    def refuses_all(self, reason: str) -> bool:
        """Count a request that was refused for good; tell whether all others would be too."""
        if self.is_answered:
            return False
        alike = re.sub(r"\d+", "0", reason)  # numbers of tokens, of requests
        self._refusals[alike] += 1
        return self._refusals[alike] >= _MAX_ALIKE


class Turn:
    """The right to send a request, while others may have to wait for that."""

    def __init__(self, lock: asyncio.Lock | None) -> None:
        self._lock = lock

    def end(self) -> None:
        """Let the next request be sent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
