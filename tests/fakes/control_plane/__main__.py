"""Run a command against a stand-in for Modal: `python -m tests.fakes.control_plane COMMAND ...`.

Containers are processes of this machine, without a GPU. `$PLANE` is the folder of the stand-in.
The volumes of jobs must be mounted inside it, such as at `$PLANE/outputs`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fakes.control_plane import ControlPlane


def main() -> int:
    """Run the command and return its exit status."""
    with tempfile.TemporaryDirectory(prefix="plane-") as folder:
        with ControlPlane(Path(folder) / "plane") as plane:
            variables = {**os.environ, **plane.environment, "PLANE": folder}
            command = sys.argv[1:] or [os.environ.get("SHELL", "sh")]
            words = ["sh", "-c", command[0]] if len(command) == 1 else command
            print(f"+ {shlex.join(command)}", file=sys.stderr)
            status = subprocess.run(words, env=variables).returncode
            print(*plane.errors, sep="\n", end="", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
