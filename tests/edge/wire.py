"""A radio link to a network of its own: what passes is lost, late, slow or cut, each way by itself.

``tc netem`` does this where the kernel has it, which not every one has. Two TUN devices, one of them in a network namespace,
and a thread that carries packets between them need no more than root, and do the same everywhere: TCP and ssh above it meet
lost packets, and not the closed connections that a proxy makes of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
_PACKET = 2048
_TIME_WAIT = "06"
# Behind it, the process that has made the namespace.
_NAME = "nbwire"
# What a sender's queue holds at a limited rate, as a Wi-Fi's does; what comes beyond it is dropped.
_QUEUE_SECONDS = 0.5


@dataclass
class Way:
    """One direction.

    Attributes:
        loss: The share of packets that is lost.
        delay: Seconds that each takes.
        rate: Bytes a second; 0 is no limit.
        sent: Bytes that have passed.
        lost: Packets that have not.
    """

    loss: float = 0.0
    delay: float = 0.0
    rate: float = 0.0
    sent: int = 0
    lost: int = 0
    _free_at: float = field(default=0.0, repr=False)

    def due(self, length: int, now: float, chance: float) -> float | None:
        """When a packet arrives; None where it is lost."""
        begins = max(now, self._free_at)
        if chance < self.loss or begins - now > _QUEUE_SECONDS:
            self.lost += 1
            return None
        self._free_at = begins + (length / self.rate if self.rate else 0.0)
        self.sent += length
        return self._free_at + self.delay


class Wire:
    """From this host to a network namespace, and back. Use as a context; everything of it goes with it.

    Attributes:
        address: Of the other end. What is sent there goes over this wire or nowhere.
        within: The command prefix that runs something at the other end.
        up: The way there.
        down: The way back.
    """

    def __init__(self) -> None:
        pid = os.getpid()
        self._name = f"{_NAME}{pid}"
        self._near, self._far = f"{self._name}a", f"{self._name}b"
        self._here, self.address = _address(pid, 0), _address(pid, 1)
        self.within = ("ip", "netns", "exec", self._name)
        self.up, self.down = Way(), Way()
        self._handles: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self) -> Wire:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever still talks to the other end hears that it is gone: once the wire is, packets to there would leave this host.
        for way in (self.up, self.down):
            way.loss = way.delay = way.rate = 0.0
        self.join()
        _kill(self._name)
        until = time.monotonic() + 10
        while _talking(self.address) and time.monotonic() < until:
            time.sleep(0.05)
        self._stop.set()
        self._thread.join()
        self._remove()

    def cut(self) -> None:
        """Take the other end's link down. This end's stays, with the only way to the address."""
        _ip("-n", self._name, "link", "set", self._far, "down")

    def join(self) -> None:
        """The opposite."""
        _ip("-n", self._name, "link", "set", self._far, "up")

    def _make(self) -> None:
        _ip("netns", "add", self._name)
        # Behind our own way there: while that is not up, no packet shall look for another one.
        _ip("route", "replace", "unreachable", self.address, "metric", "4096")
        for name in (self._near, self._far):
            self._handles.append(_tun(name))
        _ip("link", "set", self._far, "netns", self._name)
        _ip("addr", "add", self._here, "peer", self.address, "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-n", self._name, "addr", "add", self.address, "peer", self._here, "dev", self._far)
        _ip("-n", self._name, "link", "set", "lo", "up")
        self.join()

    def _remove(self) -> None:
        for handle in self._handles:
            # The device goes with it.
            os.close(handle)
        _clear(os.getpid())

    def _carry(self) -> None:
        # The same packets are lost each time, as far as they are sent at the same moments.
        chance = random.Random(1)
        near, far = self._handles
        ways = {near: (self.up, far), far: (self.down, near)}
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._stop.is_set():
            pause = min(0.1, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.1
            for source in select.select(self._handles, [], [], pause)[0]:
                # A link that is down neither gives nor takes.
                with contextlib.suppress(OSError):
                    packet = os.read(source, _PACKET)
                    way, target = ways[source]
                    due = way.due(len(packet), time.monotonic(), chance.random())
                    if due is not None:
                        number += 1
                        heapq.heappush(waiting, (due, number, target, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):
                    os.write(target, packet)


def missing() -> str | None:
    """Why there can be no wire here; None where there can."""
    if os.geteuid() != 0:
        return "only root may make a network namespace"
    try:
        for line in _ip("netns", "list").splitlines():
            pid = line.split()[0].removeprefix(_NAME)
            if line.startswith(_NAME) and pid.isdigit() and not Path("/proc", pid).exists():
                # Of tests that were killed.
                _clear(int(pid))
        with Wire():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"no network namespace with a TUN device can be made here: {said}"


def _address(pid: int, end: int) -> str:
    """Of 198.18.0.0/15, which is for tests of networks: nobody's."""
    number = 2 * (pid % 0x8000) + end
    return f"198.18.{number // 256}.{number % 256}"


def _clear(pid: int) -> None:
    """Remove the network of a process, with all that runs in it."""
    name = f"{_NAME}{pid}"
    _kill(name)
    _ip("netns", "del", name, check=False)
    if not _talking(_address(pid, 1)):
        # Else it stays: what the kernel still repeats of a connection that was cut must not leave this host.
        _ip("route", "del", "unreachable", _address(pid, 1), "metric", "4096", check=False)


def _kill(name: str) -> None:
    """End what runs in a namespace."""
    for process in _ip("netns", "pids", name, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def _talking(address: str) -> bool:
    """Whether a connection of this host to an address is still open."""
    remote = socket.inet_aton(address)[::-1].hex().upper()
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[2].startswith(f"{remote}:") and row[3] != _TIME_WAIT for row in rows)


def _tun(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
    except OSError:
        os.close(handle)
        raise
    return handle


def _ip(*words: str, check: bool = True) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check).stdout
