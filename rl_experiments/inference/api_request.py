"""The body of a request, written as the server wants it: servers differ in the fields they take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.inference.api_words import well_formed

Message = Mapping[str, Any]  # as the API takes it
Body = dict[str, Any]

_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")  # two names of one field
_MAY_BE_LEFT_OUT = ("temperature", "stream_options")
_REFUSALS = re.compile(
    r"not support|unsupported|n't support|unrecogni[sz]ed|unknown|unexpected|not permitted"
    r"|not allowed|extra_forbidden|deprecated|only.{0,30}(default|allowed|supported|1\b)"
    r"|cannot be (set|used|specified)|must be (set to )?1(\.0)?\b|no longer",
    re.IGNORECASE,
)
_AMOUNT = "large|high|exceed|>|above|at (least|most)"  # the number is refused, not the field
_REFUSED_STATUSES = (400, 422)
_NOTHING = "(nothing)"  # in place of an empty text, which some servers refuse


class RequestWriter:
    """Writes requests to one server, and learns from its refusals how it wants them.

    `notes` say what is sent otherwise than the settings have it.
    """

    def __init__(self, config: EndpointConfig, *, setting: str) -> None:
        self.notes: list[str] = []
        self._config = config
        self._setting = setting
        self._limit_field = _usual_limit_field(config.base_url)
        self._is_swapped = False
        self._left_out: set[str] = set()

    @property
    def usual_limit_field(self) -> str:
        """The name of the limit before anything was learned, by which the journal knows it."""
        return _usual_limit_field(self._config.base_url)

    def max_tokens(self, max_tokens: int) -> int:
        """Return the limit of a reply that is sent: `body` of the settings comes first."""
        limits = [self._config.body.get(name) for name in _LIMIT_FIELDS]
        return next((limit for limit in limits if isinstance(limit, int) and limit > 0), max_tokens)

    def write(
        self,
        messages: Sequence[Message],
        *,
        model: str,
        max_tokens: int,
        temperature: float,
        tools: Sequence[Mapping[str, Any]] | None,
        fields: Mapping[str, Any],
    ) -> Body:
        """Return the body of a request. In the settings' `body`, null leaves a field out."""
        body: Body = {"model": model, "messages": [*map(_with_content, messages)]}
        body["temperature"] = temperature
        given = self._config.body
        if not any(given.get(name) for name in _LIMIT_FIELDS):
            body[self._limit_field] = max_tokens
        body |= fields
        if tools:
            body["tools"] = list(tools)
        if self._config.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        for name, value in given.items():
            if value is None and name in body:
                del body[name]
            elif value is not None or name not in _LIMIT_FIELDS:
                body[name] = value
        for name in self._left_out:
            body.pop(name, None)
        result = well_formed(body)
        assert isinstance(result, dict)
        return result

    def learn(self, words: str, *, status: int | None, body: Body) -> bool:
        """Tell whether the request can be written otherwise, after the server refused `body`."""
        if status not in _REFUSED_STATUSES or not _REFUSALS.search(words):
            return False
        if self._learn_limit_field(words, body):
            return True
        for name in _MAY_BE_LEFT_OUT:
            if name in body and name not in self._config.body and re.search(rf"\b{name}\b", words):
                if name == "temperature" and name not in self._left_out:
                    self.notes.append(
                        f"{self._setting}: temperature={body[name]:g} is refused, and the server's "
                        f"own is used ({words})"
                    )
                self._left_out.add(name)
                return True
        return False

    def _learn_limit_field(self, words: str, body: Body) -> bool:
        sent = next((n for n in _LIMIT_FIELDS if n in body and n not in self._config.body), None)
        if sent is None or not re.search(rf"\b{sent}\b", words):
            return False
        other = _other_limit_field(sent)
        if self._limit_field == other:  # learned from another request meanwhile
            return True
        if self._is_swapped or (other not in words and re.search(_AMOUNT, words)):
            return False
        self._limit_field, self._is_swapped = other, True
        return True


def _usual_limit_field(base_url: str | None) -> str:
    """Return the field's name: OpenAI's newer models refuse the one that other servers know."""
    host = urlsplit(base_url or "").hostname or ""
    return _LIMIT_FIELDS[host.endswith("openai.com")]


def _other_limit_field(name: str) -> str:
    return _LIMIT_FIELDS[name == _LIMIT_FIELDS[0]]


def _with_content(message: Message) -> Message:
    """Return the message with a word in place of an empty content."""
    content = message.get("content")
    if message.get("tool_calls"):
        is_empty = content is not None and not str(content).strip()
        return {**message, "content": None} if is_empty else message
    return message if content and str(content).strip() else {**message, "content": _NOTHING}
