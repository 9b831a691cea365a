"""A real run of Dagster's on a device: its own worker, its own instance, and all of it home again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner
from dagster._serdes import serialize_value

from notebooked_dagster.cli import main
from notebooked_dagster.edge import marks
from tests.edge.edge_kit import LoopbackDevice, RealDevice, Studio, until

# A real Pi makes its environment first.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
LOCK = Path(__file__).parents[2] / "requirements/edge.lock"


@pytest.fixture
def real(tmp_path: Path, device: LoopbackDevice | RealDevice, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setenv("EDGE_TEST_HERE", str(tmp_path))
    monkeypatch.setenv("HANDED_OVER", "a named one")
    monkeypatch.setenv("HOST_SECRET", "never there")
    config = device.config(capacity=2, environment=["EDGE_TEST_HERE", "HANDED_OVER"])
    studio = Studio(tmp_path / "host", [config])
    if isinstance(device, RealDevice):
        # It makes the environment itself, as for any project.
        shutil.copy(LOCK, studio.project / "edge.lock")
    return studio


def test_a_run_succeeds_on_a_device_and_all_of_it_comes_home(
    real: Studio, device: LoopbackDevice | RealDevice
) -> None:
    run_id = real.launch("quick")
    real.tend(120 * device.slower, run_id)
    assert real.status(run_id) is dg.DagsterRunStatus.SUCCESS

    journaled = device.journaled(run_id)
    home = [serialize_value(entry) for entry in real.entries(run_id)]
    assert [text for text in home if text in set(journaled)] == journaled
    own = [text for text in home if text not in set(journaled)]
    assert all("PiRunLauncher" in text or "PIPELINE_STARTING" in text for text in own)

    messages = real.messages(run_id)
    assert [text for text in messages if text.startswith("line ")] == [
        f"line {number}" for number in range(20)
    ]
    assert "handed over: a named one; secret: -" in messages

    made = real.instance.get_latest_materialization_event(dg.AssetKey("takes"))
    assert made is not None
    assert made.run_id == run_id
    assert b"never there" not in device.read(run_id, "request.json")

    outputs = Path(real.run(run_id).tags[marks.OUTPUTS])
    assert (outputs / "takes/one.bin").read_bytes() == bytes(range(256)) * 4096
    captured = next(
        entry
        for entry in real.entries(run_id)
        if entry.dagster_event_type is dg.DagsterEventType.LOGS_CAPTURED
    )
    data = captured.get_dagster_event().logs_captured_data
    log_key = real.instance.compute_log_manager.build_log_key_for_run(run_id, data.file_key)
    printed = real.instance.compute_log_manager.get_log_data(log_key).stdout
    assert printed is not None
    assert b"printed on the device" in printed
    assert real.instance.compute_log_manager.is_capture_complete(log_key)


def test_a_cancelled_run_ends_as_cancelled(real: Studio, pi: LoopbackDevice, tmp_path: Path) -> None:
    config = {"ops": {"drip": {"config": {"lines": 1000, "pause": 0.05, "name": "x"}}}}
    run_id = real.launch("slow", config)
    real.start(run_id)
    until((tmp_path / "begun-x").exists, 90, "the step to begin", real)
    assert real.instance.run_launcher.terminate(run_id)
    real.tend(90, run_id)
    assert real.status(run_id) is dg.DagsterRunStatus.CANCELED
    kinds = [entry.dagster_event_type for entry in real.entries(run_id) if entry.is_dagster_event]
    assert kinds.count(dg.DagsterEventType.RUN_CANCELED) == 1


def test_what_fails_there_fails_here_with_its_traceback(
    real: Studio, device: LoopbackDevice | RealDevice
) -> None:
    run_id = real.launch("failing")
    real.tend(90 * device.slower, run_id)
    assert real.status(run_id) is dg.DagsterRunStatus.FAILURE
    failed = next(
        entry
        for entry in real.entries(run_id)
        if entry.dagster_event_type is dg.DagsterEventType.STEP_FAILURE
    )
    assert "the microphone is gone" in serialize_value(failed)


def test_the_command_sees_the_device_brings_code_and_shows_a_log(
    tmp_path: Path, pi: LoopbackDevice, worker: object
) -> None:
    python = str(getattr(worker, "python"))  # noqa: B009
    studio = Studio(tmp_path / "host", [pi.config(python=python)])
    (studio.project / "assets").mkdir()
    (studio.project / "config.yaml").write_text("{}\n")

    def asked(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(
            main, ["--project", str(studio.project), "edge", *words], standalone_mode=True
        )
        return done.exit_code, done.output

    code, text = asked("list", "--json")
    assert (code, json.loads(text)[0]["reachable"]) == (0, True)
    code, text = asked("deploy", "pi")
    assert code == 0, text
    assert (pi.folder / "current" / "jobs.py").exists()
    assert asked("doctor")[0] == 0
    run_id = studio.launch()
    studio.tend(60, run_id)
    code, text = asked("logs", run_id)
    assert code == 0
    assert "line 3" in text
    assert "the process ended: exit, code 0" in text
    pi.cut()
    code, text = asked("doctor", "pi")
    assert (code, "cannot be reached" in text) == (1, True)
    code, text = asked("deploy", "pii")
    assert (code, "Did you mean pi?" in text) == (1, True)
