"""The parts of bfcl-eval that are used here: imported when first needed, from any install of it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

# The declared dependencies take gigabytes; these are the ones that single turns need.
INSTALL = (
    "pip install --no-deps bfcl-eval==2026.3.23 && pip install filelock tenacity "
    "tree_sitter==0.21.3 tree-sitter-java==0.21.0 tree-sitter-javascript==0.21.4"
)

_MODELS = "bfcl_eval.constants.model_config"
# Models of the leaderboard, of which the checker asks one thing: whether they call a function
# `a.b` by the name a_b, because their interface allows no dots.
_MODEL_WITHOUT_DOTS, _MODEL_WITH_DOTS = "gpt-4o-2024-11-20-FC", "Salesforce/xLAM-2-3b-fc-r"


@dataclass(frozen=True)
class Official:
    """Functions of bfcl-eval, under its own names."""

    ast_checker: Callable[..., dict[str, Any]]
    simple_function_checker: Callable[..., dict[str, Any]]
    is_function_calling_format_output: Callable[[Any], bool]
    is_empty_output: Callable[[Any], bool]
    load_dataset_entry: Callable[..., list[dict[str, Any]]]
    load_ground_truth_entry: Callable[[str], list[dict[str, Any]]]
    add_language_specific_hint_to_function_doc: Callable[..., list[dict[str, Any]]]
    convert_to_tool: Callable[..., list[dict[str, Any]]]
    groups: dict[str, list[str]]  # of categories: single_turn, live, ...
    single_turn: list[str]  # the categories
    openai_types: dict[str, str]
    openai_style: Any
    languages: Any


@lru_cache(maxsize=1)
def official() -> Official:
    """Raises a `ValueError` with the commands that install what is missing."""
    try:
        with _project_root(), _models_known_by_name():
            checker = import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
            utils = import_module("bfcl_eval.utils")
            tools = import_module("bfcl_eval.model_handler.utils")
            categories = import_module("bfcl_eval.constants.category_mapping")
            types = import_module("bfcl_eval.constants.type_mappings")
            enums = import_module("bfcl_eval.constants.enums")
    except Exception as error:  # another tree_sitter fails in ways of its own
        raise ValueError(
            f"env=bfcl_single_turn needs bfcl-eval ({type(error).__name__}: {error}): {INSTALL}; "
            "or choose another env"
        ) from None
    return Official(
        ast_checker=checker.ast_checker,
        simple_function_checker=checker.simple_function_checker,
        is_function_calling_format_output=utils.is_function_calling_format_output,
        is_empty_output=utils.is_empty_output,
        load_dataset_entry=utils.load_dataset_entry,
        load_ground_truth_entry=utils.load_ground_truth_entry,
        add_language_specific_hint_to_function_doc=utils.add_language_specific_hint_to_function_doc,
        convert_to_tool=tools.convert_to_tool,
        groups=categories.TEST_COLLECTION_MAPPING,
        single_turn=categories.SINGLE_TURN_CATEGORY,
        openai_types=types.GORILLA_TO_OPENAPI,
        openai_style=enums.ModelStyle.OPENAI_COMPLETIONS,
        languages=enums.Language,
    )


def model_name(*, dots: bool) -> str:
    """A model for the checker: one that writes dots in names as they are, or one that cannot."""
    return _MODEL_WITH_DOTS if dots else _MODEL_WITHOUT_DOTS


class _Models(dict[str, Any]):
    """The leaderboard's models: two of them here, the rest from the full install if asked for."""

    def __missing__(self, name: str) -> Any:
        return import_module(_MODELS).MODEL_CONFIG_MAPPING[name]


@contextmanager
def _models_known_by_name() -> Iterator[None]:
    """The table of models imports the clients of all providers: keep it out, unless it is in."""
    if _MODELS in sys.modules:
        yield
        return
    table = ModuleType(_MODELS)
    table.MODEL_CONFIG_MAPPING = _Models(  # type: ignore[attr-defined]
        {
            _MODEL_WITHOUT_DOTS: SimpleNamespace(underscore_to_dot=True),
            _MODEL_WITH_DOTS: SimpleNamespace(underscore_to_dot=False),
        }
    )
    sys.modules[_MODELS] = table
    try:
        yield
    finally:
        del sys.modules[_MODELS]


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bfcl-")  # kept to the end of the process


@contextmanager
def _project_root() -> Iterator[None]:
    """When imported, bfcl-eval makes folders: not in site-packages."""
    if "BFCL_PROJECT_ROOT" in os.environ:
        yield
        return
    os.environ["BFCL_PROJECT_ROOT"] = _folder().name
    try:
        yield
    finally:
        del os.environ["BFCL_PROJECT_ROOT"]
