"""The first code of a container: it hides the checkout, and ends the process with its parent."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_FOLDERS_OF_CONTAINER = (
    sys.prefix,
    sys.base_prefix,
    os.environ["CONTROL_PLANE_CONTAINER"],
    os.path.dirname(__file__),
)

# The checkout may be installed as editable; a container has only what was shipped.
sys.path[:] = [
    entry for entry in sys.path if entry == "" or entry.startswith(_FOLDERS_OF_CONTAINER)
]
# A test run in the background ignores interrupts, and its children would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
