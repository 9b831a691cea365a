"""Which device takes a run. Pure: a choice is a value that a test can look at."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from notebooked_dagster.errors import ConfigError

from .devices import Device, Fleet, names

#: A run, job or asset goes to this device.
DEVICE = "notebooked/device"
#: … or to the least-loaded one of these.
LABEL = "notebooked/device-label"


def wanted(tags: Mapping[str, str]) -> bool:
    """Whether a run is for a device at all."""
    return DEVICE in tags or LABEL in tags


def choose(
    fleet: Fleet, tags: Mapping[str, str], load: Mapping[str, int], silent: frozenset[str] = frozenset()
) -> Device | None:
    """The device for a run.

    Args:
        fleet: All devices.
        tags: The run's.
        load: How many runs each device has, by name.
        silent: Devices that do not answer at present: they come last, and are no reason to refuse.

    Returns:
        The device; None where every one that fits has as many runs as it may have.

    Raises:
        ConfigError: None fits.
    """
    fitting = _fitting(fleet, tags)
    free = [device for device in fitting if load.get(device.name, 0) < device.capacity]
    return min(
        free,
        key=lambda device: (
            device.name in silent,
            load.get(device.name, 0) / device.capacity,
            load.get(device.name, 0),
            device.name,
        ),
        default=None,
    )


def _fitting(fleet: Fleet, tags: Mapping[str, str]) -> list[Device]:
    name, label = tags.get(DEVICE), tags.get(LABEL)
    found = list(fleet.devices)
    if name is not None:
        device = fleet.get(name)
        if device is None:
            near = get_close_matches(name, [device.name for device in fleet.devices], 1)
            raise ConfigError(
                f"There is no device {name!r}; there are: {names(fleet.devices)}.",
                key=DEVICE,
                hint=f"Did you mean {near[0]}?" if near else "Declare it in edge.yaml, or correct the tag.",
            )
        found = [device]
    if label is not None:
        labelled = [device for device in found if label in device.labels]
        if not labelled:
            every = sorted({label for device in fleet.devices for label in device.labels})
            raise ConfigError(
                f"No device has the label {label!r}; there are: {', '.join(every) or 'none'}."
                if name is None
                else f"Device {name!r} has not the label {label!r}, and the run asks for both.",
                key=LABEL,
                hint="Give a device the label in edge.yaml, or correct the tag.",
            )
        found = labelled
    return found
