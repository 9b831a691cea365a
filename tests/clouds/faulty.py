"""Errors on purpose: what a server for tests is told to do wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class Fault:
    """What goes wrong with the next calls of an operation (``*`` for any)."""

    operation: str
    kind: str
    times: int


class Faulty:
    """A server that fails as it is told to, and knows what it was asked; a cloud's own says what each answer is there."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.calls: list[str] = []

    def fail(self, operation: str, kind: str, times: int = 1) -> None:
        """Let the next calls of an operation go wrong.

        ``throttle``, ``error``, ``denied``, ``expired``, ``quota`` (and ``conflict`` at Azure): it answers with that, with the
        cloud's status for it, and does nothing. ``lost``: it does what was asked, and the reply never arrives. ``drop``:
        nothing arrives at all.
        """
        self.faults.append(Fault(operation, kind, times))

    def fault(self, name: str) -> str | None:
        """What is to go wrong with this call."""
        with self.lock:
            for item in self.faults:
                if item.times > 0 and item.operation in (name, "*"):
                    item.times -= 1
                    return item.kind
        return None
