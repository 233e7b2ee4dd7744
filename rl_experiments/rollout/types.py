"""The record of an episode: turns with their tokens, rewards, how it ended and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from environments import End


@dataclass(frozen=True)
class EpisodeSpec:
    """Which episode to play: `member` tells those of a group apart, which share the seed."""

    seed: int
    member: int = 0


@dataclass
class Turn:
    """One observation, the reply to it and the reward for that.

    Token lists are empty for replies that no model sampled here: those of scripted policies and of
    models behind an API.
    """

    observation: str
    role: str = "user"
    reply: str = ""
    reward: float = 0.0
    prompt_ids: list[int] = field(default_factory=list)  # (prompt tokens,)
    reply_ids: list[int] = field(default_factory=list)  # (reply tokens,)
    logprobs: list[float] = field(default_factory=list)  # (reply tokens,), as they were sampled


@dataclass
class Usage:
    """What the replies of an episode took, where a model wrote them and this is known."""

    prompt_tokens: int = 0
    tokens: int = 0  # of the replies
    usd: float | None = None
    cut_replies: int = 0  # that reached the limit of their tokens
    withheld_replies: int = 0  # by a server's filter, in whole or in part

    def add(self, prompt_tokens: int, tokens: int, usd: float | None = None) -> None:
        """Count one reply."""
        self.prompt_tokens += prompt_tokens
        self.tokens += tokens
        if usd is not None:
            self.usd = (self.usd or 0.0) + usd


@dataclass
class Trajectory:
    """The record of one episode.

    `end` is None while the episode is played. `reward` is None when it failed: the environment or
    the request to a model raised (`error`). An episode that hit a limit is truncated, not failed.
    """

    seed: int
    member: int = 0
    system_prompt: str = ""
    tools: list[dict[str, Any]] | None = None
    category: str = ""
    task_key: str = ""  # see `Environment.task_key`
    turns: list[Turn] = field(default_factory=list)
    end: End | None = None
    reward: float | None = None
    independent_reward: float | None = None  # the environment's, where a judge rewards
    ruler_score: float | None = None  # the judge's
    policy_version: int | None = None  # optimizer steps of the weights that played
    metrics: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    error: str | None = None

    @property
    def won(self) -> bool:
        return self.end is End.WON

    def to_json(self) -> dict[str, Any]:
        """Return the episode for people and for files: each turn has a count of its tokens."""
        record = asdict(self)
        del record["usage"]
        if not self.task_key:
            del record["task_key"]
        for turn in record["turns"]:
            turn["tokens"] = len(turn.pop("reply_ids"))
            del turn["prompt_ids"], turn["logprobs"]
        return record
