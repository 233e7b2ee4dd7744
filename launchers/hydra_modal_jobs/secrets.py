"""Variables that jobs need and nobody may read: their names are written down, never their values.

This is also the one reader of `.env` files and the one rule for which names are secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hydra_modal_jobs.config import SecretsConf
from hydra_modal_jobs.errors import LaunchRefused

# Variables of a .env file that are not secret, since they become parts of names.
PUBLIC_NAMES = ("EXPERIMENTER", "EXPERIMENT_NAME")
_MIN_SECRET_CHARACTERS = 8  # a shorter value, such as "dummy", is not hidden
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$")


def is_secret_name(name: str) -> bool:
    """Return whether a variable of this name holds a secret.

    >>> is_secret_name("WANDB_API_KEY"), is_secret_name("WANDB_PROJECT")
    (True, False)
    """
    return _SECRET_NAME.search(name) is not None


class Secrets:
    """Secret values by name; printing the object shows the names alone."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    @classmethod
    def load(cls, conf: SecretsConf) -> Secrets:
        """Read them from `.env` and the environment, which takes precedence.

        Raises `LaunchRefused` if a required one is missing.
        """
        values = {k: v for k, v in read_dotenv(conf.dotenv).items() if k not in PUBLIC_NAMES}
        values |= {k: os.environ[k] for k in (*conf.environment, *values) if os.environ.get(k)}
        missing = [name for name in conf.required if not values.get(name)]
        if missing and not conf.modal:
            raise LaunchRefused(
                f"{missing[0]}: not set; put it into {conf.dotenv or 'the environment'}, or name a "
                "Modal secret that has it in hydra.launcher.secrets.modal"
            )
        return cls(values)

    @classmethod
    def from_environment(cls, names: Iterable[str] = ()) -> Secrets:
        """Take from this process's environment these names and all that are secret by name."""
        names = [*names, *filter(is_secret_name, os.environ)]
        return cls({name: os.environ[name] for name in names if name in os.environ})

    @property
    def names(self) -> list[str]:
        """The sorted names."""
        return sorted(self._values)

    def values(self) -> dict[str, str]:
        """Return the values by name, for Modal or for the environment of a job here."""
        return dict(self._values)

    def redact(self, text: str) -> str:
        """Return the text with each value replaced by its name in brackets."""
        for name, value in self._values.items():
            if len(value) >= _MIN_SECRET_CHARACTERS and value in text:
                text = text.replace(value, f"[{name}]")
        return text

    def refuse_in(self, text: str, *, what: str) -> None:
        """Raise `LaunchRefused` if a text that will be written down holds a value."""
        for name, value in self._values.items():
            if len(value) >= _MIN_SECRET_CHARACTERS and value in text:
                raise LaunchRefused(
                    f"{what} holds the value of {name}, which would be written down; write "
                    f"${{oc.env:{name}}} instead"
                )

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.names)})"


def read_dotenv(path: str | None) -> dict[str, str]:
    """Return the variables of a .env file that have a value; none if there is no such file."""
    from dotenv import dotenv_values

    if not path or not Path(path).is_file():
        return {}
    return {name: value for name, value in dotenv_values(path).items() if value}


def public_variable(name: str, conf: SecretsConf) -> str | None:
    """Return EXPERIMENTER or EXPERIMENT_NAME from the environment or .env; None if not set."""
    return os.environ.get(name) or read_dotenv(conf.dotenv).get(name)
