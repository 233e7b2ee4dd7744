"""Answers about images: each is built at once, or fails where a test wants it to."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator

from modal_proto import api_pb2

from tests.fakes.control_plane.apps import BUILDER_VERSION
from tests.fakes.control_plane.records import FailedBuild, Image, Status
from tests.fakes.control_plane.rpc import Rpc, not_found, streamed, unary

METADATA = api_pb2.ImageMetadata(image_builder_version=BUILDER_VERSION)
BUILT = api_pb2.GenericResult(status=Status.GENERIC_STATUS_SUCCESS)


class ImageAnswers(Rpc):
    """The RPCs that build images."""

    @unary
    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest
    ) -> api_pb2.ImageGetOrCreateResponse:
        content = request.image.SerializeToString(deterministic=True)
        image_id = f"im-{hashlib.sha256(content).hexdigest()[:22]}"
        commands = tuple(request.image.dockerfile_commands)
        for text, message in self.state.broken_images.items():
            if any(text in command for command in commands):
                self.state.failed_builds[image_id] = FailedBuild(image_id, commands, text, message)
                # No result means that it is being built. The client then asks for the build's log.
                return api_pb2.ImageGetOrCreateResponse(image_id=image_id)
        self.state.failed_builds.pop(image_id, None)
        below = [self.state.images[base.image_id] for base in request.image.base_images]
        self.state.images[image_id] = Image(image_id, request.image, below[0] if below else None)
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=BUILT, metadata=METADATA)

    @streamed
    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest
    ) -> AsyncGenerator[api_pb2.ImageJoinStreamingResponse, None]:
        build = self.state.failed_builds.get(request.image_id)
        if build is None:
            if request.image_id not in self.state.images:
                raise not_found("Image", request.image_id)
            yield api_pb2.ImageJoinStreamingResponse(result=BUILT, metadata=METADATA, eof=True)
            return
        start = int(request.last_entry_id or 0)
        for number, line in enumerate(build.log[start:], start + 1):
            yield api_pb2.ImageJoinStreamingResponse(
                task_logs=[_task_log(line)], entry_id=str(number)
            )
        failure = api_pb2.GenericResult(
            status=Status.GENERIC_STATUS_FAILURE, exception=build.message
        )
        yield api_pb2.ImageJoinStreamingResponse(result=failure, eof=True)


def _task_log(line: str) -> api_pb2.TaskLogs:
    out, err = api_pb2.FILE_DESCRIPTOR_STDOUT, api_pb2.FILE_DESCRIPTOR_STDERR
    now = time.time()
    return api_pb2.TaskLogs(
        data=line,
        timestamp=now,
        timestamp_ns=int(now * 1e9),
        file_descriptor=err if line.startswith("ERROR") else out,
    )
