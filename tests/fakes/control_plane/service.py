"""The service of the stand-in: all answers to clients, and the answers to containers."""

from __future__ import annotations

import time

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from modal_proto import api_pb2

from tests.fakes.control_plane.apps import AppAnswers
from tests.fakes.control_plane.calls import CallAnswers
from tests.fakes.control_plane.functions import FunctionAnswers
from tests.fakes.control_plane.images import ImageAnswers
from tests.fakes.control_plane.logs import LogAnswers
from tests.fakes.control_plane.objects import ObjectAnswers
from tests.fakes.control_plane.rpc import complete, unary

HEARTBEAT_SECONDS = 14.0  # shorter than the container's interval of 15 seconds


class Service(AppAnswers, ObjectAnswers, ImageAnswers, FunctionAnswers, CallAnswers, LogAnswers):
    """Every RPC; the methods below are those that containers call."""

    @unary
    async def ContainerHello(self, request: Empty) -> Empty:
        return Empty()

    @unary
    async def ContainerHeartbeat(
        self, request: api_pb2.ContainerHeartbeatRequest
    ) -> api_pb2.ContainerHeartbeatResponse:
        deadline = time.time() + HEARTBEAT_SECONDS
        while not self.caller.cancelled_inputs and time.time() < deadline:
            await self.state.changed.wait(deadline - time.time())
        response = api_pb2.ContainerHeartbeatResponse()
        if self.caller.cancelled_inputs:
            response.cancel_input_event.input_ids.extend(self.caller.cancelled_inputs)
            self.caller.cancelled_inputs.clear()
        return response

    @unary
    async def FunctionGetInputs(
        self, request: api_pb2.FunctionGetInputsRequest
    ) -> api_pb2.FunctionGetInputsResponse:
        item = await self.scheduler.next_input(self.caller)
        if item is None:
            exit_now = api_pb2.FunctionGetInputsItem(kill_switch=True)
            return api_pb2.FunctionGetInputsResponse(inputs=[exit_now])
        work = api_pb2.FunctionGetInputsItem(
            input_id=item.id,
            input=item.payload,
            function_call_id=item.call.id,
            function_call_invocation_type=item.call.invocation,
            retry_count=item.retries,
            function_map_idx=item.index,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[work])

    @unary
    async def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest) -> Empty:
        self.caller.flush_logs()
        for output in request.outputs:
            self.scheduler.take_output(self.caller, output)
        return Empty()

    @unary
    async def TaskResult(self, request: api_pb2.TaskResultRequest) -> Empty:
        self.caller.task_result = request.result
        return Empty()

    @unary
    async def ContainerStop(
        self, request: api_pb2.ContainerStopRequest
    ) -> api_pb2.ContainerStopResponse:
        self.caller.leaving = True
        return api_pb2.ContainerStopResponse()


complete(Service)
