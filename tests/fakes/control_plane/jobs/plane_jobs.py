"""Bodies of functions for the tests of the control plane, as in a user's package."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """Call the function named by `do`, and return its result with the payload as `of`."""
    return {"of": payload, **globals()[payload["do"]](**payload.get("with", {}))}


def greet(name: str) -> dict[str, Any]:
    print(f"hello {name}")
    print(f"warning {name}", file=sys.stderr)
    return {"file": __file__, "path": sys.path, "pid": os.getpid(), "cwd": os.getcwd()}


def fail() -> dict[str, Any]:
    raise ValueError("no such luck")


def leave(status: int) -> dict[str, Any]:
    sys.exit(status)


def die() -> dict[str, Any]:
    os._exit(1)


def show(variable: str) -> dict[str, Any]:
    return {"value": os.environ.get(variable)}


def measure(text: str) -> dict[str, Any]:
    return {"length": len(text), "text": text}


def look(files: list[str]) -> dict[str, Any]:
    """Return the text and mode of files, by their paths in the container."""
    root = os.environ["CONTROL_PLANE_CONTAINER"]
    paths = {name: Path(root + name) for name in files if Path(root + name).exists()}
    return {
        "texts": {name: path.read_text() for name, path in paths.items()},
        "modes": {name: path.stat().st_mode & 0o777 for name, path in paths.items()},
    }


def write(folder: str, files: dict[str, str]) -> dict[str, Any]:
    for name, text in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {}


def echo(variable: str) -> dict[str, Any]:
    print(os.environ[variable])
    return {}


def succeed_at(attempt: int, folder: str) -> dict[str, Any]:
    """Fail until this attempt; `folder` remembers how many there were."""
    tries = Path(folder) / "tries"
    before = int(tries.read_text()) if tries.exists() else 0
    tries.write_text(str(before + 1))
    if before + 1 < attempt:
        raise RuntimeError(f"attempt {before + 1}")
    return {"attempt": before + 1}


def sleep(seconds: float) -> dict[str, Any]:
    print("asleep")
    time.sleep(seconds)
    return {}


def checkpoint(folder: str, seconds: float) -> dict[str, Any]:
    """Save on an interrupt; return what an earlier attempt has saved."""
    saved = Path(folder) / "saved"
    if saved.exists():
        return {"resumed": saved.read_text()}
    try:
        print("ready")
        time.sleep(seconds)
    except KeyboardInterrupt:
        saved.write_text("on interrupt")
        raise
    return {"resumed": None}


def stubborn(folder: str) -> dict[str, Any]:
    """Ignore the interrupt at first, and leave a child behind in a session of its own."""
    again = Path(folder) / "again"
    if again.exists():
        return {"again": True}
    again.touch()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (Path(folder) / "child").write_text(str(child.pid))
    time.sleep(600)
    return {}
