"""Numbers of hosts, for datagrams: a socket given a name asks the system for its number, and all else waits for the answer."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time

log = logging.getLogger("notebooked.realtime.addresses")
Address = tuple[str, int]
#: A device may get another number from its router; one that is not known is asked for more often.
REFRESH, RETRY = 60.0, 2.0


class Addresses:
    """Names that were asked for, and the numbers they had last. Nothing here waits."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._asked: dict[str, float] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def get(self, where: Address) -> Address | None:
        """Where to send; None while the name's number is not known yet. Asks for it, beside everything else."""
        host, port = where
        if _is_number(host):
            return where
        due = self._asked.get(host, float("-inf")) + (REFRESH if host in self._known else RETRY)
        if time.monotonic() >= due:
            self._asked[host] = time.monotonic()
            task = asyncio.create_task(self._ask(host), name=f"address-{host}")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        number = self._known.get(host)
        return (number, port) if number is not None else None

    def close(self) -> None:
        """Ask no more."""
        for task in self._asking:
            task.cancel()

    async def _ask(self, host: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_DGRAM)
        except OSError as error:
            # Its last number stays: a name server that is away moves nobody.
            log.debug("%s: %s", host, error)
            return
        self._known[host] = str(found[0][4][0])


def _is_number(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
