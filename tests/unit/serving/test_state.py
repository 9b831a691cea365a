"""Endpoint state on disk: what is written is read again, what is damaged is told, who may read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooked_dagster.errors import StateError
from notebooked_dagster.serving import processes, state
from notebooked_dagster.serving.state import EndpointRecord, ProcessIdentity, Role, Status, VersionRecord
from notebooked_dagster.serving.worker.traffic import Split, session_of


def record() -> EndpointRecord:
    version = VersionRecord(
        version="1", model_uri="m", python="python", env={"TOKEN": "x"}, status=Status.HEALTHY
    )
    return EndpointRecord(name="e", port=8000, champion="1", weights={"1": 100}, versions={"1": version})


def test_round_trip_for_its_owner_only(tmp_path: Path) -> None:
    written = record()
    state.write(tmp_path, written)

    assert state.read(tmp_path) == written
    assert (tmp_path / "endpoint.json").stat().st_mode & 0o077 == 0
    assert state.read(tmp_path / "none") is None


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    state.write(tmp_path, record())
    path = tmp_path / "endpoint.json"
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError, match="damaged"):
            state.read(tmp_path)


def test_a_changed_value_is_noticed(tmp_path: Path) -> None:
    state.write(tmp_path, record())
    path = tmp_path / "endpoint.json"
    path.write_bytes(path.read_bytes().replace(b"8000", b"8001"))

    with pytest.raises(StateError, match="checksum"):
        state.read(tmp_path)


def test_status_follows_what_lives(tmp_path: Path) -> None:
    seen = state.view(tmp_path, record(), supervisor_pid=1, alive={"1"})
    assert (seen.status, seen.url) == (Status.HEALTHY, "http://127.0.0.1:8000")
    assert seen.champion is not None
    assert seen.champion.role is Role.CHAMPION
    assert state.view(tmp_path, record(), supervisor_pid=None, alive={"1"}).status is Status.DEGRADED
    assert state.view(tmp_path, record(), supervisor_pid=None, alive=set()).status is Status.STOPPED


def test_sockets_of_a_long_path_lie_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    assert len(str(state.socket_dir(deep) / "v1000-abcdef.sock.fd")) < 104
    assert state.socket_dir(deep) == state.socket_dir(deep)
    assert state.socket_dir(deep) != state.socket_dir(tmp_path / ("y" * 100))


def test_a_process_is_known_by_more_than_its_id() -> None:
    import os

    me = processes.identify(os.getpid())
    assert me is not None
    assert processes.alive(me)
    assert not processes.alive(ProcessIdentity(pid=me.pid, created=me.created - 50, boot=me.boot))
    assert not processes.alive(ProcessIdentity(pid=me.pid, created=me.created, boot="another boot"))
    assert not processes.alive(None)


def test_shares_and_sessions(tmp_path: Path) -> None:
    split = Split("1")
    split.set({"2": (25, tmp_path / "s2"), "3": (25, tmp_path / "s3")})

    chosen = [split.choose(f"session {number}") for number in range(4000)]
    shares = {
        version: sum(1 for peer in chosen if peer is not None and peer.version == version) for version in "23"
    }

    assert split.own_weight == 50
    assert 850 < shares["2"] < 1150
    assert 850 < shares["3"] < 1150
    assert split.choose("a") == split.choose("a")
    assert session_of(b"s", b"notebooked-session=c") == "s"
    assert session_of(None, b"x=1; notebooked-session=c") == "c"
    assert session_of(None, b"x=1") is None
