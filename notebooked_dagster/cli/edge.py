"""``notebooked edge``: the devices beside the gear, seen from the host."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from notebooked_dagster.errors import EXIT_USER, ConfigError, DeviceError, JobNotFoundError, NotebookedError

from .edge_daemon import daemon_command
from .options import session, shared_options

if TYPE_CHECKING:
    from notebooked_dagster.edge.devices import Device, Fleet
    from notebooked_dagster.edge.ssh import Link

    from .doctor import Check

_LEAST_SPACE = 500 * 1024 * 1024
_HOT = 75.0
_WARM_OFFSET = 2.0
_LAUNCHER = "notebooked_dagster.edge.launcher"


@click.group("edge")
@shared_options
def edge_command() -> None:
    """Raspberry Pis and other devices that take runs over SSH: docs/edge.md."""


edge_command.add_command(daemon_command)


@edge_command.command("add")
@click.argument("name")
@click.argument("address", metavar="[USER@]HOST[:PORT]")
@click.option("--key", type=click.Path(path_type=Path), help="The private key.")
@click.option("--label", "labels", multiple=True, help="A group it belongs to; repeatable.")
@click.option("--capacity", type=click.IntRange(1, 64), default=1, show_default=True, help="Runs at a time.")
@click.option("--host-key", help="Its public key, `ssh-ed25519 AAAA…`; asked of the device where not given.")
@click.option("--yes", is_flag=True, help="Take the key that the device shows without asking.")
@shared_options
def add(
    name: str,
    address: str,
    key: Path | None,
    labels: tuple[str, ...],
    capacity: int,
    host_key: str | None,
    yes: bool,
) -> None:
    """Declare a device in edge.yaml, after showing the fingerprint of its host key."""
    from notebooked_dagster.core.files import write_atomic
    from notebooked_dagster.edge.devices import FILE, fleet_of, load_fleet

    path = session().root() / FILE
    user, _, rest = address.rpartition("@")
    host, _, port = rest.partition(":")
    if path.exists() and load_fleet(path).get(name) is not None:
        raise ConfigError(
            f"There is a device {name!r} already.", path=path, hint="Edit it there, or take another name."
        )
    if host_key is None:
        host_key, fingerprint = _shown_key(host, port or "22")
        session().note(f"{host} shows the key {fingerprint}.")
        if not yes and not click.confirm(
            "Is it the device's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)?", err=True
        ):
            raise click.Abort
    entry: dict[str, Any] = {"name": name, "host": host, "host_key": host_key}
    entry |= {"user": user} if user else {}
    entry |= {"port": int(port)} if port else {}
    entry |= {"key": str(key)} if key else {}
    entry |= {"labels": list(labels)} if labels else {}
    entry |= {"capacity": capacity} if capacity != 1 else {}
    fleet_of([entry], path.parent)
    # Behind what is there, so that comments of the user's stay.
    text = path.read_text(encoding="utf-8") if path.exists() else "devices:\n"
    item = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    write_atomic(path, text.rstrip("\n") + "\n" + item)
    load_fleet(path)
    session().emit(entry, lambda: f"{name} is in {FILE}. `notebooked edge doctor {name}` looks at it.")


def _shown_key(host: str, port: str) -> tuple[str, str]:
    done = subprocess.run(
        ["ssh-keyscan", "-T", "10", "-t", "ed25519", "-p", port, host],
        capture_output=True,
        text=True,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line and not line.startswith("#")), None)
    if line is None:
        raise DeviceError(
            f"{host} shows no host key on port {port}.", hint="Switch it on, or give its key with --host-key."
        )
    seen = subprocess.run(["ssh-keygen", "-lf", "-"], input=line, capture_output=True, text=True, check=False)
    return line.partition(" ")[2].strip(), seen.stdout.split(" ")[1] if " " in seen.stdout else line


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
        return "There is none. `notebooked edge add NAME USER@HOST` declares one."
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
    link.ask("hello")
    script = (
        'export PATH="$HOME/.local/bin:$PATH"; command -v uv || { '
        f"{shlex.quote(device.agent_python)} -m venv {shlex.quote(str(device.folder))}/uv && "
        f"{shlex.quote(str(device.folder))}/uv/bin/python -m pip install --quiet uv && mkdir -p ~/.local/bin && "
        f'ln -sf "$(cd {shlex.quote(str(device.folder))} && pwd)/uv/bin/uv" ~/.local/bin/uv && command -v uv; }}'
    )
    done = link.run(script, timeout=900)
    if done.returncode:
        raise DeviceError(
            f"uv cannot be installed on {name}: {done.stderr.decode('utf-8', 'replace').strip()[-500:]}",
            hint="On Raspberry Pi OS: apt install python3-venv; without internet, copy uv to ~/.local/bin there.",
        )
    path = done.stdout.decode().strip().splitlines()[-1]
    session().emit({"device": name, "uv": path}, lambda: f"{name} has our agent, and uv at {path}.")


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
    from notebooked_dagster.edge.choice import DEVICE, LABEL, choose

    tags = {name: value for name, value in ((DEVICE, device), (LABEL, label)) if value is not None}
    if not tags:
        raise click.UsageError("Name a device with --device, or a label with --label.")
    choose(_fleet(), tags, {})
    import json

    command = ["dagster", "job", "launch", "-w", "workspace.yaml", "-j", job, "--tags", json.dumps(tags)]
    done = subprocess.run(command, cwd=session().root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(
            f"The job was not launched: {(done.stderr or done.stdout).strip()[-800:]}",
            hint="`dagster job list` shows the jobs.",
        )
    session().emit({"job": job, "tags": tags, "said": done.stdout.strip()}, lambda: done.stdout.strip())


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
        f"No device that answers knows run {run_id}.", hint="`notebooked edge list` shows which answer."
    )


def _journal_lines(link: Link, run_id: str) -> Iterator[str]:
    """The journal's messages; the file is read as it is, past the lease, for nothing is stored of it."""
    from notebooked_dagster.edge.journal import decode

    if not run_id.replace("-", "").isalnum():
        raise ConfigError(f"{run_id!r} is no run's id.", hint="The UI shows it.")
    done = link.run(f"cat {shlex.quote(f'{link.device.folder}/runs/{run_id}/journal')} 2>/dev/null")
    for record in decode(done.stdout):
        if record.data["kind"] == "event":
            yield _message(record.data["event"])
        elif record.data["kind"] == "exit":
            yield f"-- the process ended: {record.data['why']}, code {record.data['code']}"


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
    ended = subprocess.run(["ssh", "-t", *link.options(user=True), device.host, command], check=False)
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
    session().emit(data, lambda: "\n".join(_line(check) for check in checks))
    if not data["ok"]:
        click.get_current_context().exit(EXIT_USER)


def _line(check: Check) -> str:
    mark = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}[check.state]
    return f"{mark}  {check.name}: {check.message}{f' {check.fix}' if check.fix else ''}"


def _examine(device: Device) -> Iterator[Check]:
    from .doctor import Check

    began = time.time()
    try:
        seen = _link(device).ask("hello", timeout=30).header
    except NotebookedError as error:
        yield Check(
            device.name, "error", error.message, error.hint or "Switch it on and look at its network."
        )
        return
    took = time.time() - began
    yield Check(
        device.name, "ok", f"reachable in {took * 1000:.0f} ms, {seen['system']}, Python {seen['python']}"
    )
    version = tuple(int(part) for part in seen["python"].split(".")[:2])
    if version < (3, 11):
        yield Check(
            device.name, "error", "The agent needs Python 3.11.", "Set `agent_python` to a newer one."
        )
    # The device looked at its clock somewhere between the question and the answer.
    offset = max(0.0, abs(seen["time"] - (began + took / 2)) - took / 2)
    if offset > _WARM_OFFSET:
        yield Check(
            device.name,
            "warning",
            f"its clock is {offset:.0f} s off; events get the host's time.",
            "Let it have NTP: timedatectl.",
        )
    low = seen["disk_free"] < _LEAST_SPACE
    yield Check(
        device.name, "warning" if low else "ok", f"{seen['disk_free'] / 1e9:.1f} GB free",
        "`notebooked edge deploy` removes old releases." if low else "",
    )  # fmt: skip
    if seen["temperature"] is not None:
        hot = seen["temperature"] > _HOT
        yield Check(
            device.name,
            "warning" if hot else "ok",
            f"{seen['temperature']:.0f} °C",
            "Cool it." if hot else "",
        )
    if seen["throttled"] not in (None, "0x0"):
        yield Check(
            device.name, "warning", f"throttled: {seen['throttled']}", "A better power supply, most often."
        )
    if not seen["rsync"] or not shutil.which("rsync"):
        yield Check(
            device.name,
            "warning",
            "rsync is missing on one side; all code is sent each time.",
            "apt install rsync",
        )


def _config() -> dict[str, Any]:
    """The launcher's configuration, where ``dagster.yaml`` has ours."""
    home = os.environ.get("DAGSTER_HOME")
    for folder in (Path(home) if home else None, session().root()):
        path = folder / "dagster.yaml" if folder is not None else None
        if path is None or not path.exists():
            continue
        found = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("run_launcher") or {}
        if found.get("module") == _LAUNCHER:
            return dict(found.get("config") or {})
    return {}


def _fleet() -> Fleet:
    from notebooked_dagster.edge.devices import FILE, fleet_of, load_fleet

    config = _config()
    if "devices" in config:
        return fleet_of(config["devices"], session().root())
    path = session().root() / Path(str(config.get("devices_file", FILE)))
    if not path.exists() and "devices_file" not in config:
        return fleet_of([], session().root())
    return load_fleet(path)


def _device(name: str) -> Device:
    from notebooked_dagster.edge.choice import DEVICE, choose

    found = choose(_fleet(), {DEVICE: name}, {})
    assert found is not None
    return found


def _state() -> Path:
    told = _config().get("state_dir")
    return session().root() / str(told) if told else session().settings().state / "edge"


def _link(device: Device) -> Link:
    from notebooked_dagster.edge.ssh import Link

    return Link(device, _state())
