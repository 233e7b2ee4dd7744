"""A job's configuration and task as plain data, and back.

A configuration travels as YAML with its interpolations, next to the names of the dataclasses that
type it and the resolvers that it uses. So a job runs where the application's configuration files
are not, years after they changed, and a person can read `job.json`. Composing again from overrides
would be simpler but gives another configuration once a file has changed. OmegaConf has no public
way to add a typed node or to read a resolver, hence the private names of OmegaConf 2.3 here.
"""

from __future__ import annotations

import base64
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.basecontainer import BaseContainer
from packaging.version import Version

_BUILT_IN_RESOLVERS = re.compile(r"oc\..*|now|hydra|python_version")
_MAX_WRAPPERS = 8  # decorators around a task
# Modules of this launcher by the names that they had in earlier versions.
_FORMER_MODULES = {"hydra_plugins.modal_launcher.config": "hydra_modal_jobs.config"}


def dump_config(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as text, the names of its types by path, and its resolvers."""
    plain = to_plain(config)
    for page in ("help", "hydra_help"):  # long, and only for the command line
        plain["hydra"][page]["template"] = ""
    text = yaml.dump(plain, Dumper=get_omega_conf_dumper(), allow_unicode=True, sort_keys=False)
    return {"config": text, "types": dict(_types(config)), "resolvers": _dump_resolvers(config)}


def load_config(payload: dict[str, Any]) -> DictConfig:
    """Return the configuration in a payload, typed where the classes can be imported.

    This also registers its resolvers, and sets Hydra to the version the application asked for.
    """
    import pickle

    if payload["version_base"]:
        VersionBase.instance().setbase(Version(payload["version_base"]))
    for name, pickled in payload["resolvers"].items():
        if not OmegaConf.has_resolver(name):
            try:
                BaseContainer._resolvers[name] = pickle.loads(base64.b64decode(pickled))
            except (ImportError, AttributeError) as error:  # raised only if it is used
                BaseContainer._resolvers[name] = _raiser(error)
    plain = OmegaConf.create(payload["config"])
    assert isinstance(plain, DictConfig)
    try:
        config = _typed(plain, payload["types"])
    except Exception:  # a class has changed since then: leave the application's values untyped
        config = _typed(plain, {"hydra": payload["types"]["hydra"]})
    with read_write(config), open_dict(config), read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = payload["dir"], payload["subdir"]
        config.hydra.runtime.output_dir = str(Path(payload["dir"]) / payload["subdir"])
    OmegaConf.set_struct(config, True)
    return config


def to_plain(config: DictConfig, *, resolve: bool = False) -> Any:
    """Return the configuration as dictionaries, lists and plain values."""
    return OmegaConf.to_container(config, resolve=resolve, enum_to_str=True)


def task_reference(task: Callable[..., Any]) -> dict[str, Any]:
    """Return a task by name if it can be imported by it, else pickled."""
    folder = str(Path(sys.path[0]).absolute())
    named: Any = task if hasattr(task, "__qualname__") else type(task)  # a callable object
    module, name = named.__module__, named.__qualname__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec is not None else ""  # a script cannot be imported by name
    if module and "<locals>" not in name:
        try:
            imported: Any = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            imported = None
        # `@hydra.main` hides the task behind a function of the same name.
        for unwrap in range(_MAX_WRAPPERS):
            if imported is task or (named.__module__ == "__main__" and _is_twin(imported, task)):
                return {"name": f"{module}:{name}", "unwrap": unwrap, "folder": folder}
            imported = getattr(imported, "__wrapped__", None)
    import cloudpickle

    return {
        "pickle": base64.b64encode(cloudpickle.dumps(task)).decode(),
        "python": ".".join(map(str, sys.version_info[:2])),
        "name": f"{named.__module__}:{name}",
        "folder": folder,
        "script": getattr(sys.modules["__main__"], "__file__", None),
    }


def load_task(reference: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the task that `task_reference` was given."""
    if "pickle" in reference:
        import pickle

        loaded: Callable[[Any], Any] = pickle.loads(base64.b64decode(reference["pickle"]))
        return loaded
    module, _, name = reference["name"].partition(":")
    task: Any = getattr(importlib.import_module(module), name)
    for _ in range(reference["unwrap"]):
        task = task.__wrapped__
    function: Callable[[Any], Any] = task
    return function


def rename(payload: dict[str, Any], former_names: Mapping[str, str]) -> None:
    """Replace the former names of modules and of `module:name` in a payload by the present ones.

    They occur in the task, in the types, and as `hydra.launcher.check`.
    """
    names = {**_FORMER_MODULES, **former_names}

    def present(reference: str) -> str:
        module, colon, name = reference.partition(":")
        return names.get(reference, f"{names.get(module, module)}{colon}{name}")

    if "pickle" not in payload["task"]:
        payload["task"]["name"] = present(payload["task"]["name"])
    payload["types"] = {path: present(name) for path, name in payload["types"].items()}
    config = OmegaConf.create(payload["config"])
    check = OmegaConf.select(config, "hydra.launcher.check")
    if check and present(check) != check:
        OmegaConf.update(config, "hydra.launcher.check", present(check))
        payload["config"] = OmegaConf.to_yaml(config)


def _is_twin(imported: Any, task: Any) -> bool:
    """Return whether both are one function, once of the program and once of its module."""
    code = getattr(task, "__code__", None)
    return code is not None and getattr(imported, "__code__", None) == code


def _raiser(error: Exception) -> Callable[..., Any]:
    def resolve(*_: Any, **__: Any) -> Any:
        raise error

    return resolve


def _types(config: DictConfig, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and `module:name` of each node that a class types."""
    kind = OmegaConf.get_type(config)
    if isinstance(kind, type) and kind is not dict and "<locals>" not in kind.__qualname__:
        yield path, f"{kind.__module__}:{kind.__qualname__}"
    for key in config:
        node, name = config._get_node(key), str(key)
        if not isinstance(node, DictConfig) or not name.isidentifier():
            continue
        if not (node._is_none() or node._is_missing() or node._is_interpolation()):
            yield from _types(node, f"{path}.{name}" if path else name)


def _typed(plain: DictConfig, types: dict[str, str]) -> DictConfig:
    """Merge the values into structured nodes of these types, outer ones first."""
    base = OmegaConf.create()
    for path in sorted(types, key=lambda path: (path != "", path.count("."))):
        module, _, name = types[path].partition(":")
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        node = OmegaConf.select(base, path) if path else None
        if node is None or OmegaConf.get_type(node) is not kind:  # an outer class has not made it
            node = OmegaConf.structured(kind)
            if path:
                OmegaConf.update(base, path, node, merge=False, force_add=True)
                node = OmegaConf.select(base, path)
            else:
                base = node
        OmegaConf.set_struct(node, False)  # Hydra adds keys that a class does not have
    merged = OmegaConf.merge(base, plain)
    assert isinstance(merged, DictConfig)
    for path in types:
        node = OmegaConf.select(merged, path) if path else merged
        if isinstance(node, DictConfig):
            OmegaConf.set_struct(node, None)
    return merged


def _dump_resolvers(config: DictConfig) -> dict[str, str]:
    """Return the resolvers that the application's settings use, pickled.

    Nothing tells a process elsewhere which module registers them.
    """
    settings = {key: value for key, value in to_plain(config).items() if key != "hydra"}
    used = set(re.findall(r"\$\{([A-Za-z_][\w.]*):", str(settings)))
    pickled = {}
    for name in sorted(used):
        if not _BUILT_IN_RESOLVERS.fullmatch(name) and OmegaConf.has_resolver(name):
            import cloudpickle

            pickled[name] = base64.b64encode(cloudpickle.dumps(BaseContainer._resolvers[name]))
    return {name: content.decode() for name, content in pickled.items()}
