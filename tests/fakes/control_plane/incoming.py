"""Requests that reach the stand-in: counted, kept for tests, and refused where a test wants it."""

from __future__ import annotations

import pickle
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message  # type: ignore[import-untyped]
from grpclib import GRPCError
from grpclib import Status as RPCStatus
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase


class Incoming:
    """Keeps requests in a file, since those of a run would take too much memory."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._path = path
        self._size = 0  # bytes of the file that hold whole requests
        self._refusals: defaultdict[str, list[tuple[RPCStatus, str]]] = defaultdict(list)
        self._lock = threading.Lock()

    def take(self, rpc: str, request: Message) -> None:
        """Keep the request. Raise the error that a test wants it answered with."""
        with self._lock, self._path.open("ab") as file:
            pickle.dump((rpc, without_secrets(request).SerializeToString()), file)
            self._size = file.tell()
            self.counts[rpc] += 1
            refusal = self._refusals[rpc].pop(0) if self._refusals[rpc] else None
        if refusal is not None:
            raise GRPCError(*refusal)

    def refuse(self, rpc: str, status: RPCStatus, message: str, times: int) -> None:
        """Refuse the next `times` requests of this RPC, in place of earlier refusals."""
        if not hasattr(ModalClientBase, rpc):
            raise ValueError(f"Modal has no RPC named {rpc!r}")
        with self._lock:
            self._refusals[rpc] = [(status, message)] * times

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        with self._lock:
            size = self._size
        if not size:
            return
        with self._path.open("rb") as file:
            while file.tell() < size:
                yield pickle.load(file)


def without_secrets(request: Message) -> Message:
    """Return the request without the values of secrets, which Modal may know; names stay."""
    secrets = (api_pb2.SecretGetOrCreateRequest, api_pb2.SecretUpdateRequest)
    if not isinstance(request, secrets):
        return request
    kept = type(request)()
    kept.CopyFrom(request)
    if isinstance(kept, api_pb2.SecretGetOrCreateRequest):
        for name in request.env_dict:
            kept.env_dict[name] = ""
    else:
        for update in kept.updates:
            update.value = ""
    return kept
