"""A run that is terminated in the UI ends its training, and nothing of it is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import httpx
import psutil
import pytest

from tests.end_to_end.dagster_kit import BIN, SmallProject

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TERMINATE = """mutation($run: String!) {
  terminateRun(runId: $run, terminatePolicy: SAFE_TERMINATE) { __typename ... on TerminateRunFailure { message } }
}"""


@pytest.fixture
def project(tmp_path: Path) -> SmallProject:
    made = SmallProject(tmp_path / "project", "parity: false\nendpoint: false")
    made.edit("model.fit(X_train, y_train)", "model.fit(X_train, y_train)\nimport time\ntime.sleep(600)")
    return made


@pytest.fixture
def address(project: SmallProject) -> Iterator[str]:
    """`dagster dev`: webserver, daemon and code server."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (project.root / "dev.log").open("wb")
    process = subprocess.Popen(
        [str(BIN / "dagster"), "dev", "-w", "workspace.yaml", "-p", str(port)],
        cwd=project.root,
        env=project.environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    until(lambda: answers(address), "dagster dev", project, 90)
    yield address
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    log.close()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/server_info", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def until(condition: Callable[[], bool], what: str, project: SmallProject, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen:\n{(project.root / 'dev.log').read_text()[-4000:]}")
        time.sleep(0.3)


def trainers(project: SmallProject) -> list[psutil.Process]:
    """Whatever trains in the project's job folders."""
    jobs = str(project.root / ".notebooked" / "jobs")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(jobs in part for part in process.info["cmdline"] or ())
    ]


def test_terminating_a_run_ends_its_training(project: SmallProject, address: str) -> None:
    done = project.run("notebooked", "train", "iris", "--no-wait")
    assert done.returncode == 0, done.stderr
    until(lambda: len(trainers(project)) >= 2, "the training", project, 90)
    with dg.DagsterInstance.from_config(str(project.root)) as instance:
        (run,) = instance.get_runs()
        reply = httpx.post(
            f"{address}/graphql", json={"query": TERMINATE, "variables": {"run": run.run_id}}, timeout=30
        ).json()
        assert reply["data"]["terminateRun"]["__typename"] == "TerminateRunSuccess", reply

        def ended() -> bool:
            found = instance.get_run_by_id(run.run_id)
            return found is not None and found.is_finished

        until(ended, "the end of the run", project, 60)
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        assert found.status is dg.DagsterRunStatus.CANCELED
    until(lambda: not trainers(project), "the end of the training", project, 30)
    (record,) = (project.root / ".notebooked" / "jobs").glob("*/job.json")
    assert '"status": "cancelled"' in record.read_text()
