"""The overrides of a command line, read by Hydra's own grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from rl_experiments.paths import CONF_DIR
from rl_experiments.terminal.text import print_line


def override_texts(overrides: Sequence[str]) -> dict[str, str]:
    """Return what each override sets: the text after its `=`, by the name of the setting or group.

    Overrides that Hydra cannot parse are left out; Hydra reports them when it composes.

    >>> override_texts(["env=game2048,wordle", "++seed=3", "~logger"])
    {'env': 'game2048,wordle', 'seed': '3', 'logger': ''}
    """
    parser = OverridesParser.create()
    texts = {}
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException:
            continue
        texts[override.key_or_group] = word.partition("=")[2]
    return texts


def override_groups(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the value of each override that sets a list or a group of settings, by its name.

    >>> override_groups(["seed=3", "++model.body={top_k: 5}", "logger.tags=[a, b]"])
    {'model.body': {'top_k': 5}, 'logger.tags': ['a', 'b']}
    """
    parser = OverridesParser.create()
    groups = {}
    for word in overrides:
        with suppress(HydraException):
            override = parser.parse_override(word)
            if not override.is_sweep_override() and isinstance(override.value(), dict | list):
                groups[override.key_or_group] = override.value()
    return groups


def expand_shorthand(override: str) -> str:
    """Return the override with its full name and with the present name of an environment.

    `checkpoint=X` stands for `checkpoint.path=X`. An environment may be spelled as the verifiers
    library does: `env=vf-wordle` is `env=wordle`.
    """
    group, _, value = override.partition("=")
    if group == "checkpoint":
        return f"checkpoint.path={value}"
    if group == "env":
        return f"env={','.join(_present_name(name) for name in value.split(','))}"
    return override


def _present_name(environment: str) -> str:
    """Return the name in conf/env for a spelling of the verifiers library."""
    name = re.sub(r"^vf[-_]", "", environment.lower()).replace("-", "_")
    if _is_in_conf(environment) or not _is_in_conf(name):
        return environment
    if name == "tool_test" and environment != "tool-test":
        print_line(f"env={environment}: an old name; it is tool_test now", is_error=True)
    return name


def _is_in_conf(environment: str) -> bool:
    return (CONF_DIR / "env" / f"{environment}.yaml").is_file()
