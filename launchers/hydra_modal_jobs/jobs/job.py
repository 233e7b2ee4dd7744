"""A composed job as plain data: what is written down, sent, and run again later."""

from __future__ import annotations

import base64
import copy
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, TaskFunction
from hydra.version import VersionBase, getbase
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.basecontainer import BaseContainer
from packaging.version import Version

from hydra_modal_jobs.config import ModalJobsConf
from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.files import read_json, write_json
from hydra_modal_jobs.jobs.compose import SweepLoader

LOCAL = "local"
DAY = 86400  # seconds: the longest attempt on Modal
CONTROL = ".job"  # in a job's folder: what the launcher keeps there

_BUILT_IN = re.compile(r"oc\..*|now|hydra|python_version")


@dataclass
class Job:
    """One job of a launch. `payload` is all that a process elsewhere needs to run it."""

    num: int
    overrides: list[str]
    config: DictConfig  # the application's and Hydra's, interpolations kept
    settings: ModalJobsConf  # its own, not the sweep's
    folder: Path  # absolute, on this machine
    task: Callable[[Any], Any] | None  # None until it is needed: attaching imports nothing
    payload: dict[str, Any]

    @property
    def is_local(self) -> bool:
        return self.settings.gpu == LOCAL

    @property
    def processes(self) -> int:
        return self.settings.processes or self.settings.gpu_count

    @property
    def sweep_folder(self) -> Path:
        return Path(self.payload["dir"])

    @property
    def result(self) -> dict[str, Any] | None:
        """What the job left when it ended; None while it has not."""
        found: dict[str, Any] | None = read_json(self.folder / CONTROL / "result.json")
        return found

    def function(self) -> Callable[[Any], Any]:
        """The task, imported here and now if need be."""
        if self.task is None:
            try:
                self.task = load_task(self.payload["task"])
            except (ImportError, AttributeError) as error:
                raise LaunchRefused(
                    f"{self.payload['task']['name']}: {error}; it was imported from "
                    f"{self.payload['task']['folder']}, resume it where that is"
                ) from None
        return self.task

    def save(self) -> None:
        write_json(self.folder / CONTROL / "job.json", self.payload)


def labels(jobs: Sequence[Job]) -> dict[int, str]:
    """What a person tells the jobs of a launch apart by: the overrides that not all of them have.

    Of a single job, or one that is like another, all of them.
    """
    words = {job.num: [w for w in job.overrides if not w.startswith("name=")] for job in jobs}
    common = set.intersection(*map(set, words.values())) if len(jobs) > 1 else set()
    told = {num: [w for w in own if w not in common] or own for num, own in words.items()}
    return {num: " ".join(own) or "-" for num, own in told.items()}


def compose(
    context: HydraContext,
    task: TaskFunction,
    master: DictConfig,
    overrides: Sequence[str],
    *,
    num: int,
) -> Job:
    """Compose a job and freeze in it what would be another thing elsewhere or later."""
    loader = context.config_loader
    if isinstance(loader, SweepLoader):
        config = loader.taken(master, overrides)
    else:
        config = loader.load_sweep_config(master, list(overrides))
    with open_dict(config):
        config.hydra.job.id = str(num)
        config.hydra.job.num = num
    put_in_force(config)
    sweep, subdir = Path(str(config.hydra.sweep.dir)).absolute(), str(config.hydra.sweep.subdir)
    with changeable(config):
        _freeze_times(config)
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(sweep), subdir
        config.hydra.runtime.output_dir = str(sweep / subdir)
        for name in config.hydra.job.env_copy:  # their values are not for a file
            config.hydra.job.env_set.pop(name, None)
    payload = {
        "num": num,
        "overrides": [str(word) for word in config.hydra.overrides.task],
        "dir": str(sweep),
        "subdir": subdir,
        "task": reference(task),
        "name": str(config.hydra.job.name),
        **_written(config),
        "resolvers": _resolvers(config),
        "version_base": str(base) if isinstance(base := getbase(), Version) else None,
    }
    return Job(
        num=num,
        overrides=list(payload["overrides"]),
        config=config,
        settings=settings_of(config),
        folder=sweep / subdir,
        task=task,
        payload=payload,
    )


def reopen(folder: Path) -> Job | None:
    """The job that a folder was made by, to run it again with the settings of then."""
    payload = read_json(folder / CONTROL / "job.json")
    if payload is None:
        return None
    # The run's folder may have been moved, or be on another machine now.
    depth = len(Path(payload["subdir"]).parts)
    payload["dir"] = str(folder.absolute().parents[depth - 1])
    source = payload["task"]["folder"]
    if source not in sys.path and Path(source).is_dir():
        sys.path.append(source)
    config = load_config(payload)
    return Job(
        num=payload["num"],
        overrides=payload["overrides"],
        config=config,
        settings=settings_of(config),
        folder=folder.absolute(),
        task=None,
        payload=payload,
    )


def renewed(job: Job) -> Job:
    """The job after its configuration was changed."""
    job.payload |= _written(job.config)
    job.settings = settings_of(job.config)
    return job


def put_in_force(config: DictConfig) -> None:
    """Let `${hydra:...}` be this job's. Hydra's own `set_config` copies the whole for that."""
    HydraConfig.instance().cfg = cast(Any, config)


def settings_of(config: DictConfig) -> ModalJobsConf:
    return copy.deepcopy(_settings(json.dumps(to_plain(config.hydra.launcher, resolve=True))))


@lru_cache(maxsize=16)
def _settings(text: str) -> ModalJobsConf:
    """Of the few that the jobs of a sweep have among them."""
    typed = OmegaConf.merge(OmegaConf.structured(ModalJobsConf), json.loads(text))
    settings = OmegaConf.to_object(typed)
    assert isinstance(settings, ModalJobsConf)
    return settings


def application_config(config: DictConfig) -> DictConfig:
    """The composed configuration without Hydra's own part."""
    not_copied = {id(config._get_node("hydra")): AnyNode(None)}
    plain = copy.deepcopy(config, not_copied)
    with read_write(plain), open_dict(plain):
        del plain["hydra"]
    return plain


def load_config(payload: dict[str, Any]) -> DictConfig:
    """The configuration in a payload, its types restored where their classes can be imported.

    Hydra is set to the version that the application asked for.
    """
    import pickle

    if payload["version_base"]:
        VersionBase.instance().setbase(Version(payload["version_base"]))
    for name, pickled in payload["resolvers"].items():
        if not OmegaConf.has_resolver(name):
            try:
                BaseContainer._resolvers[name] = pickle.loads(base64.b64decode(pickled))
            except (ImportError, AttributeError) as error:  # it matters if it is used
                BaseContainer._resolvers[name] = _raiser(error)
    plain = OmegaConf.create(payload["config"])
    assert isinstance(plain, DictConfig)
    try:
        config = _typed(plain, payload["types"])
    except Exception:  # a class that has changed since: plain values must do
        config = _typed(plain, {"hydra": payload["types"]["hydra"]})
    with changeable(config):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = payload["dir"], payload["subdir"]
        config.hydra.runtime.output_dir = str(Path(payload["dir"]) / payload["subdir"])
    OmegaConf.set_struct(config, True)
    return config


def _raiser(error: Exception) -> Callable[..., Any]:
    def resolve(*_: Any, **__: Any) -> Any:
        raise error

    return resolve


def reference(task: Callable[..., Any]) -> dict[str, Any]:
    """A task by name; where it has none that can be imported, by value."""
    folder = str(Path(sys.path[0]).absolute())
    named: Any = task if hasattr(task, "__qualname__") else type(task)  # an object that is called
    module, name = named.__module__, named.__qualname__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec is not None else ""  # a script has no name to import it by
    if module and "<locals>" not in name:
        try:
            found: Any = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            found = None
        # `@hydra.main` hides the task behind a function of the same name.
        for unwrap in range(8):
            if found is task or (named.__module__ == "__main__" and _is_twin(found, task)):
                return {"name": f"{module}:{name}", "unwrap": unwrap, "folder": folder}
            found = getattr(found, "__wrapped__", None)
    import cloudpickle

    return {
        "pickle": base64.b64encode(cloudpickle.dumps(task)).decode(),
        "python": ".".join(map(str, sys.version_info[:2])),
        "name": f"{named.__module__}:{name}",
        "folder": folder,
        "script": getattr(sys.modules["__main__"], "__file__", None),
    }


def _is_twin(found: Any, task: Any) -> bool:
    """Whether they are one function, once as the program's and once as its module's."""
    code = getattr(task, "__code__", None)
    return code is not None and getattr(found, "__code__", None) == code


def load_task(task: dict[str, Any]) -> Callable[[Any], Any]:
    if "pickle" in task:
        import pickle

        loaded: Callable[[Any], Any] = pickle.loads(base64.b64decode(task["pickle"]))
        return loaded
    module, _, name = task["name"].partition(":")
    found: Any = getattr(importlib.import_module(module), name)
    for _ in range(task["unwrap"]):
        found = found.__wrapped__
    function: Callable[[Any], Any] = found
    return function


def shape(job: Job) -> str:
    """What tells how long a job takes: where it runs, its choices, and the settings named."""
    choices = {k: v for k, v in job.config.hydra.runtime.choices.items() if "hydra/" not in k}
    settings = job.settings
    where = [settings.gpu, settings.gpu_count, settings.cpu, settings.memory]
    named = {key: str(OmegaConf.select(job.config, key)) for key in settings.shape}
    return json.dumps([where, job.payload["task"]["name"], choices, named], sort_keys=True)


@contextmanager
def changeable(config: DictConfig) -> Iterator[None]:
    """Lift Hydra's locks for a while."""
    with read_write(config), open_dict(config), read_write(config.hydra), open_dict(config.hydra):
        yield


def _freeze_times(config: DictConfig | ListConfig) -> None:
    keys: Any = config.keys() if isinstance(config, DictConfig) else range(len(config))
    for key in list(keys):
        node = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            if not (node._is_none() or node._is_missing() or node._is_interpolation()):
                _freeze_times(node)
        elif "${now:" in str(getattr(node, "_value", lambda: "")()):
            config[key] = config[key]


def _written(config: DictConfig) -> dict[str, Any]:
    """The configuration as the text and the names of its types that make it again."""
    plain = to_plain(config)
    for page in ("help", "hydra_help"):  # for the command line only, and long
        plain["hydra"][page]["template"] = ""
    text = yaml.dump(plain, Dumper=get_omega_conf_dumper(), allow_unicode=True, sort_keys=False)
    return {"config": text, "types": dict(_types(config))}


def to_plain(config: DictConfig, *, resolve: bool = False) -> Any:
    return OmegaConf.to_container(config, resolve=resolve, enum_to_str=True)


def _types(config: DictConfig, path: str = "") -> Iterator[tuple[str, str]]:
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
    base = OmegaConf.create()
    for path in sorted(types, key=lambda path: (path != "", path.count("."))):
        module, _, name = types[path].partition(":")
        try:
            node = OmegaConf.structured(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError):
            continue
        OmegaConf.set_struct(node, False)  # Hydra adds keys that a class does not have
        if path:
            OmegaConf.update(base, path, node, merge=False, force_add=True)
        else:
            base = node
    merged = OmegaConf.merge(base, plain)
    assert isinstance(merged, DictConfig)
    for path in types:
        found = OmegaConf.select(merged, path) if path else merged
        if isinstance(found, DictConfig):
            OmegaConf.set_struct(found, None)
    return merged


def _resolvers(config: DictConfig) -> dict[str, str]:
    """Resolvers that the application's settings use, by value: nothing tells who registers them."""
    own = {key: value for key, value in to_plain(config).items() if key != "hydra"}
    used = set(re.findall(r"\$\{([A-Za-z_][\w.]*):", str(own)))
    found = {}
    for name in used:
        if not _BUILT_IN.fullmatch(name) and OmegaConf.has_resolver(name):
            import cloudpickle

            found[name] = base64.b64encode(cloudpickle.dumps(BaseContainer._resolvers[name]))
    return {name: pickled.decode() for name, pickled in found.items()}
