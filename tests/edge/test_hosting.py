"""The agent's part in serving, in this process: a change is made once, and told as it went. Over SSH: tests/contract/test_pi.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.edge import hosting


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hosting, "ROOT", tmp_path)
    monkeypatch.setattr(hosting, "SERVING", tmp_path / "serving")
    (tmp_path / "releases/r1").mkdir(parents=True)
    return tmp_path


def change(root: Path, script: str, *, wait: float) -> dict[str, Any]:
    """Ask for a change, the package's part in which is played by a shell script."""
    python = root / "python"
    # Once: a shell reads its script as it goes.
    if not python.exists():
        python.write_text(f"#!/bin/sh\necho begun >> {root}/begun\n{script}\n")
        python.chmod(0o755)
    using = {"release": "r1", "environment": None, "python": str(python)}
    return hosting.changed({"do": "deploy", "token": "t1", "wait": wait, "using": using})[0]


def test_a_change_is_made_once_and_answered_when_it_is_done(root: Path) -> None:
    script = f"while [ ! -e {root}/go ]; do sleep 0.02; done; echo '{{}}' > $3/changes/t1.json"
    assert change(root, script, wait=0)["state"] == "pending"
    assert change(root, script, wait=0)["state"] == "pending"
    (root / "go").touch()
    assert change(root, script, wait=60)["state"] == "done"
    assert change(root, script, wait=0)["state"] == "done"
    assert (root / "begun").read_text() == "begun\n"


def test_a_change_whose_process_died_is_told_and_not_begun_again(root: Path) -> None:
    for _ in range(2):
        told = change(root, "echo no memory >&2; exit 1", wait=60)
        assert told["state"] == "lost"
        assert "no memory" in told["message"]
    assert (root / "begun").read_text() == "begun\n"


def test_where_nothing_was_ever_deployed_there_is_nothing(root: Path) -> None:
    asked = {"name": "echo", "do": "list", "token": "t", "wait": 0}
    assert [part(asked)[0] for part in hosting.COMMANDS.values()] == [{"state": "none"}] * 3
    assert hosting.held(root) == hosting.left_over(root) == []
