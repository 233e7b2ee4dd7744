"""The function-calling environment: one request, tools that may fit it, and one reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from environments.bfcl_single_turn.baselines import BASELINES
from environments.bfcl_single_turn.data import Case, category_names, conversation, split
from environments.bfcl_single_turn.grading import grade
from environments.bfcl_single_turn.official import official
from environments.bfcl_single_turn.replies import parse, within_limits
from environments.bfcl_single_turn.rewards import partial_credit
from environments.protocol import End, Environment, ScriptedPolicy, Step, is_evaluation_seed
from environments.settings import did_you_mean, is_int, is_number, require


@dataclass
class BfclSingleTurn(Environment):
    """Call the functions that a request needs, or answer in words if none fits."""

    categories: list[str] = field(default_factory=lambda: ["single_turn"])  # and groups of them
    max_prompt_chars: int | None = 10000  # cases with longer functions and messages are left out
    evaluation_share: float = 0.2  # share of the cases for evaluation, by a hash of the request
    keep_unwinnable: bool = False  # whether to keep the cases that no reply can win
    official_weight: float = 0.7  # reward for the official verdict
    partial_weight: float = 0.3  # reward for the share of right arguments
    invalid_penalty: float = 0.2  # for an empty reply, or a call that cannot be decoded

    recommended_model: ClassVar[str] = "xlam_2_3b_fc_r"
    baselines: ClassVar[Mapping[str, ScriptedPolicy]] = BASELINES

    def __post_init__(self) -> None:
        chosen = tuple(self.categories)
        try:
            is_known = bool(category_names(chosen))
        except KeyError:
            is_known = False
        names = ", ".join(official().single_turn)
        groups = "single_turn, live, non_live, python, non_python"
        known = (*groups.split(", "), *official().single_turn)
        hints = (did_you_mean(str(name), known) for name in chosen if name not in known)
        allowed = f"a list of groups ({groups}) or categories ({names}){next(hints, '')}"
        require(is_known, "categories", self.categories, allowed)
        chars, share = self.max_prompt_chars, self.evaluation_share
        valid = chars is None or is_int(chars, 1)
        require(valid, "max_prompt_chars", chars, "a whole number > 0, or null")
        require(is_number(share) and 0 < share < 1, "evaluation_share", share, "above 0, below 1")
        kept = self.keep_unwinnable
        require(isinstance(kept, bool), "keep_unwinnable", kept, "true or false")
        for name in ("official_weight", "partial_weight", "invalid_penalty"):
            value = getattr(self, name)
            require(is_number(value, 0), name, value, "a number >= 0")
        self.entries = split(
            chosen, max_prompt_chars=chars, evaluation_share=share, keep_unwinnable=kept
        )
        allowed = f"such that cases are left for training and evaluation (max_prompt_chars={chars})"
        require(all(self.entries), "categories", self.categories, allowed)
        self._case: Case | None = None

    @property
    def case(self) -> Case:
        """The case of the current episode."""
        if self._case is None:
            raise RuntimeError("no episode: call reset")
        return self._case

    @property
    def system_prompt(self) -> str:
        """The system message of the current case, which few cases have."""
        return conversation(self._case)[0] if self._case else ""

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools of the current case; None for a case without tools and before `reset`."""
        return (self._case["tools"] or None) if self._case else None

    @property
    def category(self) -> str:
        """The benchmark's category of the current case."""
        return self._case["category"] if self._case else ""

    @property
    def task_key(self) -> str:
        """The benchmark's id of the current case."""
        return str(self._case["id"]) if self._case else ""

    def reset(self, seed: int, *, member: int = 0) -> str:
        entries = self.entries[is_evaluation_seed(seed)]
        self._case = entries[seed // 2 % len(entries)].case()
        self._ended = False
        return conversation(self._case)[1]

    def step(self, reply: str) -> Step:
        self._require_running()
        case = self.case
        parsed = within_limits(case, parse(reply))
        calls = parsed.calls
        is_right = parsed.is_gradable and grade(case, calls, reply)
        partial = 0.0
        if parsed.is_gradable and parsed.is_valid:
            partial = partial_credit(case, calls or [])
        if not parsed.is_valid:
            reward, end = -self.invalid_penalty, End.INVALID
        else:
            # Officially any call is right for live_relevance, so partial credit takes its place.
            earned = partial if case["category"] == "live_relevance" else float(is_right)
            reward = self.official_weight * earned + self.partial_weight * partial
            end = End.WON if is_right else End.LOST
        return self._finish(end, reward=reward, is_right=is_right, partial=partial)

    def truncate(self) -> Step:
        self._require_running()
        return self._finish(End.TRUNCATED, reward=0.0, is_right=False, partial=0.0)

    def _finish(self, end: End, *, reward: float, is_right: bool, partial: float) -> Step:
        self._ended = True
        return Step(
            reward=reward,
            end=end,
            metrics={
                "official": float(is_right),
                "partial": partial,
                "invalid": float(end is End.INVALID),
            },
        )
