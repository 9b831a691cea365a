"""The way to a device: the system's OpenSSH, one connection for many requests, and our agent at its other end."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import DeviceError, DeviceUnreachableError, MissingPackageError

from .devices import Device

#: What runs on the device.
_AGENT = ("journal.py", "agent.py", "recording.py", "spool.py", "hosting.py", "boot.py")
_PACKAGE = "notebooked_edge"
# ssh's own code for everything that is the connection's fault.
_SSH_FAILED = 255
_NO_AGENT = 97
_CONNECT = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent answered."""

    header: Mapping[str, Any]
    body: bytes


class LinkCutError(DeviceUnreachableError):
    """The link went in the middle of an answer.

    Args:
        message: One sentence that says what is wrong.
        received: What of the answer had come.
        details: Evidence for machines.
        hint: What to do.
    """

    def __init__(
        self, message: str, received: bytes, details: Mapping[str, Any], hint: str | None = None
    ) -> None:
        super().__init__(message, details=details, hint=hint)
        self.received = received


class Link:
    """One device's link.

    Args:
        device: The device.
        state: A folder of ours on this host, for the file with the device's key.
        channel: Links of one channel share a connection.
    """

    def __init__(self, device: Device, state: Path, *, channel: str = "") -> None:
        self.device = device
        self.state = state
        self._channel = channel
        self._agent = agent_version()

    def ask(self, command: str, request: Mapping[str, Any] | None = None, *, timeout: float = 60) -> Answer:
        """Ask the agent; it is brought there where it is not.

        Raises:
            DeviceUnreachableError: No answer; whether the request was heard is not known.
            DeviceError: The device answered that it cannot. ``details["refused"]`` has the reason's code.
        """
        data = json.dumps(request or {}).encode()
        done = self._run(self._call(command), data, timeout)
        if done.returncode == _NO_AGENT:
            self._bring_agent()
            done = self._run(self._call(command), data, timeout)
        if done.returncode != 0:
            raise DeviceError(
                f"The agent on {self.device.name} failed: {_last_line(done.stderr) or done.returncode}.",
                hint=f"`notebooked edge doctor {self.device.name}` says what is missing.",
            )
        line, _, body = done.stdout.partition(b"\n")
        try:
            header = json.loads(line)
        except ValueError as error:
            # A login script that prints, most often.
            raise DeviceError(
                f"{self.device.name} answered something else than our agent does: {line[:80]!r}.",
                hint="A file such as ~/.bashrc may print to every session; it must not where there is no terminal.",
            ) from error
        if "refused" in header:
            raise DeviceError(
                f"{self.device.name}: {header['message']}", details={"refused": header["refused"]}
            )
        return Answer(header, body)

    def run(self, command: str, data: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run a command of the device's shell. Raises DeviceUnreachableError."""
        return self._run(command, data, timeout)

    def copy(self, source: Path, target: str, *, base: str | None = None, timeout: float = 3600) -> str:
        """Bring a folder's content to a folder of the device; what is there already is not sent again.

        Args:
            source: The folder here.
            target: The folder there, below the device's working folder.
            base: A folder beside ``target`` there whose equal files are linked instead of sent.
            timeout: Seconds.

        Returns:
            How: ``rsync`` or ``sftp``.
        """
        folder = f"{self.device.folder}/{target}"
        # Behind a colon both look for a path.
        host = f"[{self.device.host}]" if ":" in self.device.host else self.device.host
        made = self._run(f"mkdir -p {shlex.quote(folder)} && command -v rsync >/dev/null; echo $?", b"", 60)
        if shutil.which("rsync") and made.stdout.strip() == b"0":
            link = ["--link-dest", f"../{base}"] if base else []
            command = [
                "rsync", "-rlptc", "--delete", "--partial", "-z", *link,
                "-e", shlex.join(["ssh", *self.options(user=True)]),
                f"{source}/", f"{host}:{folder}/",
            ]  # fmt: skip
            self._transfer(command, b"", timeout)
            return "rsync"
        batch = f"put -R -p {_sftp_quoted(f'{source}/.')} {_sftp_quoted(folder)}\n"
        command = ["sftp", "-q", *self.options(user=True, port="-P"), "-b", "-", host]
        self._transfer(command, batch.encode(), timeout)
        return "sftp"

    def options(self, *, user: bool = False, port: str = "-p") -> list[str]:
        """What every ssh, sftp and rsync of ours is called with; for the rest, ssh's own configuration holds."""
        device = self.device
        found = [
            "-o", "BatchMode=yes", "-o", "RemoteCommand=none", "-o", "RequestTTY=no", "-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={_CONNECT}",
            "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", "Compression=yes",
            "-o", "ForwardAgent=no", "-o", "ControlMaster=auto", "-o", "ControlPersist=60",
            "-o", f"ControlPath={_sockets()}/{self._socket()}",
        ]  # fmt: skip
        if device.port != 22:
            # Else what ssh's own configuration says of the host, where it does.
            found += [port, str(device.port)]
        if user and device.user:
            found += ["-o", f"User={device.user}"]
        if device.key is not None:
            found += ["-i", str(device.key), "-o", "IdentitiesOnly=yes"]
        known = self._known_hosts()
        if known is not None:
            # It takes several, with blanks between them, and replaces what stands behind a percent sign.
            quoted = '"' + str(known).replace("%", "%%") + '"'
            found += ["-o", f"UserKnownHostsFile={quoted}", "-o", "GlobalKnownHostsFile=/dev/null"]
        if device.host_key is not None:
            # The name in our file; an alias of ssh's configuration stands for another address.
            found += ["-o", f"HostKeyAlias={device.name}"]
        return found

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other process or thread of this host brings something to the device."""
        folder = self.state / "bringing"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / self.device.name).open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        """Give up the connection that is kept for the next request."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(
                ["ssh", *self.options(user=True), "-O", "exit", self.device.host],
                capture_output=True, timeout=5, check=False,
            )  # fmt: skip

    def _call(self, command: str) -> str:
        folder = shlex.quote(f"{self.device.folder}/agents/{self._agent}")
        python = shlex.quote(self.device.agent_python)
        return f"cd {folder} 2>/dev/null || exit {_NO_AGENT}; exec {python} -S -m {_PACKAGE}.agent {shlex.quote(command)}"

    def _bring_agent(self) -> None:
        folder = shlex.quote(f"{self.device.folder}/agents")
        name = self._agent
        # Unpacked beside its place, then renamed: whoever finds it, finds it whole. Another host may have been quicker.
        script = (
            f"set -e; mkdir -p {folder}; cd {folder}; part=$(mktemp -d .part.XXXXXX); tar -xf - -C $part; "
            f"mv -T $part {name} 2>/dev/null || rm -rf $part; test -d {name}"
        )
        done = self._run(script, _agent_archive(), 120)
        if done.returncode:
            raise DeviceError(
                f"Our agent cannot be put on {self.device.name}: {_last_line(done.stderr) or done.returncode}.",
                hint=f"The user there needs to be able to write to {self.device.folder}, and tar.",
            )

    def _run(self, command: str, data: bytes, timeout: float) -> subprocess.CompletedProcess[bytes]:
        return self._finished(["ssh", *self.options(user=True), self.device.host, command], data, timeout)

    def _transfer(self, command: Sequence[str], data: bytes, timeout: float) -> None:
        done = self._finished(command, data, timeout)
        if done.returncode:
            text = _last_line(done.stderr)
            # rsync has codes of its own for a connection that went.
            lost = command[0] == "rsync" and done.returncode in (10, 12, 30, 35)
            raise (DeviceUnreachableError if lost else DeviceError)(
                f"{command[0]} to {self.device.name} failed: {text or done.returncode}.",
                hint="What has arrived is kept; the next attempt goes on from there.",
            )

    def _finished(
        self, command: Sequence[str], data: bytes, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=timeout, check=False)
        except FileNotFoundError as error:
            raise MissingPackageError(
                f"{command[0]} is not installed on this host.", hint="On Debian: apt install openssh-client."
            ) from error
        except subprocess.TimeoutExpired as error:
            # The connection that others share hangs, too.
            self.close()
            raise LinkCutError(
                f"{self.device.name} gave no whole answer for {timeout:.0f} s.",
                error.output or b"",
                {"address": self.device.address},
                # ssh itself gives up a device that is away long before.
                hint="It is there, and busy or hung: it may be installing something; try again in a while.",
            ) from error
        if done.returncode == _SSH_FAILED:
            self._explain(done.stderr.decode("utf-8", "replace").strip(), done.stdout)
        return done

    def _explain(self, text: str, received: bytes) -> None:
        """Raise what ssh's complaint means."""
        name = self.device.name
        if re.search(
            "host key verification failed|identification has changed|no matching host key", text, re.I
        ):
            raise DeviceError(
                f"{name} does not prove to be the device that was declared: its host key is unknown or another.",
                hint="Compare it with the device's own (/etc/ssh/ssh_host_ed25519_key.pub), then set `host_key` in edge.yaml.",
                details={"refused": "host-key", "ssh": text},
            )
        if re.search(r"permission denied \(|too many authentication", text, re.I):
            raise DeviceError(
                f"{name} does not let {self.device.user or 'us'} in.",
                hint="Put the public key into ~/.ssh/authorized_keys there, or name the right `key` and `user`.",
                details={"refused": "login", "ssh": text},
            )
        raise LinkCutError(
            f"{name} ({self.device.address}) cannot be reached: {text.splitlines()[-1] if text else 'the connection was lost'}",
            received,
            {"address": self.device.address},
        )

    def _socket(self) -> str:
        told = (
            self.device.host,
            self.device.port,
            self.device.user,
            str(self.device.key),
            self.device.host_key,
            self._channel,
        )
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def _known_hosts(self) -> Path | None:
        if self.device.host_key is None:
            return self.device.known_hosts
        path = self.state / "known_hosts" / self.device.name
        line = f"{self.device.name} {self.device.host_key}\n"
        if not path.exists() or path.read_text() != line:
            from notebooked_dagster.core.files import write_atomic

            write_atomic(path, line)
        return path


@functools.cache
def agent_version() -> str:
    """The agent's content, as a name."""
    here = Path(__file__).parent
    return hashlib.sha256(b"\0".join((here / name).read_bytes() for name in _AGENT)).hexdigest()[:16]


def _agent_archive() -> bytes:
    here, stream = Path(__file__).parent, io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("__init__.py", *_AGENT):
            content = (here / name).read_bytes() if name != "__init__.py" else b""
            entry = tarfile.TarInfo(f"{_PACKAGE}/{name}")
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _sockets() -> Path:
    """Where the shared connections' sockets are: a short path, for a socket's may have some hundred characters."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    if len(str(base)) > 60:
        base = Path("/tmp")
    folder = base / f"notebooked-edge-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise DeviceError(f"{folder} is open to others.", hint="Remove it.")
    return folder


def _sftp_quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
