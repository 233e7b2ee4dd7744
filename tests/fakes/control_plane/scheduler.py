"""The scheduler: queues, containers, retries, timeouts, cancellations and faults."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from modal_proto import api_pb2

from tests.fakes.control_plane.containers import Container
from tests.fakes.control_plane.records import App, Attempt, Call, Function, Input, State, Status
from tests.support.forked import ForkServer
from tests.support.servers import launcher_server

Serve = Callable[[Container, Path], Awaitable[None]]


@dataclass
class Settings:
    """How the stand-in treats containers."""

    grace: float = 5.0  # seconds from SIGINT to SIGKILL
    idle: float = 1.0  # seconds that a container waits for another input
    most_containers: int = 3  # of a function that sets no `max_containers`
    crash_limit: int = 3  # crashes in a row after which the inputs of an ephemeral app fail
    container_environment: dict[str, str] | None = None  # as if the image had these variables
    python: ForkServer | None = None  # forks the containers, in place of `launcher_server`


@dataclass(frozen=True)
class Preemptions:
    """Random preemption of a share of attempts, each after some seconds, drawn from a seed."""

    share: float
    seed: int
    after: tuple[float, float]

    def delay(self, item: Input) -> float | None:
        """Return the seconds after which the input is preempted, or None if it is not."""
        attempt = len(item.attempts)
        chance = random.Random(f"{self.seed}/{item.call.number}/{item.index}/{attempt}")
        return chance.uniform(*self.after) if chance.random() < self.share else None


class Scheduler:
    """Starts containers and gives them inputs. Call its methods on the event loop of the plane."""

    def __init__(self, state: State, settings: Settings, plane_id: str, serve: Serve) -> None:
        self.state = state
        self.settings = settings
        self.preemptions: Preemptions | None = None
        self.containers: list[Container] = []
        self.sockets = Path()
        self.errors: list[str] = []
        self._plane_id = plane_id
        self._python = settings.python or launcher_server()
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def submit(self, item: Input) -> None:
        """Queue a new input."""
        self.state.inputs[item.id] = item
        item.call.function.queue.append(item)
        self.schedule(item.call.function)

    def schedule(self, function: Function) -> None:
        """Start a container for each input that is due and that no free container will take."""
        self.state.changed.fire()
        if self._closed or function.app.stopped:
            return
        existing = [c for c in self.containers if c.function is function]
        free = sum(c.current is None and not c.leaving for c in existing)
        due = sum(item.due <= time.time() for item in function.queue)
        room = (function.max_containers or self.settings.most_containers) - len(existing)
        for _ in range(min(due - free, room)):
            container = Container(self.state, function, self._plane_id, self._python)
            self.containers.append(container)
            task = asyncio.get_running_loop().create_task(self._run(container))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def next_input(self, container: Container) -> Input | None:
        """Wait for an input for the container, and return it; None means that it must exit."""
        queue = container.function.queue
        deadline = time.time() + self.settings.idle
        while not container.leaving and time.time() < deadline:
            item = next((item for item in queue if item.due <= time.time()), None)
            if item is not None:
                queue.remove(item)
                self._begin(container, item)
                return item
            await self.state.changed.wait(deadline - time.time())
        container.leaving = True
        return None

    def take_output(self, container: Container, put: api_pb2.FunctionPutOutputsItem) -> None:
        """Take what a container returns for its input; a failure may be retried."""
        item, container.current = container.current, None
        if item is None or item.id != put.input_id or not _holds(container, item):
            return  # cancelled or timed out in the meantime
        container.function.crashes = 0
        output = api_pb2.FunctionGetOutputsItem(
            result=put.result,
            idx=item.index,
            input_id=item.id,
            data_format=put.data_format,
            task_id=container.task_id,
            input_started_at=put.input_started_at,
            output_created_at=put.output_created_at,
            retry_count=put.retry_count,
        )
        if put.result.status == Status.GENERIC_STATUS_SUCCESS:
            self._finish(item, output, "success")
        else:
            self._fail(item, output, "failure")

    def cancel(self, call: Call, terminate: bool) -> None:
        """Cancel what is left of a call, and interrupt its containers if `terminate`."""
        running = {c.current.id: c for c in self.containers if c.current}
        for item in call.inputs:
            if item.output is not None:
                continue
            if item in call.function.queue:
                call.function.queue.remove(item)
            self._finish(
                item, _failure(item, Status.GENERIC_STATUS_TERMINATED, "Cancelled"), "cancelled"
            )
            container = running.get(item.id)
            if container is None:
                continue
            container.cancelled_inputs.append(item.id)
            if terminate:
                container.interrupt(self.settings.grace)
            else:
                loop = asyncio.get_running_loop()
                loop.call_later(self.settings.grace, self._kill_if_busy, container, item)
        self.state.changed.fire()

    def stop_app(self, app: App) -> None:
        """Stop an app with all its calls, as when the client of an ephemeral app leaves."""
        app.state = api_pb2.APP_STATE_STOPPED
        for call in self.state.calls.values():
            if call.function.app is app:
                self.cancel(call, terminate=True)
        for container in self.containers:
            if container.function.app is app and container.current is None:
                container.kill()
        self.state.changed.fire()

    def retire(self, function: Function) -> None:
        """Give the containers of the function no more inputs, since it has been deployed anew."""
        for container in self.containers:
            if container.function is function:
                container.leaving = True
        self.state.changed.fire()

    def running(self, call: Call) -> Container | None:
        """Return the container that works on the call."""
        return next((c for c in self.containers if c.current and c.current.call is call), None)

    def runs(self, app: App) -> bool:
        """Tell whether the app has containers."""
        return any(container.function.app is app for container in self.containers)

    def preempt(self, container: Container) -> None:
        """Take the machine of a container away, after the grace."""
        container.preempted = True
        container.interrupt(self.settings.grace)

    async def close(self) -> None:
        """Kill all containers and start no more."""
        self._closed = True
        for container in self.containers:
            container.kill()
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=0.1)
            for container in self.containers:
                container.kill()

    async def _run(self, container: Container) -> None:
        socket = self.sockets / f"{container.task_id}.sock"
        try:
            await self._serve(container, socket)
            await container.run(socket, self.settings.container_environment or {})
        except Exception as error:
            self.errors.append(traceback.format_exc())
            container.task_result = api_pb2.GenericResult(
                status=Status.GENERIC_STATUS_FAILURE,
                exception=f"The stand-in could not run the container: {error!r}",
            )
        finally:
            if container.server is not None:
                container.server.close()
            self.containers.remove(container)
            shutil.rmtree(container.folder, ignore_errors=True)
        self._ended(container)

    def _begin(self, container: Container, item: Input) -> None:
        container.current = item
        attempt = Attempt(container.task_id, time.time())
        item.attempts.append(attempt)
        loop = asyncio.get_running_loop()
        seconds = container.function.definition.timeout_secs or 300
        loop.call_later(seconds, self._time_out, container, item, attempt)
        if self.preemptions and (delay := self.preemptions.delay(item)) is not None:
            loop.call_later(delay, self._preempt_attempt, container, attempt)
        self.state.changed.fire()

    def _preempt_attempt(self, container: Container, attempt: Attempt) -> None:
        if attempt.ending == "running" and not container.ended:
            self.preempt(container)

    def _time_out(self, container: Container, item: Input, attempt: Attempt) -> None:
        if attempt.ending != "running":
            return
        seconds = container.function.definition.timeout_secs
        message = f"Task's current input {item.id} hit its timeout of {seconds}s"
        self._fail(item, _failure(item, Status.GENERIC_STATUS_TIMEOUT, message), "timeout")
        container.kill()

    def _kill_if_busy(self, container: Container, item: Input) -> None:
        if container.current is item and not container.ended:
            container.kill()

    def _fail(self, item: Input, output: api_pb2.FunctionGetOutputsItem, ending: str) -> None:
        """Queue the input once more if the retry policy allows, else end it with this output."""
        function, policy = item.call.function, item.call.function.definition.retry_policy
        if item.retries >= policy.retries:
            self._finish(item, output, ending)
            return
        delay_ms = policy.initial_delay_ms * (policy.backoff_coefficient or 1.0) ** item.retries
        item.retries += 1
        item.attempts[-1].ending = ending
        self._requeue(item, min(delay_ms, policy.max_delay_ms or delay_ms) / 1000)
        self.schedule(function)

    def _requeue(self, item: Input, delay: float) -> None:
        function = item.call.function
        item.due = time.time() + delay
        function.queue.insert(0, item)
        asyncio.get_running_loop().call_later(delay + 0.01, self.schedule, function)

    def _finish(self, item: Input, output: api_pb2.FunctionGetOutputsItem, ending: str) -> None:
        item.output = output
        if item.attempts:
            item.attempts[-1].ending = ending
        self.state.changed.fire()

    def _ended(self, container: Container) -> None:
        """Queue the input that the container has left undone; that does not count as a retry."""
        function, item = container.function, container.current
        container.current = None
        lost = item is not None and _holds(container, item)
        if item is not None and lost:
            item.attempts[-1].ending = "preempted" if container.preempted else "crashed"
        if (lost or container.task_result) and not container.preempted:
            function.crashes += 1
        if function.crashes >= self.settings.crash_limit and _ephemeral(function.app):
            for waiting in [*function.queue, *([item] if item and lost else [])]:
                self._finish(waiting, _crashed(waiting, container), "crashed")
            function.queue.clear()
        elif item is not None and lost:
            self._requeue(item, 0.0 if container.preempted else 0.2 * 2**function.crashes)
        self.schedule(function)


def _holds(container: Container, item: Input) -> bool:
    """Tell whether the container's attempt at the input is the current one."""
    attempt = item.attempts[-1]
    return attempt.task_id == container.task_id and attempt.ending == "running"


def _ephemeral(app: App) -> bool:
    return app.state == api_pb2.APP_STATE_EPHEMERAL


def _failure(item: Input, status: Status.ValueType, message: str) -> api_pb2.FunctionGetOutputsItem:
    result = api_pb2.GenericResult(status=status, exception=message)
    return api_pb2.FunctionGetOutputsItem(result=result, idx=item.index, input_id=item.id)


def _crashed(item: Input, container: Container) -> api_pb2.FunctionGetOutputsItem:
    """Return the output of an input that crashed: the error that its container sent, if any."""
    output = _failure(item, Status.GENERIC_STATUS_FAILURE, "The container crashed repeatedly")
    if container.task_result is not None:
        output.result.CopyFrom(container.task_result)
    return output
