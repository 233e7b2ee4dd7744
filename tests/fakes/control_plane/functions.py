"""Answers about functions: define them, look them up, vary their resources."""

from __future__ import annotations

from typing import Any

from modal_proto import api_pb2

from tests.fakes.control_plane import gpus
from tests.fakes.control_plane.records import App, Function
from tests.fakes.control_plane.rpc import Rpc, not_found, unary


class FunctionAnswers(Rpc):
    """The RPCs that create functions and find them."""

    @unary
    async def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest
    ) -> api_pb2.FunctionPrecreateResponse:
        function = self.state.functions.get(request.existing_function_id)
        if function is None:
            function = self._new_function(self.app(request.app_id), request.function_name)
        metadata = function.metadata
        metadata.function_type = request.function_type
        metadata.function_schema.CopyFrom(request.function_schema)
        del metadata.supported_input_formats[:], metadata.supported_output_formats[:]
        metadata.supported_input_formats.extend(request.supported_input_formats)
        metadata.supported_output_formats.extend(request.supported_output_formats)
        return api_pb2.FunctionPrecreateResponse(function_id=function.id, handle_metadata=metadata)

    @unary
    async def FunctionCreate(
        self, request: api_pb2.FunctionCreateRequest
    ) -> api_pb2.FunctionCreateResponse:
        function = self.function(request.existing_function_id)
        for ranked in request.function_data.ranked_functions:
            gpus.check(ranked.function.resources.gpu_config)
        gpus.check(request.function.resources.gpu_config)
        if request.HasField("function_data"):
            function.data = request.function_data
            function.definition = request.function_data.ranked_functions[0].function
        else:
            self._define(function, request.function)
        function.metadata.definition_id = self.state.new_id("de")
        self.scheduler.retire(function)
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=function.definition,
            function_data=function.data,
            handle_metadata=function.metadata,
        )

    @unary
    async def FunctionGet(self, request: api_pb2.FunctionGetRequest) -> api_pb2.FunctionGetResponse:
        app = self.state.deployed(request.app_name)
        if app is None or request.object_tag not in app.function_ids:
            raise not_found("Function", f"{request.app_name}/{request.object_tag}")
        function = self.function(app.function_ids[request.object_tag])
        return api_pb2.FunctionGetResponse(
            function_id=function.id, handle_metadata=function.metadata, function=function.data
        )

    @unary
    async def FunctionGetById(
        self, request: api_pb2.FunctionGetByIdRequest
    ) -> api_pb2.FunctionGetByIdResponse:
        function = self.function(request.function_id)
        return api_pb2.FunctionGetByIdResponse(
            function=function.data, handle_metadata=function.metadata
        )

    @unary
    async def FunctionBindParams(
        self, request: api_pb2.FunctionBindParamsRequest
    ) -> api_pb2.FunctionBindParamsResponse:
        """Copy a function with some of its resources replaced, for `Function.with_options`."""
        base = self.function(request.function_id)
        options: Any = request.function_options
        gpus.check(options.resources.gpu_config)
        bound = self._new_function(base.app, base.name)
        bound_id = bound.metadata.definition_id
        bound.metadata.CopyFrom(base.metadata)
        bound.metadata.definition_id = bound_id
        definition = api_pb2.Function()
        definition.CopyFrom(base.definition)
        for name in ("resources", "retry_policy", "scheduler_placement"):
            if options.HasField(name):
                getattr(definition, name).CopyFrom(getattr(options, name))
        for name in ("concurrency_limit", "timeout_secs", "cloud_provider_str"):
            if options.HasField(name):
                setattr(definition, name, getattr(options, name))
        if options.HasField("concurrency_limit"):
            definition.autoscaler_settings.max_containers = options.concurrency_limit
        for name in ("volume_mounts", "secret_ids"):
            if getattr(options, f"replace_{name}"):
                definition.ClearField(name)  # type: ignore[arg-type]
            getattr(definition, name).extend(getattr(options, name))
        self._define(bound, definition)
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=bound.id, handle_metadata=bound.metadata
        )

    def _new_function(self, app: App, name: str) -> Function:
        function_id, definition_id = self.state.new_id("fu"), self.state.new_id("de")
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=name, app_id=app.id, definition_id=definition_id
        )
        function = Function(function_id, app, name, metadata)
        self.state.functions[function_id] = function
        return function

    def _define(self, function: Function, definition: api_pb2.Function) -> None:
        ranked = api_pb2.FunctionData.RankedFunction(rank=0, function=definition)
        function.definition = definition
        function.data = api_pb2.FunctionData(
            module_name=definition.module_name,
            function_name=definition.function_name,
            implementation_name=definition.implementation_name,
            timeout_secs=definition.timeout_secs,
            autoscaler_settings=definition.autoscaler_settings,
            ranked_functions=[ranked],
        )
