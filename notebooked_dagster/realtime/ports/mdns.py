"""RTP-MIDI sessions as programs in one network find each other's: mDNS, the service ``_apple-midi._udp``."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine
from typing import Any

from notebooked_dagster.realtime.addresses import Address
from notebooked_dagster.realtime.packages import needed

log = logging.getLogger("notebooked.realtime.mdns")
SERVICE = "_apple-midi._udp.local."
_EVERY = 5.0
_ANSWER = 3.0
_GROUP = ("224.0.0.251", 5353)


class Neighbours:
    """Announces one session of ours, or finds one of somebody else's. Nothing here waits, and nothing that fails is the port's end.

    Args:
        host: The number of the interface to do it on; the network's where it is ``0.0.0.0``.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._network: Any = None
        self._here: str | None = None
        self._announced = False
        self._found: Address | None = None
        self._due = float("-inf")
        self._said: str | None = None
        self._task: asyncio.Task[None] | None = None

    def announce(self, name: str, port: int) -> None:
        """Let a session of ours be found. Called again and again: the device may get another address."""
        self._beside(self._announce, name, port)

    def find(self, name: str) -> Address | None:
        """Where a session was seen last; None while it was not. Looks for it, beside everything else."""
        self._beside(self._find, name)
        return self._found

    async def close(self) -> None:
        """Say goodbye, and look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._shut()

    def _beside(self, work: Any, *told: Any) -> None:
        if time.monotonic() < self._due or (self._task is not None and not self._task.done()):
            return
        self._due = time.monotonic() + _EVERY
        self._task = asyncio.create_task(self._tried(work(*told)), name="mdns")

    async def _tried(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            # No network yet, none that takes a multicast, a name that no service can have: the port has its address.
            if str(error) != self._said:
                self._said = str(error)
                log.warning("mDNS does not work: %s", error or type(error).__name__)

    async def _announce(self, name: str, port: int) -> None:
        zeroconf = needed("zeroconf", "zeroconf", "Announcing a session by mDNS")
        network, here = await self._opened()
        if self._announced:
            return
        info = zeroconf.ServiceInfo(
            SERVICE, f"{name}.{SERVICE}", port=port, addresses=[socket.inet_aton(here)],
            # Not the host's own name: the system's mDNS answers for that, with all its addresses.
            server=f"{socket.gethostname().partition('.')[0]}-notebooked.local.",
        )  # fmt: skip
        await (await network.async_register_service(info, allow_name_change=True))
        self._announced = True
        log.info("%s is announced as a session at %s:%d", name, here, port)

    async def _find(self, name: str) -> None:
        zeroconf = needed("zeroconf.asyncio", "zeroconf", "Finding a session by mDNS")
        info = zeroconf.AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}")
        network, _ = await self._opened()
        if await info.async_request(network.zeroconf, _ANSWER * 1000) and info.port is not None:
            numbers = [text for text in info.parsed_addresses() if ":" not in text]
            self._found = (numbers[0], info.port) if numbers else self._found

    async def _opened(self) -> tuple[Any, str]:
        """mDNS on the interface by which others reach us, and its address; begun anew where that is another by now."""
        here = _own_address(self._host)
        if here != self._here:
            await self._shut()
            zeroconf = needed("zeroconf", "zeroconf", "mDNS")
            asynchronous = needed("zeroconf.asyncio", "zeroconf", "mDNS")
            # One interface: to list them all takes netlink, which the unit does not let us have.
            self._network = asynchronous.AsyncZeroconf(
                interfaces=[here], ip_version=zeroconf.IPVersion.V4Only
            )
            self._here = here
        return self._network, here

    async def _shut(self) -> None:
        network, self._network = self._network, None
        self._here, self._announced = None, False
        if network is not None:
            await network.async_close()


def _own_address(host: str) -> str:
    """The address by which others reach what listens on ``host``. Raises OSError where there is no network."""
    if host != "0.0.0.0":
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Sends nothing: the system chooses the interface that the multicast would go by.
        probe.connect(_GROUP)
        return str(probe.getsockname()[0])
