"""Episodes as tokens: the chat template cut into segments, so that no reply is tokenised again."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Contents that mark the places of the messages in a rendered template.
_FIRST, _REPLY, _NEXT = "\x01first\x01", "\x01reply\x01", "\x01next\x01"


@dataclass(frozen=True)
class ChatTurn:
    """One observation and the tokens of the reply to it; the last of a prompt has no reply yet."""

    observation: str
    role: str = "user"
    reply_ids: Sequence[int] = ()


class _Segments(NamedTuple):
    """The template's tokens around an observation that follows a reply."""

    before: list[int]  # the observation, if the reply ended with the token that ends its turn
    before_after_cut: list[int]  # the observation, if the reply was cut off: closes it first
    end: int | None  # the token that ends a reply's turn, if the template has one
    after: list[int]  # the observation; the next reply begins here


@dataclass
class Renderer:
    """The chat format of a tokenizer for one system prompt and set of tools.

    A reply ends with any of `end_ids`, the tokenizer's EOS or the template's own end of a turn. In
    the history stands the template's.
    """

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str = ""
    tools: list[dict[str, Any]] | None = None
    end_ids: Collection[int] = ()
    _segments: dict[str, _Segments] = field(default_factory=dict)  # by role of the observation

    def __post_init__(self) -> None:
        head, tail = self._render([{"role": "user", "content": _FIRST}]).split(_FIRST)
        self._head, self._tail = self._encode(head), self._encode(tail)
        # Looking these up costs a microsecond, and a prompt may walk through hundreds of turns.
        self._end_ids = frozenset([*self.end_ids, self.tokenizer.eos_token_id])
        self._special_ids = _special_ids(self.tokenizer)
        self._backend = getattr(self.tokenizer, "backend_tokenizer", None)  # slow ones have none
        # An observation is part of the prompt of every turn that still shows it. The cache holds
        # dozens of whole episodes where the full history is shown.
        self._encode_text = lru_cache(maxsize=32768)(self._encode_text_uncached)
        # Where replies are moves of a game there are few different ones.
        self._decode = lru_cache(maxsize=8192)(self._decode_uncached)

    def prompt(self, turns: Sequence[ChatTurn]) -> list[int]:
        """Return the tokens up to the point where the reply to the last turn begins."""
        ids = [*self._head, *self._encode_text(turns[0].observation), *self._tail]
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
        return list(self._encode_text(text))

    def reply_ids(self, text: str) -> list[int]:
        """Return the tokens of a finished reply with this text."""
        end = self.end_of_turn()
        return [*self.encode_text(text), self.tokenizer.eos_token_id if end is None else end]

    def end_of_turn(self) -> int | None:
        """Return the token with which the chat template ends a reply; None if it has none.

        A template that cannot write a reply, as of models that only ever answer once, has none.
        """
        from jinja2 import TemplateError

        try:
            return (self._segments.get("user") or self._segments_of("user")).end
        except (IndexError, ValueError, TemplateError):
            return None

    def reply_text(self, reply_ids: Sequence[int]) -> str:
        """Return the text of a reply, without special tokens."""
        return self._decode(tuple(reply_ids))

    def is_finished(self, reply_ids: Sequence[int]) -> bool:
        """Tell whether a reply ends as replies do, rather than at a limit of tokens."""
        return bool(reply_ids) and reply_ids[-1] in self._end_ids

    def _append(self, ids: list[int], before: ChatTurn, turn: ChatTurn) -> None:
        """Append the reply of the turn before and the observation of `turn` to a prompt."""
        reply_ids = before.reply_ids
        segments = self._segments.get(turn.role) or self._segments_of(turn.role)
        last = reply_ids[-1] if reply_ids else None
        if last is not None and last == segments.end:
            ids += reply_ids
            ids += segments.before
        elif segments.end is not None and last in self._end_ids:
            ids += reply_ids[:-1]  # ended, but not as the template ends a turn
            ids += segments.before_after_cut
        else:
            ids += reply_ids
            ids += segments.before_after_cut
        ids += self._encode_text(turn.observation)
        ids += segments.after

    def _segments_of(self, role: str) -> _Segments:
        messages = [
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _REPLY},
            {"role": role, "content": _NEXT},
        ]
        before_text, after_text = self._render(messages).split(_REPLY)[1].split(_NEXT)
        closing = self._encode(before_text)
        # What the template writes first after a reply ends its turn, if only it writes this token.
        place = next((i for i, each in enumerate(closing) if each in self._special_ids), None)
        end = None if place is None else closing[place]
        before = closing if place is None else closing[place + 1 :]
        self._segments[role] = _Segments(before, closing, end, self._encode(after_text))
        return self._segments[role]

    def _render(self, messages: list[dict[str, Any]]) -> str:
        if self.system_prompt:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        rendered = self.tokenizer.apply_chat_template(
            messages, tools=self.tools, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def _encode_text_uncached(self, text: str) -> tuple[int, ...]:
        if self._backend is None:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            return tuple(encoded["input_ids"])
        # Takes half the time of the call above, which sets these three at every call.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _decode_uncached(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a part of the template, whose special tokens count as such."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


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
    return Renderer(tokenizer).end_of_turn()


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that text cannot be: special ones, and others that were added."""
    added = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    return frozenset([*tokenizer.all_special_ids, *added])
