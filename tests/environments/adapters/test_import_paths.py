"""Where the adapters are imported from: stored run folders still load, no library is shadowed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from environments import Environment
from environments.adapters import GymnasiumText, ReasoningGym, TextArena
from rl_experiments.config.environment import build_environment, environment_class
from tests.support.paths import CHECKOUT

# Every target that a run folder written at commit 2f028d5 can name.
STORED_TARGETS: dict[str, type[Environment]] = {
    "environments.adapters.GymnasiumText": GymnasiumText,
    "environments.adapters.ReasoningGym": ReasoningGym,
    "environments.adapters.TextArena": TextArena,
    "environments.adapters.gymnasium_text.GymnasiumText": GymnasiumText,
    "environments.adapters.reasoning_gym.ReasoningGym": ReasoningGym,
    "environments.adapters.textarena.TextArena": TextArena,
}


@pytest.mark.parametrize("target", STORED_TARGETS)
def test_targets_of_stored_run_folders_still_load(target: str) -> None:
    assert environment_class(target) is STORED_TARGETS[target]


def test_an_environment_is_built_from_a_former_target() -> None:
    pytest.importorskip("gymnasium")
    stored: dict[str, Any] = {
        "name": "gymnasium",
        "_target_": "environments.adapters.gymnasium_text.GymnasiumText",
        "max_steps": 7,
    }
    assert build_environment(stored) == GymnasiumText(max_steps=7)


@pytest.mark.parametrize("name", ["gymnasium", "reasoning_gym", "textarena"])
def test_an_adapter_does_not_shadow_its_library(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    import_module(f"environments.adapters.{name}")
    library = Path(str(import_module(name).__file__))
    assert CHECKOUT / "environments" not in library.parents


def test_an_import_of_the_adapters_imports_no_library() -> None:
    code = (
        "import sys, environments.adapters\n"
        "print(sorted({'gymnasium', 'reasoning_gym', 'textarena', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
