"""What all tests share: a clean environment, and the rule that nothing skips unseen in CI."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import settings

from notebooked_dagster.core.retrying import budget_of

# An example may take as long as a machine that is busy makes it take.
settings.register_profile("notebooked", deadline=None)
settings.load_profile("notebooked")

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


@pytest.fixture(autouse=True)
def _clean_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them, but for the accounts of tests that need some."""
    live = request.node.get_closest_marker("live") is not None
    for name in list(os.environ):
        if live and name.startswith("NOTEBOOKED_LIVE_"):
            continue
        if name.startswith(("NOTEBOOKED_", "DAGSTER_", "MLFLOW_", "SM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    # Nor do the retries of the test before.
    budget_of.cache_clear()


class SkipWatch:
    """In CI a test may skip only where ``allowed_skips.txt`` names it."""

    def __init__(self) -> None:
        lines = ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines()
        self.allowed = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        self.surprises: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and not report.nodeid.startswith(self.allowed):
            self.surprises.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and not report.nodeid.startswith(self.allowed):
            self.surprises.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.surprises:
            terminalreporter.section("skipped, and not listed in tests/allowed_skips.txt")
            for nodeid in self.surprises:
                terminalreporter.line(nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.surprises and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


# What takes long first: the last file that a worker takes decides when all is done.
FIRST = (
    "tests/end_to_end",
    "tests/edge",
    "tests/unit/providers",
    "tests/contract",
    "tests/unit/test_",
    "tests/unit/tracking",
    "tests/unit/serving",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests in real accounts cost money: only ``-m live`` selects them, no other expression and no name."""

    def place(item: pytest.Item) -> int:
        return next(
            (index for index, folder in enumerate(FIRST) if item.nodeid.startswith(folder)), len(FIRST)
        )

    items.sort(key=place)
    if re.search(r"\blive\b", config.option.markexpr):
        return
    live = [item for item in items if item.get_closest_marker("live") is not None]
    if live:
        config.hook.pytest_deselected(items=live)
        items[:] = [item for item in items if item not in live]


def pytest_configure(config: pytest.Config) -> None:
    # Workers of pytest-xdist report to the controller, which alone judges.
    if os.environ.get("CI") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipWatch())
