"""Which of this machine's files go along with a job: what it imports, and its configuration."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from hydra_modal_jobs.errors import LaunchRefused
from hydra_modal_jobs.jobs.job import Job

REMOTE = PurePosixPath("/root")

# Never sent, wherever it lies: secrets, histories, environments, outputs.
_NEVER = (
    *(".env", ".env.*", "*.env", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", ".pypirc"),
    *(".aws", ".ssh", ".modal.toml", "*credentials*.json", "*.p12", "*.keystore"),
    *(".git", ".hg", ".svn", ".venv", "venv", "virtualenv", ".tox", "node_modules", "*.egg-info"),
    *("__pycache__", "*.pyc", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints"),
    *("runs", "outputs", "multirun", "wandb", ".hydra", ".job"),
)


def sources(jobs: list[Job]) -> dict[Path, PurePosixPath]:
    """Local files and folders and where a container has them.

    Packages and modules that were imported here, or that the script and its configuration name,
    and are neither the standard library's nor installed; those in `image.source`; the folders of
    the configuration. What lies beside one another here does so there.
    """
    found: dict[Path, PurePosixPath] = {}
    for name in jobs[0].settings.image.source:
        try:
            importlib.import_module(name)
        except ImportError:
            raise LaunchRefused(
                f"hydra.launcher.image.source: {name} cannot be imported here"
            ) from None
    for part in ("hydra_modal_jobs", "hydra_plugins/modal_launcher"):
        found[Path(__file__).parents[1] / part] = REMOTE / part
    roots = set()
    own = _distribution(jobs)
    loaded = {name.partition(".")[0] for name in sys.modules}
    names = sorted({*own, *loaded, *_mentioned(jobs)})
    for module in names:  # which grows
        for path in _local_paths(module, own):
            if path.is_file():
                names += sorted(_imports(path) - {*names})
            if module == "hydra_plugins":  # a namespace that others share
                for plugin in filter(Path.is_dir, path.iterdir()):
                    if not _installed(plugin):
                        found[plugin] = REMOTE / module / plugin.name
            else:
                found[path] = REMOTE / path.name
                roots.add(path.parent)
    for folder in _config_folders(jobs):
        if any(folder.is_relative_to(path) for path in found):
            continue
        beside = next((root for root in roots if folder.is_relative_to(root)), folder.parent)
        found[folder] = REMOTE / PurePosixPath(folder.relative_to(beside).as_posix())
    return found


def ignored(path: Path) -> bool:
    """Whether a file is never sent; for `modal.Image.add_local_dir`."""
    return any(fnmatch(part, pattern) for part in path.parts for pattern in _NEVER)


def not_config(path: Path) -> bool:
    """What a configuration folder may hold beside its configuration is not sent either."""
    return ignored(path) or path.suffix not in (".yaml", ".yml")


def is_config(folder: Path, jobs: list[Job]) -> bool:
    return folder in _config_folders(jobs)


def git_state(folder: Path) -> dict[str, object] | None:
    """The commit that the application's source is at, and whether it differs from it."""
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


def _distribution(jobs: list[Job]) -> set[str]:
    """The top-level packages that came with the application's own, where it is installed."""
    module = jobs[0].payload["task"]["name"].partition(".")[0].partition(":")[0]
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if not file or not _installed(Path(file).resolve()):
        return set()
    by_package = importlib.metadata.packages_distributions()
    mine = by_package.get(module, [])[:1]
    return {name for name, owners in by_package.items() if mine and mine[0] in owners}


def _mentioned(jobs: list[Job]) -> set[str]:
    """Top-level modules that nothing has imported yet: those of a script's functions, and of
    `_target_` in the configuration.
    """
    script = jobs[0].payload["task"].get("script")
    found = _imports(Path(script)) if script else set()
    for job in jobs:
        found |= set(re.findall(r"_target_: ['\"]?(\w+)\.", job.payload["config"]))
    return found


def _imports(path: Path) -> set[str]:
    """What a Python file imports anywhere in it."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return {name.partition(".")[0] for name in names}


def _local_paths(module: str, own: set[str]) -> Iterable[Path]:
    """The folders or the file of a top-level module, if it is this machine's or in `own`."""
    if module in ("__main__", "__mp_main__") or module.startswith("_"):
        return
    if module in own:
        importlib.import_module(module)
    if module in sys.modules:
        loaded = sys.modules[module]
        file, folders = getattr(loaded, "__file__", None), getattr(loaded, "__path__", None)
    else:
        spec = importlib.util.find_spec(module)
        file, folders = spec and spec.origin, spec and spec.submodule_search_locations
    if folders is not None:
        candidates = [Path(folder) for folder in folders]
    else:
        candidates = [Path(file)] if file and file.endswith(".py") else []
    for path in candidates:
        if path.exists() and (module in own or not _installed(path.resolve())):
            yield path.resolve()


def _installed(path: Path) -> bool:
    library = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    if re.search(r"[/\\](site|dist)-packages([/\\]|$)", str(path)):
        return True
    return any(path.is_relative_to(folder) for folder in library)


def _config_folders(jobs: list[Job]) -> list[Path]:
    """Of the search path: folders on this machine; packages are imported and go as such."""
    folders = []
    for job in jobs[:1]:
        for source in job.config.hydra.runtime.config_sources:
            if source.schema == "file" and Path(source.path).is_dir():
                folders.append(Path(source.path).resolve())
            elif source.schema == "pkg" and source.path:
                importlib.import_module(source.path.partition(".")[0])
    return [folder for folder in folders if not _installed(folder)]
