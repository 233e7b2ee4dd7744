"""A model behind an OpenAI-compatible address: requests are retried, counted and remembered."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError
from rl_experiments.inference import api_errors
from rl_experiments.inference.api_budget import ApiBudget, Spend, max_tokens_of
from rl_experiments.inference.api_errors import ApiError, TemporaryApiError
from rl_experiments.inference.api_journal import ApiJournal, request_id
from rl_experiments.inference.api_reply import ApiReply, MalformedReply, read_reply
from rl_experiments.retry import RetryPolicy

Message = Mapping[str, Any]  # as the API takes it

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_NO_KEY = "none"
_LONGEST_PAUSE_SECONDS = 20.0  # between attempts
_SHORTEST_TIMEOUT_SECONDS = 0.1  # of an attempt shortly before the deadline
_MAX_REASON_LENGTH = 220  # characters of a server's message that are shown


class ApiClient:
    """Asks one model for replies; for use in one event loop.

    `setting` is the config group's name in messages. With a `journal`, a file of its own, each
    reply is kept, and the same request under the same key is answered from there.
    """

    def __init__(
        self, config: EndpointConfig, *, model: str, setting: str, journal: Path | None = None
    ) -> None:
        self.config = config
        self.model = model
        self.setting = setting
        self._budget = ApiBudget(config, setting=setting)
        self._journal = ApiJournal(journal)
        self._api_key = api_key(config, setting)
        self._client: Any = None
        self._busy_until = 0.0  # on the clock of `time.monotonic`: the server asked for a pause
        self._under_way: set[asyncio.Task[ApiReply]] = set()
        self._is_draining = False

    @property
    def spend(self) -> Spend:
        """What was requested so far."""
        return self._budget.spend

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        key: str,
        max_tokens: int,
        temperature: float,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **fields: Any,
    ) -> ApiReply:
        """Return one reply. Requests that are alike but need a reply each differ in `key`.

        Raises `ApiError` when this request fails for good, `UserError` when every request would,
        and `CancelledError` after `drain` was called.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": temperature}
        body |= {_max_tokens_field(self.config.base_url): max_tokens, **fields}
        if self.config.body:
            body["extra_body"] = self.config.body
        if tools:
            body["tools"] = list(tools)
        request = request_id(self.config.base_url, key, body)
        if (known := self._journal.get(request)) is not None:
            self.spend.reused += 1
            return known
        if self._is_draining:
            raise asyncio.CancelledError

        async def request_and_keep() -> ApiReply:
            reply = await self._request_with_retries(body, max_tokens=max_tokens)
            self._journal.add(request, reply)
            return reply

        task = asyncio.create_task(request_and_keep())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await task

    def connect(self) -> Any:
        """Return the client library's client; the first call imports it, which takes a second."""
        if self._client is None:
            import openai

            self._client = openai.AsyncOpenAI(
                base_url=self.config.base_url,
                api_key=self._api_key,
                max_retries=0,  # its own retries know neither a deadline nor a budget
                timeout=self.config.timeout,
            )
        return self._client

    async def drain(self, seconds: float) -> None:
        """Start no further request, and wait up to `seconds` for the replies under way.

        They are paid for; those that arrive go to the journal.
        """
        self._is_draining = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _request_with_retries(self, body: dict[str, Any], *, max_tokens: int) -> ApiReply:
        client = self.connect()
        prompt = [body["messages"], body.get("tools") or []]
        prompt_tokens = max_tokens_of(json.dumps(prompt, ensure_ascii=False))
        deadline = time.monotonic() + self.config.deadline
        attempts = count()

        async def attempt() -> ApiReply:
            if next(attempts):
                self.spend.retries += 1
            await self._wait_while_busy(deadline)
            reservation = await self._budget.reserve(
                prompt_tokens=prompt_tokens, completion_tokens=max_tokens
            )
            with reservation:
                try:
                    reply = await self._request(client, body, deadline=deadline)
                except Exception as error:
                    if api_errors.status_of(error) is not None:  # refused, so not paid for
                        reservation.settle(prompt_tokens=0, completion_tokens=0, usd=0.0)
                    raise self._failure(error) from None
                reservation.settle(
                    prompt_tokens=reply.prompt_tokens,
                    completion_tokens=reply.completion_tokens,
                    usd=reply.usd,
                )
            return reply

        policy = RetryPolicy(
            longest_pause_seconds=_LONGEST_PAUSE_SECONDS,
            limit_seconds=self.config.deadline,
            is_temporary=lambda error: isinstance(error, TemporaryApiError),
            requested_pause=lambda error: getattr(error, "retry_after_seconds", None) or None,
        )
        try:
            return await policy.call_async(attempt)
        except TemporaryApiError as error:
            raise self._too_late(str(error)) from None

    async def _wait_while_busy(self, deadline: float) -> None:
        """Wait out the pause that the server asked for in reply to any of the requests."""
        while (now := time.monotonic()) < self._busy_until:  # which may move meanwhile
            if self._busy_until >= deadline:
                raise self._too_late("the service is busy")
            await asyncio.sleep(self._busy_until - now)

    async def _request(self, client: Any, body: dict[str, Any], *, deadline: float) -> ApiReply:
        started = time.monotonic()
        remaining = max(_SHORTEST_TIMEOUT_SECONDS, deadline - started)
        async with asyncio.timeout(min(self.config.timeout, remaining)):
            completion = await self._complete(client, body)
            reply = read_reply(completion, seconds=time.monotonic() - started)
        if reply.usd is None:
            usd = self._budget.price_usd(reply.prompt_tokens, reply.completion_tokens)
            reply = replace(reply, usd=usd)
        return reply

    async def _complete(self, client: Any, body: dict[str, Any]) -> Any:
        if not self.config.stream:
            return await client.chat.completions.create(**body)
        options = {"include_usage": True}
        async with client.chat.completions.stream(**body, stream_options=options) as stream:
            is_finished = False
            async for event in stream:
                if event.type == "chunk":
                    is_finished = is_finished or any(c.finish_reason for c in event.chunk.choices)
            if not is_finished:
                raise MalformedReply("the answer broke off")
            return stream.current_completion_snapshot

    def _failure(self, error: Exception) -> Exception:
        """Return the error as what it means: for this request, for all, or for a moment."""
        hopeless = api_errors.failure_of_all(
            error, self.config, setting=self.setting, model=self.model
        )
        if hopeless is not None:
            return hopeless
        reason = self._without_key(api_errors.reason(error, self.config, setting=self.setting))
        if not api_errors.is_temporary(error):
            return ApiError(reason)
        pause = api_errors.retry_after_seconds(error)
        if pause:  # holds for all requests: they would be refused as well
            self._busy_until = max(self._busy_until, time.monotonic() + pause)
        return TemporaryApiError(reason, retry_after_seconds=pause)

    def _too_late(self, reason: str) -> ApiError:
        limit = f"{self.setting}.deadline={self.config.deadline:g} s"
        return ApiError(f"{reason} (no answer within {limit})")

    def _without_key(self, text: str) -> str:
        hidden = text.replace(self._api_key, "***") if self._api_key != _NO_KEY else text
        return hidden[:_MAX_REASON_LENGTH]


def api_key(config: EndpointConfig, setting: str) -> str:
    """Return the key from the environment or .env; a server on this machine may do without.

    Raises a `UserError` where another server's key is not set.
    """
    if config.api_key_env is None:
        return _NO_KEY
    from dotenv import dotenv_values

    name = config.api_key_env
    key = os.environ.get(name) or dotenv_values(".env").get(name)
    if not key and urlsplit(config.base_url or "").hostname not in LOCAL_HOSTS:
        raise UserError(
            f"{setting}.api_key_env={config.api_key_env}: this variable is not set; put the key "
            f"of {config.base_url} there (.env is read), or name another variable"
        )
    return key or _NO_KEY


def _max_tokens_field(base_url: str | None) -> str:
    """Return the field's name: OpenAI's newer models refuse the one that other servers know."""
    host = urlsplit(base_url or "").hostname or ""
    return "max_completion_tokens" if host.endswith("openai.com") else "max_tokens"
