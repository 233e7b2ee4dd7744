"""The interface to what generates: requests go in, completions come out as they are done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Request:
    """One turn to generate. `stream` names the random numbers it draws: the same in any batch."""

    key: int
    prompt_ids: list[int]
    stream: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The tokens of a reply with their log-probabilities under the sampling distribution."""

    key: int
    token_ids: list[int]
    logprobs: list[float]


class Sampler(Protocol):
    """Generates replies for a rollout, which submits a turn as soon as its episode is ready."""

    def begin(self) -> None:
        """Get ready to play the policy as it is now."""

    def end(self) -> None:
        """Leave the machine to others until the next `begin`."""

    def submit(self, request: Request) -> None:
        """Queue a request."""

    def collect(self) -> list[Completion]:
        """Wait until at least one queued request is done; return those that are."""
