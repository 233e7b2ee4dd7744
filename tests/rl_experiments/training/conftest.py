"""What all tests of training share."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def libraries_are_no_garbage() -> None:
    """Keep what is imported out of garbage collections, which each training runs several of."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def cache_of_this_session(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make each tiny model once for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
