"""Text to tokens in pieces between special tokens, equal to the tokens of the whole text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rl_experiments.rollout.chat_template import FramedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_WORDS = 50_000  # of a vocabulary without merges


@dataclass(frozen=True)
class ObservationText:
    """The piece of text that holds an observation, from one special token to the next."""

    before: str
    after: str
    write: Callable[[str], str]  # what the template makes of an observation
    at_start: bool  # of the prompt
    # Whether the special tokens around the piece take the white space beside them, as Phi-3's do.
    strips_left: bool
    strips_right: bool


class TextEncoder:
    """Encodes text as its tokenizer would within a whole prompt.

    A tokenizer cuts a text at the special tokens and encodes the pieces between them. These pieces
    are encoded here as wholes. In smaller parts the tokens would not be those of the template, and
    tokenizers of SentencePiece's kind would mark the beginning of each part as that of a word.

    A special token counts as one in the text of the template alone: an observation cannot forge it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)  # slow ones have none
        self._later_backend, self.joins_pieces = _backend_traits(tokenizer)
        added = tokenizer.added_tokens_decoder
        specials = {i: token for i, token in added.items() if token.special}
        self._specials = {str(token): (i, token) for i, token in specials.items()}
        for i in tokenizer.all_special_ids:
            text = str(tokenizer.convert_ids_to_tokens(i))
            self._specials.setdefault(text, (i, None))
        self._pattern = re.compile(
            "|".join(
                (r"\s*" if getattr(token, "lstrip", False) else "")
                + re.escape(text)
                + (r"\s*" if getattr(token, "rstrip", False) else "")
                for text, (_, token) in sorted(self._specials.items(), key=lambda e: -len(e[0]))
            )
            or r"(?!)"
        )

    def split(
        self, text: FramedText, *, at_start: bool
    ) -> tuple[list[int | str], ObservationText, list[int]]:
        """Return the pieces before the observation's piece, that piece, and the tokens after it."""
        before, after = self._pieces(text.before), self._pieces(text.after)
        is_first = at_start and all(isinstance(each, str) for each in before)
        text_before = before.pop() if before and isinstance(before[-1], str) else ""
        text_after = after.pop(0) if after and isinstance(after[0], str) else ""
        piece = ObservationText(
            str(text_before),
            str(text_after),
            text.write,
            is_first,
            bool(before) and self._strips(before[-1], "rstrip"),
            bool(after) and self._strips(after[0], "lstrip"),
        )
        return before, piece, self.ids(after)

    def ids(self, pieces: Sequence[int | str], *, at_start: bool = False) -> list[int]:
        """Return the tokens of special tokens and pieces of text."""
        ids: list[int] = []
        for number, each in enumerate(pieces):
            if isinstance(each, int):
                ids.append(each)
            else:
                ids += self.encode(each, at_start=at_start and number == 0)
        return ids

    def encode_observation(self, piece: ObservationText, observation: str) -> list[int]:
        """Return the tokens of the piece that holds the observation."""
        text = piece.write(observation)
        if not self.joins_pieces:
            parts = (piece.before, text, piece.after)
            return [token for part in parts for token in self.encode(part)]
        text = piece.before + text + piece.after
        text = text.lstrip() if piece.strips_left else text
        text = text.rstrip() if piece.strips_right else text
        return self.encode(text, at_start=piece.at_start)

    def encode(self, text: str, *, at_start: bool = False) -> list[int]:
        """Return the tokens of a piece of text; what looks like a special token stays text."""
        if not text:
            return []
        backend = self._backend if at_start else self._later_backend
        if backend is None:
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
            return list(encoded["input_ids"])
        # Takes half the time of the call above, which sets these three at every call.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        return list(backend.encode(text, add_special_tokens=False).ids)

    def encode_after(self, opening: str, text: str) -> list[int]:
        """Return the tokens of a text that goes on in the piece that `opening` begins."""
        if opening and self.joins_pieces:
            head, whole = self.encode(opening), self.encode(opening + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self.encode(text)

    def last_text(self, text: str) -> str:
        """Return what follows the last special token in a text of the template."""
        pieces = self._pieces(text)
        return str(pieces[-1]) if pieces and isinstance(pieces[-1], str) else ""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included, as it is."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _pieces(self, text: str) -> list[int | str]:
        """Cut a text of the template at its special tokens."""
        pieces: list[int | str] = []
        start = 0
        for match in self._pattern.finditer(text):
            if match.start() > start:
                pieces.append(text[start : match.start()])
            name = match.group()
            pieces.append(self._specials.get(name, self._specials.get(name.strip(), (0,)))[0])
            start = match.end()
        if start < len(text):
            pieces.append(text[start:])
        return pieces

    def _strips(self, token_id: int | str, side: str) -> bool:
        token = self.tokenizer.added_tokens_decoder.get(token_id)
        return bool(getattr(token, side, False))


@lru_cache(maxsize=8)
def _backend_traits(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, bool]:
    """Return the backend for text after a prompt's beginning, and whether pieces are joined.

    Some tokenizers mark the beginning of a text as that of a word, and no later piece. The tiny
    model's has whole words for tokens: those of an observation and of the template around it are
    apart.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None, True
    joins = True
    if backend.get_vocab_size() < _MAX_WORDS:
        model = json.loads(backend.model.__getstate__())
        joins = model.get("type") != "BPE" or bool(model.get("merges"))
    if backend.pre_tokenizer is None:
        return backend, joins
    if b'"prepend_scheme":"first"' not in backend.pre_tokenizer.__getstate__():
        return backend, joins
    later = backend.to_str().replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
    return type(backend).from_str(later), joins
