"""Endpoints on a device, as the device has them: ``python -m notebooked_dagster.edge.endpoints FOLDER`` in a release's environment.

One request as JSON on stdin; its answer, or the error that came of it, as JSON on stdout, or for a change in a file that is
there as soon as it is whole. The agent (``hosting``) starts it; what it does is what the provider ``local`` does. With
``start`` behind the folder, it brings all endpoints back: what the device itself asks for when it has restarted (``boot``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import DeploymentError, InternalError, NotebookedError
from notebooked_dagster.serving.control import DeploymentSpec, EndpointControl, EndpointState

from . import boot
from .agent import lock

STATE: TypeAdapter[EndpointState] = TypeAdapter(EndpointState)
# How long a host's request may take that was quicker after a restart.
_PATIENCE = 600.0


def main() -> int:
    """Answer one request."""
    serving = Path(sys.argv[1])
    if sys.argv[2:] == [boot.START]:
        return _started(serving)
    request = json.load(sys.stdin)
    try:
        answer = {"answer": _DO[request["do"]](EndpointControl(serving), serving, request)}
    except NotebookedError as error:
        answer = {"error": error.to_dict()}
    except Exception as error:  # The host is told whatever it is; nobody looks here.
        answer = {"error": InternalError(f"{type(error).__name__}: {error}").to_dict()}
    text = json.dumps(answer)
    if "token" in request:
        # A disk without room for the unit is no reason to say of a deployment that it failed; `edge doctor` tells of it.
        # One after the other: what another change made or deleted meanwhile decides whether there is to be one.
        with contextlib.suppress(OSError), lock(serving / "boot.lock"):
            boot.arrange(serving)
        write_atomic(serving / "changes" / f"{request['token']}.json", text, mode=0o600)
    else:
        sys.stdout.write(text)
    return 0


def digests(folder: Path) -> dict[str, str]:
    """The files of a model folder: path -> SHA-256."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _deploy(control: EndpointControl, serving: Path, request: Mapping[str, Any]) -> Any:
    arrived = serving / "arrived" / request["model"]
    if digests(arrived) != request["files"]:
        raise DeploymentError("The model did not come whole.", hint="Deploy it again.", path=arrived)
    write_atomic(serving / "using.json", json.dumps(request["using"]), mode=0o600)
    state = control.deploy(DeploymentSpec(model_dir=arrived, **request["spec"]))
    # The endpoint has a copy. After a failure this one stays a while, so that who tries again need not send it again.
    shutil.rmtree(arrived, ignore_errors=True)
    return _held(serving, state, request)


def _held(serving: Path, state: EndpointState, request: Mapping[str, Any]) -> Any:
    """Write down what each process of the endpoint runs from, so that the agent does not tidy it away; returns the state."""
    path = serving / "held" / f"{state.name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    running = [f"supervisor {state.supervisor_pid}", *(item.version for item in state.versions)]
    write_atomic(path, json.dumps({name: before.get(name, request["using"]) for name in running}), mode=0o600)
    return STATE.dump_python(state, mode="json")


def _started(serving: Path) -> int:
    """Bring back every endpoint that does not serve; fails where one cannot even be begun with."""
    control = EndpointControl(serving, wait=_PATIENCE)
    asked = {"using": json.loads((serving / "using.json").read_text())}
    failed = 0
    for name in [state.name for state in control.list()]:
        try:
            # Its supervisor goes on by itself: a model that takes long keeps no other one waiting.
            _held(serving, control.ensure(name, patience=0.0), asked)
        except (NotebookedError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
    return failed


def _delete(control: EndpointControl, serving: Path, request: Mapping[str, Any]) -> Any:
    left = control.delete(request["name"])
    (serving / "held" / f"{request['name']}.json").unlink(missing_ok=True)
    return left


_DO: Mapping[str, Callable[[EndpointControl, Path, Mapping[str, Any]], Any]] = {
    "deploy": _deploy,
    "traffic": lambda control, serving, asked: _held(
        serving, control.traffic(asked["name"], asked["weights"]), asked
    ),
    "rollback": lambda control, serving, asked: _held(serving, control.rollback(asked["name"]), asked),
    "ensure": lambda control, serving, asked: _held(
        serving, control.ensure(asked["name"], patience=asked["patience"]), asked
    ),
    "delete": _delete,
    "get": lambda control, serving, asked: STATE.dump_python(control.get(asked["name"]), mode="json"),
    "list": lambda control, serving, asked: [
        STATE.dump_python(state, mode="json") for state in control.list()
    ],
    "logs": lambda control, serving, asked: list(control.logs(asked["name"], asked["version"])),
}


if __name__ == "__main__":
    sys.exit(main())
