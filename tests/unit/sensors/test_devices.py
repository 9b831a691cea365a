from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from notebooked_dagster.config import ProjectConfig
from notebooked_dagster.core.settings import Settings
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.resources import Workplace
from notebooked_dagster.sensors import devices
from notebooked_dagster.sensors.devices import SENSOR, device_definitions, look

HELLO = {
    "boot": "x", "time": 0.0, "disk_free": 5_000_000_000, "disk_total": 9, "temperature": 51.4, "throttled": "0x0",
    "running": ["a"], "current": "abc", "python": "3.11.2", "system": "Linux", "machine": "aarch64",
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


def test_each_device_is_an_asset_with_a_check(place: Workplace) -> None:
    (defs,) = device_definitions(place)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {"devices/one", "devices/two"}
    assert len(defs.resolve_asset_graph().asset_check_keys) == 2
    dg.Definitions.validate_loadable(defs)


def test_the_sensor_tells_a_change_once_and_measures_each_time(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (defs,) = device_definitions(place)
    sensor = defs.get_sensor_def(SENSOR)
    answers = {"one": ({"runs": 1}, ""), "two": ({}, "cannot be reached")}
    monkeypatch.setattr(devices, "look", lambda device, place: answers[device.name])

    def ticked(cursor: str | None) -> tuple[list[str], str | None]:
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance, cursor=cursor, definitions=defs)
            result = sensor.evaluate_tick(context)
        return [type(event).__name__ for event in result.asset_events], result.cursor

    events, cursor = ticked(None)
    assert sorted(events) == ["AssetCheckEvaluation", "AssetCheckEvaluation", "AssetObservation"]
    events, cursor = ticked(cursor)
    assert events == ["AssetObservation"]
    answers["two"] = ({"runs": 0}, "")
    events, _ = ticked(cursor)
    assert sorted(events) == ["AssetCheckEvaluation", "AssetObservation", "AssetObservation"]


def test_what_a_device_says_of_itself_is_metadata(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from notebooked_dagster.edge.devices import Device
    from notebooked_dagster.edge.ssh import Answer, Link

    monkeypatch.setattr(Link, "ask", lambda self, command, timeout: Answer(HELLO, b""))
    seen, problem = look(Device(name="one", host="a"), place)
    assert problem == ""
    assert seen["temperature (°C)"] == 51.4
    assert seen["clock offset (s)"] < -1e6
    assert seen["disk free (MB)"] == 5000
