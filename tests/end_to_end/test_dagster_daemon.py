"""The promise of one hash a stage, kept by the real daemon, its sensor and its automation conditions."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.end_to_end.dagster_kit import BIN, Events, SmallProject

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# The daemon looks at its sensors every five seconds: two looks after nothing happened, nothing will.
QUIET = 12.0


@pytest.fixture
def project(tmp_path: Path) -> Iterator[SmallProject]:
    made = SmallProject(tmp_path / "project", "metric_gate: {metric: accuracy, min: 0.8}\nparity: false")
    made.environment |= {
        "NOTEBOOKED_AUTOMATION__SENSORS": "running",
        "NOTEBOOKED_AUTOMATION__INTERVAL": "1",
    }
    yield made
    made.delete_endpoint()


@pytest.fixture
def daemon(project: SmallProject, events: Events) -> Iterator[subprocess.Popen[bytes]]:
    # ``events`` comes first: two processes that make one new database at once both fail.
    log = (project.root / "daemon.log").open("wb")
    process = subprocess.Popen(
        [str(BIN / "dagster-daemon"), "run", "-w", "workspace.yaml"],
        cwd=project.root,
        env=project.environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    log.close()


@pytest.fixture
def events(project: SmallProject) -> Iterator[Events]:
    with dg.DagsterInstance.from_config(str(project.root)) as instance:
        yield Events(instance)


def wait_for(what: str, condition: Callable[[], bool], project: SmallProject, timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen:\n{(project.root / 'daemon.log').read_text()[-6000:]}")
        time.sleep(0.3)


def idle(events: Events) -> bool:
    return all(run.is_finished for run in events.runs())


def test_only_what_an_edit_means_is_made_again(
    project: SmallProject, daemon: subprocess.Popen[bytes], events: Events
) -> None:
    wait_for("the first deployment", lambda: events.made("endpoint") == 1 and idle(events), project)
    first = events.counts()
    assert first == {"training_code": 1, "inference_code": 1, "model": 1, "endpoint": 1}

    # Prose: seen, and nothing asked for.
    seen, runs = events.observed(), len(events.runs())
    project.edit("Which of three?", "Which of the three species is it?")
    wait_for("an observation", lambda: events.observed() > seen, project)
    time.sleep(QUIET)
    assert len(events.runs()) == runs
    assert events.counts() == first

    # Inference: deployed anew, not trained anew.
    project.edit("    return model.predict(rows)", "    return model.predict(rows).tolist()")
    wait_for("a deployment", lambda: events.made("endpoint") == 2 and idle(events), project)
    assert events.made("model") == 1
    assert named(events) == ["inference", "first look"]

    # Training: both.
    project.edit("max_iter=200", "max_iter=300")
    wait_for("a deployment", lambda: events.made("endpoint") == 3 and idle(events), project)
    time.sleep(QUIET)
    assert events.counts() == {"training_code": 3, "inference_code": 3, "model": 2, "endpoint": 3}
    assert named(events) == ["train", "inference", "first look"]
    assert len(events.runs()) == 3
    assert all(run.status is dg.DagsterRunStatus.SUCCESS for run in events.runs())


def named(events: Events) -> list[str]:
    """What the runs of the change sensor say they are for."""
    return [run.tags["notebooked/changed"] for run in events.runs() if "notebooked/changed" in run.tags]
