"""How a device is: asked once, judged the same by ``notebooked edge doctor``, the checks of its asset and their sensor."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .ssh import Link

REACHABLE = "reachable"
DISK, TEMPERATURE, POWER, CLOCK, PYTHON, RSYNC = "disk", "temperature", "power", "clock", "python", "rsync"
ENDPOINTS = "endpoints"
_LEAST_SPACE = 500 * 1024 * 1024
# A Pi slows itself down from 80 °C on.
_HOT = 75.0
# What its endpoints lack to be served again after a restart, with no host near -> why, and what to do.
_LACKING = {
    "systemd": ("it has no systemd of the user's", "Until then the sensor `endpoint_health` of this host does it."),
    "unit": ("their unit is not there", "`notebooked deploy` writes it, where its disk has room."),
    "linger": (
        "its user's services start only when somebody logs in", "There: sudo loginctl enable-linger $USER"
    ),
}  # fmt: skip
# As far as a run's events are believed to be of the time they say.
_OFFSET = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        well: Whether it is as it should be.
        message: What was found.
        fix: What to do; empty where it is well.
        fatal: No run can work with it.
    """

    name: str
    well: bool
    message: str
    fix: str = ""
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """What a device said of itself.

    Attributes:
        seen: Its words.
        took: How many seconds it took to answer.
        offset: How many seconds its clock is ahead of ours, as far as that is certain.
    """

    seen: Mapping[str, Any]
    took: float
    offset: float

    def findings(self) -> list[Finding]:
        """What is well and what is not; nothing of what the device does not measure."""
        seen = self.seen
        free, heat, throttled = seen["disk_free"], seen["temperature"], seen["throttled"]
        found = [
            Finding(
                REACHABLE, True,
                f"reachable in {self.took * 1000:.0f} ms, {seen['system']}, Python {seen['python']}",
            ),
            _found(
                CLOCK, abs(self.offset) <= _OFFSET, f"its clock is {abs(self.offset):.0f} s off",
                "Let it have NTP (timedatectl); events get the host's time until then.",
            ),
            _found(
                DISK, free >= _LEAST_SPACE, f"{free / 1e9:.1f} GB free",
                "`notebooked edge deploy` removes old releases and runs.",
            ),
        ]  # fmt: skip
        if heat is not None:
            found.append(_found(TEMPERATURE, heat <= _HOT, f"{heat:.0f} °C", "Cool it."))
        if throttled is not None:
            found.append(
                _found(POWER, throttled == "0x0", f"throttled: {throttled}", "A better power supply, most often.")
            )  # fmt: skip
        if tuple(int(part) for part in seen["python"].split(".")[:2]) < (3, 11):
            found.append(
                Finding(
                    PYTHON, False, "The agent needs Python 3.11.", "Set `agent_python` to a newer one.", fatal=True
                )
            )  # fmt: skip
        if (lacking := seen["endpoints"]) is not None:
            why, fix = _LACKING.get(lacking, ("", ""))
            message = (
                f"a restart does not bring its endpoints back: {why}"
                if why
                else "a restart brings its endpoints back"
            )
            found.append(_found(ENDPOINTS, not why, message, fix))
        if not seen["rsync"] or not shutil.which("rsync"):
            message = "rsync is missing on one side; all code is sent each time."
            found.append(Finding(RSYNC, False, message, "apt install rsync"))
        return found


def examine(link: Link, timeout: float) -> Health:
    """Ask a device how it is. Raises DeviceError."""
    began = time.time()
    seen = link.ask("hello", timeout=timeout).header
    took = time.time() - began
    # The device looked at its clock somewhere between the question and the answer.
    offset = seen["time"] - (began + took / 2)
    return Health(seen, took, 0.0 if abs(offset) <= took / 2 else offset)


def _found(name: str, well: bool, message: str, fix: str) -> Finding:
    return Finding(name, well, message, "" if well else fix)
