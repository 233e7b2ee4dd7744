"""The seal of a job's file, by which this machine knows what it wrote itself and may run.

The key lies in the user's home, so a folder that came from elsewhere cannot have the seal.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "seal"  # the key of job.json that holds it
_KEY_BYTES = 32


def seal(payload: Mapping[str, Any]) -> str:
    """Return the seal of a job's payload; empty where no key can be kept."""
    try:
        key = _key()
    except OSError:
        return ""
    content = {name: value for name, value in payload.items() if name != SEAL}
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)  # as a file gives it back
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def is_sealed(payload: Mapping[str, Any]) -> bool:
    """Return whether this user of this machine has written the payload as it is."""
    expected, given = seal(payload), payload.get(SEAL)
    return bool(expected) and isinstance(given, str) and hmac.compare_digest(expected, given)


def _key() -> bytes:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    path = Path(state) / "hydra-modal-jobs/key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        building = path.with_name(f".key.{os.getpid()}")
        with open(os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(building, path)  # fails if another process has been faster
        except FileExistsError:
            pass
        finally:
            building.unlink()
    key = path.read_bytes()
    if len(key) < _KEY_BYTES:
        raise OSError(f"{path}: no key")
    return key
