"""What a user can mend: one line that names the setting to change."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from typing import Any

from hydra.errors import CompactHydraException, HydraException
from hydra_modal_jobs.errors import JobFailed, LaunchRefused
from omegaconf.errors import OmegaConfBaseException


class UserError(CompactHydraException):
    """A mistake or a condition outside the program; shown as one line, without a traceback."""


def what_to_tell(error: Exception) -> str | None:
    """One line for the user; None for a fault of the program, whose traceback is wanted."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(error)
    if isinstance(error, OSError) and is_storage_error(error):
        return str(storage_error(error))
    if isinstance(error, AssertionError) and "type for root: NoneType" in str(error):
        # OmegaConf's, for model.scratch.hidden_size=... where model.scratch is null
        return "an override sets a key inside of a setting that is null for one of the jobs"
    return None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?`; the choices when none is near and they are few; else nothing."""
    choices = sorted(set(choices))
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f" (choose from: {', '.join(choices)})" if 0 < len(choices) <= 25 else ""


def storage_error(error: OSError) -> UserError:
    """The one line for a folder that cannot be written."""
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    }.get(error.errno or 0, "choose another folder with hydra.sweep.dir=...")
    return UserError(f"{where}{reason}; {remedy}, then run the same command with resume=true")


def one_line(text: str) -> str:
    """The text with every run of white space made one space."""
    return re.sub(r"\s+", " ", text).strip()


def is_storage_error(error: BaseException) -> bool:
    """Whether an OSError speaks of the disk rather than of the network or a process."""
    codes = (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO),
    )
    return isinstance(error, OSError) and error.errno in codes


def explain(error: BaseException) -> str:
    """One line for what Hydra and OmegaConf say in several; the setting's name comes first."""
    if isinstance(error, UserError | JobFailed | LaunchRefused):
        return str(error)
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    override = _attribute(causes, "override")
    if override:
        return f"{override}: cannot be read; quote it, or see Hydra's override grammar"
    text = "\n".join(str(cause) for cause in causes)
    for pattern, say in _MESSAGES:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            return say(match, causes)
    said = [str(cause).split("Config search path")[0] for cause in causes]
    return one_line(": ".join(dict.fromkeys(said)))


def _attribute(causes: list[BaseException], name: str) -> Any:
    """The first of the causes' attributes of this name that says something."""
    return next((found for c in causes if (found := getattr(c, name, None))), None)


def _no_such_choice(match: re.Match[str], causes: list[BaseException]) -> str:
    group, _, choice = match["path"].rpartition("/")
    options = _attribute(causes, "options") or []
    return f"{group}={choice}: no such choice{did_you_mean(choice, options)}"


def _no_such_key(match: re.Match[str], causes: list[BaseException]) -> str:
    key = match["key"]
    parent, _, leaf = key.rpartition(".")
    known = [str(name) for name in _attribute(causes, "parent_node") or []]
    hint = did_you_mean(leaf, known)
    if parent and "did you mean " in hint:
        hint = hint.replace("did you mean ", f"did you mean {parent}.")
    if key.startswith("trainer.extra."):
        hint = f"; to hand it to TRL write +{key}=..."
    return f"{key}: no such setting{hint}"


def _wrong_value(match: re.Match[str], causes: list[BaseException]) -> str:
    return f"{match['key']}: {one_line(match['reason'])}"


def _missing(match: re.Match[str], causes: list[BaseException]) -> str:
    return f"{match['key']}: a value is missing; give {match['key']}=..."


_MESSAGES = (
    (r"Could not find '(?P<path>[\w./@-]+/[^']+)'", _no_such_choice),
    (r"Could not override '(?P<key>[^']+)'", _no_such_key),
    (r"Key '[^']*' (?:not in|is not in) .*?full_key: (?P<key>\S+)", _no_such_key),
    (r"Missing mandatory value: (?P<key>\S+)", _missing),
    (
        r"(?P<reason>Value .*?|Invalid value .*?|Unsupported .*?)\n\s+full_key: (?P<key>\S+)",
        _wrong_value,
    ),
)
