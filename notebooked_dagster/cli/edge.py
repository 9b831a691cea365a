"""``notebooked edge``: the devices beside the gear, seen from the host."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from notebooked_dagster.errors import (
    EXIT_USER,
    ConfigError,
    DeviceError,
    JobNotFoundError,
    MissingPackageError,
    NotebookedError,
)

from .edge_daemon import daemon_command
from .options import session, shared_options

if TYPE_CHECKING:
    from notebooked_dagster.edge.devices import Device, Fleet
    from notebooked_dagster.edge.ssh import Link

    from .doctor import Check

_NONE = "There is none. `notebooked edge add NAME USER@HOST` declares one."
_ADDRESS = re.compile(r"(?:(?P<user>[^@]*)@)?(?P<host>\[[^\]]+\]|[^:@]+)(?::(?P<port>\d{1,5}))?")


@click.group("edge")
@shared_options
def edge_command() -> None:
    """Raspberry Pis and other devices that take runs over SSH: docs/edge.md."""


edge_command.add_command(daemon_command)


@edge_command.command("add")
@click.argument("name")
@click.argument("address", metavar="[USER@]HOST[:PORT]")
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The private key.")
@click.option("--label", "labels", multiple=True, help="A group it belongs to; repeatable.")
@click.option("--capacity", type=click.IntRange(1, 64), default=1, show_default=True, help="Runs at a time.")
@click.option("--host-key", help="Its public key, `ssh-ed25519 AAAA…`; asked of the device where not given.")
@click.option("--offline", is_flag=True, help="It has no internet: wheels and uv are brought from here.")
@click.option("--yes", is_flag=True, help="Take the key that the device shows without asking.")
@shared_options
def add(
    name: str,
    address: str,
    key: Path | None,
    labels: tuple[str, ...],
    capacity: int,
    host_key: str | None,
    offline: bool,
    yes: bool,
) -> None:
    """Declare a device in edge.yaml, after showing the fingerprint of its host key."""
    from notebooked_dagster.core.files import write_atomic
    from notebooked_dagster.edge.devices import FILE, fleet_of, load_fleet, with_device

    path = session().root() / FILE
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise click.BadParameter(
            f"{address!r} is no address; write [USER@]HOST[:PORT], and an IPv6 address in brackets.",
            param_hint="ADDRESS",
        )
    user, host, port = parts["user"], parts["host"].strip("[]"), parts["port"]
    if path.exists() and load_fleet(path).get(name) is not None:
        raise ConfigError(
            f"There is a device {name!r} already.", path=path, hint="Edit it there, or take another name."
        )
    entry: dict[str, Any] = {"name": name, "host": host}
    entry |= {"user": user} if user else {}
    entry |= {"port": int(port)} if port else {}
    entry |= {"key": str(key)} if key else {}
    entry |= {"labels": list(labels)} if labels else {}
    entry |= {"capacity": capacity} if capacity != 1 else {}
    entry |= {"offline": True} if offline else {}
    # Before anybody is asked over there.
    fleet_of([entry], path.parent)
    if host_key is None:
        host_key, fingerprint = _shown_key(host, port or "22")
        session().note(f"{host} shows the key {fingerprint}.")
        if not yes and not click.confirm(
            "Is it the device's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)?", err=True
        ):
            raise click.Abort
    entry["host_key"] = host_key
    fleet_of([entry], path.parent)
    write_atomic(path, with_device(path, entry))
    session().emit(entry, lambda: f"{name} is in {FILE}. `notebooked edge doctor {name}` looks at it.")


def _shown_key(host: str, port: str) -> tuple[str, str]:
    done = _ran(["ssh-keyscan", "-T", "10", "-t", "ed25519", "-p", port, host], capture_output=True)
    line = next((line for line in done.stdout.splitlines() if line and not line.startswith("#")), None)
    if line is None:
        raise DeviceError(
            f"{host} shows no host key on port {port}.", hint="Switch it on, or give its key with --host-key."
        )
    seen = _ran(["ssh-keygen", "-lf", "-"], input=line, capture_output=True)
    return line.partition(" ")[2].strip(), seen.stdout.split(" ")[1] if " " in seen.stdout else line


def _ran(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, text=True, check=False, **options)
    except FileNotFoundError as error:
        raise MissingPackageError(
            f"{command[0]} is not installed on this host.", hint="On Debian: apt install openssh-client."
        ) from error


@edge_command.command("list")
@shared_options
def list_devices() -> None:
    """List devices, and how each is at present."""
    rows = [_row(device) for device in _fleet().devices]
    session().emit(rows, lambda: _table(rows))


def _row(device: Device) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": device.name,
        "address": device.address,
        "labels": sorted(device.labels),
        "capacity": device.capacity,
    }
    try:
        seen = _link(device).ask("hello", timeout=20).header
    except NotebookedError as error:
        return {**row, "reachable": False, "message": error.message}
    kept = ("running", "current", "disk_free", "temperature", "throttled", "machine", "python")
    return {**row, "reachable": True, **{name: seen[name] for name in kept}}


def _table(rows: list[dict[str, Any]]) -> str | None:
    if not rows:
        return _NONE
    from rich.table import Table

    table = Table("device", "address", "labels", "runs", "code", "disk free", "temperature", "state")
    for row in rows:
        if not row["reachable"]:
            table.add_row(
                row["name"], row["address"], ", ".join(row["labels"]), "", "", "", "", row["message"]
            )
            continue
        heat = f"{row['temperature']:.0f} °C" if row["temperature"] is not None else "-"
        table.add_row(
            row["name"], row["address"], ", ".join(row["labels"]), f"{len(row['running'])}/{row['capacity']}",
            (row["current"] or "-")[:12], f"{row['disk_free'] / 1e9:.1f} GB", heat, "reachable",
        )  # fmt: skip
    session().console().print(table)
    return None


@edge_command.command("provision")
@click.argument("name")
@shared_options
def provision(name: str) -> None:
    """Bring our agent and uv to a device that has Python, pip and an SSH server. Needs no root."""
    device = _device(name)
    link = _link(device)
    there = link.ask("hello").header
    folder = shlex.quote(str(device.folder))
    find = 'export PATH="$HOME/.local/bin:$PATH"; command -v uv'
    # Runs go on when nobody is logged in, and endpoints come back when the power does.
    done = link.run("! command -v loginctl || loginctl --no-ask-password enable-linger")
    if done.returncode:
        session().note(
            f"{name} wants root for this: sudo loginctl enable-linger $USER. Until then endpoints do not come back after a restart."
        )
    done = link.run(find)
    if done.returncode:
        if device.offline:
            install = _bring_uv(device, link, there)
        else:
            install = f"{shlex.quote(device.agent_python)} -m venv {folder}/uv && {folder}/uv/bin/python -m pip install --quiet uv"
        script = f'{install} && mkdir -p ~/.local/bin && ln -sf "$(cd {folder} && pwd)/uv/bin/uv" ~/.local/bin/uv && {find}'
        done = link.run(script, timeout=900)
    if done.returncode:
        raise DeviceError(
            f"uv cannot be installed on {name}: {done.stderr.decode('utf-8', 'replace').strip()[-500:]}",
            hint="On Raspberry Pi OS: apt install python3-venv; without internet, write `offline: true` for it in edge.yaml.",
        )
    path = done.stdout.decode().strip().splitlines()[-1]
    session().emit({"device": name, "uv": path}, lambda: f"{name} has our agent, and uv at {path}.")


def _bring_uv(device: Device, link: Link, there: Mapping[str, Any]) -> str:
    """Download uv here and bring it there; returns the command that says whether it works."""
    from notebooked_dagster.edge.wheels import uv_for

    with tempfile.TemporaryDirectory() as made:
        uv_for(device, there, Path(made))
        link.copy(Path(made), "uv/bin")
    return f"{shlex.quote(str(device.folder))}/uv/bin/uv --version"


@edge_command.command("deploy")
@click.argument("names", nargs=-1)
@shared_options
def deploy(names: tuple[str, ...]) -> None:
    """Bring the project's code, and the environment it needs, to devices; to all where none is named."""
    from notebooked_dagster.edge.releases import bring, make_release

    release = make_release(session().root(), _state())
    done = []
    for device in [_device(name) for name in names] or _fleet().devices:
        began = time.monotonic()
        how = bring(release, device, _link(device))
        done.append(
            {
                "device": device.name,
                "release": release.name,
                "how": how,
                "seconds": round(time.monotonic() - began, 2),
            }
        )
        session().note(f"{device.name}: {release.name} ({how}, {done[-1]['seconds']} s)")
    session().emit(done, lambda: None)


@edge_command.command("run")
@click.argument("job")
@click.option("--device", help="Where; or --label.")
@click.option("--label", help="On the least-loaded device of a label.")
@shared_options
def run_job(job: str, device: str | None, label: str | None) -> None:
    """Launch a job of the project on a device, through the instance that the UI shows."""
    import json
    import uuid

    from notebooked_dagster.edge.choice import DEVICE, LABEL, choose
    from notebooked_dagster.edge.launcher import PiRunLauncher

    from .project import Project

    tags = {name: value for name, value in ((DEVICE, device), (LABEL, label)) if value is not None}
    if not tags:
        raise click.UsageError("Name a device with --device, or a label with --label.")
    choose(_fleet(), tags, {})
    run_id = str(uuid.uuid4())
    # As Dagster's own commands: in the project's folder, with its instance. Raises where there is none to launch in.
    with Project(session()).instance() as instance:
        if not isinstance(instance.run_launcher, PiRunLauncher):
            raise ConfigError(
                f"Runs of this project are launched by {type(instance.run_launcher).__name__}, which would execute it elsewhere.",
                key="run_launcher",
                hint="NOTEBOOKED_RUN_LAUNCHER=pi, here and where the daemon runs, or PiRunLauncher in dagster.yaml.",
            )
        command = [
            sys.executable, "-m", "dagster", "job", "launch", "-w", "workspace.yaml", "-j", job,
            "--run-id", run_id, "--tags", json.dumps(tags),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Click's usage stands before what is wrong.
        said = (done.stderr or done.stdout).strip().rpartition("\nError: ")[2]
        raise ConfigError(
            f"The job was not launched: {said[-800:]}", hint="`dagster job list` shows the jobs."
        )
    session().emit(
        {"job": job, "tags": tags, "run_id": run_id},
        lambda: (
            f"Submitted {job} as run {run_id}. The daemon starts it; `make ui` or `dagster dev` runs one."
        ),
    )


@edge_command.command("logs")
@click.argument("run_id", metavar="RUN")
@click.option("--device", help="Which device has it; all are asked where not given.")
@shared_options
def logs(run_id: str, device: str | None) -> None:
    """Print what a run wrote down on its device so far, whether or not a relay has brought it home."""
    for candidate in [_device(device)] if device else _fleet().devices:
        try:
            text = list(_journal_lines(_link(candidate), run_id))
        except DeviceError as error:
            session().note(f"{candidate.name}: {error}")
            continue
        if text:
            data = {"device": candidate.name, "run": run_id, "lines": text}
            session().emit(data, functools.partial("\n".join, text))
            return
    raise JobNotFoundError(
        f"No device that answers knows run {run_id}.",
        hint="`notebooked edge list` shows which answer; of a run that is still queued nothing is there yet.",
    )


def _journal_lines(link: Link, run_id: str) -> Iterator[str]:
    """The journal's messages; the file is read as it is, past the lease, for nothing is stored of it."""
    from notebooked_dagster.edge.journal import JournalError, decode

    if not run_id.replace("-", "").isalnum():
        raise ConfigError(f"{run_id!r} is no run's id.", hint="The UI shows it.")
    done = link.run(f"cat {shlex.quote(f'{link.device.folder}/runs/{run_id}/journal')} 2>/dev/null")
    try:
        for record in decode(done.stdout):
            if record.data["kind"] == "event":
                yield _message(record.data["event"])
            elif record.data["kind"] == "exit":
                yield f"-- the process ended: {record.data['why']}, code {record.data['code']}"
    except JournalError as error:
        yield f"-- {error}"


def _message(text: str) -> str:
    import json
    from datetime import datetime

    data = json.loads(text)
    at = datetime.fromtimestamp(data["timestamp"]).astimezone().isoformat(" ", "milliseconds")[:23]
    event = data.get("dagster_event") or {}
    return f"{at}  {event.get('event_type_value') or '':24} {event.get('message') or data.get('user_message') or ''}".rstrip()


@edge_command.command("shell")
@click.argument("name")
@shared_options
def shell(name: str) -> None:
    """A shell on a device, in its working folder, over the same key and host key as runs."""
    device = _device(name)
    link = _link(device)
    command = f"cd {shlex.quote(str(device.folder))} 2>/dev/null; exec ${{SHELL:-/bin/sh}} -l"
    ended = _ran(["ssh", "-t", *link.options(user=True), device.host, command])
    click.get_current_context().exit(EXIT_USER if ended.returncode else 0)


@edge_command.command("doctor")
@click.argument("names", nargs=-1)
@shared_options
def doctor(names: tuple[str, ...]) -> None:
    """Look at devices, or at all, and say what does not work. Exits 1 where something does not."""
    checks = [
        check
        for device in ([_device(name) for name in names] or _fleet().devices)
        for check in _examine(device)
    ]
    data = {"checks": [asdict(check) for check in checks], "ok": all(c.state != "error" for c in checks)}
    session().emit(data, lambda: "\n".join(_line(check) for check in checks) or _NONE)
    if not data["ok"]:
        click.get_current_context().exit(EXIT_USER)


def _line(check: Check) -> str:
    mark = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}[check.state]
    # What ssh said ends without a full stop.
    told = check.message if not check.fix or check.message.endswith(".") else f"{check.message}."
    return f"{mark}  {check.name}: {told} {check.fix}".rstrip()


def _examine(device: Device) -> Iterator[Check]:
    from notebooked_dagster.edge.health import examine

    from .doctor import Check

    try:
        health = examine(_link(device), 60)
    except NotebookedError as error:
        fix = error.hint or "Switch it on and look at its network."
        yield Check(device.name, "error", error.message, fix)
        return
    for found in health.findings():
        state = "ok" if found.well else "error" if found.fatal else "warning"
        yield Check(device.name, state, found.message, found.fix)


def _fleet() -> Fleet:
    from notebooked_dagster.edge.devices import declared_fleet

    return declared_fleet(session().root())


def _device(name: str) -> Device:
    from notebooked_dagster.edge.choice import DEVICE, choose

    found = choose(_fleet(), {DEVICE: name}, {})
    assert found is not None
    return found


def _state() -> Path:
    from notebooked_dagster.edge.devices import launcher_state

    return launcher_state(session().root(), session().settings().state)


def _link(device: Device) -> Link:
    from notebooked_dagster.edge.ssh import Link

    return Link(device, _state())
