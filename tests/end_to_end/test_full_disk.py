"""A file system that is really full, where the machine lets one be mounted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from notebooked_dagster.providers.local import LocalProvider
from tests.end_to_end.dagster_kit import SmallProject
from tests.small_disk import fill, small_disk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "24m") as folder:
        yield folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_scripts_are_whole_or_not_there(small: Path) -> None:
    project = SmallProject(small / "project", "parity: false")
    scripts = project.root / "scripts" / "iris"
    assert project.run("notebooked", "convert", "iris").returncode == 0
    before = content(scripts)
    project.edit("max_iter=200", "max_iter=300")
    ballast = fill(small)
    done = project.run("notebooked", "convert", "iris")
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert content(scripts) == before
    ballast.unlink()
    assert project.run("notebooked", "convert", "iris").returncode == 0
    assert b"max_iter=300" in content(scripts)["train.py"]


def test_what_is_served_goes_on(small: Path) -> None:
    project = SmallProject(small / "project", "parity: false")
    try:
        assert project.run("notebooked", "train", "iris").returncode == 0
        assert project.run("notebooked", "deploy", "iris").returncode == 0
        (live,) = LocalProvider(project.root / ".notebooked").list_endpoints()
        ballast = fill(small)
        for command in ("train", "deploy"):
            done = project.run("notebooked", command, "iris")
            assert done.returncode in (1, 2), done.stderr
            assert "Traceback" not in done.stderr
            assert "space" in done.stderr or "disk" in done.stderr
        asked = {"inputs": [[5.1, 3.5, 1.4, 0.2]]}
        assert httpx.post(f"{live.url}/invocations", json=asked).json() == {"predictions": [0]}
        ballast.unlink()
        assert project.run("notebooked", "deploy", "iris").returncode == 0
        assert httpx.post(f"{live.url}/invocations", json=asked).json() == {"predictions": [0]}
    finally:
        project.delete_endpoint()
