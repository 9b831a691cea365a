"""The devices of a project as assets: seen, measured, and told of when they fall silent."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import orjson

from notebooked_dagster.edge.devices import Device, Fleet, declared_fleet
from notebooked_dagster.edge.health import CLOCK, DISK, POWER, REACHABLE, TEMPERATURE, Finding, examine
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.resources import Workplace

SENSOR = "edge_devices"
CHECKS = {
    REACHABLE: "Whether it answers, as the one it was declared to be.",
    DISK: "Whether there is room for another release and what runs leave.",
    TEMPERATURE: "Whether it is about to slow itself down for heat.",
    POWER: "Whether its firmware has nothing to say of under-voltage and heat.",
    CLOCK: "Whether its clock is right.",
}
_INTERVAL = 60
# Dagster gives a sensor 60 s; who is not looked at in one tick is in the next.
_LONGEST_LOOK = 40.0
_ANSWER = 20.0


def device_definitions(place: Workplace) -> list[dg.Definitions]:
    """An asset, its checks and a part in the sensor for each device; nothing where the project declares none.

    Raises:
        ConfigError: edge.yaml, or the launcher's list of devices, is wrong.
    """
    fleet = declared_fleet(place.root)
    if not fleet.devices:
        return []
    return [
        dg.Definitions(
            assets=[_spec(device) for device in fleet.devices],
            asset_checks=[_checks(device, place) for device in fleet.devices],
            sensors=[devices_sensor(place, fleet)],
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


def _checks(device: Device, place: Workplace) -> dg.AssetChecksDefinition:
    specs = [dg.AssetCheckSpec(name, asset=key(device), description=text) for name, text in CHECKS.items()]

    # A subset always: of a device that does not answer, nothing else is known.
    @dg.multi_asset_check(specs=specs, name=f"look_at_{key(device).to_python_identifier()}", can_subset=True)
    def examined(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        seen, findings = look(device, place)
        wanted = {selected.name for selected in context.selected_asset_check_keys}
        for found in findings:
            if found.name in wanted:
                yield dg.AssetCheckResult(
                    passed=found.well,
                    asset_key=key(device),
                    check_name=found.name,
                    severity=_severity(found),
                    description=_text(found),
                    metadata=seen,
                )

    return examined


def _severity(found: Finding) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if found.name == REACHABLE else dg.AssetCheckSeverity.WARN


def _text(found: Finding) -> str:
    return f"{found.message} {found.fix}".strip()


def devices_sensor(place: Workplace, fleet: Fleet) -> dg.SensorDefinition:
    """Looks at every device, and keeps the relay of their runs alive."""

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        launcher = context.instance.run_launcher
        ensure = getattr(launcher, "ensure_open_relay", None)
        if ensure is not None:
            ensure()
        # Of each device, which checks it passed when they were last told; in the order of the last looks.
        before: dict[str, dict[str, bool]] = orjson.loads(context.cursor) if context.cursor else {}
        now: dict[str, dict[str, bool]] = {}
        events: list[Any] = []
        until = time.monotonic() + _LONGEST_LOOK
        places = {name: place for place, name in enumerate(before)}
        left: dict[str, dict[str, bool]] = {}
        # Who was left out for want of time comes first, before those whose last look was longer ago than others'.
        for device in sorted(fleet.devices, key=lambda device: places.get(device.name, -1)):
            if time.monotonic() > until - _ANSWER:
                left[device.name] = before.get(device.name) or {}
                continue
            seen, findings = look(device, place)
            known = before.get(device.name) or {}
            now[device.name] = known | {found.name: found.well for found in findings}
            if seen:
                events.append(dg.AssetObservation(key(device), metadata=seen))
            events += [
                dg.AssetCheckEvaluation(
                    asset_key=key(device),
                    check_name=found.name,
                    passed=found.well,
                    severity=_severity(found),
                    description=_text(found),
                )
                for found in findings
                if known.get(found.name) != found.well
            ]
        silent = sorted(name for name, told in now.items() if not told[REACHABLE])
        said = f"Silent: {', '.join(silent)}." if silent else f"{len(now)} devices answer."
        return dg.SensorResult(
            asset_events=events, skip_reason=dg.SkipReason(said), cursor=orjson.dumps(left | now).decode()
        )

    return dg.SensorDefinition(
        name=SENSOR,
        evaluation_fn=evaluate,
        minimum_interval_seconds=_INTERVAL,
        # On by itself: it starts nothing but the relay of runs that somebody sent.
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks every device how it is, and sees to it that what runs there comes home.",
    )


def look(device: Device, place: Workplace) -> tuple[Mapping[str, Any], list[Finding]]:
    """What a device says of itself, as metadata, and what is well and what is not; no more than that it is silent where it is."""
    try:
        health = examine(Link(device, place.state / "edge"), _ANSWER)
    except NotebookedError as error:
        return {}, [Finding(REACHABLE, False, error.message, error.hint or "")]
    seen = health.seen
    metadata: dict[str, Any] = {
        "disk free (MB)": round(seen["disk_free"] / 1e6),
        "clock offset (s)": round(health.offset, 2),
        "answered in (s)": round(health.took, 3),
        "runs": len(seen["running"]),
        "release": seen["current"] or "none",
        "python": seen["python"],
        "system": seen["system"],
    }
    if seen["temperature"] is not None:
        metadata["temperature (°C)"] = round(seen["temperature"], 1)
    if seen["throttled"] is not None:
        metadata["throttled"] = seen["throttled"]
    return metadata, [found for found in health.findings() if found.name in CHECKS]
