"""Talk to systemd: ready, alive, stopping. A datagram each; nothing where nobody listens (``NOTIFY_SOCKET``)."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str, wait: float = 0.0) -> bool:
    """Send ``READY=1``, ``WATCHDOG=1``, ``STATUS=…``.

    Args:
        lines: What to say.
        wait: Seconds to wait while the listener's queue is full; the event loop must not wait for a sign of life.

    Returns:
        Whether anybody listens.
    """
    where = os.environ.get("NOTIFY_SOCKET")
    if not where:
        return False
    # An abstract socket's name starts with a zero byte, which an environment cannot hold.
    address = "\0" + where[1:] if where.startswith("@") else where
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as box,
    ):
        box.settimeout(wait)
        box.sendto("\n".join(lines).encode(), address)
        return True
    return False


def watchdog_interval() -> float | None:
    """Seconds between two signs of life: half of what the unit's ``WatchdogSec=`` allows; None where there is no watchdog."""
    told, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not told or not told.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(told) / 2e6
