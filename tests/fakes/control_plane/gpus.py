"""The GPU types that Modal has. The client passes on any name; the server refuses the others."""

from __future__ import annotations

from grpclib import GRPCError
from grpclib import Status as RPCStatus
from modal_proto import api_pb2

_EIGHT = "T4 L4 L40S A100 A100-40GB A100-80GB RTX-PRO-6000 H100 H100! H200 B200 B200+"
MAX_COUNTS = dict.fromkeys(_EIGHT.split(), 8) | {"A10": 4, "A10G": 4}


def check(config: api_pb2.GPUConfig) -> None:
    """Raise the error of Modal's server for a GPU type or count that it does not have."""
    name, count = config.gpu_type, config.count
    if not name and not count:
        return
    if name not in MAX_COUNTS:
        raise GRPCError(RPCStatus.INVALID_ARGUMENT, f"{name} is not a valid GPU type")
    if not 1 <= count <= MAX_COUNTS[name]:
        message = (
            f"{name}:{count} is not a valid GPU count: a container has 1 to {MAX_COUNTS[name]}"
        )
        raise GRPCError(RPCStatus.INVALID_ARGUMENT, message)
