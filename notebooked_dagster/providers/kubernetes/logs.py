"""What pods print: read from where the last look ended, line for line.

API: ``pods/log`` with ``timestamps`` and ``sinceTime``. The latter knows whole seconds only, so that some lines come twice
and are told apart by their own times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .pods import container_of
from .session import KubeError, KubeSession


def pod_lines(
    session: KubeSession, pod: Mapping[str, Any], cursor: Sequence[Any] | None
) -> tuple[list[str], list[Any]]:
    """The lines of a pod since a cursor (None for the first), and the cursor after them.

    The cursor is the time of the last line, and how many lines of that very time were read.
    """
    time, seen = cursor or ("", 0)
    query: dict[str, Any] = {"container": container_of(pod), "timestamps": "true"}
    if time:
        query["sinceTime"] = f"{time.partition('.')[0].rstrip('Z')}Z"
    text = read(session, pod["metadata"]["name"], query)
    lines: list[str] = []
    # What has no newline yet is not a whole line yet.
    whole = text[: text.rfind("\n") + 1]
    skipped = 0
    for record in whole.split("\n")[:-1]:
        stamp, _, rest = record.partition(" ")
        if _order(stamp) < _order(time):
            continue
        if stamp == time and skipped < seen:
            skipped += 1
            continue
        # A carriage return ends a line as well: progress bars.
        lines.extend(rest.splitlines() or [""])
        if stamp != time:
            time, seen, skipped = stamp, 0, 0
        seen, skipped = seen + 1, skipped + 1
    return lines, [time, seen]


def read(session: KubeSession, pod: str, query: Mapping[str, Any]) -> str:
    """The text of a pod's log; empty where it has printed nothing yet, or is gone."""
    try:
        reply = session.again(lambda: session.send("GET", session.path("pods", pod, "log"), params=query))
    except KubeError as error:
        # 400: `container "notebooked" in pod "…" is waiting to start: ContainerCreating`.
        if error.code in (400, 404):
            return ""
        raise
    # Not by what the reply says of itself: it says nothing, and httpx would guess.
    return reply.content.decode("utf-8", "replace")


def _order(stamp: str) -> tuple[str, str]:
    """Times of the API as something that sorts: nanoseconds come without the zeros at their end."""
    whole, _, rest = stamp.rstrip("Z").partition(".")
    return whole, rest.ljust(9, "0")
