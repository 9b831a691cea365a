"""The recipe for one server, executed: PostgreSQL, and the processes of the systemd units by their own command lines."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from tests.end_to_end.conftest import free_port
from tests.end_to_end.dagster_kit import BIN, SmallProject

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
ROOT = Path(__file__).parents[2]
LOCATION = (
    "{ locationStatusesOrError { ... on WorkspaceLocationStatusEntries { entries { name loadStatus } } } \
workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
)
LAUNCH = """mutation($job: String!) { launchRun(executionParams: {selector: {repositoryLocationName: "notebooked_dagster",
repositoryName: "__repository__", jobName: $job}, runConfigData: "{}"}) { __typename ... on LaunchRunSuccess { run { runId } }
... on PythonError { message } } }"""
STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """The address of a PostgreSQL server of the test's own."""
    pgserver = pytest.importorskip("pgserver", reason="no PostgreSQL in a wheel for this Python")
    folder = tmp_path / "pg"
    with pgserver.get_server(folder, cleanup_mode="stop") as server:
        yield server.get_uri()


class Server:
    """The units of a project, started without systemd."""

    def __init__(self, project: SmallProject, units: Path) -> None:
        self.project, self.units = project, units
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """What ``systemctl start`` does."""
        lines = (self.units / f"notebooked-{name}.service").read_text().splitlines()
        settings = [line.partition("=")[::2] for line in lines if "=" in line]
        environment = dict(self.project.environment)
        for key, value in settings:
            if key == "Environment":
                environment.update(item.split("=", 1) for item in shlex.split(value))
        values = dict(settings)
        log = (self.project.root / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            shlex.split(values["ExecStart"]),
            cwd=values["WorkingDirectory"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self, name: str) -> None:
        """kill -9, of the whole group."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def log(self, name: str) -> str:
        return (self.project.root / f"{name}.log").read_text()[-3000:]


@pytest.fixture
def server(tmp_path: Path, database: str) -> Iterator[tuple[Server, str]]:
    project = SmallProject(tmp_path / "project", "parity: false\nendpoint: false")
    shutil.copy(ROOT / "dagster.yaml", project.root / "dagster.yaml")
    project.environment["NOTEBOOKED_DATABASE_URL"] = database
    port, code_port = free_port(), free_port()
    made = subprocess.run(
        [str(ROOT / "deploy/local/install.sh"), "--project", str(project.root), "--venv", str(BIN.parent),
         "--port", str(port), "--code-port", str(code_port), "--to", str(tmp_path / "units")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    units = Server(project, tmp_path / "units")
    for name in ("code", "webserver", "daemon"):
        units.start(name)
    address = f"http://127.0.0.1:{port}/graphql"
    try:
        until(lambda: loaded(address), "the code location", units)
        yield units, address
    finally:
        for name in list(units.running):
            units.kill(name)


def ask(address: str, query: str, **variables: Any) -> Any:
    try:
        reply = httpx.post(address, json={"query": query, "variables": variables}, timeout=30)
        return reply.json().get("data") or {}
    except (httpx.HTTPError, ValueError):
        return {}


def loaded(address: str) -> bool:
    entries = (ask(address, LOCATION).get("workspaceOrError") or {}).get("locationEntries") or []
    return [item["locationOrLoadError"]["__typename"] for item in entries] == ["RepositoryLocation"]


def until(condition: Callable[[], bool], what: str, units: Server, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"== {name}\n{units.log(name)}" for name in units.running)
            pytest.fail(f"{what}: not within {seconds:g} s\n{logs}")
        time.sleep(0.3)


def run_of(address: str, units: Server) -> str:
    """Launch a run as the UI does; its status when it has ended."""
    launched: dict[str, Any] = {}

    def launch() -> bool:
        # After a restart of the code server the webserver takes a moment to find it again.
        launched.update(ask(address, LAUNCH, job="iris_train_job").get("launchRun") or {})
        return launched.get("__typename") == "LaunchRunSuccess"

    until(launch, "launching a run", units, 60)
    run_id = launched["run"]["runId"]
    ended = ("SUCCESS", "FAILURE", "CANCELED")

    def status() -> str:
        return str((ask(address, STATUS, run=run_id).get("runOrError") or {}).get("status"))

    until(lambda: status() in ended, f"run {run_id}", units, 120)
    return status()


def test_a_server_on_postgresql_runs_what_the_ui_launches_and_survives_its_code_server(
    server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    units, address = server
    assert run_of(address, units) == "SUCCESS"

    units.kill("code")
    time.sleep(1)
    assert ask(address, "{ version }")["version"]  # the UI stays
    units.start("code")  # as Restart=always does
    until(lambda: loaded(address), "the code location after its restart", units)
    assert run_of(address, units) == "SUCCESS"

    for name, value in units.project.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(units.project.root)
    with dg.DagsterInstance.get() as instance:
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        assert instance.get_runs_count() == 2
        event = instance.get_latest_materialization_event(dg.AssetKey(["iris", "model"]))
        assert event is not None
    assert not list(units.project.root.rglob("runs.db"))


def test_the_units_are_right(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on the path")
    project = tmp_path / "project"
    project.mkdir()
    made = subprocess.run(
        [str(ROOT / "deploy/local/install.sh"), "--project", str(project), "--venv", str(BIN.parent),
         "--to", str(tmp_path / "units")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    units = sorted((tmp_path / "units").glob("*.service"))
    assert len(units) == 4
    assert all("@" not in unit.read_text() for unit in units)
    judged = subprocess.run(
        ["systemd-analyze", "verify", "--user", *map(str, units)], capture_output=True, text=True, check=False
    )
    # It exits with 0 on keys it does not know; what it says is what counts.
    complaints = [line for line in judged.stderr.splitlines() if "notebooked" in line]
    assert complaints == []


def test_without_an_environment_the_installer_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "deploy/local/install.sh"), "--project", str(tmp_path), "--to", str(tmp_path / "units")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--venv" in done.stderr
    assert not (tmp_path / "units").exists()
