"""What requests to an API have cost and may still cost: limits, reservations, prices of tokens."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError


class BudgetSpent(UserError):
    """A limit on requests, tokens or money does not allow another request."""


@dataclass
class Spend:
    """What was requested so far. A request whose answer was lost counts as its maximum cost."""

    requests: int = 0  # retries included
    retries: int = 0
    reused: int = 0  # replies taken from the journal
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and replies together."""
        return self.prompt_tokens + self.completion_tokens


def price_usd(
    config: EndpointConfig, prompt_tokens: float, completion_tokens: float
) -> float | None:
    """Return what the tokens cost by the configured prices, in USD; None without prices."""
    if config.input_usd is None or config.output_usd is None:
        return None
    return (prompt_tokens * config.input_usd + completion_tokens * config.output_usd) / 1e6


def max_tokens_of(text: str) -> int:
    """Return an upper bound on the tokens of a text, whatever the tokenizer: one per byte."""
    return len(text.encode())


class ApiBudget:
    """Holds requests to the limits of a config, counting those under way at their maximum cost.

    `setting` is the config group's name in messages.
    """

    def __init__(self, config: EndpointConfig, *, setting: str) -> None:
        self.spend = Spend()
        self._config = config
        self._setting = setting
        self._reservations: set[Reservation] = set()
        self._settled = asyncio.Event()  # set when a reservation is settled, then replaced

    async def reserve(self, *, prompt_tokens: int, completion_tokens: int) -> Reservation:
        """Count a request, and set aside the tokens and the money that it may cost at most.

        Waits while the limits would allow the request if those under way cost less than their
        maximum. Raises `BudgetSpent` when the limits do not allow it.
        """
        new = Reservation(self, prompt_tokens, completion_tokens)
        while limit := self._exceeded_limit(new):
            if not self._reservations:
                raise BudgetSpent(
                    f"{limit} is spent ({self.spend.requests} requests, {self.spend.tokens} "
                    f"tokens, {self.spend.usd:.4f} USD); raise it"
                )
            await self._settled.wait()
        self._reservations.add(new)
        self.spend.requests += 1
        return new

    def price_usd(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return what the tokens cost by the configured prices, in USD; None without prices."""
        return price_usd(self._config, prompt_tokens, completion_tokens)

    def _settle(
        self, reservation: Reservation, prompt_tokens: int, completion_tokens: int, usd: float
    ) -> None:
        self._reservations.remove(reservation)
        self.spend.prompt_tokens += prompt_tokens
        self.spend.completion_tokens += completion_tokens
        self.spend.usd += usd
        self._settled.set()
        self._settled = asyncio.Event()

    def _exceeded_limit(self, new: Reservation) -> str | None:
        """Return the setting and value of a limit that the request might exceed, if any."""
        reserved = [*self._reservations, new]
        for name, value in (
            ("max_requests", self.spend.requests + 1),
            ("max_total_tokens", self.spend.tokens + sum(each.tokens for each in reserved)),
            ("max_usd", self.spend.usd + sum(each.usd for each in reserved)),
        ):
            limit = getattr(self._config, name)
            if limit is not None and value > limit:
                return f"{self._setting}.{name}={limit:g}"
        return None


class Reservation:
    """What one request may cost at most, until `settle` replaces it by what it did cost.

    Left as a context manager without being settled, it counts in full: the reply was lost, but may
    have been paid for.
    """

    def __init__(self, budget: ApiBudget, prompt_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.tokens = prompt_tokens + completion_tokens
        self.usd = budget.price_usd(prompt_tokens, completion_tokens) or 0.0
        self._budget = budget
        self._is_settled = False

    def settle(self, *, prompt_tokens: int, completion_tokens: int, usd: float | None) -> None:
        """Count what the request did cost; all zeros for one that was refused."""
        self._is_settled = True
        self._budget._settle(self, prompt_tokens, completion_tokens, usd or 0.0)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_settled:
            self.settle(
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.completion_tokens,
                usd=self.usd,
            )
