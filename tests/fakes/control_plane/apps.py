"""Answers about the workspace, its environment and its apps."""

from __future__ import annotations

import time

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from modal_proto import api_pb2

from tests.fakes.control_plane.containers import layout
from tests.fakes.control_plane.records import App
from tests.fakes.control_plane.rpc import Rpc, not_found, unary

BUILDER_VERSION = "2025.06"


class AppAnswers(Rpc):
    """The RPCs that create, publish, look up and stop apps."""

    @unary
    async def ClientHello(self, request: Empty) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=BUILDER_VERSION)

    @unary
    async def WorkspaceNameLookup(self, request: Empty) -> api_pb2.WorkspaceNameLookupResponse:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name="local", username="local")

    @unary
    async def WorkspaceBillingRates(
        self, request: api_pb2.WorkspaceBillingRatesRequest
    ) -> api_pb2.WorkspaceBillingRatesResponse:
        return api_pb2.WorkspaceBillingRatesResponse(rates=self.state.rates)

    @unary
    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        metadata = api_pb2.EnvironmentMetadata(name="main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    @unary
    async def AppCreate(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        app = self._new_app("", request.app_state)
        app.description, app.tags = request.description, dict(request.tags)
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=f"local://{app.id}")

    @unary
    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        app = self.state.deployed(request.name)
        stopped = [app for app in self.state.apps.values() if app.name == request.name]
        latest = app or (stopped[-1] if stopped else None)
        return api_pb2.AppGetByDeploymentNameResponse(
            app_id=app.id if app else "",
            previous_app_id=latest.id if latest and not app else "",
            environment_name="main",
            lifecycle=_lifecycle(latest) if latest else None,
        )

    @unary
    async def AppGetLifecycle(
        self, request: api_pb2.AppGetLifecycleRequest
    ) -> api_pb2.AppGetLifecycleResponse:
        return api_pb2.AppGetLifecycleResponse(lifecycle=_lifecycle(self.app(request.app_id)))

    @unary
    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest
    ) -> api_pb2.AppGetOrCreateResponse:
        app = self.state.apps.get(request.app_name) or self.state.deployed(request.app_name)
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise not_found("App", request.app_name)
            app = self._new_app(request.app_name, api_pb2.APP_STATE_DEPLOYED)
        metadata = api_pb2.AppHandleMetadata(
            description=app.name or app.description,
            app_id=app.id,
            environment_name="main",
            functions=app.function_ids,
            lifecycle=_lifecycle(app),
        )
        return api_pb2.AppGetOrCreateResponse(app_id=app.id, handle_metadata=metadata)

    @unary
    async def AppGetLayout(
        self, request: api_pb2.AppGetLayoutRequest
    ) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(
            app_layout=layout(self.state, self.app(request.app_id).function_ids)
        )

    @unary
    async def AppPublish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        app = self.app(request.app_id)
        app.name = request.name or app.name
        app.tags |= dict(request.tags)
        app.function_ids = dict(request.function_ids)
        app.state = request.app_state or app.state
        return api_pb2.AppPublishResponse(url=f"local://{app.id}", deployed_at=time.time())

    @unary
    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest) -> Empty:
        return Empty()

    @unary
    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest) -> Empty:
        app = self.app(request.app_id)
        if app.state in (api_pb2.APP_STATE_EPHEMERAL, api_pb2.APP_STATE_INITIALIZING):
            self.scheduler.stop_app(app)
        return Empty()

    @unary
    async def AppStop(self, request: api_pb2.AppStopRequest) -> Empty:
        self.scheduler.stop_app(self.app(request.app_id))
        return Empty()

    @unary
    async def AppSetTags(self, request: api_pb2.AppSetTagsRequest) -> Empty:
        self.app(request.app_id).tags = dict(request.tags)
        return Empty()

    @unary
    async def AppGetTags(self, request: api_pb2.AppGetTagsRequest) -> api_pb2.AppGetTagsResponse:
        return api_pb2.AppGetTagsResponse(tags=self.app(request.app_id).tags)

    def _new_app(self, name: str, state: api_pb2.AppState.ValueType) -> App:
        app = App(self.state.new_id("ap"), name, state)
        self.state.apps[app.id] = app
        return app


def _lifecycle(app: App) -> api_pb2.AppLifecycle:
    return api_pb2.AppLifecycle(app_state=app.state, created_at=app.created_at)
