"""A stand-in for Modal's control plane on this machine, for the released client and container.

with ControlPlane(tmp_path) as plane:
    with app.run():
        call = function.spawn(1)
        plane.preempt(call)
        call.get()
    assert plane.functions["train"].gpus == ("H100:8",)
"""

from tests.fakes.control_plane.plane import ControlPlane
from tests.fakes.control_plane.scheduler import Settings

__all__ = ["ControlPlane", "Settings"]
