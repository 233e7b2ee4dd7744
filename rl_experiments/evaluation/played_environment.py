"""Which environment a verb plays that does not train: the plain one, or that of a run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rl_experiments.checkpoints.resolve import is_url
from rl_experiments.checkpoints.store import read_run_settings
from rl_experiments.config.diff import changed_settings
from rl_experiments.config.environment import environment_name, environment_settings
from rl_experiments.config.overrides import override_texts
from rl_experiments.config.schema import Config
from rl_experiments.errors import UserError
from rl_experiments.paths import (
    CHECKPOINTS_FOLDER,
    CONF_DIR,
    CONFIG_FILE,
    MANIFEST_FILE,
    RECORDS_FOLDER,
)

_MAX_SHOWN_DIFFERENCES = 6


def played_environment(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that make an evaluation play what the command line says.

    Without `model=...` or `variant=...` it is the plain environment, not the easier variant that
    the tiny model trains on. For `checkpoint=RUN`, or a run among `policies`, without `env=...` it
    is the run's own environment, with its settings where no override sets them. Raises a
    `UserError` if several runs differ in that, or if the settings of one cannot be read.
    """
    texts = override_texts(overrides)
    if "variant" in texts:
        return []
    is_local = texts.get("gpu", "local") == "local"
    words: dict[str, list[str]] = {}  # by checkpoint
    for path in [] if "env" in texts else _checkpoints(overrides):
        env = _environment_of_run(path)
        if env is None and not is_local:
            env = _environment_on_volume(path, overrides)
        if env is not None:
            words[path] = _environment_words(env, texts)
    if not words:
        return [] if "model" in texts or not is_local else ["variant=plain"]
    (first, result), *others = words.items()
    for path, differing in others:
        if differing != result:
            raise UserError(
                f"{first} and {path} were trained on environments that differ "
                f"({result[0]}, {differing[0]}); name the one to judge them on with env=..."
            )
    return result


def _checkpoints(overrides: Sequence[str]) -> list[str]:
    """Return the checkpoints that `checkpoint=...` names; without it, those that `policies` may."""
    parser = OverridesParser.create()
    values: dict[str, list[Any]] = {}
    for word in overrides:
        with suppress(HydraException):
            override = parser.parse_override(word)
            is_sweep = override.is_sweep_override()
            choices = list(override.sweep_iterator()) if is_sweep else [override.value()]
            values[override.key_or_group] = choices
    paths = [path for path in values.get("checkpoint.path", []) if path]
    if not paths:
        paths = [name for names in values.get("policies", []) for name in _as_list(names)]
    return [
        path
        for path in map(str, paths)
        if is_url(path) or os.path.isabs(path) or os.path.isdir(path)
    ]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _environment_words(env: Mapping[str, Any], texts: Mapping[str, str]) -> list[str]:
    """Return the overrides that make an environment, besides those that are given."""
    words = [f"env={env['name']}", "variant=plain"]
    plain = _plain_environment(env["name"])
    for key, value in env.items():
        is_given = any(name == f"env.{key}" or name.startswith(f"env.{key}.") for name in texts)
        is_plain = key in plain and plain[key] == value
        if key not in ("name", "_target_") and not is_given and not is_plain:
            words.append(f"++env.{key}={_as_override(value)}")
    return words


def _plain_environment(name: str) -> dict[str, Any]:
    """Return the settings in conf/env; empty for an environment of another conf folder."""
    file = CONF_DIR / "env" / f"{name}.yaml"
    plain = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def settings_of_run(path: str) -> dict[str, Any] | None:
    """Return the settings of the run that a checkpoint or a run folder belongs to.

    Its environment has a name and a class. Returns None if the settings are not known: another
    machine has them, the checkpoint does not hold them, or the folder is of no run. Raises a
    `UserError` for a store that cannot be read.
    """
    if is_url(path):
        text = _settings_in_store(path)
        return None if text is None else _settings_in(text)
    folder = Path(path)
    if not folder.is_dir():
        return None
    for file in map(Path, _settings_files(folder.absolute())):
        settings = _settings_in(file.read_text(errors="replace")) if file.is_file() else None
        if settings is not None:
            return settings
    return None


def _environment_of_run(path: str) -> dict[str, Any] | None:
    settings = settings_of_run(path)
    return None if settings is None else _environment_in(settings)


def _environment_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in settings["env"].items()}


def _settings_files(folder: PurePath) -> list[PurePath]:
    """Return where the settings of the run may be of which a folder is, or is a part."""
    folders = (folder / RECORDS_FOLDER, folder, folder / "0", *folder.parents[:2])
    return [candidate / CONFIG_FILE for candidate in folders]


def _environment_on_volume(path: str, overrides: Sequence[str]) -> dict[str, Any] | None:
    """Return the `env` settings of a run on the outputs volume that the jobs of a launch see.

    Raises a `UserError` if the volume cannot be read.
    """
    from hydra_modal_jobs import LaunchRefused, read_output

    words = [word for word in overrides if "hydra.launcher.volumes." in word.partition("=")[0]]
    with initialize_config_dir(version_base=None, config_dir=str(CONF_DIR)):
        cfg = compose("config", ["name=any", *words], return_hydra_config=True)
    for file in _settings_files(PurePosixPath(path)):
        try:
            text = read_output(cfg, str(file))
        except LaunchRefused as refusal:
            raise UserError(
                f"{path}: the environment of its run cannot be read ({refusal}); name it with "
                "env=..."
            ) from None
        settings = None if text is None else _settings_in(text)
        if settings is not None:
            return _environment_in(settings)
    return None


def _settings_in_store(url: str) -> str | None:
    """Return the text of a run's settings in a store, read with the credentials of .env."""
    from hydra_modal_jobs import read_dotenv

    added = {name: value for name, value in read_dotenv(".env").items() if name.startswith("AWS_")}
    before = dict(os.environ)
    try:
        os.environ.update({**added, **before})
        return read_run_settings(url)
    finally:
        for name in added.keys() - before.keys():
            del os.environ[name]


def _settings_in(text: str) -> dict[str, Any] | None:
    """Return the settings in the YAML text of a run; None if they are not those of a run."""
    try:
        settings = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (ValueError, YAMLError, OmegaConfBaseException):
        return None
    env = settings.get("env") if isinstance(settings, dict) else None
    if isinstance(env, dict) and "_target_" in env and _is_name(env.get("name")):
        assert isinstance(settings, dict)
        return {str(key): value for key, value in settings.items()}
    return None


def _is_checkpoint(path: str) -> bool:
    """Return whether it is a checkpoint or a run of this program, rather than a plain model."""
    names = (MANIFEST_FILE, CHECKPOINTS_FOLDER, f"0/{CHECKPOINTS_FOLDER}")
    return is_url(path) or any((Path(path) / name).exists() for name in names)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.+/-]+", value) is not None


def difference_from_training(path: str, env: Mapping[str, Any]) -> str | None:
    """Return a line on how an environment differs from that of a checkpoint's run, if it does."""
    trained = _environment_of_run(path)
    if trained is None:
        if not _is_checkpoint(path):
            return None
        return (
            f"{path} does not say which environment it was trained on; it plays that of the "
            "command line"
        )
    if trained["name"] != env.get("name"):
        return (
            f"{path} was trained on {environment_name(trained)}; it plays {environment_name(env)}"
        )
    before, now = environment_settings(trained), environment_settings(env)
    names = changed_settings(before, now)
    if not names:
        return None
    shown = ", ".join(
        f"env.{name}={_select(now, name)} (trained with {_select(before, name)})"
        for name in names[:_MAX_SHOWN_DIFFERENCES]
    )
    more = len(names) - _MAX_SHOWN_DIFFERENCES
    more_text = f" and {more} more" if more > 0 else ""
    return f"{path} plays settings that differ from those of its training: {shown}{more_text}"


def environment_lines(config: Config, *more_checkpoints: str) -> list[str]:
    """Return the lines that say which environment is played, and how it differs from training.

    The differences are those from the run of the checkpoint, and of further checkpoints.
    """
    checkpoints = [config.checkpoint.path, *more_checkpoints]
    differences = [difference_from_training(path, config.env) for path in checkpoints if path]
    line = f"Environment: {environment_name(config.env)}"
    if config.env.get("variant"):
        settings = environment_settings(config.env).items()
        line += f": {' '.join(f'{key}={value}' for key, value in settings)}"
    return [line, *filter(None, dict.fromkeys(differences))]


def _select(settings: Mapping[str, Any], name: str) -> Any:
    value: Any = settings
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _as_override(value: object) -> str:
    """Write a plain value as Hydra's grammar of overrides reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_as_override, value)) + "]"
    if isinstance(value, str):
        # Backslashes are doubled only before a quotation mark: there they would escape it.
        escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
        return '"' + re.sub(r"(\\+)\Z", r"\1\1", escaped) + '"'
    return json.dumps(value)
