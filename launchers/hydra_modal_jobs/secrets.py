"""Variables that jobs need, and the secret ones of them, whose values are never written down.

This is also the one rule for which names are secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from hydra_modal_jobs.config import SecretsConf
from hydra_modal_jobs.dotenv_file import read_dotenv
from hydra_modal_jobs.errors import LaunchRefused

# Variables of a .env file that are for the launcher alone: they become parts of names.
_LAUNCHER_NAMES = ("EXPERIMENTER", "EXPERIMENT_NAME")
_MIN_SECRET_CHARACTERS = 8  # a shorter value, such as "dummy", is not hidden
_SECRET_NAME = re.compile(
    r"(^|[_.-])(API)?(KEYS?|TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIALS?|PAT"
    r"|WEBHOOK(_URL)?|DSN)($|[_.-])",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"://[^/\s?#]+@")  # such a value is secret whatever its name


def is_secret_name(name: str) -> bool:
    """Return whether a variable of this name holds a secret.

    >>> is_secret_name("WANDB_API_KEY"), is_secret_name("AWS_ACCESS_KEY_ID")
    (True, True)
    >>> is_secret_name("WANDB_PROJECT"), is_secret_name("MAX_TOKENS"), is_secret_name("PWD")
    (False, False, False)
    """
    return name != "PWD" and _SECRET_NAME.search(name) is not None


class Secrets:
    """Secret values by name, and plain ones that go along; printing shows the names alone."""

    def __init__(self, values: Mapping[str, str], plain: Mapping[str, str] | None = None) -> None:
        self._values = dict(values)
        self._plain = dict(plain or {})

    @classmethod
    def load(cls, conf: SecretsConf) -> Secrets:
        """Read variables from `.env` and the environment, which takes precedence.

        Raises `LaunchRefused` if a required one is missing, or `.env` cannot be read.
        """
        read = read_dotenv(conf.dotenv)
        values = {k: v for k, v in read.items() if k not in _LAUNCHER_NAMES}
        values |= {k: os.environ[k] for k in (*conf.environment, *values) if os.environ.get(k)}
        missing = [name for name in conf.required if not values.get(name)]
        if missing and not conf.modal:
            raise LaunchRefused(
                f"{missing[0]}: not set; put it into {conf.dotenv or 'the environment'}, or name a "
                "Modal secret that has it in hydra.launcher.secrets.modal"
            )
        more = {*conf.names, *conf.required}
        secret = {
            name: value
            for name, value in values.items()
            if name in more or is_secret_name(name) or _USER_IN_URL.search(value)
        }
        return cls(secret, {k: v for k, v in values.items() if k not in secret})

    @classmethod
    def from_environment(cls, names: Iterable[str] = ()) -> Secrets:
        """Take from this process's environment these names and all that are secret by name."""
        names = [*names, *filter(is_secret_name, os.environ)]
        return cls({name: os.environ[name] for name in names if name in os.environ})

    @property
    def names(self) -> list[str]:
        """The sorted names of the secret ones."""
        return sorted(self._values)

    def values(self) -> dict[str, str]:
        """Return all values by name, for Modal or for the environment of a job here."""
        return {**self._plain, **self._values}

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


def public_variable(name: str, conf: SecretsConf) -> str | None:
    """Return EXPERIMENTER or EXPERIMENT_NAME from the environment or .env; None if not set."""
    return os.environ.get(name) or read_dotenv(conf.dotenv).get(name)
