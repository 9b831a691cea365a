"""Where something came from, as tags: ``notebooked/commit``, ``notebooked/data_hash``, …"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

PREFIX = "notebooked/"
_GIT_TIMEOUT = 5.0
_HASHED_UP_TO = 2 * 2**30
_BLOCK = 1024 * 1024


def prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags under our own prefix; a name that has a prefix already keeps it."""
    return {name if "/" in name or "." in name else PREFIX + name: str(value) for name, value in tags.items()}


def git_tags(where: Path) -> dict[str, str]:
    """The commit a folder is at, and whether it was changed since.

    Outside a repository, as in a container, the commit that ``NOTEBOOKED_COMMIT`` names; empty where it names none.
    """
    folder = where if where.is_dir() else where.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        told = os.environ.get("NOTEBOOKED_COMMIT")
        return {"notebooked/commit": told, "mlflow.source.git.commit": told} if told else {}
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    tags = {"notebooked/commit": commit, "mlflow.source.git.commit": commit}
    if status is not None:
        tags["notebooked/dirty"] = "true" if status else "false"
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    if branch is not None and branch != "HEAD":
        tags["notebooked/branch"] = branch
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def data_hash(path: Path) -> str:
    """A digest of a file, or of a folder's names and contents; what Python compiles of modules in it is no data.

    Above 2 GiB contents are told by size and time of change; the digest then starts with ``stat:``.

    Raises:
        OSError: It cannot be read.
    """
    found = (
        item
        for item in path.rglob("*")
        if item.is_file() and "__pycache__" not in item.relative_to(path).parts
    )
    files = [path] if path.is_file() else sorted(found)
    by_content = sum(file.stat().st_size for file in files) <= _HASHED_UP_TO
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file.relative_to(path)}\0{facts.st_size}\0".encode())
        if not by_content:
            digest.update(str(facts.st_mtime_ns).encode())
            continue
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return ("sha256:" if by_content else "stat:") + digest.hexdigest()
