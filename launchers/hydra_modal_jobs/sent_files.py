"""Which files of a folder are sent with a job: none hidden, secret, or ignored by git."""

from __future__ import annotations

import os
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path, PurePath

_CONFIG_SUFFIXES = (".yaml", ".yml")
# Patterns of names in lower case, which no part of a file's path may have.
_NEVER_SENT = (
    # Whatever is hidden: .env, .git, .ssh, .aws, .netrc, .npmrc, .venv, caches, histories.
    ".*",
    # Variables and keys.
    *("*.env", "*.env.*", "*.pem", "*.key", "*.pfx", "*.p12", "*.jks", "*.keystore", "*.kdbx"),
    *("*.ppk", "*.gpg", "*.asc", "*.ovpn", "*.keytab", "id_rsa*", "id_dsa*", "id_ecdsa*"),
    *("id_ed25519*", "kubeconfig*", "kaggle.json", "auth.json", "wandb.json", "htpasswd*"),
    # Environments, caches, the outputs of earlier runs and of trackers, memory images.
    *("venv", "virtualenv", "node_modules", "*.egg-info", "__pycache__", "*.pyc"),
    *("runs", "outputs", "multirun", "wandb", "trackio", "mlruns", "lightning_logs"),
    *("core", "core.[0-9]*", "*.core"),
)
# Words of file names that promise a secret; a program may be called so, any other file may not.
_SECRET_WORD = re.compile(
    r"secrets?|credentials?|passwords?|passwd|passphrase|api[-_.]?keys?|private[-_.]?key"
    r"|access[-_.]?keys?|service[-_.]?account|client[-_.]?secret|(^|[-_.])(token|keys?)$|^tokens$"
)
_PROGRAM_SUFFIXES = (".py", ".pyi", ".so", ".pyd", ".md", ".rst")


def is_never_sent(path: PurePath) -> bool:
    """Return whether a file of this path, relative to what is sent, stays here whatever uses it.

    >>> [is_never_sent(PurePath(name)) for name in ("secrets.py", "a/Secrets.YAML", "a/.npmrc")]
    [False, True, True]
    """
    parts = [part.lower() for part in path.parts]
    if any(fnmatch(part, pattern) for part in parts for pattern in _NEVER_SENT):
        return True
    if not parts or parts[-1].endswith(_PROGRAM_SUFFIXES):
        return False
    return _SECRET_WORD.search(PurePath(parts[-1]).stem) is not None


def is_not_config(path: PurePath) -> bool:
    """Return whether a file in a configuration folder is not sent, as it is no configuration."""
    return is_never_sent(path) or path.suffix not in _CONFIG_SUFFIXES


def sent_files(folder: Path, *, is_config: bool) -> dict[Path, int]:
    """Return the files of a folder that are sent, relative to it, with their bytes."""
    is_left_out = is_not_config if is_config else is_never_sent
    ignored = _ignored_by_git(folder)
    files: dict[Path, int] = {}
    for top, folders, names in os.walk(folder):
        here = Path(top).relative_to(folder)
        folders[:] = [
            name
            for name in sorted(folders)
            if not is_never_sent(here / name / "x.py") and here / name not in ignored
        ]
        for name in sorted(names):
            path = here / name
            if is_left_out(path) or path in ignored or _leads_to_a_secret(folder, path):
                continue
            if (folder / path).is_file():
                files[path] = (folder / path).stat().st_size
    return files


def _leads_to_a_secret(folder: Path, path: Path) -> bool:
    """Return whether a file is a link to one elsewhere that would not be sent."""
    if not (folder / path).is_symlink():
        return False
    target = (folder / path).resolve()
    return not target.is_relative_to(folder.resolve()) and is_never_sent(target.relative_to("/"))


def _ignored_by_git(folder: Path) -> set[Path]:
    """Return the files and folders below this one, relative to it, that git ignores.

    There are none if git ignores the folder itself, as it does an environment with packages.
    """
    git = ["git", "-C", str(folder)]
    list_ignored = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    try:
        if subprocess.run([*git, "check-ignore", "-q", "."], capture_output=True).returncode != 1:
            return set()  # ignored itself, or no checkout
        listed = subprocess.run([*git, *list_ignored], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return set()
    return {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
