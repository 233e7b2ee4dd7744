"""Fixtures for launches on the stand-in for Modal."""

from tests.support.launching import client, container_server, plane

__all__ = ["client", "container_server", "plane"]
