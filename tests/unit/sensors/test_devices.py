from __future__ import annotations

import time
from pathlib import Path

import dagster as dg
import pytest

from notebooked_dagster.config import ProjectConfig
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.edge.devices import Device
from notebooked_dagster.edge.health import Finding
from notebooked_dagster.edge.ssh import Answer, Link
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.resources import Workplace
from notebooked_dagster.sensors import devices
from notebooked_dagster.sensors.devices import CHECKS, SENSOR, device_definitions, look

HELLO = {
    "boot": "x", "time": 0.0, "disk_free": 5_000_000_000, "disk_total": 9, "temperature": 51.4, "throttled": "0x0",
    "running": ["a"], "current": "abc", "rsync": True, "python": "3.11.2", "system": "Linux", "machine": "aarch64",
    "endpoints": None,
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    (tmp_path / "edge.yaml").write_text("devices:\n  - {name: one, host: a}\n  - {name: two, host: b}\n")
    return Workplace(Settings(project_root=tmp_path), ProjectConfig())


def test_a_project_without_devices_has_nothing_of_them(tmp_path: Path) -> None:
    assert device_definitions(Workplace(Settings(project_root=tmp_path), ProjectConfig())) == []


def test_a_wrong_file_stops_the_location_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text("devices:\n  - {name: one}\n")
    with pytest.raises(ConfigError, match=r"devices\[0\].host"):
        device_definitions(Workplace(Settings(project_root=tmp_path), ProjectConfig()))


def test_each_device_is_an_asset_with_checks(place: Workplace) -> None:
    (defs,) = device_definitions(place)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {"devices/one", "devices/two"}
    assert len(defs.resolve_asset_graph().asset_check_keys) == 2 * len(CHECKS)
    dg.Definitions.validate_loadable(defs)


def test_the_sensor_tells_a_change_once_and_measures_each_time(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (defs,) = device_definitions(place)
    sensor = defs.resolve_sensor_def(SENSOR)
    well, full, silent = (
        Finding("reachable", True, ""),
        Finding("disk", False, "full"),
        Finding("reachable", False, ""),
    )
    answers = {"one": ({"runs": 1}, [well, full]), "two": ({}, [silent])}
    monkeypatch.setattr(devices, "look", lambda device, place: answers[device.name])

    def ticked(cursor: str | None) -> tuple[list[object], str | None]:
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance, cursor=cursor, definitions=defs)
            result = sensor.evaluate_tick(context)
        told = [
            (event.check_name, event.passed) if isinstance(event, dg.AssetCheckEvaluation) else "seen"
            for event in result.asset_events
        ]
        return sorted(told, key=str), result.cursor

    events, cursor = ticked(None)
    assert events == [("disk", False), ("reachable", False), ("reachable", True), "seen"]
    events, cursor = ticked(cursor)
    assert events == ["seen"]
    # One that fell silent is as full as it was when it is back.
    answers["one"], answers["two"] = ({}, [silent]), ({"runs": 0}, [well])
    events, cursor = ticked(cursor)
    assert events == [("reachable", False), ("reachable", True), "seen"]
    answers["one"] = ({"runs": 1}, [well, full])
    assert ticked(cursor)[0] == [("reachable", True), "seen", "seen"]


def test_silent_devices_keep_no_other_from_its_turn(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.root / "edge.yaml"
    path.write_text(path.read_text() + "  - {name: three, host: c}\n")
    now, looked = [0.0], []

    def silent(device: Device, place: Workplace) -> tuple[dict[str, object], list[Finding]]:
        now[0] += 21
        looked.append(device.name)
        return {}, [Finding("reachable", False, "")]

    monkeypatch.setattr(devices, "look", silent)
    monkeypatch.setattr(devices.time, "monotonic", lambda: now[0])
    (defs,) = device_definitions(place)
    sensor = defs.resolve_sensor_def(SENSOR)
    cursor, told = None, 0
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(4):
            data = sensor.evaluate_tick(dg.build_sensor_context(instance, cursor=cursor, definitions=defs))
            cursor, told = data.cursor, told + len(data.asset_events)
    assert looked == ["one", "two", "three", "one"]
    assert told == 3


def told(monkeypatch: pytest.MonkeyPatch, **words: object) -> None:
    monkeypatch.setattr(Link, "ask", lambda self, command, timeout: Answer({**HELLO, **words}, b""))


def test_what_a_device_says_of_itself_is_metadata(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    seen, findings = look(Device(name="one", host="a"), place)
    assert seen["temperature (°C)"] == 51.4
    assert seen["clock offset (s)"] < -1e6
    assert seen["disk free (MB)"] == 5000
    assert {found.name: found.well for found in findings} == {
        "reachable": True, "disk": True, "temperature": True, "power": True, "clock": False,
    }  # fmt: skip


def test_the_checks_of_a_device_are_run_with_one_look_and_as_many_as_are_asked_for(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, time=time.time(), disk_free=1000, temperature=None, throttled="0x50005")
    (defs,) = device_definitions(place)
    key = dg.AssetKey(["devices", "one"])

    def passed(selection: dg.AssetSelection) -> dict[str, bool]:
        job = dg.define_asset_job("look", selection)
        with_job = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("look")
        result = with_job.execute_in_process()
        return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}

    every = passed(dg.AssetSelection.checks_for_assets(key))
    assert every == {"reachable": True, "disk": False, "power": False, "clock": True}
    assert passed(dg.AssetSelection.checks(dg.AssetCheckKey(key, "disk"))) == {"disk": False}
