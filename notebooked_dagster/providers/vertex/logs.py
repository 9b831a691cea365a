"""What containers printed, from Cloud Logging.

API: ``entries:list`` of Cloud Logging v2, over REST: the SDK's own client speaks gRPC only.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from notebooked_dagster.providers.cloud.waiting import OutOfReachError

from .session import GcpSession, translated

_PAGE = 1000


def job_lines(
    session: GcpSession, resource: str, since: datetime, cursor: Any, *, whole: bool
) -> tuple[list[str], Any]:
    """The lines of a training job since a cursor (None for the first), and the cursor after them; see ``entries_since``."""
    wanted = (
        f'resource.type="ml_job" AND resource.labels.job_id="{resource.rpartition("/")[2]}" '
        'AND resource.labels.task_name:"workerpool"'
    )
    entries, cursor = entries_since(session, wanted, since, cursor, whole=whole)
    lines: list[str] = []
    for entry in entries:
        task = entry.get("resource", {}).get("labels", {}).get("task_name", "")
        prefix = "" if task == "workerpool0-0" else f"[{task}] "
        lines.extend(prefix + line for line in text_of(entry).split("\n"))
    return lines, cursor


def endpoint_filter(endpoint: str, version: str) -> str:
    """What one version of an endpoint printed, as a filter that Logs Explorer takes too."""
    return (
        'resource.type="aiplatform.googleapis.com/Endpoint" '
        f'AND resource.labels.endpoint_id="{endpoint}" AND labels.deployed_model_id="{version}"'
    )


def entries_since(
    session: GcpSession, wanted: str, since: datetime, cursor: Any = None, *, whole: bool = True
) -> tuple[list[dict[str, Any]], Any]:
    """The entries that a filter lets through since a time, or after a cursor, in order.

    A project may read sixty times a minute, all its jobs together.

    Args:
        session: Credentials.
        wanted: The filter.
        since: The time.
        cursor: As the last call gave it.
        whole: Whether that is waited for, because there is no next look; else the rest comes with that.

    Raises:
        OutOfReachError: There was no way to all of it.
    """
    if cursor is None:
        # Without a time, Cloud Logging looks at as much as it thinks fit.
        wanted += f' AND timestamp>="{since.isoformat()}"'
    else:
        time, insert_id = cursor
        # Entries of one moment are ordered by their ids.
        wanted += f' AND (timestamp>"{time}" OR (timestamp="{time}" AND insertId>"{insert_id}"))'
    found: list[dict[str, Any]] = []
    token = ""

    def read() -> dict[str, Any]:
        body = {
            "resourceNames": [f"projects/{session.project}"],
            "filter": wanted,
            "orderBy": "timestamp asc",
            "pageSize": _PAGE,
            **({"pageToken": token} if token else {}),
        }
        url = f"{session.url('logging')}/v2/entries:list"
        with translated("The log cannot be read"):
            page: dict[str, Any] = session.again(lambda: session.send("POST", url, body=body).json())
            return page

    while True:
        try:
            page = session.patiently(read) if whole else read()
        except OutOfReachError as error:
            if not whole and error.details.get("code") == 429:
                break
            raise
        found.extend(page.get("entries", ()))
        token = page.get("nextPageToken", "")
        if not token:
            break
    if found:
        cursor = (found[-1]["timestamp"], found[-1]["insertId"])
    return found, cursor


def text_of(entry: dict[str, Any]) -> str:
    """What an entry says."""
    payload = entry.get("jsonPayload") or {}
    return str(entry.get("textPayload", payload.get("message", ""))).rstrip("\n")
