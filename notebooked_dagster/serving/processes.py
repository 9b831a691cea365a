"""Processes by identity: an id alone may have been given to another program since."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil

from .state import ProcessIdentity

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TIME_FIELD = 19
# Where only the wall clock tells, it may have been set between two looks; ids do not come round that fast.
_CLOCK_SLACK = 2.0


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None where it has gone or is a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        # On Linux, since boot: the wall clock jumps on a machine without a clock of its own, such as a Pi.
        boot = _BOOT_ID.read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return ProcessIdentity(
            pid=pid, created=int(fields[_START_TIME_FIELD]) / os.sysconf("SC_CLK_TCK"), boot=boot
        )
    except (psutil.Error, ProcessLookupError):
        return None
    except OSError:
        pass
    try:
        return ProcessIdentity(pid=pid, created=psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def alive(identity: ProcessIdentity | None) -> bool:
    """Whether that very process runs."""
    if identity is None:
        return False
    now = identify(identity.pid)
    if now is None or now.boot != identity.boot:
        return False
    return abs(now.created - identity.created) < (0.001 if now.boot else _CLOCK_SLACK)


def kill(identity: ProcessIdentity | None) -> None:
    """Kill that very process and everything in its group; anything else that has its id is left alone."""
    if identity is None or not alive(identity):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Workers and supervisors lead a session each, so their group is theirs alone.
        if os.getpgid(identity.pid) == identity.pid:
            os.killpg(identity.pid, signal.SIGKILL)
        else:
            os.kill(identity.pid, signal.SIGKILL)


def listening_on(port: int) -> str:
    """Which program holds a port, for a message; empty where it cannot be told."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if (
                connection.status == psutil.CONN_LISTEN
                and address
                and address.port == port
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        return ""
    return ""
