"""An episode as tokens: the chat template in segments, so that no reply is tokenised again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Contents that mark the places of the messages in a rendered template.
_FIRST, _REPLY, _NEXT = "\x01first\x01", "\x01reply\x01", "\x01next\x01"


@dataclass(frozen=True)
class ChatTurn:
    """One observation with the reply's own tokens; the last of a prompt has no reply yet."""

    observation: str
    role: str = "user"
    reply_ids: Sequence[int] = ()


@dataclass
class Renderer:
    """The chat format of a tokenizer for one system prompt and set of tools."""

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str = ""
    tools: list[dict[str, Any]] | None = None
    _around: dict[str, tuple[list[int], list[int], list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        head, tail = self._render([{"role": "user", "content": _FIRST}]).split(_FIRST)
        self._head, self._tail = self._encode(head), self._encode(tail)
        # One lookup of these costs a microsecond, and a prompt may walk through hundreds of turns.
        self._eos = self.tokenizer.eos_token_id
        self._backend = getattr(self.tokenizer, "backend_tokenizer", None)  # a slow one has none
        # An observation is part of the prompts of all the turns that still see it: that is the
        # whole of some scores of episodes where the history is shown in full.
        self._encoded = lru_cache(maxsize=32768)(self._encode_plain)
        # Where replies are moves there are few of them.
        self._decoded = lru_cache(maxsize=8192)(self._decode_plain)

    def prompt(self, exchanges: Sequence[ChatTurn]) -> list[int]:
        """Tokens up to the point where the reply to the last exchange begins."""
        ids = [*self._head, *self._encoded(exchanges[0].observation), *self._tail]
        for before, exchange in pairwise(exchanges):
            self._follow(ids, before, exchange)
        return ids

    def following(
        self, prompt_ids: Sequence[int], before: ChatTurn, exchange: ChatTurn
    ) -> list[int]:
        """The prompt of a turn from that of the turn before it, of which all is shown."""
        ids = list(prompt_ids)
        self._follow(ids, before, exchange)
        return ids

    def _follow(self, ids: list[int], before: ChatTurn, exchange: ChatTurn) -> None:
        reply_ids = before.reply_ids
        opening, closing_too, tail = self._around.get(exchange.role) or self._role(exchange.role)
        ids += reply_ids
        ids += opening if reply_ids and reply_ids[-1] == self._eos else closing_too
        ids += self._encoded(exchange.observation)
        ids += tail

    def encode_text(self, text: str) -> list[int]:
        """Tokens of plain text; what looks like a special token stays text."""
        return list(self._encoded(text))

    def reply_ids(self, text: str) -> list[int]:
        """The tokens of a finished reply with this text."""
        return [*self.encode_text(text), self._eos]

    def reply_text(self, reply_ids: Sequence[int]) -> str:
        return self._decoded(tuple(reply_ids))

    def _role(self, role: str) -> tuple[list[int], list[int], list[int]]:
        """What stands around an observation of this role that follows a reply.

        Before it where the reply has ended, before it where the reply was cut and is closed first,
        and after it.
        """
        messages = [
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _REPLY},
            {"role": role, "content": _NEXT},
        ]
        before, after = self._render(messages).split(_REPLY)[1].split(_NEXT)
        closed = self._encode(before)
        opening = closed[closed.index(self._eos) + 1 :] if self._eos in closed else closed
        self._around[role] = opening, closed, self._encode(after)
        return self._around[role]

    def _render(self, messages: list[dict[str, Any]]) -> str:
        if self.system_prompt:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        rendered = self.tokenizer.apply_chat_template(
            messages, tools=self.tools, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        if self._backend is None:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            return tuple(encoded["input_ids"])
        # Half the time of the call above, which sets these for itself whenever it is made.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _decode_plain(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class RendererCache:
    """The chats of one tokenizer: each episode has a system prompt and tools of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._chats = lru_cache(maxsize=64)(self._chat)

    def of(self, system_prompt: str, tools: list[dict[str, Any]] | None) -> Renderer:
        return self._chats(system_prompt, json.dumps(tools))

    def _chat(self, system_prompt: str, tools: str) -> Renderer:
        return Renderer(self.tokenizer, system_prompt, json.loads(tools))
