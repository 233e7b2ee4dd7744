"""The interface to what generates: requests go in, completions come out as they are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
    policy_version: int | None = None  # of the weights that wrote it


class Engine(Protocol):
    """What plays with weights of its own, which must be made the policy's before each rollout."""

    policy_version: int | None  # of its weights; None before the first `load`
    sync_seconds: float  # that the latest `load` took

    def load(self, model: Any, *, policy_version: int | None) -> None:
        """Make its weights those of `model`, a policy as training has wrapped it.

        Raises a `UserError` if they are found to be others afterwards.
        """

    def logprobs(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Of each (prompt, completion), the completion's log-probabilities at temperature 1."""

    def sampler(
        self, model: Any, *, eos_token_id: int, max_new_tokens: int, temperature: float
    ) -> Sampler:
        """One that plays `model` by this engine."""

    def close(self) -> None:
        """Leave the machine for good."""


class Sampler(Protocol):
    """Generates replies for a rollout, which submits a turn as soon as its episode is ready."""

    continuous: bool  # whether it takes a request in while it works on others

    @property
    def engine(self) -> Engine | None:
        """None where the policy itself plays."""

    def begin(self, policy_version: int | None) -> None:
        """Get ready to play the policy as it is now, `policy_version` being its name."""

    def end(self) -> None:
        """Leave the machine to others until the next `begin`."""

    def submit(self, request: Request) -> None:
        """Queue a request."""

    def collect(self) -> list[Completion]:
        """Work for a moment; return the requests that are done by now, which may be none."""

    def metrics(self) -> dict[str, float]:
        """Figures of the latest rollout, by the names under which they are logged."""
