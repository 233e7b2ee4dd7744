"""What is faster than Hydra's own does the same, and steps aside for another Hydra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode

from rl_experiments.config.hydra_private import always_multirun, fast_help
from rl_experiments.config.registration import register
from rl_experiments.paths import CONF_DIR

UNCHANGED = ConfigLoaderImpl._parse_overrides_and_create_caching_repo

# Prints the help under a version of Hydra, and to stderr how often Hydra copied its configs.
HELP = """
import atexit, sys
import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from rl_experiments.cli import main

calls = []
original = ConfigLoaderImpl._parse_overrides_and_create_caching_repo
def counting(*arguments):
    calls.append(arguments)
    return original(*arguments)
ConfigLoaderImpl._parse_overrides_and_create_caching_repo = counting
atexit.register(lambda: print(len(calls), file=sys.stderr))
hydra.__version__ = sys.argv[1]
sys.argv[1:] = ["--help"]
main()
"""


def help_under(version: str, cwd: Path) -> tuple[str, int]:
    """Return the help under this version of Hydra, and how often Hydra copied its configs."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, version], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr)


@pytest.mark.slow
def test_the_fast_help_is_the_text_of_hydras_own(tmp_path: Path) -> None:
    fast, copies = help_under(hydra.__version__, tmp_path)
    text_of_hydra, copies_of_hydra = help_under("another", tmp_path)
    assert fast == text_of_hydra and "Verbs:" in fast
    assert copies < copies_of_hydra / 5


def test_another_version_of_hydra_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra, "__version__", "1.4.0")
    with fast_help():
        assert ConfigLoaderImpl._parse_overrides_and_create_caching_repo is UNCHANGED


def test_hydra_is_as_before_after_the_help() -> None:
    with fast_help():
        assert ConfigLoaderImpl._parse_overrides_and_create_caching_repo is not UNCHANGED
    assert ConfigLoaderImpl._parse_overrides_and_create_caching_repo is UNCHANGED


def test_a_launch_is_a_sweep_as_hydra_reads_it_from_the_configuration(
    hydra_restore_singletons: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    search_path = create_config_search_path(str(CONF_DIR))
    own = Hydra.create_main_hydra2(task_name="test", config_search_path=search_path)
    assert own.get_mode("config", ["hydra.verbose=false"]) is RunMode.MULTIRUN
    unchanged = Hydra.get_mode
    with always_multirun():
        assert own.get_mode("config", ["no_such_setting=1"]) is RunMode.MULTIRUN
    assert Hydra.get_mode is unchanged
    monkeypatch.setattr(hydra, "__version__", "1.4.0")
    with always_multirun():
        assert Hydra.get_mode is unchanged
