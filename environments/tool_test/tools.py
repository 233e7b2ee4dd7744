"""The dummy tools: their names, their typed arguments, and their JSON schemas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

Schema = Mapping[str, Any]

_MAX_ITEMS = 3  # of a list among the arguments of a task
_WORDS = ("hello", "goodbye", "thanks", "sorry", "yes", "no", "7", "true", "good night", "ça va?")
_GOODS = ("apples", "bread", "candles", "milk", "nails", "paper", "rice", "soap", "tea")
_ROOMS = ("attic", "cellar", "hall", "kitchen")
_COLORS = ("black", "blue", "green", "red", "white", "yellow")
_GUESTS = ("Ada", "Bo", "Chen", "Dora", "Emil", "Fatima", "Gus", "Hana")

_TRUTH: Schema = {"type": "boolean"}
_TEXT: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}


@dataclass(frozen=True)
class Parameter:
    """An argument of a tool: its JSON schema and the values of tasks (for a list: of its items)."""

    name: str
    schema: Schema
    values: tuple[Any, ...]

    def draw(self, rng: Random) -> Any:
        """Draw a value for a task."""
        if self.schema["type"] == "array":
            return rng.sample(self.values, rng.randint(1, _MAX_ITEMS))
        return rng.choice(self.values)


@dataclass(frozen=True)
class Tool:
    """A dummy tool with a description and parameters, all of which are required."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the tool, as chat templates expect it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {p.name: dict(p.schema) for p in self.parameters},
                    "required": [p.name for p in self.parameters],
                },
            },
        }

    def draw(self, rng: Random) -> dict[str, Any]:
        """Draw arguments of the right types."""
        return {parameter.name: parameter.draw(rng) for parameter in self.parameters}

    def problem(self, arguments: Mapping[str, Any]) -> str:
        """Return why the arguments are wrong, or an empty string; it quotes nothing of them."""
        for parameter in self.parameters:
            if parameter.name not in arguments:
                return f"{parameter.name} is missing"
            if not is_typed(arguments[parameter.name], parameter.schema):
                return f"{parameter.name} has the wrong type or value"
        extra = len(arguments) - len(self.parameters)
        return f"{self.name} has no such argument" if extra else ""


def _choice(values: tuple[str, ...]) -> Schema:
    return {"type": "string", "enum": list(values)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "maxItems": 10}


CATALOGUE = {
    tool.name: tool
    for tool in (
        Tool(
            "set_timer",
            "Start a timer.",
            (Parameter("minutes", _INTEGER, tuple(range(1, 61))),),
        ),
        Tool("say", "Say something aloud.", (Parameter("text", _TEXT, _WORDS),)),
        Tool(
            "set_heating",
            "Set the temperature of the heating, in degrees Celsius.",
            (Parameter("degrees", {"type": "number"}, tuple(n / 2 for n in range(30, 50))),),
        ),
        Tool(
            "switch_light",
            "Switch the light of a room on or off.",
            (
                Parameter("room", _choice(_ROOMS), _ROOMS),
                Parameter("on", _TRUTH, (True, False)),
            ),
        ),
        Tool(
            "paint_room",
            "Paint the walls of a room.",
            (
                Parameter("room", _choice(_ROOMS), _ROOMS),
                Parameter("color", _choice(_COLORS), _COLORS),
            ),
        ),
        Tool(
            "buy",
            "Put goods on the shopping list.",
            (Parameter("goods", _list(_TEXT), _GOODS),),
        ),
        Tool(
            "open_lock",
            "Open the lock by its digits.",
            (Parameter("digits", _list(_INTEGER), (*range(10),)),),
        ),
        Tool(
            "book_table",
            "Book a table at the restaurant.",
            (
                Parameter("name", _TEXT, _GUESTS),
                Parameter("guests", _INTEGER, tuple(range(1, 13))),
                Parameter("outside", _TRUTH, (True, False)),
            ),
        ),
    )
}


def is_typed(value: Any, schema: Schema) -> bool:
    """Return whether a decoded JSON value fits a schema; true is no number, 5.0 is no integer."""
    kind = schema["type"]
    if kind == "array":
        is_list = isinstance(value, list) and len(value) <= schema["maxItems"]
        return is_list and all(is_typed(item, schema["items"]) for item in value)
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (isinstance(value, int) or math.isfinite(value))
    return isinstance(value, str) and value in schema.get("enum", (value,))
