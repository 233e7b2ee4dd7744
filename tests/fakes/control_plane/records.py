"""What the stand-in remembers: plain records that tests look at."""

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
    """One layer; `base` is the layer below it."""

    id: str
    definition: api_pb2.Image = field(repr=False)
    base: Image | None

    @property
    def commands(self) -> list[str]:
        """The Dockerfile lines of every layer, from the bottom."""
        below = self.base.commands if self.base else []
        return [*below, *self.definition.dockerfile_commands]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of `Image.env`; those that refer to others, such as PATH, are left out."""
        lines = [line.removeprefix("ENV ") for line in self.commands if line.startswith("ENV ")]
        pairs = [shlex.split(line)[0].partition("=") for line in lines if "$" not in line]
        return {name: value for name, equals, value in pairs if equals}

    @property
    def copied_mounts(self) -> list[str]:
        """Of `add_local_*(copy=True)`, from the bottom; their files say where they go."""
        below = self.base.copied_mounts if self.base else []
        copies = "COPY . /" in self.definition.dockerfile_commands
        return [*below, self.definition.context_mount_id] if copies else below


@dataclass(frozen=True)
class FailedBuild:
    """A layer with a command that contains the text which the test said cannot be built."""

    image_id: str
    commands: tuple[str, ...]
    text: str
    message: str

    @property
    def log(self) -> list[str]:
        """As the builder and pip print it."""
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
    """A name and the names of its variables; the values stay with the plane."""

    id: str
    name: str
    keys: tuple[str, ...]


@dataclass
class Volume:
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
    """`definition` is the one with the first choice of GPU; `data` has them all."""

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
        settings = self.definition.autoscaler_settings
        return settings.max_containers or self.definition.concurrency_limit


@dataclass
class Attempt:
    """`ending` is how it went: success, failure, timeout, cancelled, preempted or crashed."""

    task_id: str
    started_at: float
    ending: str = "running"


@dataclass
class Input:
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
    id: str
    number: int
    function: Function
    invocation: api_pb2.FunctionCallInvocationType.ValueType
    inputs: list[Input] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)

    @property
    def attempts(self) -> list[Attempt]:
        return [attempt for item in self.inputs for attempt in item.attempts]

    @property
    def log(self) -> str:
        return "".join(line.text for line in self.function.app.logs if line.call_id == self.id)


class Signal:
    """Wakes everyone who waits for something to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), max(seconds, 0.0))


@dataclass
class State:
    """Everything on the server, by id; secrets' values and files' contents are kept apart."""

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
        """As long as Modal's: the client takes `ap-` and 22 letters or digits for an app's id."""
        return f"{prefix}-{next(self._numbers):022d}"

    def deployed(self, name: str) -> App | None:
        live = (app for app in self.apps.values() if app.name == name and not app.stopped)
        return next(live, None)

    def file(self, sha256: str) -> Path:
        return self.root / "files" / sha256

    def spec(self, function: Function) -> FunctionSpec:
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
