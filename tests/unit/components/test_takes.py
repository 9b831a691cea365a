from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import mido
import pytest

from notebooked_dagster.components.takes import takes_definitions
from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.errors import DataError
from notebooked_dagster.realtime.arrivals import folder_of, look
from notebooked_dagster.realtime.takes import RECORDING, finish, line
from notebooked_dagster.resources import Workplace


def take(spool: Path, name: str, note: int) -> Path:
    """A finished take of one note."""
    (spool / RECORDING).mkdir(parents=True, exist_ok=True)
    log = spool / RECORDING / f"{name}.log"
    header = {
        "take": name,
        "device": "pi",
        "started": "2026-11-21T12:00:00+00:00",
        "at": 0,
        "bpm": 120,
        "ports": ["keys"],
    }
    message = mido.Message("note_on", note=note)
    log.write_bytes(
        line("take", header) + line("midi", 10**9, "keys", message.hex("")) + line("end", 2 * 10**9)
    )
    return finish(spool, log).folder


def test_a_look_finds_each_content_once_and_tells_a_broken_take_once(tmp_path: Path) -> None:
    spool, memory = tmp_path / "spool", tmp_path / "state" / "memory.json"
    assert look(spool, memory).takes == ()
    first = take(spool, "a", 60)
    shutil.copytree(first, spool / "b")
    broken = take(spool, "c", 61)
    (broken / "take.mid").write_bytes(b"short")
    found = look(spool, memory)
    assert [arrival.folder for arrival in found.takes] == [first]
    (key,) = [arrival.key for arrival in found.takes]
    assert key.startswith("a-")
    assert [(folder, "hash" in reason) for folder, reason in found.broken] == [(broken, True)]
    again = look(spool, memory, [key])
    assert (again.takes, again.broken) == (found.takes, ())
    # The same content under another name, and the memory lost: still the same partition.
    shutil.rmtree(first)
    memory.unlink()
    moved = look(spool, memory, [key])
    assert [(arrival.key, arrival.folder.name) for arrival in moved.takes] == [(key, "b")]
    assert folder_of(spool, key) == spool / "b"
    shutil.rmtree(spool / "b")
    with pytest.raises(DataError, match="not in the spool"):
        folder_of(spool, key)


def test_each_new_take_is_a_partition_and_a_run_exactly_once(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    definitions = takes_definitions(spool, tmp_path / "state")
    (sensor,) = definitions.sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)
    (asset,) = definitions.assets or ()
    assert isinstance(asset, dg.AssetsDefinition)
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> dg.SensorResult:
            context = dg.build_sensor_context(instance=instance, definitions=definitions)
            found = sensor(context)
            assert isinstance(found, dg.SensorResult)
            for request in found.dynamic_partitions_requests or ():
                instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
            return found

        assert tick().skip_reason is not None
        folder = take(spool, "a", 60)
        broken = take(spool, "b", 61)
        (broken / "take.json").write_text("{}")
        found = tick()
        (request,) = found.run_requests or ()
        assert len(found.asset_events) == 1
        # The daemon died before the run was launched: it is asked for again, under the same key.
        again = tick()
        assert [item.run_key for item in again.run_requests or ()] == [request.run_key]
        assert not again.dynamic_partitions_requests
        assert again.asset_events == []
        result = dg.materialize([asset], instance=instance, partition_key=request.partition_key)
        assert result.success
        (made,) = result.asset_materializations_for_node("takes")
        assert made.metadata["messages"].value == 1
        assert made.metadata["file"].value == str(folder / "take.mid")
        assert made.metadata["complete"].value is True
        assert tick().skip_reason is not None
        take(spool, "c", 62)
        assert len(tick().run_requests or ()) == 1


def test_a_declaration_adds_the_asset_and_the_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "assets" / "takes"
    folder.mkdir(parents=True)
    (tmp_path / "dagster.yaml").write_text("")
    (folder / "defs.yaml").write_text(
        "type: notebooked_dagster.Takes\nattributes:\n  spool: from the studio\n  asset: studio_takes\n  running: false\n"
    )
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(tmp_path))
    definitions = project_definitions(Workplace.here())
    sensor = definitions.resolve_sensor_def("new_studio_takes")
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    assert definitions.resolve_assets_def("studio_takes").partitions_def is not None


def test_what_keeps_takes_from_being_fetched_is_why_there_is_none(tmp_path: Path) -> None:
    definitions = takes_definitions(tmp_path / "spool", tmp_path / "state", device="studio-1", root=tmp_path)
    (sensor,) = definitions.sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)
    with dg.DagsterInstance.ephemeral() as instance:
        found = sensor(dg.build_sensor_context(instance=instance, definitions=definitions))
    assert isinstance(found, dg.SensorResult)
    assert "edge.yaml" in str(found.skip_reason)
