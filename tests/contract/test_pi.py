"""PiProvider passes the contract, on a device that is a real OpenSSH server on loopback; and what a bad link does to it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
import yaml

from notebooked_dagster.edge.ssh import Link
from notebooked_dagster.errors import (
    ConfigError,
    DeploymentConflictError,
    DeploymentError,
    DeviceUnreachableError,
    EndpointNotFoundError,
)
from notebooked_dagster.providers.base import EndpointStatus, Experiment
from notebooked_dagster.providers.pi import PiProvider
from notebooked_dagster.providers.registry import get_provider
from tests.contract.scripts import write_scripts
from tests.contract.suite import ServingContract
from tests.edge.edge_kit import SSHD, LoopbackDevice, kill, until

ROW = {"dataframe_records": [{"x": 1.0}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def pi(root: Path) -> Iterator[LoopbackDevice]:
    """Two devices that are one: the same server, and a working folder for the contract and one for the faults."""
    if SSHD is None:
        pytest.skip("no OpenSSH server here (Debian: apt install openssh-server)")
    # A user's systemd, as far as files go: that it is there, and where its units are.
    (root / "runtime/systemd").mkdir(parents=True)
    (root / "runtime/systemd/private").touch()
    device = LoopbackDevice(root / "pi")
    device.environment = {"XDG_RUNTIME_DIR": f"{root}/runtime", "XDG_CONFIG_HOME": f"{root}/config"}
    device.start()
    project = root / "project"
    project.mkdir()
    (project / "code.py").write_text("x = 1\n")
    devices = [device.config(), device.config(name="other", folder=str(root / "pi/other"))]
    (project / "edge.yaml").write_text(yaml.safe_dump({"devices": devices}))
    yield device
    device.cut()


def provider_of(root: Path, device: str, **settings: Any) -> PiProvider:
    found = get_provider(
        "pi", state_dir=root / f"state-{device}", project=root / "project", device=device, **settings
    )
    assert isinstance(found, PiProvider)
    return found


@pytest.fixture(scope="module")
def trained(root: Path, pi: LoopbackDevice) -> tuple[Experiment, list[str]]:
    """Trained once for all: how is the provider ``local``'s matter, which passes that half of the contract."""
    experiment = Experiment("sample", write_scripts(root / "scripts"))
    provider = provider_of(root, "pi")
    jobs = [
        provider.train(dataclasses.replace(experiment, hyperparameters={"shift": shift}))
        for shift in (0.0, 10.0)
    ]
    assert {job.provider for job in jobs} == {"pi"}
    assert [job.id for job in provider.list_jobs()] == [job.id for job in reversed(jobs)]
    return experiment, [str(job.model_uri) for job in jobs]


class TestPi(ServingContract):
    @pytest.fixture
    def provider(self, root: Path, pi: LoopbackDevice) -> PiProvider:
        return provider_of(root, "pi")

    @pytest.fixture
    def experiment(self, trained: tuple[Experiment, list[str]]) -> Experiment:
        return trained[0]

    @pytest.fixture
    def models(self, trained: tuple[Experiment, list[str]]) -> list[str]:
        return trained[1]


# What a bad link does


def units(root: Path) -> set[Path]:
    """The units of its user, and what is begun with when it starts."""
    return {path for path in (root / "config/systemd/user").rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def served(root: Path, trained: tuple[Experiment, list[str]]) -> Iterator[Experiment]:
    """The endpoint ``echo`` on the other device: x + 2."""
    experiment, models = trained
    provider = provider_of(root, "other")
    before = units(root)
    provider.deploy(experiment, models[0], "echo")
    yield experiment
    provider.delete_endpoint("echo")
    assert units(root) == before


@pytest.fixture
def other(root: Path) -> PiProvider:
    return provider_of(root, "other")


def test_a_device_that_is_away_is_told_as_that(
    other: PiProvider, served: Experiment, pi: LoopbackDevice, trained: tuple[Experiment, list[str]]
) -> None:
    pi.cut()
    try:
        with pytest.raises(DeviceUnreachableError, match="notebooked edge doctor other") as caught:
            other.predict("echo", ROW)
        assert caught.value.exit_code == 2
        # What this host knows of it is told all the same; and a training asks no device.
        assert [(item.name, item.status) for item in other.list_endpoints()] == [
            ("echo", EndpointStatus.DEGRADED)
        ]
        with pytest.raises(DeviceUnreachableError):
            other.endpoint("echo")
    finally:
        pi.start()
    assert other.predict("echo", ROW) == {"predictions": [3.0]}
    assert any("ready" in line for line in other.endpoint_logs("echo"))
    assert other.ensure("echo", patience=30.0).status is EndpointStatus.HEALTHY


def test_a_link_that_goes_while_the_model_is_sent_changes_nothing(
    other: PiProvider, served: Experiment, pi: LoopbackDevice, trained: tuple[Experiment, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    copy = Link.copy

    def cut(self: Link, source: Path, target: str, **options: Any) -> str:
        pi.cut()
        return copy(self, source, target, **options)

    monkeypatch.setattr(Link, "copy", cut)
    try:
        with pytest.raises(DeviceUnreachableError):
            other.deploy(served, trained[1][1], "echo")
    finally:
        pi.start()
    assert other.predict("echo", ROW) == {"predictions": [3.0]}


def test_a_deployment_whose_answer_is_lost_is_not_made_twice(
    root: Path, served: Experiment, trained: tuple[Experiment, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the request that is repeated, nor by the run that is tried again after its host gave up."""
    ask, lost = Link.ask, []

    def losing(self: Link, command: str, *asked: Any, **options: Any) -> Any:
        answer = ask(self, command, *asked, **options)
        if command == "endpoint-change" and len(lost) < 2:
            lost.append(command)
            raise DeviceUnreachableError("the answer is lost")
        return answer

    before = {item.version for item in provider_of(root, "other").endpoint("echo").deployments}
    monkeypatch.setattr(Link, "ask", losing)
    with pytest.raises(DeviceUnreachableError):
        provider_of(root, "other", patience=0).deploy(served, trained[1][1], "echo")
    live = provider_of(root, "other").deploy(served, trained[1][1], "echo", labels={"dagster_run": "another"})
    assert len(lost) == 2
    assert len({item.version for item in live.deployments} - before) == 1
    assert provider_of(root, "other").predict("echo", ROW) == {"predictions": [13.0]}
    assert provider_of(root, "other").rollback("echo").status is EndpointStatus.HEALTHY


def test_a_package_that_the_device_lacks_is_named_before_anything_is_switched(
    other: PiProvider, served: Experiment, trained: tuple[Experiment, list[str]], tmp_path: Path
) -> None:
    model = shutil.copytree(trained[1][1], tmp_path / "model")
    (model / "preprocess.py").write_text("import package_that_nobody_wrote\n")
    (model / "inference.py").write_text("import preprocess\n" + (model / "inference.py").read_text())
    with pytest.raises(
        DeploymentError, match="'package_that_nobody_wrote', which other does not have"
    ) as caught:
        other.deploy(served, str(model), "echo")
    assert caught.value.details["missing"] == "package_that_nobody_wrote"
    assert other.predict("echo", ROW) == {"predictions": [3.0]}


def test_two_deployments_at_once_are_a_conflict(
    other: PiProvider, root: Path, served: Experiment, trained: tuple[Experiment, list[str]]
) -> None:
    with (
        filelock.FileLock(root / "pi/other/serving/endpoints/.echo.lock"),
        pytest.raises(DeploymentConflictError),
    ):
        other.deploy(served, trained[1][1], "echo")
    # Where a device is asked for, the endpoint does not wander off to it.
    moved = dataclasses.replace(served, options={"endpoint": {"device": "pi"}})
    with pytest.raises(DeploymentError, match="is on other, not on pi"):
        other.deploy(moved, trained[1][1], "echo")


def test_the_code_that_serves_is_not_tidied_away(
    root: Path, other: PiProvider, served: Experiment, pi: LoopbackDevice
) -> None:
    releases = root / "pi/other/releases"
    serving = {path.name for path in releases.iterdir()}
    link = Link(other._control._on("other").device, root / "edge")
    for name in ("a", "b"):
        (releases / name).mkdir()
        (releases / name / ".complete").touch()
        link.ask("activate", {"release": name, "files": {}, "keep": 0})
    assert {path.name for path in releases.iterdir()} == serving | {"b"}


def test_a_device_that_has_restarted_serves_again_by_itself(
    root: Path, other: PiProvider, served: Experiment, tmp_path: Path
) -> None:
    """What systemd would start is started here, twice at once: there is one server, whoever is quicker."""
    serving = root / "pi/other/serving"
    unit = next(path for path in units(root) if str(serving) in path.read_text())
    record = serving / "endpoints/echo/endpoint.json"
    before = json.loads(record.read_text())
    kill(before["supervisor"]["pid"])
    for identity in filter(None, (item["process"] for item in before["versions"].values())):
        # A worker ends with its supervisor, by itself.
        with contextlib.suppress(ProcessLookupError):
            kill(identity["pid"])
    (command,) = (line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    words = shlex.split(command.removeprefix("ExecStart="))
    starts = [subprocess.Popen(words, env={"PATH": os.environ["PATH"]}, cwd=tmp_path) for _ in range(2)]
    assert [start.wait() for start in starts] == [0, 0]
    until(lambda: serves(other, "echo"), 120, "the endpoint to be back")
    after = json.loads(record.read_text())
    assert after["port"] == before["port"]
    assert after["supervisor"]["pid"] not in (None, before["supervisor"]["pid"])
    assert json.loads((serving / "held/echo.json").read_text())[f"supervisor {after['supervisor']['pid']}"]


def serves(provider: PiProvider, endpoint: str) -> bool:
    return provider.endpoint(endpoint).status is EndpointStatus.HEALTHY


def test_without_a_device_nothing_is_guessed(tmp_path: Path) -> None:
    provider = get_provider("pi", state_dir=tmp_path, project=tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "inference.py").touch()
    experiment = Experiment("sample", tmp_path)
    with pytest.raises(ConfigError, match="No device is named"):
        provider.deploy(experiment, str(model), "echo")
    with pytest.raises(EndpointNotFoundError):
        provider.predict("echo", ROW)
    assert provider.list_endpoints() == []
    unknown = dataclasses.replace(experiment, options={"endpoint": {"device": "nobody"}})
    with pytest.raises(ConfigError, match="no device 'nobody'"):
        provider.deploy(unknown, str(model), "echo")
    with pytest.raises(ConfigError, match="Extra inputs"):
        provider.deploy(
            dataclasses.replace(experiment, options={"endpoint": {"host": "0.0.0.0"}}), str(model), "e"
        )
    with pytest.raises(ConfigError, match="Extra inputs"):
        provider.train(dataclasses.replace(experiment, options={"nonsense": 1}))
