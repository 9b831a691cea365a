"""``notebooked edge daemon``: run what ``device.yaml`` says, on this machine, until told to stop."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from .options import session, shared_options


@click.command("daemon")
@click.option(
    "--config", "path", type=click.Path(dir_okay=False, path_type=Path), default=Path("device.yaml"),
    show_default=True, help="What the device does.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Only say whether the configuration is right.")
@shared_options
def daemon_command(path: Path, check: bool) -> None:
    """Play, record and watch: MIDI, clock, sensors, rules, and a page with a live view.

    It runs in the foreground; deploy/pi has the systemd unit.
    """
    from notebooked_dagster.core import logs
    from notebooked_dagster.core.redaction import REDACTOR
    from notebooked_dagster.realtime.device import load_device

    config = load_device(path)
    if check:
        told = {"device": config.name, "ports": len(config.ports), "rules": len(config.rules)}
        session().emit(
            told,
            lambda: f"{path} is right: {config.name}, {len(config.ports)} ports, {len(config.rules)} rules.",
        )
        return
    from notebooked_dagster.realtime.daemon import Daemon

    logs.configure(level=logging.DEBUG if session().verbose > 1 else logging.INFO)
    for secret in (
        config.mqtt.password if config.mqtt else None,
        config.dagster.token if config.dagster else None,
    ):
        if secret is not None:
            REDACTOR.add(secret.get_secret_value())

    async def run() -> None:
        await Daemon(config, path.resolve().parent).run()

    asyncio.run(run())
