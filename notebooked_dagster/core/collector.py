"""Python's cycle collector, kept away from where it only costs time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Switch the collector off while a great many objects are made of which none is garbage.

    It would walk all of them again and again: a third of the time of analysing a notebook, a twelfth of connecting to MLflow.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
