"""Errors of this machine's disk: which they are, and what the user can do about them."""

from __future__ import annotations

import errno

from rl_experiments.errors import UserError

_DISK_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO),
)
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
}
_OTHER_REMEDY = "choose another folder with hydra.sweep.dir=..."


def is_disk_error(error: BaseException) -> bool:
    """Return whether an OSError is about the disk, rather than the network or a process."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRNOS


def disk_error(error: OSError) -> UserError:
    """Return the error to raise for a file of a run that cannot be written."""
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, _OTHER_REMEDY)
    return UserError(f"{where}{reason}; {remedy}, then run the same command with resume=true")
