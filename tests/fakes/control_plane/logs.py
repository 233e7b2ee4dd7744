"""Answers about logs: follow them as they grow, count their lines, fetch a part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator

from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from modal_proto import api_pb2

from tests.fakes.control_plane.records import LogLine
from tests.fakes.control_plane.rpc import Rpc, streamed, unary


class LogAnswers(Rpc):
    """The RPCs that read the output of containers."""

    @streamed
    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest
    ) -> AsyncGenerator[api_pb2.TaskLogsBatch, None]:
        app = self.app(request.app_id)
        position = int(request.last_entry_id or 0)
        deadline = time.time() + request.timeout
        while True:
            done = app.stopped and not self.scheduler.runs(app)
            for line in app.logs[position:]:
                position += 1
                if _matches(line, request, request.file_descriptor):
                    yield _batch(line, str(position))
            if done:
                yield api_pb2.TaskLogsBatch(app_done=True, entry_id=str(position))
            if done or time.time() >= deadline:
                return
            await self.state.changed.wait(deadline - time.time())

    @unary
    async def AppFetchLogs(
        self, request: api_pb2.AppFetchLogsRequest
    ) -> api_pb2.AppFetchLogsResponse:
        lines = list(self._lines_between(request))
        newest = lines[-request.limit :] if request.limit else lines
        return api_pb2.AppFetchLogsResponse(batches=[_batch(line, "") for line in newest])

    @unary
    async def AppCountLogs(
        self, request: api_pb2.AppCountLogsRequest
    ) -> api_pb2.AppCountLogsResponse:
        width = request.bucket_secs or 1
        out, err = api_pb2.FILE_DESCRIPTOR_STDOUT, api_pb2.FILE_DESCRIPTOR_STDERR
        counts = Counter(
            (int(line.at // width) * width, line.descriptor)
            for line in self._lines_between(request)
        )
        buckets = [
            api_pb2.AppCountLogsResponse.LogBucket(
                bucket_start_at=Timestamp(seconds=start),
                stdout_logs=counts[start, out],
                stderr_logs=counts[start, err],
            )
            for start in sorted({start for start, _ in counts})
        ]
        return api_pb2.AppCountLogsResponse(app_id=request.app_id, buckets=buckets)

    def _lines_between(
        self, request: api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest
    ) -> Iterator[LogLine]:
        since, until = request.since.ToNanoseconds() / 1e9, request.until.ToNanoseconds() / 1e9
        for line in self.app(request.app_id).logs:
            if since <= line.at < until and _matches(line, request, request.source):
                yield line


def _matches(
    line: LogLine,
    wanted: api_pb2.AppGetLogsRequest | api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest,
    descriptor: api_pb2.FileDescriptor.ValueType,
) -> bool:
    return (
        wanted.function_call_id in ("", line.call_id)
        and wanted.function_id in ("", line.function_id)
        and wanted.task_id in ("", line.task_id)
        and descriptor in (api_pb2.FILE_DESCRIPTOR_UNSPECIFIED, line.descriptor)
        and wanted.search_text in line.text
    )


def _batch(line: LogLine, entry_id: str) -> api_pb2.TaskLogsBatch:
    item = api_pb2.TaskLogs(
        data=line.text,
        timestamp=line.at,
        timestamp_ns=int(line.at * 1e9),
        file_descriptor=line.descriptor,
        function_call_id=line.call_id,
        input_id=line.input_id,
        container_id=line.task_id,
    )
    return api_pb2.TaskLogsBatch(
        items=[item],
        entry_id=entry_id,
        task_id=line.task_id,
        function_id=line.function_id,
        input_id=line.input_id,
    )
