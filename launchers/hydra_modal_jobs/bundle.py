"""Which of this machine's files go along with a job: what it imports, and its configuration."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.jobs.job import Job
from hydra_modal_jobs.named_code import find_top_level, named_code
from hydra_modal_jobs.sent_files import sent_files

_OWN_PACKAGES = ("hydra_modal_jobs", "hydra_plugins")
_REMOTE_ROOT = PurePosixPath("/root")  # the working directory of a container


def sources(jobs: list[Job]) -> dict[Path, PurePosixPath]:
    """Return the files and folders to send, with their paths in a container.

    They are the packages and modules that were imported here, or that the script and its
    configuration name, as far as they are neither the standard library's nor installed; those in
    `image.source`; and the configuration folders. What lies side by side here does so there.
    """
    remote_paths: dict[Path, PurePosixPath] = {}
    for name in jobs[0].settings.image.source:
        try:
            importlib.import_module(name)
        except ImportError:
            raise LaunchRefused(
                f"hydra.launcher.image.source: {name} cannot be imported here"
            ) from None
    for part in ("hydra_modal_jobs", "hydra_plugins/modal_launcher"):
        remote_paths[Path(__file__).parents[1] / part] = _REMOTE_ROOT / part
    roots = set()
    distributed = _same_distribution(jobs)
    imported = {name.partition(".")[0] for name in sys.modules}
    mentioned = _mentioned(jobs)
    # What the application imports inside its functions is installed; what it only names may not be.
    followed = mentioned - distributed - {*_OWN_PACKAGES, _task_package(jobs)}
    names = sorted({*distributed, *imported, *mentioned})
    for module in names:  # the list grows by what the modules import
        for path in _local_paths(module, distributed):
            files = [path] if path.is_file() else []
            if not files and module in followed:
                sent = sent_files(path, is_config=False)
                files = [path / name for name in sent if name.suffix == ".py"]
            for file in files:
                imports = _imports_of(file) - {*names}
                names += sorted(imports)
                followed |= imports
            if module == "hydra_plugins":  # a namespace that several distributions share
                for plugin in filter(Path.is_dir, path.iterdir()):
                    if not _is_installed(plugin):
                        remote_paths[plugin] = _REMOTE_ROOT / module / plugin.name
            else:
                remote_paths[path] = _REMOTE_ROOT / path.name
                roots.add(path.parent)
    for folder in _config_folders(jobs):
        if any(folder.is_relative_to(path) for path in remote_paths):
            continue
        beside = next((root for root in roots if folder.is_relative_to(root)), folder.parent)
        relative = PurePosixPath(folder.relative_to(beside).as_posix())
        remote_paths[folder] = _REMOTE_ROOT / relative
    return remote_paths


def contents(jobs: list[Job]) -> str:
    """Return in a line how many files of which folders are sent along, and how large they are."""
    counts: dict[str, int] = {}
    size = 0
    for path, remote in sources(jobs).items():
        if path.is_file():
            files = {path: path.stat().st_size}
        else:
            files = sent_files(path, is_config=is_config_folder(path, jobs))
        if files:
            counts[str(remote.relative_to(_REMOTE_ROOT))] = len(files)
            size += sum(files.values())
    folders = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"Sent along: {sum(counts.values())} files, {size / 1e6:.1f} MB ({folders})"


def is_config_folder(folder: Path, jobs: list[Job]) -> bool:
    """Return whether the jobs are composed from the files in this folder."""
    return folder in _config_folders(jobs)


def git_state(folder: Path) -> dict[str, object] | None:
    """Return the commit of a checkout and whether its files differ from it.

    >>> git_state(Path("/")) is None  # no checkout
    True
    """
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--short"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _task_package(jobs: list[Job]) -> str:
    """Return the top-level module of the job's function."""
    name: str = jobs[0].payload["task"]["name"]
    return name.partition(".")[0].partition(":")[0]


def _same_distribution(jobs: list[Job]) -> set[str]:
    """Return the top-level packages of the application's own distribution, if it is installed."""
    module = _task_package(jobs)
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or not _is_installed(Path(file).resolve()):
        return set()
    by_package = _distributions_by_package()
    owner = by_package.get(module, [])[:1]
    return {name for name, owners in by_package.items() if owner and owner[0] in owners}


@functools.cache  # reading them takes a second where many are installed
def _distributions_by_package() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _mentioned(jobs: list[Job]) -> set[str]:
    """Return the top-level modules that nothing has imported yet but a job will.

    A script's functions import them, or `_target_` or a setting in the configuration names them.
    """
    script = jobs[0].payload["task"].get("script")
    names = _imports_of(Path(script)) if script else set()
    for job in jobs:
        names |= set(re.findall(r"_target_: ['\"]?(\w+)\.", job.payload["config"]))
        named = named_code(job.config, job.settings.code).values()
        names |= {value.partition(":")[0].partition(".")[0] for value in named}
    return names


def _imports_of(path: Path) -> set[str]:
    """Return the top-level modules that a Python file imports anywhere in it."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return {name.partition(".")[0] for name in names}


def _local_paths(module: str, distributed: set[str]) -> Iterable[Path]:
    """Yield the folders or the file of a top-level module that must be sent, if it must."""
    if module in ("__main__", "__mp_main__") or module.startswith("_"):
        return
    if module in distributed:
        importlib.import_module(module)
    if module in sys.modules:
        imported = sys.modules[module]
        file, folders = getattr(imported, "__file__", None), getattr(imported, "__path__", None)
    else:
        spec = find_top_level(module)
        file, folders = spec and spec.origin, spec and spec.submodule_search_locations
    if folders is not None:
        candidates = [Path(folder) for folder in folders]
    else:
        candidates = [Path(file)] if file and file.endswith(".py") else []
    for path in candidates:
        if path.exists() and (module in distributed or not _is_installed(path.resolve())):
            yield path.resolve()


def _is_installed(path: Path) -> bool:
    """Return whether a path belongs to the standard library or to an installed package."""
    if re.search(r"[/\\](site|dist)-packages([/\\]|$)", str(path)):
        return True
    return any(path.is_relative_to(folder) for folder in _standard_library())


@functools.cache
def _standard_library() -> set[Path]:
    return {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}


def _config_folders(jobs: list[Job]) -> list[Path]:
    """Return the folders of Hydra's search path; a package in it is imported and goes as such."""
    folders = []
    for job in jobs[:1]:
        for source in job.config.hydra.runtime.config_sources:
            if source.schema == "file" and Path(source.path).is_dir():
                folders.append(Path(source.path).resolve())
            elif source.schema == "pkg" and source.path:
                importlib.import_module(source.path.partition(".")[0])
    return [folder for folder in folders if not _is_installed(folder)]
