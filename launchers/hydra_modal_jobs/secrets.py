"""Variables that jobs need and nobody may read: names are written down, values never."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hydra_modal_jobs.config import SecretsConf
from hydra_modal_jobs.errors import LaunchRefused

# Of .env, but no secrets: they become parts of names.
PUBLIC = ("EXPERIMENTER", "EXPERIMENT_NAME")
_SHORTEST = 8  # characters; a shorter value, such as "dummy", is no secret
_TELLING = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$")


class Secrets:
    """Values by name; printing it shows the names."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @classmethod
    def find(cls, conf: SecretsConf) -> Secrets:
        """From `.env` and the environment, which wins; one that is required and nowhere refuses."""
        values = {k: v for k, v in dotenv(conf.dotenv).items() if k not in PUBLIC}
        values |= {k: os.environ[k] for k in (*conf.environment, *values) if os.environ.get(k)}
        missing = [name for name in conf.required if not values.get(name)]
        if missing and not conf.modal:
            raise LaunchRefused(
                f"{missing[0]}: not set; put it into {conf.dotenv or 'the environment'}, or name a "
                "Modal secret that has it in hydra.launcher.secrets.modal"
            )
        return cls(values)

    @classmethod
    def here(cls, names: Iterable[str] = ()) -> Secrets:
        """Those of this process's environment: the named, and what its name tells to be one."""
        names = [*names, *filter(_TELLING.search, os.environ)]
        return cls({name: os.environ[name] for name in names if name in os.environ})

    @property
    def names(self) -> list[str]:
        return sorted(self._values)

    def values(self) -> dict[str, str]:
        """For Modal, or for the environment of a job here."""
        return dict(self._values)

    def redact(self, text: str) -> str:
        """The text with each value replaced by its name."""
        for name, value in self._values.items():
            if len(value) >= _SHORTEST and value in text:
                text = text.replace(value, f"[{name}]")
        return text

    def refuse_in(self, text: str, *, what: str) -> None:
        """Refuse to send a value along with what is kept."""
        for name, value in self._values.items():
            if len(value) >= _SHORTEST and value in text:
                raise LaunchRefused(
                    f"{what} holds the value of {name}, which would be written down; write "
                    f"${{oc.env:{name}}} instead"
                )

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.names)})"


def dotenv(path: str | None) -> dict[str, str]:
    """The variables of a .env file; none if there is no such file."""
    from dotenv import dotenv_values

    if not path or not Path(path).is_file():
        return {}
    return {name: value for name, value in dotenv_values(path).items() if value}


def public(name: str, conf: SecretsConf) -> str | None:
    """EXPERIMENTER or EXPERIMENT_NAME, from the environment or .env."""
    return os.environ.get(name) or dotenv(conf.dotenv).get(name)
