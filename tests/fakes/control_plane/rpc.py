"""The frame of all answers: an RPC is a method that maps a request to a response."""

from __future__ import annotations

import abc
import contextlib
import functools
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message  # type: ignore[import-untyped]
from grpclib import GRPCError
from grpclib import Status as RPCStatus
from grpclib.server import Stream
from modal_proto.api_grpc import ModalClientBase

from tests.fakes.control_plane.containers import Container
from tests.fakes.control_plane.incoming import Incoming
from tests.fakes.control_plane.records import App, Call, Function
from tests.fakes.control_plane.scheduler import Scheduler

S = TypeVar("S", bound="Rpc")
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Handler = Callable[[S, Stream[Request, Response]], Coroutine[Any, Any, None]]


def unary(method: Callable[[S, Request], Awaitable[Response]]) -> Handler[S, Request, Response]:
    """Make an RPC of a method that maps a request to a response."""

    @functools.wraps(method)
    async def handler(self: S, stream: Stream[Request, Response]) -> None:
        request = await self.take(method.__name__, stream)
        if request is None:
            return
        with self.errors_kept():
            response = await method(self, request)
        await stream.send_message(response)

    return handler


def streamed(
    method: Callable[[S, Request], AsyncGenerator[Response, None]],
) -> Handler[S, Request, Response]:
    """Make an RPC of a method that yields several responses to a request."""

    @functools.wraps(method)
    async def handler(self: S, stream: Stream[Request, Response]) -> None:
        request = await self.take(method.__name__, stream)
        if request is None:
            return
        async with contextlib.aclosing(method(self, request)) as responses:
            while True:
                with self.errors_kept():
                    response = await anext(responses, None)
                if response is None:
                    return
                # Outside of `errors_kept`: a client that has left is no error of the stand-in.
                await stream.send_message(response)

    return handler


def complete(service: Any) -> Any:
    """Add an answer for each RPC that the service lacks: an error that names the RPC."""

    def missing(name: str) -> Callable[..., Coroutine[Any, Any, None]]:
        async def handler(self: Rpc, stream: Stream[Any, Any]) -> None:
            await self.take(name, stream)
            self.errors.append(f"{name} is not answered by the stand-in")
            raise GRPCError(RPCStatus.UNIMPLEMENTED, self.errors[-1])

        return handler

    for name in service.__abstractmethods__:
        setattr(service, name, missing(name))
    return abc.update_abstractmethods(service)


class Rpc(ModalClientBase):
    """The state that all answers share. `container` is the one that asks; None for a client."""

    def __init__(
        self,
        scheduler: Scheduler,
        container: Container | None,
        *,
        blobs: dict[str, bytes],
        blob_url: Callable[[str], str],
        incoming: Incoming,
    ) -> None:
        self.scheduler = scheduler
        self.state = scheduler.state
        self.container = container
        self.blobs = blobs
        self.blob_url = blob_url
        self.incoming = incoming
        self.errors = scheduler.errors

    async def take(self, name: str, stream: Stream[Request, Any]) -> Request | None:
        """Return the request of an RPC, or None if the other side has left."""
        request = await stream.recv_message()
        if request is not None:
            self.incoming.take(name, request)
        return request

    @contextlib.contextmanager
    def errors_kept(self) -> Iterator[None]:
        """Keep the traceback of an error for the test, and answer with the error."""
        try:
            yield
        except GRPCError:
            raise
        except Exception as error:
            self.errors.append(traceback.format_exc())
            raise GRPCError(
                RPCStatus.FAILED_PRECONDITION, f"The stand-in failed: {error!r}"
            ) from error

    @property
    def caller(self) -> Container:
        """The container that asks. Raises where a client asks for what only containers may."""
        if self.container is None:
            raise GRPCError(RPCStatus.PERMISSION_DENIED, "only containers may call this")
        return self.container

    def app(self, app_id: str) -> App:
        """Return the app with this id. Raises "not found"."""
        if app_id not in self.state.apps:
            raise not_found("App", app_id)
        return self.state.apps[app_id]

    def function(self, function_id: str) -> Function:
        """Return the function with this id. Raises "not found"."""
        if function_id not in self.state.functions:
            raise not_found("Function", function_id)
        return self.state.functions[function_id]

    def call(self, call_id: str) -> Call:
        """Return the call with this id. Raises "not found"."""
        if call_id not in self.state.calls:
            raise not_found("FunctionCall", call_id)
        return self.state.calls[call_id]


def not_found(kind: str, name: str) -> GRPCError:
    """Return the error for a name or id that the stand-in does not know."""
    return GRPCError(RPCStatus.NOT_FOUND, f"{kind} {name!r} not found")
