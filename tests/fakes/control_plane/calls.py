"""Answers about calls: start them, wait for their results, cancel them."""

from __future__ import annotations

import time
from collections import Counter

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from grpclib import GRPCError
from grpclib import Status as RPCStatus
from modal_proto import api_pb2

from tests.fakes.control_plane.records import Call, Input, Status
from tests.fakes.control_plane.rpc import Rpc, unary

MAX_POLL_SECONDS = 60.0


class CallAnswers(Rpc):
    """The RPCs by which a client makes a call and follows it."""

    @unary
    async def FunctionMap(self, request: api_pb2.FunctionMapRequest) -> api_pb2.FunctionMapResponse:
        if request.function_call_type == api_pb2.FUNCTION_CALL_TYPE_MAP:
            raise GRPCError(
                RPCStatus.UNIMPLEMENTED, "the stand-in answers spawn and remote, not map"
            )
        function, number = self.function(request.function_id), len(self.state.calls)
        if function.app.stopped:
            raise GRPCError(RPCStatus.FAILED_PRECONDITION, f"App {function.app.id} is stopped")
        invocation = request.function_call_invocation_type
        call = Call(self.state.new_id("fc"), number, function, invocation)
        self.state.calls[call.id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            retry_policy=function.definition.retry_policy,
            pipelined_inputs=[self._put_input(call, item) for item in request.pipelined_inputs],
        )

    @unary
    async def FunctionPutInputs(
        self, request: api_pb2.FunctionPutInputsRequest
    ) -> api_pb2.FunctionPutInputsResponse:
        call = self.call(request.function_call_id)
        return api_pb2.FunctionPutInputsResponse(
            inputs=[self._put_input(call, item) for item in request.inputs]
        )

    @unary
    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self.call(request.function_call_id)
        deadline = time.time() + min(request.timeout, MAX_POLL_SECONDS)
        last = max(request.end_idx, request.start_idx)
        while True:
            wanted = [item for item in call.inputs if request.start_idx <= item.index <= last]
            outputs = [item.output for item in wanted if item.output is not None]
            if outputs or time.time() >= deadline:
                break
            await self.state.changed.wait(deadline - time.time())
        unfinished = sum(item.output is None for item in call.inputs)
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs,
            idxs=[output.idx for output in outputs],
            num_unfinished_inputs=unfinished,
        )

    @unary
    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self.call(request.function_call_id)
        metadata = api_pb2.FunctionCallHandleMetadata(
            app_id=call.function.app.id, function_id=call.function.id
        )
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.id, num_inputs=len(call.inputs), metadata=metadata
        )

    @unary
    async def FunctionCallGetInfo(
        self, request: api_pb2.FunctionCallGetInfoRequest
    ) -> api_pb2.FunctionCallGetInfoResponse:
        call = self.call(request.function_call_id)
        kinds = Counter(_kind(item) for item in call.inputs)
        totals = {
            f"{kind}_inputs": api_pb2.InputCategoryInfo(total=number)
            for kind, number in kinds.items()
        }
        info = api_pb2.FunctionCallInfo(
            function_call_id=call.id, created_at=call.created_at, total_inputs=len(call.inputs)
        )
        for name, total in totals.items():
            getattr(info, name).CopyFrom(total)
        return api_pb2.FunctionCallGetInfoResponse(info=info)

    @unary
    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest) -> Empty:
        self.scheduler.cancel(self.call(request.function_call_id), request.terminate_containers)
        return Empty()

    def _put_input(
        self, call: Call, item: api_pb2.FunctionPutInputsItem
    ) -> api_pb2.FunctionPutInputsResponseItem:
        record = Input(self.state.new_id("in"), item.idx, call, item.input)
        call.inputs.append(record)
        self.scheduler.submit(record)
        return api_pb2.FunctionPutInputsResponseItem(
            idx=item.idx, input_id=record.id, input_jwt=record.id
        )


def _kind(item: Input) -> str:
    if item.output is None:
        return "pending"
    kinds = {
        Status.GENERIC_STATUS_SUCCESS: "succeeded",
        Status.GENERIC_STATUS_TIMEOUT: "timeout",
        Status.GENERIC_STATUS_TERMINATED: "cancelled",
    }
    return kinds.get(item.output.result.status, "failed")
