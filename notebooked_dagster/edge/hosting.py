"""The agent's part in serving: what changes or tells endpoints is done by ``edge.endpoints`` in a release's environment, which
has the model server. Standard library only; a prediction costs no more than that::

    serving/endpoints/<name>/    as on any machine: serving.state
    serving/arrived/<hash>/      a model folder on its way into an endpoint
    serving/changes/<token>      locked while a change is under way; ``<token>.json`` is its answer
    serving/held/<name>.json     the releases and environments that an endpoint runs from
    serving/using.json           those of the last deployment, which answer for all endpoints
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path.cwd().parents[1] if len(Path.cwd().parents) > 1 else Path.cwd()
SERVING = ROOT / "serving"
_POLL = 0.02
_STALE = 7 * 86400.0
Answer = tuple[dict[str, Any], bytes]


def told(request: dict[str, Any]) -> Answer:
    """What changes nothing."""
    using = _using(SERVING)
    if using is None:
        return {"state": "none"}, b""
    done = subprocess.run(
        command(SERVING, using), input=json.dumps(request).encode(), capture_output=True, check=False,
        cwd=ROOT / "releases" / using["release"], env=_environment(using),
    )  # fmt: skip
    if done.returncode:
        return {"state": "lost", "message": done.stderr.decode("utf-8", "replace").strip()[-2000:]}, b""
    return {"state": "done"}, done.stdout


def changed(request: dict[str, Any]) -> Answer:
    """A change, made once for its token, in a process that outlives this session; asked again, its answer or how it is."""
    changes = SERVING / "changes"
    changes.mkdir(parents=True, exist_ok=True)
    for path in changes.iterdir():
        if time.time() - path.stat().st_mtime > _STALE:
            path.unlink(missing_ok=True)
    using = request.get("using") or _using(SERVING)
    if using is None:
        return {"state": "none"}, b""
    mark = changes / request["token"]
    answer = mark.with_suffix(".json")
    handle = os.open(mark, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Who can have the lock, and finds nothing written, is the first.
        if _locked(handle) and not os.fstat(handle).st_size:
            os.write(handle, b"begun\n")
            _begin(request, using, handle)
    finally:
        os.close(handle)
    until = time.monotonic() + request["wait"]
    while not answer.exists() and _under_way(mark):
        if time.monotonic() > until:
            return {"state": "pending"}, b""
        time.sleep(_POLL)
    if not answer.exists():
        return {"state": "lost", "message": mark.read_text("utf-8", "replace").strip()[-2000:]}, b""
    return {"state": "done"}, answer.read_bytes()


def asked(request: dict[str, Any]) -> Answer:
    """A prediction: the server's answer, from its port on our loopback."""
    try:
        record = json.loads((SERVING / "endpoints" / request["name"] / "endpoint.json").read_text())
    except FileNotFoundError:
        return {"state": "none"}, b""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(record["host"], record["host"])
    connection = http.client.HTTPConnection(host, record["port"], timeout=request["timeout"])
    try:
        connection.request("POST", "/invocations", request["body"].encode(), request["headers"])
        reply = connection.getresponse()
        return {"state": "done", "status": reply.status, "reason": reply.reason}, reply.read()
    except (OSError, http.client.HTTPException) as problem:
        return {"state": "lost", "message": str(problem) or type(problem).__name__}, b""
    finally:
        connection.close()


def command(serving: Path, using: dict[str, Any]) -> list[str]:
    """What ``edge.endpoints`` is called with."""
    python = using["python"] or str(serving.parent / "environments" / using["environment"] / "bin/python")
    return [python, "-m", "notebooked_dagster.edge.endpoints", str(serving)]


def held(root: Path) -> list[dict[str, Any]]:
    """The releases and environments that endpoints run from: they stay."""
    found = [using] if (using := _using(root / "serving")) is not None else []
    for path in (root / "serving/held").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found += json.loads(path.read_text()).values()
    return found


def left_over(root: Path) -> list[Path]:
    """Models whose deployment never came."""
    return list((root / "serving/arrived").glob("*"))


#: What the agent answers.
COMMANDS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "endpoint-tell": told,
    "endpoint-change": changed,
    "endpoint-ask": asked,
}


def _begin(request: dict[str, Any], using: dict[str, Any], handle: int) -> None:
    """Start the change; its process has the lock as long as it lives."""
    process = subprocess.Popen(
        command(SERVING, using), stdin=subprocess.PIPE, stdout=handle, stderr=handle, pass_fds=(handle,),
        cwd=ROOT / "releases" / using["release"], env=_environment(using), start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    # By a pipe and not by a file: it may hold what the model's server needs to sign in somewhere.
    with contextlib.suppress(BrokenPipeError), process.stdin as stream:
        stream.write(json.dumps({**request, "using": using}).encode())


def _environment(using: dict[str, Any]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "releases" / using["release"])}


def _using(serving: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((serving / "using.json").read_text())
    except FileNotFoundError:
        return None
    return found


def _under_way(mark: Path) -> bool:
    handle = os.open(mark, os.O_RDWR)
    try:
        return not _locked(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
