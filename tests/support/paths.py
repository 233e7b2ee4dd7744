"""Folders of the checkout that tests read."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
LAUNCHER_APP = CHECKOUT / "tests/support/launcher_app"  # a small Hydra application
OUTSIDE = CHECKOUT / "tests/support/outside"  # configs and an environment of a user's own
