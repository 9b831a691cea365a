"""The agent, in this process: what it does when a device is full, slow or damaged. Runs of it over SSH are elsewhere."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.edge import agent
from notebooked_dagster.edge.journal import read


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agent, "ROOT", tmp_path)
    here = tmp_path / "agents/ours"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    (tmp_path / "releases/r1").mkdir(parents=True)
    (tmp_path / "releases/r1/.complete").touch()
    return tmp_path


def request(run: str = "a", **more: Any) -> dict[str, Any]:
    return {"run": run, "release": "r1", "capacity": 9, "host_time": 0.0, "env": {}, "python": "x", **more}


def started(monkeypatch: pytest.MonkeyPatch, *runs: str) -> None:
    """Runs whose processes are gone without a word."""
    monkeypatch.setattr(agent, "_spawn", lambda folder, alive: "not at all")
    for run in runs:
        agent._start(request(run))


def asked(*runs: str, owner: str = "me") -> dict[str, Any]:
    header, _ = agent._read({"runs": dict.fromkeys(runs, 0), "owner": owner, "ttl": 30})
    return dict(header["runs"])


def test_a_run_whose_keeper_is_on_its_way_is_not_taken_for_dead(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spawn(folder: Path, alive: int) -> str:
        seen.append(asked("a")["a"]["state"])
        return "late"

    monkeypatch.setattr(agent, "_spawn", spawn)
    agent._start(request())
    assert seen == ["running"]
    # And the one whose keeper never came is.
    last = list(read(root / "runs/a/journal"))[-1].data
    assert (last["kind"], last["why"]) == ("exit", "vanished")


def test_of_two_keepers_one_runs_the_worker(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = root / "worker"
    worker.write_text(f"#!/bin/sh\necho once >> {root}/called\n")
    worker.chmod(0o755)
    monkeypatch.setattr(agent, "_spawn", lambda folder, alive: str(agent._keep(folder)))
    agent._start(request(python=str(worker)))
    # As systemd's, where it comes after we have lost patience with it.
    assert agent._keep(root / "runs/a") == 0
    (root / "runs/a/journal").unlink()
    assert agent._keep(root / "runs/a") == 0
    assert (root / "called").read_text() == "once\n"


def test_a_systemd_that_hangs_does_not_keep_a_run_from_starting(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = root / "bin"
    binaries.mkdir()
    (binaries / "systemd-run").write_text("#!/bin/sh\nexec sleep 60\n")
    (binaries / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", str(binaries), prepend=os.pathsep)
    monkeypatch.setattr(agent, "_has_systemd", lambda: True)
    monkeypatch.setattr(agent, "_UNIT", 0.1)
    assert agent._start(request(python="/bin/true"))[0]["how"] == "setsid"


def test_one_damaged_run_is_no_reason_to_say_nothing_of_the_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, "a", "b")
    (root / "runs/a/journal").unlink()
    (root / "runs/a/began.json").write_text("{")
    assert [state["state"] for state in asked("a", "b").values()] == ["damaged", "ended"]
    # And it can still be stopped, and be taken for home.
    assert agent._cancel({"run": "a"})[0] == {"state": "asked"}
    assert agent._deliver({"run": "a"})[0]["state"] == "delivered"


def test_a_lease_needs_no_room_on_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, "a")
    lease = root / "runs/a/lease.json"
    before = lease.stat()

    def full(path: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(agent, "_write", full)
    assert asked("a")["a"]["granted"]
    assert asked("a")["a"]["before"] == "me"
    assert not asked("a", owner="another")["a"]["granted"]
    assert (lease.stat().st_ino, lease.stat().st_size) == (before.st_ino, before.st_size)
    # Half a lease is what a power cut leaves; after it none counts.
    lease.write_text('{"owner": "me", "unt')
    assert asked("a", owner="another")["a"]["granted"]
    with pytest.raises(OSError, match="No space"):
        agent._start(request("b"))
    assert not (root / "runs/b").exists()


def test_an_environment_that_cannot_be_made_takes_no_room(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "uv").write_text(
        '#!/bin/sh\nfor last; do :; done\ntest "$1" = venv || { echo no wheel >&2; exit 1; }\nmkdir -p "$last"\n'
    )
    (root / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(root), prepend=os.pathsep)
    asked = {"environment": "e1", "release": "r1", "lock": "edge.lock"}
    with pytest.raises(agent.RefusedError, match="no wheel"):
        agent._environment(asked)
    assert list((root / "environments").glob("*")) == []


def test_what_nobody_uses_goes_when_a_run_is_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, "a")
    old = time.time() - 30 * 86400
    for number in range(2, 7):
        name = root / f"releases/r{number}"
        name.mkdir()
        (name / ".complete").touch()
        (name / ".environments").write_text(f"e{number}\n")
        os.utime(name, (old + number, old + number))
        environment = root / f"environments/e{number}"
        environment.mkdir(parents=True)
        (environment / ".complete").touch()
    for name in ("releases/.r8.part", "releases/.r9.part", "agents/before", "agents/other"):
        (root / name).mkdir()
    os.utime(root / "releases/.r8.part", (old, old))
    os.utime(root / "agents/before", (old, old))
    agent._deliver({"run": "a"})
    assert sorted(path.name for path in (root / "releases").iterdir()) == [".r9.part", "r1", "r5", "r6"]
    assert sorted(path.name for path in (root / "environments").iterdir()) == ["e5", "e6"]
    assert sorted(path.name for path in (root / "agents").iterdir()) == ["other", "ours"]
