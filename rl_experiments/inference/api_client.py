"""A model behind an OpenAI-compatible address: requests outlast its faults, and are counted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rl_experiments.config.schema import EndpointConfig
from rl_experiments.errors import UserError, one_line
from rl_experiments.storage.files import append_json_lines, keep_json_lines, read_json_lines

Message = Mapping[str, Any]  # as the API takes it

LOCAL = ("localhost", "127.0.0.1", "::1")


class EndpointError(Exception):
    """A request that failed for good; others may still succeed."""


class BudgetSpent(UserError):
    """A limit on requests, tokens or money does not allow another request."""


class _Malformed(Exception):
    """An answer that is none."""


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # JSON, as the model wrote it


@dataclass(frozen=True, kw_only=True)
class ApiReply:
    """What the model said, and what it took. `usd` is None where no price is known."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    seconds: float = 0.0


@dataclass
class Spend:
    """What was asked for so far. Tries whose answer was lost count as what they may have cost."""

    requests: int = 0  # tries
    retries: int = 0
    reused: int = 0  # answers that the journal had
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


class ApiClient:
    """Asks one model; for use in one event loop.

    `setting` is the group that configures it, as messages name it. With a `journal`, a file of its
    own, each answer is kept, and the same request under the same key is answered from there.
    """

    def __init__(
        self, config: EndpointConfig, *, model: str, setting: str, journal: Path | None = None
    ) -> None:
        self.config = config
        self.model = model
        self.setting = setting
        self.meter = Spend()
        self._journal = journal
        self._answers: dict[str, ApiReply] = {}
        if journal:
            keep_json_lines(journal, lambda _: True)  # without a line that a kill has torn
        for record in read_json_lines(journal) if journal else ():
            self._answers[record["key"]] = _restored(record["answer"])
        self._key = api_key(config, setting)
        self._client: Any = None
        self._not_before = 0.0  # by the clock of `time.monotonic`
        self._reserved: list[tuple[int, float]] = []  # tokens and money of the tries under way
        self._returned = asyncio.Condition()

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
        """One completion. `key` tells requests apart that are to be drawn anew.

        Raises `EndpointError` when this request fails for good, `UserError` when all would.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": temperature}
        body |= {_limit_name(self.config.base_url): max_tokens, **fields}
        if self.config.body:
            body["extra_body"] = self.config.body
        if tools:
            body["tools"] = list(tools)
        name = _digest([self.config.base_url, key, body])
        if name in self._answers:
            self.meter.reused += 1
            return self._answers[name]
        answer = await self._insist(body, tokens=_most_tokens(body), replies=max_tokens)
        self._answers[name] = answer
        if self._journal:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            append_json_lines(self._journal, [{"key": name, "answer": asdict(answer)}])
        return answer

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _insist(self, body: dict[str, Any], *, tokens: int, replies: int) -> ApiReply:
        client = self.connect()
        deadline = time.monotonic() + self.config.deadline
        for attempt in count():
            while self._not_before > time.monotonic():  # it may have moved meanwhile
                await self._wait_until(self._not_before, deadline, why="the service is busy")
            async with self._within_budget(tokens, replies) as spend:
                started = time.monotonic()
                try:
                    limit = min(self.config.timeout, max(0.1, deadline - started))
                    async with asyncio.timeout(limit):
                        answer = self._read(await self._complete(client, body), started)
                    spend(answer.prompt_tokens, answer.completion_tokens, answer.usd)
                    return answer
                except Exception as error:
                    status = getattr(error, "status_code", None)
                    if status is not None:  # refused: not paid for
                        spend(0, 0, 0.0)
                    said = self._reason(error)
                    if not self._is_passing(error):
                        raise EndpointError(said) from None
                    pause = _retry_after(error)
            if not pause:
                pause = min(20.0, 0.5 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
            else:  # holds for all: they would be refused as well
                self._not_before = max(self._not_before, time.monotonic() + pause)
            await self._wait_until(time.monotonic() + pause, deadline, why=said)
            self.meter.retries += 1
        raise AssertionError

    async def _wait_until(self, moment: float, deadline: float, *, why: str) -> None:
        if moment >= deadline:
            raise EndpointError(
                f"{why} (no answer within {self.setting}.deadline={self.config.deadline:g} s)"
            )
        await asyncio.sleep(max(0.0, moment - time.monotonic()))

    async def _complete(self, client: Any, body: dict[str, Any]) -> Any:
        if not self.config.stream:
            return await client.chat.completions.create(**body)
        options = {"include_usage": True}
        async with client.chat.completions.stream(**body, stream_options=options) as stream:
            finished = False
            async for event in stream:
                if event.type == "chunk":
                    finished = finished or any(c.finish_reason for c in event.chunk.choices)
            if not finished:
                raise _Malformed("the answer broke off")
            return stream.current_completion_snapshot

    def connect(self) -> Any:
        """The client, made at the first call, which takes a second of imports."""
        if self._client is None:
            import openai

            self._client = openai.AsyncOpenAI(
                base_url=self.config.base_url,
                api_key=self._key,
                max_retries=0,  # it has no limit of time for all tries, nor a budget
                timeout=self.config.timeout,
            )
        return self._client

    def _read(self, completion: Any, started: float) -> ApiReply:
        """Whatever is not a completion is malformed: servers answer 200 with many things."""
        try:
            message = completion.choices[0].message
            content = message.content or ""
            calls = tuple(
                ToolCall(str(call.id), str(call.function.name), str(call.function.arguments or ""))
                for call in message.tool_calls or ()
            )
            usage = completion.usage
            tokens = (int(usage.prompt_tokens), int(usage.completion_tokens)) if usage else (0, 0)
            told = getattr(usage, "cost", None)  # OpenRouter's
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _Malformed("the answer is no completion") from error
        if not isinstance(content, str):
            raise _Malformed("the answer is no completion")
        usd = float(told) if isinstance(told, int | float) else self._price(*tokens)
        return ApiReply(
            content=content,
            tool_calls=calls,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            usd=usd,
            seconds=time.monotonic() - started,
        )

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        if self.config.input_usd is None or self.config.output_usd is None:
            return None
        paid = prompt_tokens * self.config.input_usd + completion_tokens * self.config.output_usd
        return paid / 1e6

    @asynccontextmanager
    async def _within_budget(self, prompt: int, replies: int) -> AsyncIterator[Any]:
        """Sets aside what a try may cost at most, and counts what it did cost.

        Waits for the tries under way while only what they may cost stands in the way.
        """
        most = (prompt + replies, self._price(prompt, replies) or 0.0)
        async with self._returned:
            while spent := self._limit_reached(most):
                if not self._reserved:
                    raise BudgetSpent(
                        f"{spent} is spent ({self.meter.requests} requests, "
                        f"{self.meter.prompt_tokens + self.meter.completion_tokens} tokens, "
                        f"{self.meter.usd:.4f} USD); raise it"
                    )
                await self._returned.wait()
            self._reserved.append(most)
            self.meter.requests += 1
        actual: tuple[int, int, float] = (prompt, replies, most[1])

        def spend(prompt_tokens: int, completion_tokens: int, usd: float | None) -> None:
            nonlocal actual
            actual = (prompt_tokens, completion_tokens, usd or 0.0)

        try:
            yield spend
        finally:
            self._reserved.remove(most)
            self.meter.prompt_tokens += actual[0]
            self.meter.completion_tokens += actual[1]
            self.meter.usd += actual[2]
            async with self._returned:
                self._returned.notify_all()

    def _limit_reached(self, most: tuple[int, float]) -> str | None:
        """The limit that another try might pass, if there is one."""
        tokens = self.meter.prompt_tokens + self.meter.completion_tokens
        tokens += most[0] + sum(tokens for tokens, _ in self._reserved)
        usd = self.meter.usd + most[1] + sum(usd for _, usd in self._reserved)
        for name, value in (
            ("max_requests", self.meter.requests + 1),
            ("max_total_tokens", tokens),
            ("max_usd", usd),
        ):
            limit = getattr(self.config, name)
            if limit is not None and value > limit:
                return f"{self.setting}.{name}={limit:g}"
        return None

    def _reason(self, error: Exception) -> str:
        """What went wrong; a `UserError` where every request would meet it."""
        status = getattr(error, "status_code", None)
        where = f"{self.setting}.base_url={self.config.base_url}"
        code = str(getattr(error, "code", ""))
        if status == 401:
            raise UserError(
                f"{where}: refuses the key; see the variable that {self.setting}.api_key_env="
                f"{self.config.api_key_env} names"
            ) from None
        if status == 402 or code == "insufficient_quota":
            raise UserError(f"{where}: the account has no credit left") from None
        if status == 404:
            raise UserError(
                f"{where}: knows no such address or no model {self.model} (404); see both"
            ) from None
        if isinstance(error, TimeoutError) or type(error).__name__ == "APITimeoutError":
            return f"no answer within {self.setting}.timeout={self.config.timeout:g} s"
        if isinstance(error, _Malformed):
            return str(error)
        if isinstance(error, ValueError):
            return "the answer is no JSON"
        if status is not None:
            return f"status {status}: {self._without_key(one_line(str(error)))[:200]}"
        cause = error.__cause__ or error
        return f"the connection failed ({type(cause).__name__})"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key != _NO_KEY else text

    @staticmethod
    def _is_passing(error: Exception) -> bool:
        """Whether another try may do better."""
        status = getattr(error, "status_code", None)
        return status is None or status in (408, 409, 425, 429) or status >= 500


_NO_KEY = "none"


def api_key(config: EndpointConfig, setting: str) -> str:
    """The key in the environment; a local server may do without."""
    if config.api_key_env is None:
        return _NO_KEY
    from dotenv import dotenv_values

    name = config.api_key_env
    key = os.environ.get(name) or dotenv_values(".env").get(name)
    if not key and urlsplit(config.base_url or "").hostname not in LOCAL:
        raise UserError(
            f"{setting}.api_key_env={config.api_key_env}: this variable is not set; put the key "
            f"of {config.base_url} there (.env is read), or name another variable"
        )
    return key or _NO_KEY


def _limit_name(base_url: str | None) -> str:
    """OpenAI's newer models refuse the name that all other servers know."""
    host = urlsplit(base_url or "").hostname or ""
    return "max_completion_tokens" if host.endswith("openai.com") else "max_tokens"


def _most_tokens(body: Mapping[str, Any]) -> int:
    """What the prompt may be billed as at most: a token is a byte or more."""
    shown = [body["messages"], body.get("tools") or []]
    return len(json.dumps(shown, ensure_ascii=False).encode())


def _retry_after(error: Exception) -> float | None:
    """The seconds to wait that the server asks for."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    said = headers.get("retry-after-ms")
    scale = 1000.0
    if said is None:
        said, scale = headers.get("retry-after"), 1.0
    if said is None:
        return None
    try:
        seconds = float(said) / scale
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _restored(record: dict[str, Any]) -> ApiReply:
    calls = tuple(ToolCall(**call) for call in record.pop("tool_calls"))
    return ApiReply(**record, tool_calls=calls)
