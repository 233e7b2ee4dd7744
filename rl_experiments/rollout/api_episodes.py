"""Episodes played as chat messages by a model behind an API; tools are called by its own means."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from environments import Environment
from environments.replies import NamedCall, ReplyWithCalls
from rl_experiments.errors import UserError
from rl_experiments.inference.api_client import ApiClient
from rl_experiments.inference.api_errors import ApiError, FullContext
from rl_experiments.inference.api_reply import ApiReply, ToolCall
from rl_experiments.rollout.episode import Episode
from rl_experiments.rollout.types import EpisodeSpec, Trajectory

_MAX_FAILURES_IN_A_ROW = 20  # requests that failed for good: the service itself is at fault
_DRAIN_SECONDS = 10.0  # for the replies under way when the evaluation is stopped
_SEE_FIRST_RESULT = "(see the first result)"
_SEE_NEXT_MESSAGE = "(see the next message)"
_MAX_TOOL_NAME_LENGTH = 64  # characters that the API takes


def play(
    environment: Environment,
    client: ApiClient,
    specs: Sequence[EpisodeSpec],
    *,
    max_tokens: int,
    temperature: float,
    on_end: Callable[[Trajectory], None],
) -> None:
    """Play all episodes, `client.config.concurrency` at once; `on_end` gets each as it ends.

    Raises a `UserError` where no request can succeed. When the evaluation is stopped, the replies
    under way are waited for a moment, so that the client's journal has them.
    """
    player = _ApiPlayer(environment, client, max_tokens=max_tokens, temperature=temperature)
    with asyncio.Runner() as runner:
        try:
            runner.run(player.play(specs, on_end))
        except BaseException:
            runner.run(player.stop())
            raise
        finally:
            runner.run(client.close())


class _ApiPlayer:
    """Several episodes in play at once, each a conversation with the model."""

    def __init__(
        self, environment: Environment, client: ApiClient, *, max_tokens: int, temperature: float
    ) -> None:
        self.environment = environment
        self.client = client
        self.max_tokens = max_tokens
        self.temperature = temperature
        self._failures_in_a_row = 0
        self._workers: list[asyncio.Task[None]] = []

    async def play(
        self, specs: Sequence[EpisodeSpec], on_end: Callable[[Trajectory], None]
    ) -> None:
        waiting = list(specs)[::-1]

        async def work() -> None:
            while waiting:
                on_end(await self._episode(waiting.pop()))

        count = min(self.client.config.concurrency, len(specs))
        self._workers = [asyncio.create_task(work()) for _ in range(count)]
        await asyncio.gather(*self._workers)

    async def stop(self) -> None:
        """Play no further turn, and wait a moment for the replies under way."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self.client.drain(_DRAIN_SECONDS)

    async def _episode(self, spec: EpisodeSpec) -> Trajectory:
        episode = Episode(self.environment, spec)
        usage = episode.trajectory.usage
        replies: list[ApiReply] = []
        while not episode.over:
            try:
                reply = await self._ask(episode, spec, replies)
            except FullContext:
                episode.truncate()
                break
            except ApiError as error:
                episode.fail(error)
                self._failures_in_a_row += 1
                if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
                    raise UserError(
                        f"{self.client.setting}.base_url={self.client.config.base_url}: the "
                        f"last {_MAX_FAILURES_IN_A_ROW} requests failed: {error}"
                    ) from None
                break
            self._failures_in_a_row = 0
            replies.append(reply)
            if reply.is_usage_known:
                usage.add(reply.prompt_tokens, reply.completion_tokens, reply.usd)
            usage.cut_replies += reply.is_cut
            usage.withheld_replies += reply.is_withheld
            text = as_text(reply)
            if self.environment.is_slow:
                await asyncio.to_thread(episode.reply, text)
            else:
                episode.reply(text)
        return episode.trajectory

    async def _ask(
        self, episode: Episode, spec: EpisodeSpec, replies: Sequence[ApiReply]
    ) -> ApiReply:
        """Return the model's reply to the episode's present turn, with the tools' own names."""
        api_names = _api_tool_names(episode.trajectory.tools)
        request = asyncio.create_task(
            self.client.ask(
                messages(episode, replies),
                key=f"{spec.seed}/{spec.member}/{len(replies)}",
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                tools=_with_names(episode.trajectory.tools, api_names),
            )
        )
        # A worker that is cancelled stops waiting, but the reply may still reach the journal.
        reply = await asyncio.shield(request)
        own_names = {api_name: name for name, api_name in api_names.items()}
        calls = tuple(
            ToolCall(call.id, own_names.get(call.name, call.name), call.arguments)
            for call in reply.tool_calls
        )
        return ApiReply(**{**vars(reply), "tool_calls": calls})


def messages(episode: Episode, replies: Sequence[ApiReply]) -> list[dict[str, Any]]:
    """Return what the policy sees of the episode, as the API takes it.

    `replies` are the model's replies so far, one to each turn before the present one.
    """
    trajectory, chat = episode.trajectory, list[dict[str, Any]]()
    if trajectory.system_prompt:
        chat.append({"role": "system", "content": trajectory.system_prompt})
    api_names = _api_tool_names(trajectory.tools)
    turns = trajectory.turns
    earlier_shown = episode.environment.earlier_turns_shown
    first = 0 if earlier_shown is None else max(0, len(turns) - 1 - earlier_shown)
    calling: ApiReply | None = None  # the reply before the turn, if it called tools
    for turn, reply in zip(turns[first:], [*replies[first:], None], strict=True):
        is_result = calling is not None and turn.role == "tool"
        for number, call in enumerate(calling.tool_calls if calling else ()):
            # One observation answers all calls; the API wants an answer to each.
            content = _SEE_NEXT_MESSAGE
            if is_result:
                content = turn.observation if number == 0 else _SEE_FIRST_RESULT
            chat.append({"role": "tool", "tool_call_id": call.id, "content": content})
        if not is_result:
            chat.append({"role": "user", "content": turn.observation})
        if reply:
            chat.append(_assistant_message(reply, api_names))
        calling = reply if reply and reply.tool_calls else None
    return chat


def as_text(reply: ApiReply) -> str:
    """Return the reply as environments read it, with the calls that came apart from its text."""
    if not reply.tool_calls:
        return reply.content
    calls = [NamedCall(call.name, call.arguments) for call in reply.tool_calls]
    return ReplyWithCalls.of(reply.content, calls)


def _assistant_message(reply: ApiReply, api_names: dict[str, str]) -> dict[str, Any]:
    if not reply.tool_calls:
        return {"role": "assistant", "content": reply.content}
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": api_names.get(call.name, call.name),
                "arguments": _object_text(call.arguments),
            },
        }
        for call in reply.tool_calls
    ]
    return {"role": "assistant", "content": reply.content or None, "tool_calls": calls}


def _object_text(arguments: str) -> str:
    """Return a call's arguments as a JSON object, which some servers decode in the history."""
    try:
        if isinstance(json.loads(arguments), dict):
            return arguments
    except (ValueError, RecursionError):
        pass
    return json.dumps({"unreadable": arguments}) if arguments.strip() else "{}"


def _api_tool_names(tools: Sequence[dict[str, Any]] | None) -> dict[str, str]:
    """Return the tools' names as the API takes them: letters, digits, _ and -, at most 64."""
    names: dict[str, str] = {}
    for tool in tools or ():
        name = str(tool["function"]["name"])
        api_name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:_MAX_TOOL_NAME_LENGTH]
        while api_name in names.values():
            api_name = f"{api_name[: _MAX_TOOL_NAME_LENGTH - 2]}_{len(names) % 10}"
        names[name] = api_name
    return names


def _with_names(
    tools: Sequence[dict[str, Any]] | None, api_names: dict[str, str]
) -> list[dict[str, Any]] | None:
    """Return the tools with their names as the API takes them."""
    if not tools:
        return None
    return [
        {**tool, "function": {**tool["function"], "name": api_names[tool["function"]["name"]]}}
        for tool in tools
    ]
