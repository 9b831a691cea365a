"""What install commands in a notebook ask for, as requirements."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

_INSTALLERS = re.compile(
    r"^(?:sudo\s+)?(?:[\"']?\S*(?:python[\d.]*|sys\.executable\}?)[\"']?\s+-m\s+)?(?:uv\s+)?"
    r"(?:pip[\d.]*|conda|mamba)\s+(?:-\S+\s+)*install\b(?P<rest>.*)$"
)
_JOINTS = re.compile(r"\s*(?:&&|\|\||;|\|)\s*")
_OPTIONS_WITH_VALUE = frozenset(
    {
        "-r",
        "-c",
        "-i",
        "-f",
        "-t",
        "-n",
        "-p",
        "--index-url",
        "--extra-index-url",
        "--find-links",
        "--target",
        "--name",
        "--channel",
        "--requirement",
        "--constraint",
        "--prefix",
        "--trusted-host",
    }
)


def installed(command: str) -> list[str] | None:
    """The packages a command line installs; None where it installs none."""
    parts = [command] if _INSTALLERS.match(command) else _JOINTS.split(command)
    found = [match["rest"] for part in parts if (match := _INSTALLERS.match(part))]
    return [name for rest in found for name in requirements_of(rest)] if found else None


def requirements_of(arguments: str) -> Iterator[str]:
    """The packages that an install command's arguments name, as PEP 508 strings where they are."""
    try:
        # A remark begins behind a blank: the `#` of a URL is part of it.
        words = shlex.split(re.sub(r"(?:^|\s)#.*", "", arguments))
    except ValueError:
        words = arguments.split()
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _OPTIONS_WITH_VALUE:
            skip = True
        elif word in ("&&", ";", "|", "||", ">", "2>&1", "&"):
            return
        elif word.startswith(("-", ">", "2>", "{", "$")) or not word.strip():
            continue
        elif word.startswith(("git+", "http://", "https://")):
            yield _named(word)
        elif re.match(r"^[A-Za-z0-9][\w.-]*(?:\[[\w,.-]+\])?", word):
            yield word


def _named(url: str) -> str:
    """A URL to install from, as a PEP 508 string where it says, or its repository is, the package's name."""
    egg = re.search(r"[#&]egg=([A-Za-z0-9][\w.-]*)", url)
    repository = re.search(r"^git\+.*/([A-Za-z0-9][\w.-]*?)(?:\.git)?(?:@[^/]*)?(?:#.*)?$", url)
    found = egg or repository
    return f"{found[1]} @ {url.split('#')[0]}" if found else url
