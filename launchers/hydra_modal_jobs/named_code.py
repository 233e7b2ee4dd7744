"""Code that a setting names as `module:function`: whether it is there, without running it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from hydra_modal_jobs.errors import LaunchRefused


def named_code(config: DictConfig, settings: Iterable[str]) -> dict[str, str]:
    """Return those of the settings that have a value, which names code."""
    values = {name: OmegaConf.select(config, name) for name in settings}
    return {name: str(value) for name, value in values.items() if value}


def check_named_code(config: DictConfig, settings: Iterable[str]) -> None:
    """Raise `LaunchRefused` if a setting names code that is not on this machine."""
    for name, value in named_code(config, settings).items():
        module, _, function = value.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), function]):
            raise LaunchRefused(f"{name}={value}: write it as package.module:function")
        try:
            file = _file_of(module)
        except LookupError as missing:
            raise LaunchRefused(f"{name}={value}: {missing}") from None
        if file is not None:
            _check_function(file, function, named=f"{name}={value}")


def find_top_level(module: str) -> ModuleSpec | None:
    """Return where a job would import a top-level module from, which begins in this folder."""
    return importlib.util.find_spec(module) or PathFinder.find_spec(module, [os.getcwd()])


def _file_of(module: str) -> Path | None:
    """Return the source of a module; None if it has none. Raises `LookupError` if it is missing."""
    top, *rest = module.split(".")
    folders: Sequence[str] | None
    if top in sys.modules:
        loaded = sys.modules[top]
        origin, folders = getattr(loaded, "__file__", None), getattr(loaded, "__path__", None)
    else:
        spec = find_top_level(top)
        if spec is None:
            raise LookupError(f"No module named '{top}' on this machine, nor in {Path.cwd()}")
        origin, folders = spec.origin, spec.submodule_search_locations
    file = Path(origin) if origin and origin.endswith(".py") else None
    for part in rest:
        inner = [Path(folder) / part for folder in folders or ()]
        sources = [*(path.with_suffix(".py") for path in inner)]
        sources += [path / "__init__.py" for path in inner]
        file = next(filter(Path.is_file, sources), None)
        folders = [str(path) for path in inner if path.is_dir()]
        if file is None and not folders:
            if any(True for path in inner for _ in path.parent.glob(f"{part}.*")):
                return None  # compiled
            raise LookupError(f"No module named '{part}' in {module.rpartition('.')[0]}")
    return file


def _check_function(file: Path, function: str, *, named: str) -> None:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line} of {file.name}" if line else file.name
        raise LaunchRefused(f"{named}: {where} is no Python ({error.args[0]})") from None
    names = set(_bound_names(tree.body))
    if function in names or not names.isdisjoint({"*", "__getattr__"}):
        return
    similar = difflib.get_close_matches(function, names, n=1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    raise LaunchRefused(f"{named}: {file.name} has no attribute '{function}'{hint}")


def _bound_names(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements of a module bind; `*` for an import of all names."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.stmt) and node is not statement:
                yield from _bound_names([node])
