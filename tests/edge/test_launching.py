"""A launch, and the process that looks at the open runs; without a device."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from notebooked_dagster.edge import marks, releases, tending
from notebooked_dagster.edge.releases import kept_release, make_release
from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.edge.tending import Tending
from notebooked_dagster.errors import ConfigError
from tests.edge.edge_kit import Studio

DEVICE = {"name": "pi", "host": "nowhere.invalid", "python": "/usr/bin/python3"}


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    def ask(self: Link, *words: object, **more: object) -> None:
        raise AssertionError("the daemon's queue waits for a device")

    monkeypatch.setattr(Link, "_run", ask)
    monkeypatch.setattr(Link, "_transfer", ask)
    return Studio(tmp_path / "host", [DEVICE])


def test_a_launch_asks_nothing_of_a_device(studio: Studio) -> None:
    run = studio.run(studio.launch())
    assert (run.tags[marks.RELAY], run.tags[marks.CHOSEN], run.tags[marks.STARTED]) == (marks.OPEN, "pi", "")
    assert kept_release(run.tags[marks.RELEASE], studio.state) is not None


def test_what_cannot_go_to_a_device_fails_at_the_launch(studio: Studio) -> None:
    studio.declare([{**DEVICE, "python": None}])
    with pytest.raises(ConfigError, match="no lock file"):
        studio.launch()
    assert marks.open_runs(studio.instance) == []


def test_run_monitoring_leaves_a_run_alone_that_waits_for_a_place(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = studio.launch(), studio.launch()
    assert studio.run(second).tags[marks.CHOSEN] == ""
    found = Tending(studio.instance, studio.launcher)
    monkeypatch.setattr(found, "_ensure", lambda device: None)
    monotonic = time.monotonic
    found.look()
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 60)
    studio.edge.write_text("half of")
    with pytest.raises(ConfigError):
        found.look()
    starting = [
        entry.message
        for entry in studio.entries(second)
        if entry.is_dagster_event and entry.get_dagster_event().event_type_value == "PIPELINE_STARTING"
    ]
    assert starting[1:] == ["Waiting for a place on any device that fits."]


def test_the_code_of_a_run_that_waits_is_kept(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "_KEPT_HERE", 0)
    make_release(studio.project, studio.state)
    (studio.project / "more.py").write_text("x = 1\n")
    waiting = studio.run(studio.launch()).tags[marks.RELEASE]
    (studio.project / "more.py").write_text("x = 2\n")
    newest = studio.run(studio.launch()).tags[marks.RELEASE]
    assert {path.name for path in (studio.state / "releases").iterdir()} == {waiting, newest}


def test_a_file_that_is_gone_for_a_moment_costs_no_run(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = studio.launch()
    found = Tending(studio.instance, studio.launcher)
    studio.edge.unlink()
    with pytest.raises(ConfigError):
        found.look()
    assert not studio.run(run_id).is_finished
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 120)
    found.look()
    assert studio.run(run_id).is_finished
    assert found.look() == 0


def test_two_relays_of_one_device_never_live_at_a_time(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    alive: list[str] = []

    class Relay:
        def __init__(self, instance: object, device: object, *rest: object) -> None:
            self.device = device

        def step(self) -> float:
            # An answer that takes its time.
            alive.append(str(self.device))
            assert goes_on.wait(30)
            return 0.0

    monkeypatch.setattr(tending, "DeviceRelay", Relay)
    found = Tending(studio.instance, studio.launcher)
    studio.launch()
    found.look()
    first = found._threads["pi"][0]
    studio.declare([{**DEVICE, "capacity": 2}])
    found.look()
    assert found._threads["pi"][0] is first
    goes_on.set()
    first.join(30)
    found.look()
    second, done, device = found._threads["pi"]
    assert second is not first
    assert device.capacity == 2
    # One that is declared no more is left alone, and so is its thread.
    studio.declare([])
    found.look()
    assert done.is_set()
    second.join(30)
