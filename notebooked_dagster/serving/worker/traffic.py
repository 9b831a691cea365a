"""Which version answers a request, and how a request reaches a version in another process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from .wire import Pool

SESSION_COOKIE = "notebooked-session"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another version that takes part in the traffic."""

    version: str
    weight: int
    pool: Pool


class Split:
    """The share of each version, as the champion applies it."""

    def __init__(self, own_version: str) -> None:
        self.own_version = own_version
        self.peers: tuple[Peer, ...] = ()

    def set(self, peers: Mapping[str, tuple[int, Path]]) -> None:
        """Replace the peers: version to its weight and its socket."""
        old = self.peers
        self.peers = tuple(
            Peer(version, weight, Pool(socket)) for version, (weight, socket) in sorted(peers.items())
        )
        for peer in old:
            peer.pool.close()

    @property
    def own_weight(self) -> int:
        """What the peers leave over."""
        return 100 - sum(peer.weight for peer in self.peers)

    def choose(self, session: str | None) -> Peer | None:
        """The peer that answers; None for the version of this process. A session always gets the same one."""
        if session is None:
            point = random.random() * 100
        else:
            digest = hashlib.blake2b(session.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            point = int.from_bytes(digest) / 2**64 * 100
        for peer in self.peers:
            if point < peer.weight:
                return peer
            point -= peer.weight
        return None


def session_of(header: bytes | None, cookie: bytes | None) -> str | None:
    """The session a client names by ``X-Session-Id`` or by the cookie ``notebooked-session``."""
    if header:
        return header.decode("latin-1")
    if cookie and SESSION_COOKIE.encode() in cookie:
        try:
            morsel = SimpleCookie(cookie.decode("latin-1")).get(SESSION_COOKIE)
        except CookieError:
            return None
        return morsel.value if morsel is not None else None
    return None
