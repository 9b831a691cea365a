"""What runs on a device: starts runs that outlive the SSH session, hands out their journals, cancels, tidies up.

``python3 -m notebooked_edge.agent COMMAND``, started in the folder that holds this package: one request as JSON on stdin,
one line of JSON on stdout as the answer, then bytes where the answer says so. Standard library only; Dagster is only in
the process of a run (``recording``). The device's folder::

    agents/<hash>/notebooked_edge/   this code
    releases/<hash>/                 the project's code; ``current`` points at the newest
    environments/<hash>/             what uv installed from the lock file
    wheels/                          what it installed that from, where there is no internet
    instance/                        the small Dagster instance of all runs here
    runs/<run id>/                   request, journal, lease, compute logs, outputs
    serving/                         the endpoints; see ``hosting``

A run is two processes: this module as its *keeper*, which notes how the worker ended, and the worker. Both share a lock on
``alive``, and who starts them shares it until they do: who can have that lock alone knows that neither lives or is about
to, whatever became of their numbers. ``kept`` is made by the one keeper that a run ever has.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import boot, hosting, spool
from .journal import NAME, Journal, JournalError, clock, decode

ROOT = Path.cwd().parents[1] if len(Path.cwd().parents) > 1 else Path.cwd()
RELEASES, RUNS, ENVIRONMENTS, INSTANCE = "releases", "runs", "environments", "instance"
AGENTS = "agents"
REQUEST, ALIVE, KEPT, CANCEL, LEASE, DELIVERED, LOG = (
    "request.json",
    "alive",
    "kept",
    "cancel",
    "lease.json",
    "delivered",
    "log",
)
OUTPUTS, COMPUTE_LOGS = "outputs", "compute_logs"
# A worker that was asked to stop and is deaf to it.
_GRACE = 30.0
_POLL = 0.05
# What systemd has for starting a keeper, before we start one ourselves.
_UNIT = 10.0
# Room for a lease, which is written where it is: a full disk has none for a second file.
_LEASE_SIZE = 256
# What nobody has touched for so long, nobody is at work on.
_STALE = 7 * 86400.0
# What a run may see of the environment that sshd gave us; the rest has to be named.
_KEPT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
)


class RefusedError(Exception):
    """A request that cannot be granted; the host reads the reason by its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def main() -> int:
    """Answer one request."""
    os.umask(0o077)
    command = sys.argv[1]
    if command == "keep":
        return _keep(Path(sys.argv[2]))
    try:
        request = json.load(sys.stdin) if command not in ("hello", "env") else {}
        header, body = _COMMANDS[command](request)
    except RefusedError as refusal:
        header, body = {"refused": refusal.code, "message": str(refusal)}, b""
    except JournalError as problem:
        header, body = {"refused": "damaged", "message": str(problem)}, b""
    except OSError as problem:
        header, body = {"refused": "os", "message": f"{problem.strerror}: {problem.filename}"}, b""
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + body)
    return 0


def boot_id() -> str:
    """Another after each start of the device."""
    override = ROOT / "boot_id"
    # Where there is no /proc, and where a test plays a reboot.
    for path in (override, Path("/proc/sys/kernel/random/boot_id")):
        with contextlib.suppress(OSError):
            return path.read_text().strip()
    return str(round(time.time() - clock(), -1))


# -- start


def _start(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Start a run; asked again, only say how it is."""
    folder = ROOT / RUNS / request["run"]
    with lock(ROOT / "start.lock"):
        if (folder / REQUEST).exists():
            return {**_state(folder), "again": True}, b""
        release = ROOT / RELEASES / request["release"]
        if not (release / ".complete").exists():
            raise RefusedError("no-release", f"There is no release {request['release']}.")
        if (
            request.get("environment")
            and not (ROOT / ENVIRONMENTS / request["environment"] / ".complete").exists()
        ):
            raise RefusedError("no-environment", f"There is no environment {request['environment']}.")
        busy = sum(_alive(other) for other in _runs())
        if busy >= request["capacity"]:
            raise RefusedError(
                "full", f"{busy} runs are under way, and the device's capacity is {request['capacity']}."
            )
        os.utime(release)
        how = _begin(folder, request)
    return {**_state(folder), "again": False, "how": how}, b""


def _begin(folder: Path, request: dict[str, Any]) -> str:
    """Write down what a run is, and start its keeper; returns how."""
    folder.mkdir(parents=True, exist_ok=True)
    alive = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # From before there is a request: nobody takes a run for dead whose keeper is on its way.
        fcntl.flock(alive, fcntl.LOCK_SH)
        for name in (OUTPUTS, COMPUTE_LOGS):
            (folder / name).mkdir(exist_ok=True)
        journal = Journal(folder)
        journal.reserve()
        (folder / LEASE).write_bytes(b" " * _LEASE_SIZE)
        _write(folder / "began.json", {"boot": boot_id(), "m": clock(), "host": request["host_time"]})
        # Last, and whole or not at all: a run whose request is here is started, or died trying and is told as such.
        _write(folder / REQUEST, request)
        journal.append(
            {"kind": "began", "boot": boot_id(), "host": request["host_time"], "clock": time.time()}
        )
        return _spawn(folder, alive)
    except OSError:
        if not (folder / REQUEST).exists():
            # On a full disk, what there is of it would be in the way of the runs before.
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(alive)


def _spawn(folder: Path, alive: int) -> str:
    """Start the keeper so that it outlives this session."""
    command = [sys.executable, "-S", "-m", f"{__package__}.agent", "keep", str(folder)]
    with (folder / LOG).open("ab") as log:
        if _has_systemd():
            # logind may end what belongs to a session; a unit of the user's manager does not.
            wrapped = [
                "systemd-run", "--user", "--collect", "--quiet", f"--unit=notebooked-run-{folder.name}",
                f"--working-directory={Path.cwd()}", *command,
            ]  # fmt: skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    wrapped, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, timeout=_UNIT
                )
                if done.returncode == 0 and _until((folder / KEPT).exists, _UNIT):
                    return "systemd"
            # It may only be late: of two keepers, the second one ends.
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            pass_fds=(alive,), env={**os.environ, "NOTEBOOKED_EDGE_LOCK": str(alive)},
        )  # fmt: skip
    return "setsid"


def _has_systemd() -> bool:
    """Whether what the user's own systemd starts goes on when nobody is logged in."""
    return bool(shutil.which("systemd-run") and boot.has_manager() and boot.lingers())


# -- the keeper


def _keep(folder: Path) -> int:
    """Run the worker of a run, and note how it ended."""
    alive = int(os.environ.pop("NOTEBOOKED_EDGE_LOCK", "-1"))
    if alive < 0:
        alive = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(alive, fcntl.LOCK_SH)
    os.set_inheritable(alive, False)
    if _ended(folder) or not _made(folder / KEPT):
        return 0
    request = json.loads((folder / REQUEST).read_text())
    # What was handed over is the worker's alone, and stays on no disk.
    _write(folder / REQUEST, {**request, "env": {}})
    journal = Journal(folder)
    if (folder / CANCEL).exists():
        journal.append({"kind": "exit", "code": 0, "why": "canceled"})
        return 0
    release = ROOT / RELEASES / request["release"]
    python = request.get("python") or str(
        ROOT / ENVIRONMENTS / str(request.get("environment")) / "bin/python"
    )
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join((str(release), str(Path.cwd()))),
        "NOTEBOOKED_EDGE_RUN": str(folder),
        "NOTEBOOKED_EDGE_OUTPUTS": str(folder / OUTPUTS),
        "NOTEBOOKED_PROJECT_ROOT": str(release),
        # What a project makes stays out of its release, which others share.
        "NOTEBOOKED_STATE_DIR": str(ROOT / "state"),
        "NOTEBOOKED_SCRIPTS_DIR": str(ROOT / "state/scripts"),
        **request["env"],
    }
    try:
        with (folder / LOG).open("ab") as log:
            worker = subprocess.Popen(
                [python, "-m", f"{__package__}.recording"], cwd=release, env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(alive,), start_new_session=True,
            )  # fmt: skip
    except OSError as problem:
        journal.append(
            {"kind": "exit", "code": 127, "why": "start", "message": f"{python}: {problem.strerror}"}
        )
        return 1
    code = _wait(worker, folder)
    journal.release()
    journal.append(
        {"kind": "exit", "code": code, "why": "exit", "message": _tail(folder / LOG) if code else ""}
    )
    return 0


def _wait(worker: subprocess.Popen[bytes], folder: Path) -> int:
    """The worker's exit code. One that does not heed a cancellation is ended, with all its children."""
    asked: float | None = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return worker.wait(1.0)
        if asked is None and (folder / CANCEL).exists():
            asked = time.monotonic()
        if asked is not None and time.monotonic() - asked > _GRACE:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)


def _tail(path: Path, length: int = 2000) -> str:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - length))
        return stream.read().decode("utf-8", "replace").strip()
    return ""


# -- how a run is


def _runs() -> list[Path]:
    folder = ROOT / RUNS
    return sorted(path for path in folder.iterdir() if (path / REQUEST).exists()) if folder.is_dir() else []


@contextlib.contextmanager
def _dead(folder: Path) -> Iterator[bool]:
    """Whether no process of a run lives; and none comes to life meanwhile."""
    try:
        handle = os.open(folder / ALIVE, os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _alive(folder: Path) -> bool:
    with _dead(folder) as dead:
        return not dead


def _state(folder: Path) -> dict[str, Any]:
    """How a run is. A run that died without a word gets its exit record now, with what can be known of its death."""
    if not (folder / REQUEST).exists():
        return {"state": "absent", "size": 0}
    with _dead(folder) as dead:
        try:
            if dead and not _ended(folder):
                began = json.loads((folder / "began.json").read_text())
                why = "rebooted" if began["boot"] != boot_id() else "vanished"
                journal = Journal(folder)
                journal.release()
                journal.append({"kind": "exit", "code": None, "why": why, "message": _tail(folder / LOG)})
        except (JournalError, ValueError, KeyError) as problem:
            # One run's, and no reason to say nothing of the others.
            return {"state": "damaged", "size": _size(folder), "message": str(problem)}
        return {"state": "ended" if dead else "running", "size": _size(folder)}


def _ended(folder: Path) -> bool:
    """Whether the last record is the exit record."""
    path = folder / NAME
    if not path.exists():
        return False
    with path.open("rb") as stream:
        # An exit record is short; what stands before it is cut at a record's beginning.
        start = max(0, path.stat().st_size - 16384)
        stream.seek(start)
        tail = stream.read()
    last = tail.rfind(b'"kind":"exit"')
    if last < 0:
        return False
    return any(record.data.get("kind") == "exit" for record in decode(tail[tail.rfind(b"\n", 0, last) + 1 :]))


# -- what a host asks


def _read(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Journals from given offsets, to the one host that holds the lease; waits a while for something new."""
    until = time.monotonic() + request.get("wait", 0)
    asked = {run_id: ROOT / RUNS / run_id for run_id in request["runs"]}
    while time.monotonic() < until and all(
        _alive(folder) and _size(folder) <= request["runs"][run_id] for run_id, folder in asked.items()
    ):
        time.sleep(_POLL)
    limit = request.get("limit", 1 << 20)
    found: dict[str, dict[str, Any]] = {}
    body = []
    for run_id, folder in asked.items():
        found[run_id] = state = _state(folder)
        if state["state"] == "absent":
            continue
        granted, before = _lease(folder / LEASE, request["owner"], request["ttl"])
        piece = _piece(folder / NAME, request["runs"][run_id], limit) if granted else b""
        state |= {"granted": granted, "before": before, "files": _files(folder), "length": len(piece)}
        limit -= len(piece)
        body.append(piece)
    return {"runs": found, "boot": boot_id(), "time": time.time()}, b"".join(body)


def _size(folder: Path) -> int:
    path = folder / NAME
    return path.stat().st_size if path.exists() else 0


def _piece(path: Path, offset: int, limit: int) -> bytes:
    """Bytes of a journal. What a host has seen must survive a power cut here, or its offset would point into nothing."""
    if limit <= 0 or not path.exists() or path.stat().st_size <= offset:
        return b""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        stream.seek(offset)
        piece = stream.read(limit)
        if len(piece) < limit:
            return piece
        # A record that is longer than the limit would never get through.
        header = piece[:8]
        longer = 19 + int(header, 16) if len(header) == 8 else 0
        return piece + stream.read(longer - limit) if longer > limit else piece


def _lease(path: Path, owner: str, ttl: float) -> tuple[bool, str]:
    """Whether a host may read, and who held the lease before: two that relay one journal would store its events twice.

    It is worth nothing after a restart, so that it need not be on the disk before we answer, and half of it is none.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        held = {}
        with contextlib.suppress(ValueError):
            held = json.loads(os.pread(handle, _LEASE_SIZE, 0))
        free = not held or held["boot"] != boot_id() or held["until"] <= clock()
        before = held.get("owner", "")
        if before != owner and not free:
            return False, before
        lease = json.dumps({"owner": owner, "until": clock() + ttl, "boot": boot_id()})
        os.pwrite(handle, lease.encode().ljust(_LEASE_SIZE), 0)
        return True, before
    finally:
        os.close(handle)


def _files(folder: Path) -> dict[str, int]:
    """What a run wrote, beside its journal: path -> size."""
    found: dict[str, int] = {}
    for top in (COMPUTE_LOGS, OUTPUTS):
        for path in sorted((folder / top).rglob("*")):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def _fetch(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A piece of one of a run's files; with ``digest``, the SHA-256 of its first ``offset`` bytes instead."""
    folder = (ROOT / RUNS / request["run"]).resolve()
    path = (folder / request["path"]).resolve()
    if not path.is_relative_to(folder) or path.relative_to(folder).parts[0] not in (OUTPUTS, COMPUTE_LOGS):
        raise RefusedError("path", f"{request['path']} is no file of the run's.")
    with path.open("rb") as stream:
        if request.get("digest"):
            digest, left = hashlib.sha256(), request["offset"]
            while left > 0 and (piece := stream.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
            return {"sha256": digest.hexdigest()}, b""
        stream.seek(request["offset"])
        piece = stream.read(request["limit"])
    return {"length": len(piece)}, piece


def _cancel(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Ask a run to stop: the worker looks for the file."""
    folder = ROOT / RUNS / request["run"]
    if _alive(folder):
        (folder / CANCEL).touch()
    return {"state": "asked"}, b""


def _deliver(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A host has everything of a run: it may go, and what else is in nobody's use goes with the oldest."""
    folder = ROOT / RUNS / request["run"]
    if folder.is_dir():
        (folder / DELIVERED).touch()
    with lock(ROOT / "start.lock"):
        removed = _prune(request.get("keep", 3), request.get("keep_runs", 20))
    return {"state": "delivered", "removed": removed}, b""


def _activate(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A release that has come whole becomes the current one: by renaming, so that there always is one."""
    name = request["release"]
    folder = ROOT / RELEASES / name
    arrived = ROOT / RELEASES / f".{name}.part"
    with lock(ROOT / "start.lock"):
        if arrived.is_dir() and not (folder / ".complete").exists():
            wrong = [path for path, digest in request["files"].items() if _digest(arrived / path) != digest]
            if wrong:
                raise RefusedError(
                    "incomplete", f"{len(wrong)} files did not come whole, {wrong[0]} for one."
                )
            os.sync()
            (arrived / ".complete").touch()
            arrived.rename(folder)
        if not (folder / ".complete").exists():
            raise RefusedError("no-release", f"There is no release {name}.")
        link = ROOT / f".current.{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(RELEASES) / name)
        link.replace(ROOT / "current")
        os.utime(folder)
        os.utime(Path.cwd())
        removed = _prune(request.get("keep", 3), request.get("keep_runs", 20))
    return {"release": name, "removed": removed}, b""


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _prune(keep: int, keep_runs: int) -> list[str]:
    """What is in nobody's use: old releases, environments that none of the rest names, what a host has everything of."""
    requests = [json.loads((folder / REQUEST).read_text()) for folder in _runs() if _alive(folder)]
    current = (ROOT / "current").resolve().name
    old = sorted(_whole(RELEASES), key=lambda path: path.stat().st_mtime, reverse=True)
    in_use = [*requests, *hosting.held(ROOT)]
    spared = {current, *(request["release"] for request in in_use)}
    going = [path for path in old[keep:] if path.name not in spared]
    named = {request.get("environment") for request in in_use}
    for release in set(old) - set(going):
        with contextlib.suppress(FileNotFoundError):
            named |= set((release / ".environments").read_text().split())
    going += [path for path in _whole(ENVIRONMENTS) if path.name not in named]
    delivered = [folder for folder in _runs() if (folder / DELIVERED).exists() and not _alive(folder)]
    delivered.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in delivered[keep_runs:]:
        for path in (ROOT / INSTANCE / "history/runs").glob(f"{folder.name}.db*"):
            path.unlink(missing_ok=True)
        going.append(folder)
    stale = [*(ROOT / RELEASES).glob(".*.part"), *hosting.left_over(ROOT)]
    if not requests:
        # A worker loads its modules when it needs them.
        stale += [path for path in (ROOT / AGENTS).glob("*") if path != Path.cwd()]
    going += [path for path in stale if time.time() - path.stat().st_mtime > _STALE]
    for path in going:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in going]


def _whole(kind: str) -> list[Path]:
    folder = ROOT / kind
    return [path for path in folder.iterdir() if (path / ".complete").exists()] if folder.is_dir() else []


def _environment(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What a release needs, installed by uv from its lock file; once for each content of that file."""
    name = request["environment"]
    folder = ROOT / ENVIRONMENTS / name
    # Before it is made: what no release names is removed.
    with (ROOT / RELEASES / request["release"] / ".environments").open("a") as stream:
        stream.write(f"{name}\n")
    if (folder / ".complete").exists():
        return {"environment": name, "made": False}, b""
    uv = shutil.which(
        "uv", path=os.pathsep.join((os.environ.get("PATH", ""), str(Path.home() / ".local/bin")))
    )
    if uv is None:
        raise RefusedError("no-uv", "uv is not installed.")
    needs = ROOT / RELEASES / request["release"] / request["lock"]
    wheels = ["--no-index", "--find-links", str(ROOT / request["wheels"])] if request.get("wheels") else []
    # Where there are wheels there is no internet, and a Python that is missing is said to be so at once.
    offline = ["--offline"] if wheels else []
    with lock(ROOT / "environment.lock"):
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for command in (
                [uv, "venv", "--quiet", *offline, "--python", request.get("version") or sys.executable, str(folder)],
                [uv, "pip", "install", "--quiet", *offline, "--python", str(folder / "bin/python"), *wheels, "-r", str(needs)],
            ):  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    # Another lock file is another environment: nobody would come back to this one.
                    shutil.rmtree(folder, ignore_errors=True)
                    raise RefusedError("environment", done.stderr.strip()[-2000:] or f"{command[1]} failed.")
            os.sync()
            (folder / ".complete").touch()
    return {"environment": name, "made": True}, b""


def _hello(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """How the device is."""
    disk = shutil.disk_usage(ROOT)
    return {
        "boot": boot_id(),
        "time": time.time(),
        "uptime": clock(),
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "system": platform.platform(),
        "python": platform.python_version(),
        "disk_free": disk.free,
        "disk_total": disk.total,
        "temperature": _temperature(),
        "throttled": _throttled(),
        "rsync": shutil.which("rsync") is not None,
        "running": [folder.name for folder in _runs() if _alive(folder)],
        "runs": len(_runs()),
        "libc": platform.libc_ver(),
        "releases": [path.name for path in _whole(RELEASES)],
        "environments": [path.name for path in _whole(ENVIRONMENTS)],
        "current": (ROOT / "current").resolve().name if (ROOT / "current").exists() else None,
        "endpoints": boot.told(ROOT / "serving"),
    }, b""  # fmt: skip


def _temperature() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/sys/class/thermal/thermal_zone0/temp").read_text()) / 1000
    return None


def _throttled() -> str | None:
    """What the Pi's firmware says of under-voltage and heat; ``0x0`` is well."""
    if shutil.which("vcgencmd") is None:
        return None
    done = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("=")[2] or None


_COMMANDS: dict[str, Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]] = {
    "hello": _hello,
    "start": _start,
    "read": _read,
    "fetch": _fetch,
    "cancel": _cancel,
    "deliver": _deliver,
    "activate": _activate,
    "environment": _environment,
    **hosting.COMMANDS,
    **spool.COMMANDS,
}


# -- small things


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Wait until no other process or thread of the device holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _made(path: Path) -> bool:
    """Make an empty file; False where there is one already."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


def _write(path: Path, data: Any) -> None:
    """The old content or the new, never half of one; for no eyes but ours."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(data, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _until(true: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL)
    return True


if __name__ == "__main__":
    sys.exit(main())
