"""What comes in: counted, kept for the test, and refused where the test says so."""

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
    """The requests lie in a file, as a run ships and returns more than memory should hold."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._path = path
        self._size = 0  # up to here requests are whole
        self._refusals: defaultdict[str, list[tuple[RPCStatus, str]]] = defaultdict(list)
        self._lock = threading.Lock()

    def take(self, rpc: str, request: Message) -> None:
        """Keep the request, and raise what the test wants it answered with."""
        with self._lock, self._path.open("ab") as file:
            pickle.dump((rpc, without_secrets(request).SerializeToString()), file)
            self._size = file.tell()
            self.counts[rpc] += 1
            refusal = self._refusals[rpc].pop(0) if self._refusals[rpc] else None
        if refusal is not None:
            raise GRPCError(*refusal)

    def refuse(self, rpc: str, status: RPCStatus, message: str, times: int) -> None:
        """The latest word counts; `times=0` takes an earlier one back."""
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
    """A secret's values are meant to be given; the names of its variables are kept."""
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
