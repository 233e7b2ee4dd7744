"""Episodes played as messages, by a model behind an endpoint; tools are called by its API."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from environments import Environment
from rl_experiments.errors import UserError
from rl_experiments.inference.api_client import ApiClient, ApiReply, EndpointError, ToolCall
from rl_experiments.rollout.episodes import Episode, EpisodeSpec, Trajectory

_GIVE_UP = 20  # requests in a row that fail for good: the service itself is at fault
_GRACE = 10.0  # seconds for the answers under way once we are told to stop: they are paid for


def play(
    environment: Environment,
    endpoint: ApiClient,
    tasks: Sequence[EpisodeSpec],
    *,
    max_tokens: int,
    temperature: float,
    on_end: Callable[[Trajectory], None],
) -> None:
    """Play all tasks, `concurrency` episodes at once; each is handed over as it ends."""
    games = _Games(environment, endpoint, max_tokens=max_tokens, temperature=temperature)
    with asyncio.Runner() as runner:
        try:
            runner.run(games.play(tasks, on_end))
        except BaseException:
            runner.run(games.settle())
            raise
        finally:
            runner.run(endpoint.close())


class _Games:
    def __init__(
        self, environment: Environment, endpoint: ApiClient, *, max_tokens: int, temperature: float
    ) -> None:
        self.environment = environment
        self.endpoint = endpoint
        self.max_tokens = max_tokens
        self.temperature = temperature
        self._failed_in_a_row = 0
        self._workers: list[asyncio.Task[None]] = []
        self._asking: set[asyncio.Task[ApiReply]] = set()

    async def play(
        self, tasks: Sequence[EpisodeSpec], on_end: Callable[[Trajectory], None]
    ) -> None:
        waiting = list(tasks)[::-1]

        async def work() -> None:
            while waiting:
                on_end(await self._episode(waiting.pop()))

        count = min(self.endpoint.config.concurrency, len(tasks))
        self._workers = [asyncio.create_task(work()) for _ in range(count)]
        await asyncio.gather(*self._workers)

    async def settle(self) -> None:
        """Begin nothing more; wait a moment for the answers under way, which the journal keeps."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._asking:
            await asyncio.wait(self._asking, timeout=_GRACE)

    async def _episode(self, task: EpisodeSpec) -> Trajectory:
        episode = Episode(self.environment, task)
        usage = episode.trajectory.usage
        answers: list[ApiReply] = []
        while not episode.over:
            try:
                answer = await self._turn(episode, task, answers)
            except EndpointError as error:
                episode.fail(error)
                self._failed_in_a_row += 1
                if self._failed_in_a_row >= _GIVE_UP:
                    raise UserError(
                        f"{self.endpoint.setting}.base_url={self.endpoint.config.base_url}: the "
                        f"last {_GIVE_UP} requests failed: {error}"
                    ) from None
                break
            self._failed_in_a_row = 0
            answers.append(answer)
            usage.add(answer.prompt_tokens, answer.completion_tokens, answer.usd)
            text = as_text(answer)
            if self.environment.is_slow:
                await asyncio.to_thread(episode.reply, text)
            else:
                episode.reply(text)
        return episode.trajectory

    async def _turn(
        self, episode: Episode, task: EpisodeSpec, answers: Sequence[ApiReply]
    ) -> ApiReply:
        names = _safe_names(episode.trajectory.tools)
        asking = asyncio.create_task(
            self.endpoint.ask(
                messages(episode, answers),
                key=f"{task.seed}/{task.member}/{len(answers)}",
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                tools=_renamed(episode.trajectory.tools, names),
            )
        )
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        # Whoever is stopped stops waiting; the answer may still come to the journal.
        answer = await asyncio.shield(asking)
        own = {safe: name for name, safe in names.items()}
        calls = tuple(
            ToolCall(call.id, own.get(call.name, call.name), call.arguments)
            for call in answer.tool_calls
        )
        return ApiReply(**{**vars(answer), "tool_calls": calls})


def messages(episode: Episode, answers: Sequence[ApiReply]) -> list[dict[str, Any]]:
    """What the policy sees, as the API takes it."""
    trajectory, found = episode.trajectory, list[dict[str, Any]]()
    if trajectory.system_prompt:
        found.append({"role": "system", "content": trajectory.system_prompt})
    names = _safe_names(trajectory.tools)
    turns = trajectory.turns
    shown = episode.environment.earlier_turns_shown
    first = 0 if shown is None else max(0, len(turns) - 1 - shown)
    called: ApiReply | None = None  # the answer before the turn, where it called tools
    for turn, answer in zip(turns[first:], [*answers[first:], None], strict=True):
        if called and turn.role == "tool":
            found[-1] = _calling(called, names)
            for number, call in enumerate(called.tool_calls):
                # One observation answers them all; the API wants one for each.
                content = turn.observation if number == 0 else "(see the first result)"
                found.append({"role": "tool", "tool_call_id": call.id, "content": content})
        else:
            found.append({"role": "user", "content": turn.observation})
        if answer:
            found.append({"role": "assistant", "content": as_text(answer)})
        called = answer if answer and answer.tool_calls else None
    return found


def as_text(answer: ApiReply) -> str:
    """The reply as environments read it: calls in the Hermes format, after what was said."""
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": '
        f"{call.arguments.strip() or '{}'}}}\n</tool_call>"
        for call in answer.tool_calls
    ]
    return "\n".join([answer.content, *calls] if answer.content else calls)


def _calling(answer: ApiReply, names: dict[str, str]) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": names.get(call.name, call.name), "arguments": call.arguments},
        }
        for call in answer.tool_calls
    ]
    return {"role": "assistant", "content": answer.content or None, "tool_calls": calls}


def _safe_names(tools: Sequence[dict[str, Any]] | None) -> dict[str, str]:
    """The tools' names as the API takes them: letters, digits, _ and -, at most 64."""
    found: dict[str, str] = {}
    for tool in tools or ():
        name = str(tool["function"]["name"])
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
        while safe in found.values():
            safe = f"{safe[:62]}_{len(found) % 10}"
        found[name] = safe
    return found


def _renamed(
    tools: Sequence[dict[str, Any]] | None, names: dict[str, str]
) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    return [
        {**tool, "function": {**tool["function"], "name": names[tool["function"]["name"]]}}
        for tool in tools
    ]
