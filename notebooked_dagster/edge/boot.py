"""What brings a device's endpoints back after its restart, with no host near: a unit of the user's own systemd.

It is there as long as there are endpoints, and asks for nothing that is there already: the sensor ``endpoint_health`` may
be quicker. Standard library only: the agent tells of it, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .hosting import command

#: What ``endpoints`` is called with, beside its folder, to bring all of them back.
START = "start"
_UNIT = """\
# Written by notebooked whenever an endpoint is deployed, and removed with the last one.
[Unit]
Description=The endpoints of notebooked in {root}
ConditionPathExists={serving}/using.json

[Service]
Type=oneshot
RemainAfterExit=yes
# One that does not come back ends none of the others.
KillMode=process
WorkingDirectory={release}
ExecStart={command}

[Install]
WantedBy=default.target
"""
_RELOADED = 10.0


def has_manager() -> bool:
    """Whether the user's own systemd runs."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return (runtime / "systemd/private").exists()


def lingers() -> bool:
    """Whether it runs from the start of the device on, and goes on when nobody is logged in."""
    return Path("/var/lib/systemd/linger", pwd.getpwuid(os.getuid()).pw_name).is_file()


def arrange(serving: Path) -> None:
    """See to it that the endpoints there are come back after a restart."""
    unit = _unit(serving)
    wanted = unit.parent / "default.target.wants" / unit.name
    if not _endpoints(serving):
        wanted.unlink(missing_ok=True)
        unit.unlink(missing_ok=True)
    elif has_manager():
        text = _text(serving)
        if not unit.exists() or unit.read_text() != text:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            part = unit.with_suffix(f".{os.getpid()}")
            part.write_text(text)
            part.replace(unit)
        if not wanted.is_symlink():
            wanted.symlink_to(Path("..") / unit.name)
    else:
        return
    # A restart reads it anyway; this is for whoever looks before.
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            ["systemctl", "--user", "daemon-reload"], capture_output=True, check=False, timeout=_RELOADED
        )


def told(serving: Path) -> str | None:
    """Whether endpoints come back: ``yes``, or what is missing for it; None where there are none."""
    if not _endpoints(serving):
        return None
    if not has_manager():
        return "systemd"
    if not _unit(serving).exists():
        return "unit"
    return "yes" if lingers() else "linger"


def _endpoints(serving: Path) -> bool:
    return any((serving / "endpoints").glob("*/endpoint.json"))


def _unit(serving: Path) -> Path:
    """Its file; another for each working folder, of which a user may have several."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folder = hashlib.sha256(os.fsencode(serving)).hexdigest()[:8]
    return config / "systemd/user" / f"notebooked-endpoints-{folder}.service"


def _text(serving: Path) -> str:
    using = json.loads((serving / "using.json").read_text())
    release = serving.parent / "releases" / using["release"]
    words = ["/usr/bin/env", f"PYTHONPATH={release}", *command(serving, using), START]
    return _UNIT.format(
        root=_plain(serving.parent), serving=_plain(serving), release=_plain(release), command=_quoted(words)
    )


def _plain(path: Path) -> str:
    return str(path).replace("%", "%%")


def _quoted(words: Sequence[str]) -> str:
    """As systemd reads a command line."""
    for mark, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        words = [word.replace(mark, escaped) for word in words]
    return " ".join(f'"{word}"' for word in words)
