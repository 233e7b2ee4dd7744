"""First code in a container: shipped source alone is importable, and nothing outlives the plane."""

import ctypes
import os
import signal
import sys

_SIGKILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_OWN = (
    sys.prefix,
    sys.base_prefix,
    os.environ["CONTROL_PLANE_CONTAINER"],
    os.path.dirname(__file__),
)

# The checkout may be installed as editable: modules must not come from there.
sys.path[:] = [entry for entry in sys.path if entry == "" or entry.startswith(_OWN)]
# A test run in the background ignores interrupts, and its children would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_SIGKILL_WITH_PARENT, signal.SIGKILL)
