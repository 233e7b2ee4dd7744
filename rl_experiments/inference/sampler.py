"""The interface to what generates: requests go in, completions come out as they are done."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Request:
    """One turn to generate.

    `stream` names the random numbers that a sampler with streams of its own draws for this turn, so
    that they are the same in any batch.
    """

    key: int  # of the episode; its completion has the same
    prompt_ids: list[int]
    stream: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The tokens of a reply with their log-probabilities under the sampling distribution."""

    key: int
    token_ids: list[int]
    logprobs: list[float]  # one for each token
    policy_version: int | None = None  # of the weights that wrote the reply


class Engine(Protocol):
    """What generates with a copy of the weights, which `load` must renew before each rollout."""

    policy_version: int | None  # of the engine's weights; None before the first `load`
    sync_seconds: float  # that the latest `load` took
    dtype: torch.dtype  # in which it computes

    def load(self, model: Any, *, policy_version: int | None) -> None:
        """Make the engine's weights those of `model`, a policy as training has wrapped it.

        Raises a `UserError` if they did not arrive.
        """

    def logprobs(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Return the log-probabilities of each completion's tokens at temperature 1.

        `sequences` are (prompt, completion) pairs of token ids.
        """

    def sampler(
        self,
        model: Any,
        *,
        eos_token_id: int | Collection[int],
        max_new_tokens: int,
        temperature: float,
    ) -> Sampler:
        """Return a sampler that plays `model` with this engine."""

    def close(self) -> None:
        """Free everything that the engine holds, for good."""


class Sampler(Protocol):
    """Generates replies for a rollout, which submits a turn as soon as its episode is ready."""

    continuous: bool  # whether it takes requests in while it works on others

    @property
    def engine(self) -> Engine | None:
        """The engine that generates; None where the policy itself does."""

    def begin(self, policy_version: int | None) -> None:
        """Prepare to play the policy as it is now; `policy_version` names its weights."""

    def end(self) -> None:
        """Free the GPU for others until the next `begin`."""

    def submit(self, request: Request) -> None:
        """Queue a request."""

    def collect(self) -> list[Completion]:
        """Work for a moment; return the requests that are done by now, which may be none."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the latest rollout, by the names under which they are logged."""


def end_ids(eos_token_id: int | Collection[int]) -> list[int]:
    """Return the tokens that end a reply as a list; one token may be given by itself."""
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
