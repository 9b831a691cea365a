"""The devices of ``edge.yaml`` as assets: seen, measured, and told of when they fall silent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dagster as dg
import orjson

from notebooked_dagster.edge.devices import FILE, Device, Fleet, load_fleet
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.resources import Workplace

SENSOR = "edge_devices"
REACHABLE = "reachable"
_INTERVAL = 60
# Dagster gives a sensor 60 s; who is not looked at in one tick is in the next.
_LONGEST_LOOK = 40.0
_ANSWER = 20.0


def device_definitions(place: Workplace) -> list[dg.Definitions]:
    """An asset, a check and a part in the sensor for each device; nothing where the project declares none.

    Raises:
        ConfigError: edge.yaml is wrong.
    """
    path = place.root / FILE
    if not path.exists():
        return []
    fleet = load_fleet(path)
    return [
        dg.Definitions(
            assets=[_spec(device) for device in fleet.devices],
            asset_checks=[_check(device, place) for device in fleet.devices],
            sensors=[devices_sensor(place, fleet)] if fleet.devices else [],
        )
    ]


def key(device: Device) -> dg.AssetKey:
    """A device's asset."""
    return dg.AssetKey(["devices", device.name])


def _spec(device: Device) -> dg.AssetSpec:
    return dg.AssetSpec(
        key(device),
        group_name="devices",
        description=f"A device that takes up to {device.capacity} runs at a time, at {device.address}.",
        metadata={"address": device.address, "labels": sorted(device.labels), "capacity": device.capacity},
        kinds={"linux"},
    )


def _check(device: Device, place: Workplace) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=key(device),
        name=REACHABLE,
        description="Whether it answers, as the one it was declared to be.",
    )
    def reachable() -> dg.AssetCheckResult:
        seen, problem = look(device, place)
        return dg.AssetCheckResult(passed=not problem, description=problem or None, metadata=seen)

    return reachable


def devices_sensor(place: Workplace, fleet: Fleet) -> dg.SensorDefinition:
    """Looks at every device, and keeps the relay of their runs alive."""

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        launcher = context.instance.run_launcher
        ensure = getattr(launcher, "ensure_open_relay", None)
        if ensure is not None:
            ensure()
        before: dict[str, bool] = orjson.loads(context.cursor) if context.cursor else {}
        now: dict[str, bool] = {}
        events: list[Any] = []
        until = time.monotonic() + _LONGEST_LOOK
        # Who was left out last time for want of time comes first.
        for device in sorted(fleet.devices, key=lambda device: device.name in before):
            if time.monotonic() > until - _ANSWER:
                break
            seen, problem = look(device, place)
            now[device.name] = not problem
            if seen:
                events.append(dg.AssetObservation(key(device), metadata=seen))
            if before.get(device.name) != now[device.name]:
                events.append(
                    dg.AssetCheckEvaluation(
                        asset_key=key(device),
                        check_name=REACHABLE,
                        passed=not problem,
                        description=problem or None,
                    )
                )
        silent = sorted(name for name, well in now.items() if not well)
        said = f"Silent: {', '.join(silent)}." if silent else f"{len(now)} devices answer."
        return dg.SensorResult(
            asset_events=events, skip_reason=dg.SkipReason(said), cursor=orjson.dumps(now).decode()
        )

    return dg.SensorDefinition(
        name=SENSOR,
        evaluation_fn=evaluate,
        minimum_interval_seconds=_INTERVAL,
        # On by itself: it starts nothing but the relay of runs that somebody sent.
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks every device how it is, and sees to it that what runs there comes home.",
    )


def look(device: Device, place: Workplace) -> tuple[Mapping[str, Any], str]:
    """What a device says of itself, as metadata, and what is wrong; nothing of the first where it does not answer."""
    began = time.time()
    try:
        seen = Link(device, place.state / "edge").ask("hello", timeout=_ANSWER).header
    except NotebookedError as error:
        return {}, str(error)
    took = time.time() - began
    offset = seen["time"] - (began + took / 2)
    found: dict[str, Any] = {
        "disk free (MB)": round(seen["disk_free"] / 1e6),
        "clock offset (s)": 0.0 if abs(offset) <= took / 2 else round(offset, 2),
        "answered in (s)": round(took, 3),
        "runs": len(seen["running"]),
        "release": seen["current"] or "none",
        "python": seen["python"],
        "system": seen["system"],
    }
    if seen["temperature"] is not None:
        found["temperature (°C)"] = round(seen["temperature"], 1)
    if seen["throttled"] is not None:
        found["throttled"] = seen["throttled"]
    return found, ""
