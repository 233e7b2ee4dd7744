"""Put what Hydra and OmegaConf say in several lines into one line that names the setting."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hydra.errors import HydraException
from hydra_modal_jobs import JobFailed, LaunchRefused, read_dotenv
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError, did_you_mean, one_line
from rl_experiments.paths import CONF_DIR

_MAX_HINTED_SETTINGS = 3
_UNITS = {"gpu.timeout": "seconds", "gpu.memory": "MiB"}
# Other programs' names of settings.
_FORMER_SETTINGS = {
    "lr": "trainer.learning_rate",
    "steps": "trainer.max_steps",
    "max_tokens": "trainer.max_completion_length",
    "max_new_tokens": "trainer.max_completion_length",
    "group_size": "trainer.num_generations",
    "kl_coef": "trainer.beta",
    "n": "num_examples",
    "wandb": "logger",
    "wandb_project": "logger.project",
    "output_dir": "hydra.sweep.dir",
    "max_budget": "budget.max_usd",
}


def explain_config_error(error: BaseException) -> str | None:
    """Return one line for an error of Hydra or OmegaConf; the setting's name comes first.

    Errors that are written for the user already, by this program or by its launcher, are returned
    as they are. The result is None for an error of anything else.
    """
    if isinstance(error, UserError | JobFailed | LaunchRefused):
        return str(error)
    if isinstance(error, AssertionError):
        return _override_inside_null(error)
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    chain = _with_causes(error)
    override = _first_attribute(chain, "override")
    if override:
        return f"{override}: cannot be read; quote it, or see Hydra's override grammar"
    text = "\n".join(map(str, chain))
    for pattern, message in _MESSAGES:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            return message(match, chain)
    parts = [str(cause).split("Config search path")[0] for cause in chain]
    return one_line(": ".join(dict.fromkeys(parts)))


def _override_inside_null(error: AssertionError) -> str | None:
    """Explain the assertion that `OmegaConf.update` makes where it should raise an error.

    It fails for `model.scratch.hidden_size=8` where `model.scratch` is null.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_code is not OmegaConf.update.__code__:
        return None
    key = str(frames[-1].f_locals["key"])
    return f"{key}: {key.rpartition('.')[0]} is null in this configuration, so it has no settings"


def _with_causes(error: BaseException) -> list[BaseException]:
    """Return the error, what caused it, what caused that, and so on."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _first_attribute(chain: Sequence[BaseException], name: str) -> Any:
    """Return the first value of this attribute in the chain that is not empty."""
    values = (getattr(error, name, None) for error in chain)
    return next((value for value in values if value), None)


def _no_such_choice(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    group, _, choice = match["path"].partition("/")
    if group == "hydra":
        part, _, choice = choice.partition("/")
        group = f"hydra/{part}"
    choices = _first_attribute(chain, "options") or []
    choices = choices or [file.stem for file in (CONF_DIR / group).glob("*.yaml")]
    hint = _habit(group, choice) or did_you_mean(choice, choices)
    return f"{group}={choice}: no such choice{hint}"


def _habit(group: str, choice: str) -> str:
    """Return a hint for a choice as other programs write it; the empty string if it is not one."""
    if group == "model" and re.fullmatch(r"[\w.-]+/[\w.-]+", choice):
        for file in sorted((CONF_DIR / "model").glob("*.yaml")):
            if re.search(rf"^\s*path: {re.escape(choice)}\s*$", file.read_text(), re.M):
                return f"; write model={file.stem}"
        return f"; write model.path={choice}, beside the model=... that is most like it"
    name, _, count = choice.partition(":")
    if group == "gpu" and count.isdigit() and (CONF_DIR / f"gpu/{name.lower()}.yaml").is_file():
        return f"; write gpu={name.lower()} gpu.count={count}"
    return ""


def _no_such_setting(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    key = match["key"]
    parent, _, leaf = key.rpartition(".")
    siblings = [str(name) for name in _first_attribute(chain, "parent_node") or []]
    hint = did_you_mean(leaf, siblings)
    if parent and "did you mean " in hint:
        hint = hint.replace("did you mean ", f"did you mean {parent}.")
    if not parent and "did you mean " not in hint:
        hint = hint_for_leaf(leaf) or hint
    if key.startswith("trainer.extra."):
        hint = f"; to pass it to TRL write +{key}=..."
    return f"{key}: no such setting{hint}"


def hint_for_leaf(name: str) -> str:
    """Return a hint for a setting that was named without its group, such as `learning_rate`."""
    leaves = _leaves(OmegaConf.structured(Config))
    meant = [key for key in leaves if key.rpartition(".")[2] == name.replace("-", "_")]
    meant = meant or [_FORMER_SETTINGS[name]] if name in _FORMER_SETTINGS else meant
    return f"; did you mean {' or '.join(meant)}?" if 0 < len(meant) <= _MAX_HINTED_SETTINGS else ""


def _leaves(config: Any, prefix: str = "") -> list[str]:
    """Return the full names of all settings that have a place in the schema."""
    names = []
    for key in config:
        name = f"{prefix}{key}"
        value = None if OmegaConf.is_missing(config, key) else config[key]
        names += _leaves(value, f"{name}.") if OmegaConf.is_dict(value) else [name]
    return names


def _missing_value(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    return f"{match['key']}: a value is missing; give {match['key']}=..."


def _value_for_a_group(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    key = match["key"].lstrip("+")
    names = [name for name in _leaves(OmegaConf.structured(Config)) if name.startswith(f"{key}.")]
    return f"{key}: is a group of settings; give one of {', '.join(names)}"


def _wrong_value(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    return f"{match['key']}: {one_line(match['reason'])}"


def _no_list(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    return f"{match['key']}: takes a list; write {match['key']}=[...]"


def _no_number(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    key, value = match["key"], match["value"]
    hint = f"; give {_UNITS[key]}" if key in _UNITS else ""
    with suppress(ValueError):
        if match["kind"] == "Integer" and float(value).is_integer():
            hint = f"; write {key}={int(float(value))}"
    return _wrong_value(match, chain) + hint


def _no_such_variable(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    name = match["name"]
    line = f"{name}: this environment variable is not set, but a setting has ${{oc.env:{name}}}"
    with suppress(LaunchRefused, OSError):
        if name in read_dotenv(".env"):
            return f"{line}; .env is read by the jobs alone, so export it"
    return f"{line}; set it"


def _no_such_key(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    key = match["key"]
    return f"{key}: no such setting, but another one refers to ${{{key}}}"


def _list_of_choices(match: re.Match[str], chain: Sequence[BaseException]) -> str:
    group, choice = match["group"], match["choice"]
    return f"{group}=[...]: give one, such as {group}={choice}; {group}=a,b sweeps over both"


# What the libraries say, and the function that says it in one line; the first match counts.
_MESSAGES: tuple[tuple[str, Callable[[re.Match[str], Sequence[BaseException]], str]], ...] = (
    (r"Could not find '(?P<path>[\w./@-]+/[^']+)'", _no_such_choice),
    (r"Could not override '(?P<key>[^']+)'", _no_such_setting),
    (r"Key '[^']*' (?:not in|is not in) .*?full_key: (?P<key>\S+)", _no_such_setting),
    (r"override (?P<key>[\w.+]+)=.*?is not a subclass of", _value_for_a_group),
    (r"Missing mandatory value: (?P<key>\S+)", _missing_value),
    (r"Could not load '(?P<group>\w+)/(?P<choice>[\w.-]+)'", _list_of_choices),
    (r"Environment variable '(?P<name>[^']+)' not found", _no_such_variable),
    (r"Interpolation key '(?P<key>[^']+)' not found", _no_such_key),
    (r"is not a ListConfig, list or tuple.*?full_key: (?P<key>\S+)", _no_list),
    (
        r"(?P<reason>Value '(?P<value>[^'\n]*)' of type '\w+' could not be converted to "
        r"(?P<kind>Integer|Float))\s+full_key: (?P<key>\S+)",
        _no_number,
    ),
    (
        r"(?P<reason>Value .*?|Invalid value .*?|Unsupported .*?)\n\s+full_key: (?P<key>\S+)",
        _wrong_value,
    ),
)
