"""The records of the stand-in for Modal: apps, images, functions, calls and their attempts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2

Status = api_pb2.GenericResult.GenericStatus


@dataclass(frozen=True)
class LogLine:
    """One line of a container's output; `descriptor` is api_pb2.FILE_DESCRIPTOR_*."""

    at: float
    text: str
    descriptor: api_pb2.FileDescriptor.ValueType
    function_id: str
    call_id: str
    input_id: str
    task_id: str


@dataclass
class App:
    """An app, running or stopped, and the output of all its containers."""

    id: str
    name: str
    state: api_pb2.AppState.ValueType
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    logs: list[LogLine] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)

    @property
    def stopped(self) -> bool:
        return self.state == api_pb2.APP_STATE_STOPPED


@dataclass(frozen=True)
class Image:
    """One layer of an image, on top of the layer `base`."""

    id: str
    definition: api_pb2.Image = field(repr=False)
    base: Image | None

    @property
    def commands(self) -> list[str]:
        """The Dockerfile lines of all layers, the lowest layer first."""
        below = self.base.commands if self.base else []
        return [*below, *self.definition.dockerfile_commands]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of `Image.env`, without those that refer to others, as PATH does."""
        lines = [line.removeprefix("ENV ") for line in self.commands if line.startswith("ENV ")]
        pairs = [shlex.split(line)[0].partition("=") for line in lines if "$" not in line]
        return {name: value for name, equals, value in pairs if equals}

    @property
    def copied_mounts(self) -> list[str]:
        """The mounts of `add_local_*(copy=True)`, the lowest layer first."""
        below = self.base.copied_mounts if self.base else []
        copies = "COPY . /" in self.definition.dockerfile_commands
        return [*below, self.definition.context_mount_id] if copies else below


@dataclass(frozen=True)
class FailedBuild:
    """A layer that is not built, because one of its commands contains `text`."""

    image_id: str
    commands: tuple[str, ...]
    text: str
    message: str

    @property
    def log(self) -> list[str]:
        """The lines that the builder and pip print."""
        number = next(n for n, command in enumerate(self.commands) if self.text in command)
        steps = [f"=> Step {n}: {self.commands[n]}\n" for n in range(number + 1)]
        failed = self.commands[number].removeprefix("RUN ")
        return [
            f"Building image {self.image_id}\n",
            *steps,
            f"ERROR: Could not find a version that satisfies the requirement {self.text}\n",
            f"ERROR: No matching distribution found for {self.text}\n",
            f'Terminating task due to error: failed to run builder command "{failed}"\n',
            "Runner failed with exit code: 1\n",
        ]


@dataclass(frozen=True)
class Secret:
    """A secret with the names of its variables. `State.secret_values` has the values."""

    id: str
    name: str
    keys: tuple[str, ...]


@dataclass
class Volume:
    """A volume, whose files lie in a folder of this machine."""

    id: str
    name: str
    version: api_pb2.VolumeFsVersion.ValueType
    folder: Path
    commits: int = 0


@dataclass(frozen=True)
class FunctionSpec:
    """The resources that the client asked for, in the units of `app.function`."""

    name: str
    implementation: str
    gpus: tuple[str, ...]
    cpu: float | tuple[float, float]
    memory: int | tuple[int, int]
    timeout: int
    retries: int
    max_containers: int
    regions: tuple[str, ...]
    cloud: str
    volumes: dict[str, str]
    secrets: tuple[str, ...]
    cluster_size: int
    image: Image


@dataclass
class Function:
    """A function: `data` has a definition for each choice of GPU, `definition` is the first."""

    id: str
    app: App
    name: str
    metadata: api_pb2.FunctionHandleMetadata
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    data: api_pb2.FunctionData = field(default_factory=api_pb2.FunctionData)
    queue: list[Input] = field(default_factory=list)
    crashes: int = 0

    @property
    def max_containers(self) -> int:
        """The most containers at a time, or 0 for no limit."""
        settings = self.definition.autoscaler_settings
        return settings.max_containers or self.definition.concurrency_limit


@dataclass
class Attempt:
    """One try at an input in one container.

    `ending` is "running", "success", "failure", "timeout", "cancelled", "preempted" or "crashed".
    """

    task_id: str
    started_at: float
    ending: str = "running"


@dataclass
class Input:
    """One input of a call. `due` is the time from which it may start, in seconds since 1970."""

    id: str
    index: int
    call: Call
    payload: api_pb2.FunctionInput
    retries: int = 0
    due: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    output: api_pb2.FunctionGetOutputsItem | None = None


@dataclass
class Call:
    """A call of a function, as `spawn` makes it."""

    id: str
    number: int
    function: Function
    invocation: api_pb2.FunctionCallInvocationType.ValueType
    inputs: list[Input] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)

    @property
    def attempts(self) -> list[Attempt]:
        """All tries at all inputs, in order."""
        return [attempt for item in self.inputs for attempt in item.attempts]

    @property
    def log(self) -> str:
        """The output of the call's containers while they worked on it."""
        return "".join(line.text for line in self.function.app.logs if line.call_id == self.id)


class Signal:
    """Wakes all tasks that wait for a change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake those who wait."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for the next change, at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), max(seconds, 0.0))


@dataclass
class State:
    """All records, by id."""

    root: Path
    apps: dict[str, App] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    broken_images: dict[str, str] = field(default_factory=dict)
    failed_builds: dict[str, FailedBuild] = field(default_factory=dict)
    mounts: dict[str, list[api_pb2.MountFile]] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    secret_values: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    rates: dict[str, str] = field(default_factory=dict)
    links: list[Path] = field(default_factory=list)
    changed: Signal = field(default_factory=Signal)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_id(self, prefix: str) -> str:
        """Return an id of Modal's length, since the client knows an app's id by its length."""
        return f"{prefix}-{next(self._numbers):022d}"

    def deployed(self, name: str) -> App | None:
        """Return the running app of this name."""
        live = (app for app in self.apps.values() if app.name == name and not app.stopped)
        return next(live, None)

    def file(self, sha256: str) -> Path:
        """Return the path of a shipped file with this hash, in hexadecimal digits."""
        return self.root / "files" / sha256

    def spec(self, function: Function) -> FunctionSpec:
        """Return the resources of a function as a test compares them."""
        made, resources = function.definition, function.definition.resources
        gpus = [ranked.function.resources.gpu_config for ranked in function.data.ranked_functions]
        cpu, cpu_max = resources.milli_cpu / 1000, resources.milli_cpu_max / 1000
        memory, memory_max = resources.memory_mb, resources.memory_mb_max
        return FunctionSpec(
            name=function.name,
            implementation=f"{made.module_name}:{made.implementation_name}",
            gpus=tuple(
                gpu.gpu_type if gpu.count == 1 else f"{gpu.gpu_type}:{gpu.count}"
                for gpu in gpus
                if gpu.count
            ),
            cpu=(cpu, cpu_max) if cpu_max else cpu,
            memory=(memory, memory_max) if memory_max else memory,
            timeout=made.timeout_secs,
            retries=made.retry_policy.retries,
            max_containers=function.max_containers,
            regions=tuple(made.scheduler_placement.regions),
            cloud=made.cloud_provider_str,
            volumes={m.mount_path: self.volumes[m.volume_id].name for m in made.volume_mounts},
            secrets=tuple(self.secrets[secret_id].name for secret_id in made.secret_ids),
            cluster_size=made._experimental_group_size,
            image=self.images[made.image_id],
        )
