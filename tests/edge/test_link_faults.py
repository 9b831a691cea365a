"""The fault matrix over a real SSH server: events exactly once and in order, the right end, the same bytes."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._daemon.monitoring.run_monitoring import monitor_starting_run
from dagster._serdes import serialize_value

from notebooked_dagster.edge import marks, tending
from notebooked_dagster.edge.journal import encode
from notebooked_dagster.edge.launcher import PiRunLauncher
from notebooked_dagster.edge.tending import Tending
from notebooked_dagster.errors import ConfigError
from tests.edge.edge_kit import BadLink, LoopbackDevice, RealDevice, ScriptedWorker, Studio, kill, until

SUCCESS, FAILURE, CANCELED = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
)


def stored(studio: Studio, run_id: str) -> list[str]:
    """What of the central log came from the worker, in the log's order."""
    words = ("start", "line ", "end", "after the end")
    return [
        serialize_value(entry) for entry in studio.entries(run_id) if (entry.message or "").startswith(words)
    ]


def came_home_once(studio: Studio, device: LoopbackDevice | RealDevice, run_id: str) -> None:
    assert stored(studio, run_id) == device.journaled(run_id)


def lines(studio: Studio, run_id: str) -> int:
    return sum(entry.message.startswith("line ") for entry in studio.entries(run_id))


class Relaying:
    """The relay, in a thread of this process."""

    def __init__(self, studio: Studio, tending: Tending | None = None) -> None:
        self.tending = tending or Tending(studio.instance, studio.launcher)
        self.thread = threading.Thread(target=self.tending.run, args=(1e9,))

    def __enter__(self) -> Relaying:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tending.stop.set()
        self.thread.join(90)


def test_the_link_is_cut_in_the_middle_and_comes_back(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker
) -> None:
    worker.play(60, pause=0.05)
    run_id = studio.launch()
    with Relaying(studio):
        until(lambda: lines(studio, run_id) > 5, 30, "the first lines", studio)
        pi.cut()
        until(
            lambda: any("is unreachable since" in text for text in studio.messages(run_id)),
            40,
            "word of it",
            studio,
        )
        health = studio.launcher.check_run_worker_health(studio.run(run_id))
        assert (health.status, "silent" in str(health.msg)) == (WorkerStatus.RUNNING, True)
        before = lines(studio, run_id)
        until(lambda: len(pi.journaled(run_id)) > before + 5, 20, "the run to go on")
        pi.start()
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, pi, run_id)
    assert sum("is reachable again" in text for text in studio.messages(run_id)) == 1
    assert (studio.state / "runs" / run_id / "outputs/made.bin").read_bytes() == worker.made


def test_a_device_that_is_silent_at_the_launch_gets_the_run_when_it_is_back(
    studio: Studio, pi: LoopbackDevice
) -> None:
    pi.cut()
    run_id = studio.launch()
    assert studio.status(run_id) is dg.DagsterRunStatus.STARTING
    with Relaying(studio):
        until(
            lambda: any("The run starts when it is back" in text for text in studio.messages(run_id)),
            40, "word of it", studio,
        )  # fmt: skip
        pi.start()
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, pi, run_id)


def test_the_relay_is_killed_and_started_again(
    studio: Studio, device: LoopbackDevice | RealDevice, worker: ScriptedWorker
) -> None:
    worker.play(80, pause=0.03)
    run_id = studio.launch()
    relays = set()
    for more in (1, 20, 40):

        def came(more: int = more) -> bool:
            # As each look of the daemon's run monitoring does.
            tending.ensure(studio.instance, studio.state)
            return lines(studio, run_id) >= more

        until(came, 60, f"{more} lines", studio)
        relays.add(int((studio.state / "relay.pid").read_text()))
        kill(int((studio.state / "relay.pid").read_text()))

    def is_home() -> bool:
        tending.ensure(studio.instance, studio.state)
        return studio.is_home(run_id)

    until(is_home, 60, "the run to come home", studio)
    assert len(relays) == 3
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, device, run_id)
    kill(int((studio.state / "relay.pid").read_text()))


@pytest.mark.parametrize("whole", [False, True], ids=["the worker", "keeper and worker"])
def test_the_process_on_the_device_is_killed(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, whole: bool
) -> None:
    worker.play(1000, pause=0.05)
    run_id = studio.launch()
    studio.start(run_id)
    pid = worker.pid(run_id)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    if whole:
        kill(parent)
    kill(pid)
    studio.tend(60, run_id)
    assert studio.status(run_id) is FAILURE
    came_home_once(studio, pi, run_id)
    word = "disappeared" if whole else "signal 9"
    assert any(word in text for text in studio.messages(run_id))


def test_the_device_restarts(studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker) -> None:
    worker.play(1000, pause=0.05)
    run_id = studio.launch()
    studio.start(run_id)
    pid = worker.pid(run_id)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    pi.cut()
    kill(parent)
    kill(pid)
    # What a power cut leaves: half of the last record.
    journal = pi.run_folder(run_id) / "journal"
    with journal.open("ab") as stream:
        stream.write(encode({"kind": "event", "event": "x" * 300})[:100])
    (pi.folder / "boot_id").write_text("another")
    pi.start()
    studio.tend(60, run_id)
    assert studio.status(run_id) is FAILURE
    came_home_once(studio, pi, run_id)
    assert any("restarted while the run was under way" in text for text in studio.messages(run_id))


def another_host(studio: Studio, state: Path) -> Tending:
    """The same database, a state folder of its own."""
    launcher = PiRunLauncher(
        devices_file=str(studio.edge), project=str(studio.project), state_dir=str(state), relay=False
    )
    launcher.register_instance(studio.instance)
    return Tending(studio.instance, launcher)


def test_two_hosts_relay_the_same_journal(
    studio: Studio, device: LoopbackDevice | RealDevice, worker: ScriptedWorker, tmp_path: Path
) -> None:
    worker.play(100, pause=0.02)
    run_id = studio.launch()
    with Relaying(studio), Relaying(studio, another_host(studio, tmp_path / "other")):
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, device, run_id)


def test_a_second_host_takes_over_where_the_first_one_died(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker, tmp_path: Path
) -> None:
    worker.play(40, pause=0.02)
    run_id = studio.launch()
    with Relaying(studio):
        until(lambda: lines(studio, run_id) > 5, 30, "the first lines", studio)
    # The first host's lease has run out.
    lease = pi.run_folder(run_id) / "lease.json"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "until": 0}))
    with Relaying(studio, another_host(studio, tmp_path / "other")):
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, pi, run_id)


def test_a_cancellation_reaches_the_run_when_the_link_is_back(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker
) -> None:
    worker.play(2000, pause=0.05)
    run_id = studio.launch()
    with Relaying(studio):
        until(lambda: lines(studio, run_id) > 1, 30, "the first lines", studio)
        pi.cut()
        assert studio.instance.run_launcher.terminate(run_id)
        time.sleep(1)
        assert studio.status(run_id) is dg.DagsterRunStatus.CANCELING
        pi.start()
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is CANCELED
    came_home_once(studio, pi, run_id)


def test_a_run_is_given_up_at_the_deadline_and_stopped_when_the_device_is_back(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker
) -> None:
    worker.play(2000, pause=0.05)
    run_id = studio.launch(device="pi", device_deadline="1")
    with Relaying(studio):
        until(lambda: lines(studio, run_id) > 1, 30, "the first lines", studio)
        pi.cut()
        until(lambda: studio.status(run_id) is FAILURE, 40, "the run to be given up", studio)
        assert any("longer than the deadline of 1 s" in text for text in studio.messages(run_id))
        pi.start()
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is FAILURE
    assert (pi.run_folder(run_id) / "cancel").exists()


def test_run_monitoring_leaves_a_run_alone_that_waits_for_its_device(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker
) -> None:
    """The real function of Dagster's daemon, with a time limit that is long over."""
    pi.cut()
    run_id = studio.launch()
    with Relaying(studio):
        until(
            lambda: bool(studio.run(run_id).tags.get(marks.SILENT)), 40, "the silence to be noticed", studio
        )
        for _ in range(8):
            time.sleep(1)
            monitored(studio, run_id)
        assert studio.status(run_id) is dg.DagsterRunStatus.STARTING
        pi.start()
        until(lambda: studio.is_home(run_id), 60, "the run to come home", studio)
    assert studio.status(run_id) is SUCCESS


def monitored(studio: Studio, run_id: str) -> None:
    record = studio.instance.get_run_record_by_id(run_id)
    assert record is not None
    if record.dagster_run.status is dg.DagsterRunStatus.STARTING:
        monitor_starting_run(studio.instance, record, logging.getLogger("test"))


def test_the_devices_clock_is_years_behind(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker
) -> None:
    worker.play(5, now=False)
    script = json.loads((worker.here / "script.json").read_text())
    script["events"] = [
        event.replace(f'"timestamp": {json.loads(event)["timestamp"]}', '"timestamp": 1000000.5')
        for event in script["events"]
    ]
    (worker.here / "script.json").write_text(json.dumps(script))
    before = time.time()
    run_id = studio.launch()
    studio.tend(60, run_id)
    found = [entry for entry in studio.entries(run_id) if entry.message.startswith("line ")]
    assert [entry.message for entry in found] == [f"line {number}" for number in range(5)]
    assert all(before - 1 < entry.timestamp < time.time() + 1 for entry in found)
    assert [entry.timestamp for entry in found] == sorted(entry.timestamp for entry in found)


def test_a_wifi_that_drops_every_connection_after_a_while(
    tmp_path: Path, pi: LoopbackDevice, worker: ScriptedWorker
) -> None:
    worker.play(150, pause=0.1, size=800_000)
    with BadLink(pi.port, latency=0.02, cut_after=150_000) as link:
        studio = Studio(tmp_path / "host", [pi.config(python=str(worker.python), port=link.port)])
        run_id = studio.launch()
        studio.tend(240, run_id)
        assert link.cuts > 3
    assert studio.status(run_id) is SUCCESS
    came_home_once(studio, pi, run_id)
    assert (studio.state / "runs" / run_id / "outputs/made.bin").read_bytes() == worker.made


def test_a_run_that_repeats_another_is_not_taken_for_it(
    studio: Studio, device: LoopbackDevice | RealDevice, worker: ScriptedWorker
) -> None:
    worker.play(20, pause=0.1)
    first = studio.launch()
    # As Dagster makes one that tries again: with all tags of the one before, and in the queue until it is launched.
    second = studio.create("quick", studio.run(first).tags)
    studio.tend(60, first)
    assert studio.status(first) is SUCCESS
    assert studio.status(second) is dg.DagsterRunStatus.NOT_STARTED
    assert studio.messages(second) == []
    studio.instance.launch_run(second, workspace=None)  # type: ignore[arg-type]
    studio.tend(60, second)
    assert studio.status(second) is SUCCESS
    came_home_once(studio, device, second)


def test_a_full_device_takes_the_next_run_when_it_has_a_place(
    tmp_path: Path, device: LoopbackDevice | RealDevice, worker: ScriptedWorker
) -> None:
    worker.play(20, pause=0.1)
    studio = Studio(tmp_path / "host", [device.config(python=str(worker.python), capacity=1)])
    first, second = studio.launch(), studio.launch()
    assert "Every device that fits has all the runs it may have; the run waits for a place." in str(
        studio.messages(second)
    )

    def home() -> bool:
        monitored(studio, second)
        return studio.is_home(first) and studio.is_home(second)

    with Relaying(studio):
        until(home, 60, "the runs to come home", studio)
    assert [studio.status(run_id) for run_id in (first, second)] == [SUCCESS, SUCCESS]
    began = [next(e.timestamp for e in studio.entries(r) if e.message == "start") for r in (first, second)]
    ended = [next(e.timestamp for e in studio.entries(r) if e.message == "end") for r in (first, second)]
    assert ended[0] < began[1]


def test_a_tag_that_no_device_fits_fails_the_run_with_what_there_is(studio: Studio) -> None:
    with pytest.raises(ConfigError, match="No device has the label 'garden'; there are: studio"):
        studio.launch(device_label="garden")
    run = studio.instance.get_runs()[0]
    assert run.status is FAILURE
    assert any("No device has the label 'garden'" in text for text in studio.messages(run.run_id))


def test_twenty_runs_on_three_devices(
    tmp_path: Path, device: LoopbackDevice | RealDevice, worker: ScriptedWorker
) -> None:
    worker.play(5, pause=0.01)
    folder = device.folder
    devices = [
        device.config(name=name, folder=str(folder / name), python=str(worker.python), capacity=2)
        for name in ("one", "two", "three")
    ]
    studio = Studio(tmp_path / "host", devices)
    with Relaying(studio):
        runs = [studio.launch(device_label="studio") for _ in range(20)]
        until(lambda: all(studio.is_home(run_id) for run_id in runs), 120, "all runs to come home", studio)
    assert {studio.status(run_id) for run_id in runs} == {SUCCESS}
    used = [studio.run(run_id).tags[marks.CHOSEN] for run_id in runs]
    assert set(used) == {"one", "two", "three"}
    for run_id, name in zip(runs, used, strict=True):
        device.folder = folder / name
        came_home_once(studio, device, run_id)


def test_a_device_that_is_declared_no_more_leaves_no_run_behind(
    studio: Studio, pi: LoopbackDevice, worker: ScriptedWorker
) -> None:
    worker.play(30, pause=0.05)
    run_id = studio.launch()
    studio.declare([])
    studio.tend(20, run_id)
    assert studio.status(run_id) is FAILURE
    assert any("is declared no more" in text for text in studio.messages(run_id))
