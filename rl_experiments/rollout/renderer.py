"""Episodes as tokens: the chat template cut at the replies, so that none is tokenised again."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from rl_experiments.rollout.chat_template import ChatTemplate, UnusableTemplate
from rl_experiments.rollout.text_encoder import ObservationText, TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatTurn:
    """One observation and the tokens of the reply to it; the last of a prompt has no reply yet."""

    observation: str
    role: str = "user"
    reply_ids: Sequence[int] = ()


class _Frame(NamedTuple):
    """What the template writes around an observation."""

    before: list[int]  # tokens, the observation's own piece of text follows
    before_after_cut: list[int]  # the same where the reply before was cut off: closes it first
    end: int | None  # the token that ends a reply's turn, if the template has one
    piece: ObservationText
    after: list[int]  # tokens; the next reply begins here


@dataclass
class Renderer:
    """The chat format of a tokenizer for one system prompt and set of tools.

    A reply ends with any of `end_ids`, the tokenizer's EOS or the template's own end of a turn. In
    the history stands the template's. Raises an `UnusableTemplate` where the chat template cannot
    write the chat.
    """

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str = ""
    tools: list[dict[str, Any]] | None = None
    end_ids: Collection[int] = ()
    _frames: dict[str, _Frame] = field(default_factory=dict)  # by role of the observation

    def __post_init__(self) -> None:
        self._template = ChatTemplate(self.tokenizer, self.system_prompt, self.tools)
        self._encoder = TextEncoder(self.tokenizer)
        self._first = self._first_frame()
        # Looking these up costs a microsecond, and a prompt may walk through hundreds of turns.
        self._end_ids = frozenset([*self.end_ids, self.tokenizer.eos_token_id])
        # An observation is part of the prompt of every turn that still shows it. The cache holds
        # dozens of whole episodes where the full history is shown.
        self._encode_observation = lru_cache(maxsize=32768)(self._encode_observation_uncached)
        # Where replies are moves of a game there are few different ones.
        self._decode = lru_cache(maxsize=8192)(self._decode_uncached)

    @property
    def joins_pieces(self) -> bool:
        """Whether the template's text and an observation are tokenised together."""
        return self._encoder.joins_pieces

    def prompt(self, turns: Sequence[ChatTurn]) -> list[int]:
        """Return the tokens up to the point where the reply to the last turn begins."""
        first = self._first
        ids = [*first.before, *self._encode_observation("", turns[0].observation), *first.after]
        for before, turn in pairwise(turns):
            self._append(ids, before, turn)
        return ids

    def extend(self, prompt_ids: Sequence[int], before: ChatTurn, turn: ChatTurn) -> list[int]:
        """Extend the prompt of the turn before to that of `turn`.

        This is the prompt only where the full history is shown.
        """
        ids = list(prompt_ids)
        self._append(ids, before, turn)
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the tokens of plain text; what looks like a special token stays text."""
        return self._encoder.encode(text)

    def reply_ids(self, text: str) -> list[int]:
        """Return the tokens of a finished reply with this text."""
        end = self.end_of_turn()
        ids = self._encoder.encode_after(self._opening, text)
        return [*ids, self.tokenizer.eos_token_id if end is None else end]

    def end_of_turn(self) -> int | None:
        """Return the token with which the chat template ends a reply; None if it has none.

        A template that cannot write a reply, as of models that only ever answer once, has none.
        """
        try:
            return self.frame("user").end
        except UnusableTemplate:
            return None

    def reply_text(self, reply_ids: Sequence[int]) -> str:
        """Return the text of a reply without the token that ends it.

        Its other special tokens stay: with some models they mark calls of tools and thinking.
        """
        return self._decode(tuple(reply_ids))

    def is_finished(self, reply_ids: Sequence[int]) -> bool:
        """Tell whether a reply ends as replies do, rather than at a limit of tokens."""
        return bool(reply_ids) and reply_ids[-1] in self._end_ids

    def frame(self, role: str) -> _Frame:
        """Return what stands around an observation of this role that follows a reply."""
        if role not in self._frames:
            self._frames[role] = self._frame_after_reply(role)
        return self._frames[role]

    def _append(self, ids: list[int], before: ChatTurn, turn: ChatTurn) -> None:
        """Append the reply of the turn before and the observation of `turn` to a prompt."""
        reply_ids = before.reply_ids
        frame = self._frames.get(turn.role) or self.frame(turn.role)
        last = reply_ids[-1] if reply_ids else None
        if last is not None and last == frame.end:
            ids += reply_ids
            ids += frame.before
        elif frame.end is not None and last in self._end_ids:
            ids += reply_ids[:-1]  # ended, but not as the template ends a turn
            ids += frame.before_after_cut
        else:
            ids += reply_ids
            ids += frame.before_after_cut
        ids += self._encode_observation(turn.role, turn.observation)
        ids += frame.after

    def _first_frame(self) -> _Frame:
        text = self._template.first()
        self._opening = self._encoder.last_text(text.after)  # of a reply
        before, piece, after = self._encoder.split(text, at_start=True)
        return _Frame(self._encoder.ids(before, at_start=True), [], None, piece, after)

    def _frame_after_reply(self, role: str) -> _Frame:
        text = self._template.after_reply(role)
        closing, piece, after = self._encoder.split(text, at_start=False)
        # What the template writes first after a reply ends its turn, if only it writes this token.
        place = next((i for i, each in enumerate(closing) if isinstance(each, int)), None)
        end = None if place is None else closing[place]
        assert not isinstance(end, str)
        rest = closing if place is None else closing[place + 1 :]
        return _Frame(self._encoder.ids(rest), self._encoder.ids(closing), end, piece, after)

    def _encode_observation_uncached(self, role: str, observation: str) -> tuple[int, ...]:
        frame = self._frames[role] if role else self._first
        return tuple(self._encoder.encode_observation(frame.piece, observation))

    def _decode_uncached(self, ids: tuple[int, ...]) -> str:
        end = self.end_of_turn()
        if ids and (ids[-1] == end or ids[-1] in self._end_ids):
            ids = ids[:-1]
        return self._encoder.decode(ids)


class RendererCache:
    """The renderers of one tokenizer: each episode may have its own system prompt and tools.

    `end_ids` are the tokens that end a reply, beside the tokenizer's and the template's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, end_ids: Collection[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self._renderers = lru_cache(maxsize=64)(self._new)

    def get(self, system_prompt: str, tools: list[dict[str, Any]] | None) -> Renderer:
        return self._renderers(system_prompt, json.dumps(tools))

    def _new(self, system_prompt: str, tools: str) -> Renderer:
        return Renderer(
            self.tokenizer, system_prompt, json.loads(tools), end_ids=tuple(self.end_ids)
        )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token with which the chat template ends a reply; None if it has no such token."""
    try:
        return Renderer(tokenizer).end_of_turn()
    except UnusableTemplate:
        return None
