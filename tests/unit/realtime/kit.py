"""Doubles and small helps of the tests of real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def eventually(check: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The first true value of ``check``; fails after some seconds."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.005)
    return found
