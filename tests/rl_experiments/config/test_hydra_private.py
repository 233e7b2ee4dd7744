"""The faster `--help` prints what Hydra's own prints, and steps aside for another Hydra."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra

from rl_experiments import cli
from rl_experiments.config import hydra_private
from rl_experiments.config.hydra_private import fast_help

UNCHANGED = ConfigLoaderImpl._parse_overrides_and_create_caching_repo


@pytest.fixture(autouse=True)
def clean_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def printed_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["rl-experiments", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_the_fast_help_is_the_text_of_hydras_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def counting(*arguments: object) -> object:
        calls.append(arguments)
        return UNCHANGED(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ConfigLoaderImpl, "_parse_overrides_and_create_caching_repo", counting)
    fast = printed_help(monkeypatch, capsys)
    times_fast = len(calls)
    calls.clear()
    monkeypatch.setattr(hydra_private, "_HYDRA_VERSION", "another")
    own = printed_help(monkeypatch, capsys)
    assert fast == own
    assert times_fast < len(calls) / 5


def test_another_version_of_hydra_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra, "__version__", "1.4.0")
    with fast_help():
        assert ConfigLoaderImpl._parse_overrides_and_create_caching_repo is UNCHANGED


def test_hydra_is_as_before_after_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra, "__version__", hydra_private._HYDRA_VERSION)
    with fast_help():
        assert ConfigLoaderImpl._parse_overrides_and_create_caching_repo is not UNCHANGED
    assert ConfigLoaderImpl._parse_overrides_and_create_caching_repo is UNCHANGED
