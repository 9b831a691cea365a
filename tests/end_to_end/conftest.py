"""Real servers and a real browser for the tests that look at what a person would look at."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# The browser must not ask the network for anything of its own.
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this deployment's declarations and notebooks, with a state of its own."""
    root = tmp_path_factory.mktemp("project")
    for name in ("assets", "notebooks"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def project_environment(project: Path) -> dict[str, str]:
    """The environment of a command that works on ``project``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NOTEBOOKED_", "DAGSTER_", "MLFLOW_", "SM_"))
    }
    return {
        **kept,
        "DAGSTER_HOME": str(project),
        "NOTEBOOKED_PROJECT_ROOT": str(project),
        "MPLBACKEND": "Agg",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.fixture(scope="module")
def run_command(
    project: Path, project_environment: dict[str, str]
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run a command in the project as a person would; what it deployed is removed at the end."""

    def run(*command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=project,
            env=project_environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    yield run
    run("notebooked", "delete-endpoint", "--all", "--yes")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def webserver(project: Path, project_environment: dict[str, str]) -> Iterator[str]:
    """The URL of a Dagster webserver with the project's code location loaded."""
    port = free_port()
    log = (project / "webserver.log").open("w")
    process = subprocess.Popen(
        [str(BIN / "dagster-webserver"), "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        cwd=project,
        env=project_environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                httpx.get(f"{url}/server_info", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"no webserver:\n{(project / 'webserver.log').read_text()}")
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        log.close()


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    """A page of headless Chromium."""
    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        pytest.skip("no Chromium on the path")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield browser.new_page(viewport={"width": 1500, "height": 900})
        browser.close()
