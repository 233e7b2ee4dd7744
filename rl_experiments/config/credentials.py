"""Credentials have no place among the settings, which are written to many files of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rl_experiments.errors import UserError

_INTERPOLATION = re.compile(r"\$\{[^}]*\}")
_USER_IN_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://([^/\s?#@]+)@", re.I)
_KEY_IN_QUERY = re.compile(
    r"[?&](?:[\w-]*key|[\w-]*token|sig|signature|[\w-]*secret|password|auth)=([^&\s#]+)", re.I
)
_NAME = re.compile(
    r"(api|access|secret|private|auth|client|signing)[_-]?key([_-]id)?$|(?<!eos_)(?<!bos_)(?<!pad_)"
    r"(?<!unk_)token$|secret$|passw(or)?d$|passphrase$|credentials?$|authorization$|cookie$",
    re.I,
)
_NAME_IN_REQUEST = re.compile(r"key([_-]id)?$|auth|^x-api", re.I)  # in a body or a header
_VALUE = re.compile(
    r"(bearer|basic)\s+\S{6}|(sk-|hf_|ghp_|gho_|github_pat_|glpat-|gsk_|xox[bp]-|AKIA)[\w-]{8}",
    re.I,
)
_WRITTEN = "would be written to the files of the run"


def refuse_credentials(settings: Mapping[Any, Any]) -> None:
    """Raise a `UserError`, which does not show it, if a setting holds a credential.

    The settings are plain, with their interpolations: what `${oc.env:NAME}` stands for is written
    nowhere.
    """
    for name, value in _strings(settings):
        literal = _INTERPOLATION.sub("", value)
        for pattern, what in (
            (_USER_IN_URL, "a user name or password in an address"),
            (_KEY_IN_QUERY, "a key in an address"),
        ):
            if any(match[1].strip(":") for match in pattern.finditer(literal)):
                raise UserError(
                    f"{name}: {what} {_WRITTEN}; put the address into an environment variable and "
                    f"write {name}='${{oc.env:NAME}}'"
                )
        parts = name.split(".")
        is_request = not {"body", "extra_headers", "headers"}.isdisjoint(parts[:-1])
        is_named_so = _NAME.search(parts[-1]) or (is_request and _NAME_IN_REQUEST.search(parts[-1]))
        if literal.strip() and (is_named_so or _VALUE.match(literal.strip())):
            group = parts[0] if parts[0] in ("model", "judge") else ""
            more = f", or name it in {group}.api_key_env" if group else ""
            raise UserError(
                f"{name}: a credential {_WRITTEN}; put it into an environment variable and write "
                f"{name}='${{oc.env:NAME}}'{more}"
            )


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the full name and the value of each setting that is a string."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, name)
    elif isinstance(value, str):
        yield name, value
