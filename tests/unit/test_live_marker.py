"""The tests of real accounts: never run unasked, never a surprise in CI, and harmless to what else is in the account."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment, JobStatus
from notebooked_dagster.providers.registry import get_provider
from tests.clouds.kit import BUCKET, ROLE, aws_server, sagemaker_provider
from tests.contract import live
from tests.contract.live import ACCOUNTS, PREFIX
from tests.contract.scripts import write_scripts

ROOT = Path(__file__).parents[2]
LIVE = "tests/contract/test_live.py"


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env={**os.environ, "CI": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_they_are_deselected_unless_asked_for() -> None:
    done = run_pytest(LIVE, "--collect-only")
    assert done.returncode == 5, done.stdout  # nothing is left
    assert re.search(r"no tests collected \(\d+ deselected\)", done.stdout)


def test_without_an_account_they_skip_and_say_which_variables_are_missing() -> None:
    done = run_pytest(LIVE, "-m", "live", "-k", "gives_a_model")
    assert done.returncode == 0, done.stdout
    for account in ACCOUNTS.values():
        assert f"no account of {account.provider}: {PREFIX}" in done.stdout
    assert "3 skipped" in done.stdout


def test_every_variable_is_documented() -> None:
    page = (ROOT / "docs/clouds.md").read_text(encoding="utf-8")
    names = [
        name
        for account in ACCOUNTS.values()
        for name in (*account.needed.values(), *account.optional.values())
    ]
    assert [name for name in [*names, "POLL"] if PREFIX + name not in page] == []


def test_they_leave_alone_what_else_is_in_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the tests' own SageMaker, where somebody serves something of the same name already."""
    with aws_server(tmp_path / "aws"):
        somebody = sagemaker_provider(tmp_path / "state")
        experiment = Experiment("sample", write_scripts(tmp_path / "scripts"))
        model = str(somebody.train(experiment).model_uri)
        somebody.deploy(experiment, model, "life")
        for name, value in {"AWS_ROLE_ARN": ROLE, "AWS_BUCKET": BUCKET, "POLL": "0.05"}.items():
            monkeypatch.setenv(PREFIX + name, value)
        # The cloud's last lines take fifteen seconds to come, at most; here they are there.
        monkeypatch.setattr(live, "get_provider", functools.partial(get_provider, log_grace=0.2))
        fence = contextlib.contextmanager(live.live_provider)
        with fence("sagemaker", tmp_path / "live") as fenced:
            assert fenced.list_endpoints() == fenced.list_jobs() == []
            assert fenced.deploy(experiment, model, "life").name == "life"
            assert [endpoint.name for endpoint in fenced.list_endpoints()] == ["life"]
            assert fenced.endpoint("life").url != somebody.endpoint("life").url
            left = fenced.train(dataclasses.replace(experiment, hyperparameters={"act": "hang"}), wait=False)
        # Whatever the test left running, and nothing else.
        assert somebody.status(left.id).status is JobStatus.CANCELLED
        assert [endpoint.name for endpoint in somebody.list_endpoints()] == ["life"]
        assert somebody.predict("life", {"dataframe_records": [{"x": 1.0}]}) == {"predictions": [3.0]}
