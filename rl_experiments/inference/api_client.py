"""A model behind an OpenAI-compatible address: requests are retried, counted and remembered."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError, one_line
from rl_experiments.inference import api_errors
from rl_experiments.inference.api_budget import ApiBudget, Reservation, Spend, max_tokens_of
from rl_experiments.inference.api_contact import FirstContact
from rl_experiments.inference.api_errors import ApiError, FullContext, TemporaryApiError
from rl_experiments.inference.api_journal import ApiJournal, request_id
from rl_experiments.inference.api_reply import ApiReply, MalformedReply, read_reply
from rl_experiments.inference.api_request import Body, Message, RequestWriter
from rl_experiments.inference.api_stream import is_stream, read_stream
from rl_experiments.inference.api_words import decoded
from rl_experiments.retry import RetryPolicy

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_NO_KEY = "none"
_LONGEST_PAUSE_SECONDS = 20.0  # between attempts
_SHORTEST_TIMEOUT_SECONDS = 0.1  # of an attempt shortly before the deadline
_CONNECT_TIMEOUT_SECONDS = 10.0
_PROXY_VARIABLES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")


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
        self._contact = FirstContact()
        self._journal = ApiJournal(journal)
        self._writer = RequestWriter(config, setting=setting)
        self._api_key = api_key(config, setting)
        self._client: Any = None
        self._busy_until = 0.0  # on the clock of `time.monotonic`: the server asked for a pause
        self._under_way: set[asyncio.Task[ApiReply]] = set()
        self._is_draining = False
        self._hopeless: UserError | None = None  # what every request would meet

    @property
    def spend(self) -> Spend:
        """What was requested so far."""
        return self._budget.spend

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the user: what is sent otherwise than the settings have it."""
        return self._writer.notes

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
        # As requests have always been known, however they are written for the server.
        asked = {"model": self.model, "messages": list(messages), "temperature": temperature}
        asked |= {self._writer.usual_limit_field: max_tokens, **fields}
        if self.config.body:
            asked["extra_body"] = self.config.body
        if tools:
            asked["tools"] = list(tools)
        request = request_id(self.config.base_url, key, asked)
        if (known := self._journal.get(request)) is not None:
            self.spend.reused += 1
            return known
        if self._is_draining:
            raise asyncio.CancelledError

        def write() -> Body:
            return self._writer.write(
                messages,
                model=self.model,
                max_tokens=max_tokens,
                temperature=temperature,
                tools=tools,
                fields=fields,
            )

        async def request_and_keep() -> ApiReply:
            reply = await self._request_with_retries(write, max_tokens=max_tokens)
            self._journal.add(request, reply)
            return reply

        task = asyncio.create_task(request_and_keep())
        self._under_way.add(task)
        task.add_done_callback(self._end)
        return await task

    def _end(self, task: asyncio.Task[ApiReply]) -> None:
        """Forget a request that is over, also if nobody waits for its reply any more."""
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio would log one that nobody has looked at

    def connect(self) -> Any:
        """Return the client library's client; the first call imports it, which takes a second."""
        if self._client is None:
            import openai

            connect_timeout = min(_CONNECT_TIMEOUT_SECONDS, self.config.timeout)
            try:
                self._client = openai.AsyncOpenAI(
                    base_url=self.config.base_url,
                    api_key=self._api_key,
                    max_retries=0,  # its own retries know neither a deadline nor a budget
                    timeout=openai.Timeout(self.config.timeout, connect=connect_timeout),
                )
            except Exception as error:  # of the library beneath: a proxy, the address
                raise UserError(
                    f"{self._address}: no client can be made: {one_line(str(error))}{_proxies()}"
                ) from None
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

    async def _request_with_retries(
        self, write: Callable[[], Body], *, max_tokens: int
    ) -> ApiReply:
        self.connect()
        turn = await self._contact.enter()
        deadline = time.monotonic() + self.config.deadline
        attempts, outcomes = count(), list[str]()

        async def attempt() -> ApiReply:
            if next(attempts):
                self.spend.retries += 1
            with turn:  # over after the first attempt
                if self._is_draining:
                    raise asyncio.CancelledError
                if self._hopeless is not None:
                    raise self._hopeless
                return await self._attempt(
                    write(), max_tokens=max_tokens, deadline=deadline, outcomes=outcomes
                )

        policy = RetryPolicy(
            longest_pause_seconds=_LONGEST_PAUSE_SECONDS,
            limit_seconds=self.config.deadline,
            is_temporary=lambda error: isinstance(error, TemporaryApiError),
            requested_pause=_requested_pause,
        )
        try:
            return await policy.call_async(attempt)
        except TemporaryApiError as error:
            raise self._too_late(str(error)) from None
        except FullContext:
            raise
        except ApiError as error:
            if self._contact.refuses_all(str(error)):
                message = f"{self._address}: refuses every request: {error}"
                self._hopeless = UserError(message)
                raise self._hopeless from None
            raise

    async def _attempt(
        self, body: Body, *, max_tokens: int, deadline: float, outcomes: list[str]
    ) -> ApiReply:
        """Send the request once; `outcomes` are those of the attempts at it, to which one is added.

        Raises what the failure means.
        """
        await self._wait_while_busy(deadline)
        prompt = [body["messages"], body.get("tools") or []]
        reservation = await self._budget.reserve(
            prompt_tokens=max_tokens_of(json.dumps(prompt, ensure_ascii=False)),
            completion_tokens=self._writer.max_tokens(max_tokens),
        )
        with reservation:
            try:
                reply = await self._request(body, reservation, deadline=deadline)
            except Exception as error:
                if api_errors.is_unpaid(error):
                    reservation.settle(prompt_tokens=0, completion_tokens=0, usd=0.0)
                raise self._failure(error, body, outcomes) from None
            reservation.settle(
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                usd=reply.usd,
            )
        self._contact.answered()
        return reply

    async def _wait_while_busy(self, deadline: float) -> None:
        """Wait out the pause that the server asked for in reply to any of the requests."""
        while (now := time.monotonic()) < self._busy_until:  # which may move meanwhile
            if self._busy_until >= deadline:
                raise self._too_late("the service is busy")
            await asyncio.sleep(self._busy_until - now)

    async def _request(self, body: Body, reservation: Reservation, *, deadline: float) -> ApiReply:
        started = time.monotonic()
        remaining = max(_SHORTEST_TIMEOUT_SECONDS, deadline - started)
        async with asyncio.timeout(min(self.config.timeout, remaining)):
            answer = await self._send(body)
        reply = read_reply(
            answer,
            seconds=time.monotonic() - started,
            max_prompt_tokens=reservation.prompt_tokens,
            max_completion_tokens=reservation.completion_tokens,
        )
        if reply.usd is None:
            usd = self._budget.price_usd(reply.prompt_tokens, reply.completion_tokens)
            reply = replace(reply, usd=usd)
        return reply

    async def _send(self, body: Body) -> Any:
        """Return the JSON that the server sends, pieces of a stream put together."""
        rest = {key: value for key, value in body.items() if key not in ("model", "messages")}
        response = await self.connect().chat.completions.with_raw_response.create(
            model=body["model"], messages=body["messages"], extra_body=rest
        )
        text = response.http_response.text
        return read_stream(text) if is_stream(text) else decoded(text)

    def _failure(self, error: Exception, body: Body, outcomes: list[str]) -> Exception:
        """Return the error as what it means: for this request, for all, or for a moment."""
        is_unreached = api_errors.is_connection_failure(error) and not self._contact.is_reached
        self._contact.is_reached = not is_unreached
        hopeless = api_errors.failure_of_all(
            error, self.config, setting=self.setting, model=self.model
        )
        if hopeless is not None:
            self._hopeless = UserError(self._without_key(str(hopeless)))
            return self._hopeless
        reason = self._without_key(api_errors.reason(error, self.config, setting=self.setting))
        if self._writer.learn(reason, status=api_errors.status_of(error), body=body):
            return TemporaryApiError(reason, is_changed=True)
        is_first_turn = all(message["role"] != "assistant" for message in body["messages"])
        if api_errors.is_full_context(error, is_first_turn=is_first_turn):
            return FullContext(reason)
        if not api_errors.is_temporary(error):
            return ApiError(reason)
        is_foreign = isinstance(error, MalformedReply) and not error.is_completion
        is_internal = api_errors.status_of(error) == 500
        if (is_unreached or is_foreign or is_internal) and self._contact.is_hopeless(
            outcomes, reason, is_internal=is_internal
        ):
            if is_unreached:
                self._hopeless = UserError(f"{self._address}: {reason}{_proxies()}")
                return self._hopeless
            return ApiError(f"{reason} (at each of {len(outcomes)} attempts)")
        self._contact.open()
        pause = api_errors.retry_after_seconds(error)
        if pause:  # holds for all requests: they would be refused as well
            self._busy_until = max(self._busy_until, time.monotonic() + pause)
        return TemporaryApiError(reason, retry_after_seconds=pause)

    @property
    def _address(self) -> str:
        return f"{self.setting}.base_url={self.config.base_url}"

    def _too_late(self, reason: str) -> ApiError:
        limit = f"{self.setting}.deadline={self.config.deadline:g} s"
        return ApiError(f"{reason} (no answer within {limit})")

    def _without_key(self, text: str) -> str:
        return text.replace(self._api_key, "***") if self._api_key != _NO_KEY else text


def api_key(config: EndpointConfig, setting: str) -> str:
    """Return the key from the environment or .env; a server on this machine may do without.

    Raises a `UserError` where another server's key is not set.
    """
    if config.api_key_env is None:
        return _NO_KEY
    from hydra_modal_jobs import read_dotenv

    name = config.api_key_env
    key = (os.environ.get(name) or read_dotenv(".env").get(name) or "").strip()
    if not key and urlsplit(config.base_url or "").hostname not in LOCAL_HOSTS:
        raise UserError(
            f"{setting}.api_key_env={name}: this variable is not set; put the key of "
            f"{config.base_url} there (.env is read), or name another variable"
        )
    if strays := re.findall(r"[^!-~]", key):  # such as a typographic quote, or half of two lines
        raise UserError(
            f"{setting}.api_key_env={name}: the key in {name} has a character that no key has "
            f"({strays[0]!a}); copy it once more"
        )
    return key or _NO_KEY


def _requested_pause(error: Exception) -> float | None:
    """Return the pause before the next attempt that the server asked for; None for the usual."""
    if not isinstance(error, TemporaryApiError):
        return None
    return 0.0 if error.is_changed else error.retry_after_seconds or None


def _proxies() -> str:
    """Return a hint at the proxies that the environment sets; empty without any."""
    names = sorted(name for name in os.environ if name.upper() in _PROXY_VARIABLES)
    return f"; a proxy is set in {', '.join(names)}" if names else ""
