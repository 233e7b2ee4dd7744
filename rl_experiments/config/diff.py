"""Which settings differ between two configurations."""

from __future__ import annotations

from typing import Any


def changed_settings(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Return the full names of the settings in which two plain configurations differ.

    >>> changed_settings({"seed": 0, "gpu": {"count": 1}}, {"seed": 0, "gpu": {"count": 2}})
    ['gpu.count']
    """
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [prefix]
    changed = []
    for key in [*before, *(key for key in after if key not in before)]:
        name = f"{prefix}.{key}" if prefix else str(key)
        changed += changed_settings(before.get(key), after.get(key), name)
    return changed
