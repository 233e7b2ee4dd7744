"""The parts of bfcl-eval that this environment uses, imported when they are first needed."""

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

# The declared dependencies take gigabytes; single turns need only these.
INSTALL = (
    "pip install --no-deps bfcl-eval==2026.3.23 && pip install filelock tenacity "
    "tree_sitter==0.21.3 tree-sitter-java==0.21.0 tree-sitter-javascript==0.21.4"
)

_MODELS = "bfcl_eval.constants.model_config"
# Two models of the leaderboard. The checker asks one thing of a model: whether it writes the name
# of a function `a.b` as a_b, because its interface allows no dots.
_MODEL_WITHOUT_DOTS, _MODEL_WITH_DOTS = "gpt-4o-2024-11-20-FC", "Salesforce/xLAM-2-3b-fc-r"


@dataclass(frozen=True)
class Official:
    """Functions and tables of bfcl-eval, under the names that they have there."""

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
    """Return the parts of bfcl-eval.

    Raises `ValueError` with the commands that install it if it is missing.
    """
    try:
        with _project_root(), _small_table_of_models():
            checker = import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
            utils = import_module("bfcl_eval.utils")
            tools = import_module("bfcl_eval.model_handler.utils")
            categories = import_module("bfcl_eval.constants.category_mapping")
            types = import_module("bfcl_eval.constants.type_mappings")
            enums = import_module("bfcl_eval.constants.enums")
    except Exception as error:  # another version of tree_sitter raises errors of any type
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
    """Return the name of a model that keeps dots in names of functions, or of one that cannot."""
    return _MODEL_WITH_DOTS if dots else _MODEL_WITHOUT_DOTS


class _Models(dict[str, Any]):
    """The leaderboard's table of models: two are here, others come from the full install."""

    def __missing__(self, name: str) -> Any:
        return import_module(_MODELS).MODEL_CONFIG_MAPPING[name]


@contextmanager
def _small_table_of_models() -> Iterator[None]:
    """Replace the table of models, which imports the clients of all providers.

    Does nothing if the real table is imported already.
    """
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
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bfcl-")  # deleted at the end of the process


@contextmanager
def _project_root() -> Iterator[None]:
    """Let bfcl-eval, which makes folders when it is imported, make them in a temporary folder."""
    if "BFCL_PROJECT_ROOT" in os.environ:
        yield
        return
    os.environ["BFCL_PROJECT_ROOT"] = _temporary_folder().name
    try:
        yield
    finally:
        del os.environ["BFCL_PROJECT_ROOT"]
