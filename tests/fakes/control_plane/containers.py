"""A container: Modal's released entrypoint in a process and a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

from grpclib.server import Server
from modal_proto import api_pb2

from tests.fakes.control_plane.records import Function, Image, Input, LogLine, State
from tests.support.forked import ForkedProcess, ForkServer

PASSED_ON = ("LANG", "PATH", "TMPDIR", "TZ")
IMAGE_FOLDER = Path(__file__).parent / "image"


class Container:
    """A container of a function. The scheduler sets `current`, the input that it works on, and
    `leaving`, after which it gets no more inputs.
    """

    def __init__(self, state: State, function: Function, plane_id: str, python: ForkServer) -> None:
        self.state = state
        self.function = function
        self.task_id = state.new_id("ta")
        self.current: Input | None = None
        self.leaving = False
        self.ended = False
        self.preempted = False
        self.cancelled_inputs: list[str] = []
        self.task_result: api_pb2.GenericResult | None = None
        self.server: Server | None = None
        self._plane_id = plane_id
        self._python = python
        self._process: ForkedProcess | None = None

    @property
    def folder(self) -> Path:
        """The folder that stands for `/` of the container; shipped source lies under `root/`."""
        return self.state.root / "containers" / self.task_id

    async def run(self, socket: Path, extra_environment: dict[str, str]) -> int:
        """Start the container, wait for its end and return the exit status."""
        self._fill_folder()
        pipes = [
            _Lines(lambda text: self._log(text, api_pb2.FILE_DESCRIPTOR_STDOUT)),
            _Lines(lambda text: self._log(text, api_pb2.FILE_DESCRIPTOR_STDERR)),
        ]
        self._pipes = pipes
        try:
            self._process = self._python.start(
                ["-m", "modal._container_entrypoint"],
                cwd=self.folder / "root",
                env=self._environment(socket) | extra_environment,
                stdin=subprocess.DEVNULL,
                stdout=pipes[0].write_end,
                stderr=pipes[1].write_end,
            )
            for pipe in pipes:
                pipe.started()
            return await _end_of(self._process)
        finally:
            self.ended = True
            self.kill()
            for pipe in pipes:
                pipe.close()

    def flush_logs(self) -> None:
        """Log what the process has written so far as output of the current input."""
        for pipe in self._pipes:
            pipe.drain()

    def interrupt(self, grace: float) -> None:
        """End it as a preemption does: SIGINT to the entrypoint, SIGKILL to all after the grace."""
        self.leaving = True
        self._signal(signal.SIGINT)
        asyncio.get_running_loop().call_later(grace, self.kill)

    def kill(self) -> None:
        """Kill the container at once."""
        self.leaving = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _log(self, text: str, descriptor: api_pb2.FileDescriptor.ValueType) -> None:
        current = self.current
        call_id, input_id = (current.call.id, current.id) if current else ("", "")
        line = LogLine(
            time.time(), text, descriptor, self.function.id, call_id, input_id, self.task_id
        )
        self.function.app.logs.append(line)
        self.state.changed.fire()

    def _fill_folder(self) -> None:
        (self.folder / "root").mkdir(parents=True)
        definition = self.function.definition
        image = self.state.images[definition.image_id]
        for mount_id in [*image.copied_mounts, *definition.mount_ids]:
            for file in self.state.mounts[mount_id]:
                target = self.folder / file.filename.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # a lower mount may have made it, read-only
                copyfile(self.state.file(file.sha256_hex), target)
                if file.mode:
                    target.chmod(file.mode)
        for mount in definition.volume_mounts:
            self._link(Path(mount.mount_path), self.state.volumes[mount.volume_id].folder)
        this_function = {self.function.name: self.function.id}  # the app may not be published yet
        arguments = api_pb2.ContainerArguments(
            task_id=self.task_id,
            function_id=self.function.id,
            app_id=self.function.app.id,
            function_def=definition,
            environment_name="main",
            app_layout=layout(self.state, self.function.app.function_ids | this_function),
        )
        (self.folder / "arguments").write_bytes(arguments.SerializeToString())

    def _link(self, path: Path, folder: Path) -> None:
        """Link the mount path of this machine to the folder; the plane removes the link."""
        inside = self.folder / str(path).lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.symlink_to(folder)
        if path.is_symlink() and path.resolve() == folder.resolve():
            return
        if path.is_symlink() and not path.exists():
            path.unlink()  # a plane that was killed has left it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder)
        self.state.links.append(path)

    def _environment(self, socket: Path) -> dict[str, str]:
        definition = self.function.definition
        image: Image = self.state.images[definition.image_id]
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= image.environment
        for secret_id in definition.secret_ids:
            environment |= self.state.secret_values[secret_id]
        return environment | {
            "HOME": str(self.folder / "root"),
            "PYTHONPATH": f"{IMAGE_FOLDER}{os.pathsep}{self.folder / 'root'}",
            "PYTHONUNBUFFERED": "1",
            "CONTROL_PLANE": self._plane_id,
            "CONTROL_PLANE_CONTAINER": str(self.folder),
            "MODAL_SERVER_URL": f"unix://{socket}",
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": self.task_id,
            "MODAL_IMAGE_ID": definition.image_id,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(self.folder / "arguments"),
        }


def layout(state: State, function_ids: dict[str, str]) -> api_pb2.AppLayout:
    """Return the functions of an app with what a client must know of each."""
    return api_pb2.AppLayout(
        function_ids=function_ids,
        objects=[
            api_pb2.Object(
                object_id=function_id,
                function_handle_metadata=state.functions[function_id].metadata,
            )
            for function_id in function_ids.values()
        ],
    )


async def _end_of(process: ForkedProcess) -> int:
    """Wait for the end of the process and return its exit status."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    descriptor = process.fileno()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
    return process.wait()


class _Lines:
    """A pipe whose lines are delivered one by one."""

    def __init__(self, deliver: Callable[[str], None]) -> None:
        self._deliver = deliver
        self._rest = b""
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._open = True
        asyncio.get_running_loop().add_reader(self._read_end, self.drain)

    def started(self) -> None:
        """Close the writing end, of which the process has its own copy by now."""
        os.close(self.write_end)
        self.write_end = -1

    def drain(self) -> None:
        """Deliver the lines that have been written."""
        while self._open:
            try:
                chunk = os.read(self._read_end, 1 << 16)
            except BlockingIOError:
                return
            if not chunk:
                self.close()
                return
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._deliver(line.decode(errors="replace") + "\n")

    def close(self) -> None:
        """Deliver what is left, be it half a line."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(BlockingIOError):  # nothing more to read
            while chunk := os.read(self._read_end, 1 << 16):
                self._rest += chunk
        for line in self._rest.splitlines(keepends=True):
            self._deliver(line.decode(errors="replace"))
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)
        if self.write_end >= 0:
            os.close(self.write_end)
