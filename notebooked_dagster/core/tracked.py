"""Keys that git keeps: in ``.env``, in key files of Google's, in AWS's ``credentials``, in Azure's login files, in ``.pem``.

What was committed once is known to whoever has the repository, so a key that is found has to be revoked, not only removed.
Files are judged by what is in them now; no message holds any part of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from io import StringIO
from pathlib import Path, PurePosixPath

from notebooked_dagster.errors import ConfigError

from .redaction import is_secret_name

# A key file is small; what is larger is data.
_LARGEST = 64 * 1024
_TIMEOUT = 20.0
# git starts a hook with these, and they name the repository that the hook is of.
_OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY")
_EXAMPLES = ("*.example", "*.sample", "*.template", "*.dist", "*.schema")
_ENVIRONMENTS = (".env", ".env.*", "*.env")
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_AWS = re.compile(r"(?im)^\s*(?:aws_secret_access_key|aws_session_token)\s*=\s*\S")
_AWS_CSV = re.compile(r"(?i)secret access key")
# A value that only names where the secret is, or stands for one that is still to come.
_NO_SECRET = re.compile(
    r"(?i)^(?:\$\{.*\}|\$\w+|<.*>|x{3,}|\*{3,}|change.?me|your[-_ ].*|example|placeholder|todo|none|null)$"
)


@dataclass(frozen=True, slots=True)
class Leak:
    """A file under version control that holds a key.

    Attributes:
        path: From the project's folder.
        what: What it is, as the subject of a sentence.
        revoke: What to do about the key itself.
    """

    path: str
    what: str
    revoke: str

    @property
    def message(self) -> str:
        """One sentence."""
        return f"{self.what} is under version control."

    @property
    def fix(self) -> str:
        """What to do."""
        return (
            f"`git rm --cached {self.path}`, add it to .gitignore and commit; then {self.revoke}: "
            "it stays in the history, where others may have read it."
        )


def tracked_files(root: Path, patterns: Sequence[str] = ()) -> list[str] | None:
    """What git keeps below a folder, from there; None where there is no git, or no repository.

    Args:
        root: The folder.
        patterns: Only these, as git matches them.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--", *patterns],
            cwd=root,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    # A file in conflict is told once a side.
    names = dict.fromkeys(name for name in done.stdout.split(b"\0") if name)
    return [name.decode("utf-8", "surrogateescape") for name in names]


def leaks(root: Path, files: Sequence[str]) -> Iterator[Leak]:
    """The files of a project that hold keys, in their order."""
    for name in files:
        text = _content(root, name)
        if text is not None and (found := _judged(name, text)) is not None:
            yield found


def refuse_tracked_environment(root: Path) -> None:
    """Refuse a project whose ``.env`` holds keys and is under version control.

    git is asked only where ``.env`` holds keys, so that loading a code location costs nothing otherwise.

    Raises:
        ConfigError: It does, and is.
    """
    text = _content(root, ".env")
    found = _judged(".env", text) if text is not None else None
    if found is not None and tracked_files(root, [":(literal).env"]):
        raise ConfigError(found.message, path=root / ".env", hint=found.fix)


def holds_settings(name: str) -> bool:
    """Whether a file is a ``.env`` of somebody's, and not an example of one."""
    base = PurePosixPath(name).name
    return _matches(base, _ENVIRONMENTS) and not _matches(base, _EXAMPLES)


def _content(root: Path, name: str) -> str | None:
    """A file's text where its name speaks of keys and it is small enough; None for any other."""
    pure = PurePosixPath(name)
    if not (
        holds_settings(name)
        or pure.suffix in (".json", ".pem", ".key")
        or (pure.parent.name == ".aws" and pure.name == "config")
        or _matches(pure.name.lower(), ("credentials", "credentials.*", "*accesskeys.csv"))
    ):
        return None
    path = root / name
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > _LARGEST:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _judged(name: str, text: str) -> Leak | None:
    pure = PurePosixPath(name)
    if holds_settings(name):
        keys = _secret_names(text)
        if not keys:
            return None
        shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        return Leak(name, f"A file with secrets ({shown})", "change each of them")
    if pure.suffix == ".json":
        return _json(name, text)
    if pure.suffix in (".pem", ".key"):
        return Leak(name, "A private key", "replace it") if _PRIVATE_KEY.search(text) else None
    if _AWS.search(text) or (pure.suffix == ".csv" and _AWS_CSV.search(text)):
        return Leak(name, "An access key of AWS", "deactivate it in IAM and make another")
    return None


def _json(name: str, text: str) -> Leak | None:
    # Parsing is left to the few files that may be one.
    if not any(
        word in text for word in ('"private_key"', '"refresh_token"', '"clientSecret"', '"RefreshToken"')
    ):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    if _PRIVATE_KEY.search(str(found.get("private_key", ""))):
        return Leak(
            name,
            "A key of a Google service account",
            "delete the key (`gcloud iam service-accounts keys delete`)",
        )
    if found.get("type") == "authorized_user" and found.get("refresh_token"):
        return Leak(name, "Somebody's login at Google", "revoke it (`gcloud auth revoke`)")
    if found.get("clientSecret") and (found.get("clientId") or found.get("tenantId")):
        return Leak(name, "A service principal's secret of Azure", "reset it (`az ad sp credential reset`)")
    if isinstance(found.get("RefreshToken"), Mapping) and "AccessToken" in found:
        return Leak(name, "Somebody's login at Azure", "revoke the sessions of that user and log in again")
    return None


def _secret_names(text: str) -> list[str]:
    values = import_module("dotenv").dotenv_values(stream=StringIO(text), interpolate=False)
    return [
        name
        for name, value in values.items()
        if value and is_secret_name(name) and not _NO_SECRET.match(value.strip())
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
