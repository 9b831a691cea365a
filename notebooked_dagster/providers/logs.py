"""The lines that a training prints, on their way to whoever watches."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from notebooked_dagster.providers.base import LogSink

log = logging.getLogger("notebooked.providers")


def emit(lines: Iterable[str], sink: LogSink | None) -> LogSink | None:
    """Hand lines to a sink; returns it, or None where it failed.

    A log that cannot be shown is no reason to throw training away; all of it is in ``log.txt``.
    """
    if sink is None:
        return None
    for line in lines:
        try:
            sink(line)
        except Exception:
            log.exception("The log sink failed; the job goes on without it.")
            return None
    return sink
