"""How two configurations differ."""

from __future__ import annotations

from typing import Any


def changed_settings(before: Any, now: Any, prefix: str = "") -> list[str]:
    """The settings, by full name, in which two configurations differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [prefix]
    changed = []
    for key in [*before, *(key for key in now if key not in before)]:
        name = f"{prefix}.{key}" if prefix else str(key)
        changed += changed_settings(before.get(key), now.get(key), name)
    return changed
