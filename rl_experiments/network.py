"""Ports of this machine, and whether a server answers."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


def free_port(preferred: int = 0) -> int:
    """Return the preferred port if nothing listens there, else another one that is free."""
    with socket.socket() as listener:
        # As servers do, which may take over a port whose last connections are still closing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, preferred))
        except OSError:
            listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def why_unreachable(url: str, *, timeout_seconds: float) -> str | None:
    """Return why the server does not answer, in a few words; None if it does, whatever it says.

    One attempt, where a library's own client would try for minutes.
    """
    import httpx

    try:
        httpx.head(url, timeout=timeout_seconds)
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return None
