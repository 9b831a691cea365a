"""Endpoints as people use them: real supervisors, real workers, real requests, on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client.parser import text_string_to_metric_families

from notebooked_dagster.errors import DeploymentError, EndpointNotFoundError, InvalidInputError, ProviderError
from notebooked_dagster.serving.control import DeploymentSpec, EndpointControl
from notebooked_dagster.serving.state import Role, Status
from tests.end_to_end.serving_kit import Load, plain_model, wait_until

ROW = {"inputs": [[1.0, 2.0]]}


def processes_of(folder: Path) -> list[psutil.Process]:
    """Everything that runs for the endpoints under a state folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in argument for argument in process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.fixture
def control(tmp_path: Path) -> Iterator[EndpointControl]:
    state_dir = tmp_path / "state"
    yield EndpointControl(state_dir)
    for process in processes_of(state_dir):
        process.kill()


def post(url: str, **arguments: object) -> httpx.Response:
    with httpx.Client(trust_env=False, verify=False, timeout=20) as client:
        return client.post(f"{url}/invocations", **arguments)  # type: ignore[arg-type]


def test_deploy_predict_and_delete(control: EndpointControl, tmp_path: Path) -> None:
    model = plain_model(tmp_path / "m1", "one")
    endpoint = control.deploy(DeploymentSpec("house-prices", model, labels={"run": "abc"}))

    assert endpoint.status is Status.HEALTHY
    assert endpoint.url == f"http://127.0.0.1:{endpoint.port}"
    assert endpoint.champion is not None
    assert endpoint.champion.labels == {"run": "abc"}
    assert control.predict("house-prices", ROW) == {"predictions": ["one"]}
    assert [found.name for found in control.list()] == ["house-prices"]

    (left,) = control.delete("house-prices")
    assert str(model) in left
    assert model.is_dir()
    assert control.list() == []
    assert not (tmp_path / "state/endpoints/house-prices").exists()
    wait_until(lambda: not processes_of(tmp_path / "state"))
    with pytest.raises(EndpointNotFoundError):
        control.get("house-prices")


def test_a_server_sees_no_variable_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "not for everybody")
    monkeypatch.setenv("FEATURE_STORE_TOKEN", "for the model")
    control = EndpointControl(tmp_path / "state", pass_environment=["FEATURE_STORE_*"])
    try:
        control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one"), env={"OWN": "declared"}))
        seen = [process.environ() for process in processes_of(tmp_path / "state")]
        assert len(seen) == 2
        assert not any("DATABASE_PASSWORD" in variables for variables in seen)
        assert all(variables["FEATURE_STORE_TOKEN"] == "for the model" for variables in seen)
        assert any(variables.get("OWN") == "declared" for variables in seen)
    finally:
        control.delete("e")


def test_an_endpoint_outlives_the_process_that_deployed_it(control: EndpointControl, tmp_path: Path) -> None:
    model = plain_model(tmp_path / "m1", "one")
    code = (
        "from pathlib import Path; from notebooked_dagster.serving.control import *;"
        f"EndpointControl(Path({str(tmp_path / 'state')!r})).deploy(DeploymentSpec('e', Path({str(model)!r})))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    assert control.get("e").status is Status.HEALTHY
    assert control.predict("e", ROW) == {"predictions": ["one"]}


def test_the_model_folder_may_go_after_the_deployment(control: EndpointControl, tmp_path: Path) -> None:
    model = plain_model(tmp_path / "m1", "one")
    control.deploy(DeploymentSpec("e", model))
    for path in model.iterdir():
        path.unlink()
    model.rmdir()
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two")))

    control.rollback("e")

    assert control.predict("e", ROW) == {"predictions": ["one"]}


def test_a_new_version_takes_over_without_a_failed_request(control: EndpointControl, tmp_path: Path) -> None:
    url = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one", seconds=0.01))).url
    with Load(url, threads=2) as kept, Load(url, threads=1, keep_alive=False) as fresh:
        kept.wait_for("one")
        fresh.wait_for("one")
        state = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two")))
        told = control.predict("e", ROW)
        kept.wait_for("two")
        fresh.wait_for("two")
        control.rollback("e")
        kept.wait_for("one")
        fresh.wait_for("one")

    assert kept.failures == []
    assert fresh.failures == []
    assert told == {"predictions": ["two"]}
    assert state.url == url
    # Once the new version answers a connection, the old one does not come back before the rollback.
    assert len([1 for a, b in zip(fresh.answers, fresh.answers[1:], strict=False) if a != b]) == 2


def test_an_old_connection_gets_the_new_version(control: EndpointControl, tmp_path: Path) -> None:
    url = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one"))).url
    with httpx.Client(trust_env=False, verify=False) as client:
        assert client.post(f"{url}/invocations", json=ROW).headers["x-notebooked-version"] == "1"
        control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two")))

        reply = client.post(f"{url}/invocations", json=ROW)

    assert reply.json() == {"predictions": ["two"]}
    assert reply.headers["x-notebooked-version"] == "2"


def test_rollback_goes_back_one_champion_at_a_time(control: EndpointControl, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        control.deploy(DeploymentSpec("e", plain_model(tmp_path / f"m{number}", f"v{number}")))

    assert control.rollback("e").champion.version == "2"  # type: ignore[union-attr]
    assert control.rollback("e").champion.version == "1"  # type: ignore[union-attr]
    assert control.predict("e", ROW) == {"predictions": ["v1"]}
    with pytest.raises(DeploymentError, match="no previous version"):
        control.rollback("e")
    assert control.promote("e", "3").champion.version == "3"  # type: ignore[union-attr]
    assert control.predict("e", ROW) == {"predictions": ["v3"]}
    # A number is never given twice.
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m4", "v4")))
    assert [version.version for version in control.get("e").versions] == ["1", "2", "3", "4"]


def test_only_so_many_versions_are_kept(control: EndpointControl, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        control.deploy(DeploymentSpec("e", plain_model(tmp_path / f"m{number}", f"v{number}"), keep=1))

    assert [version.version for version in control.get("e").versions] == ["2", "3"]
    versions = tmp_path / "state/endpoints/e/versions"
    wait_until(lambda: sorted(path.name for path in versions.iterdir()) == ["2", "3"])


def test_a_warm_previous_version_stays_loaded(control: EndpointControl, tmp_path: Path) -> None:
    first = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one"), keep_warm=True))
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two")))

    back = control.rollback("e")

    assert back.champion is not None
    assert first.champion is not None
    assert back.champion.pid == first.champion.pid
    assert control.predict("e", ROW) == {"predictions": ["one"]}
    assert post(back.url, json=ROW).headers.get("connection") != "close"


def test_champion_and_challenger_share_the_traffic(control: EndpointControl, tmp_path: Path) -> None:
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one")))
    endpoint = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two"), weight=30))
    roles = {version.version: (version.role, version.weight) for version in endpoint.versions}
    assert roles == {"1": (Role.CHAMPION, 70), "2": (Role.CHALLENGER, 30)}

    with httpx.Client(trust_env=False, verify=False) as client:
        url = f"{endpoint.url}/invocations"
        versions = Counter(client.post(url, json=ROW).headers["x-notebooked-version"] for _ in range(400))
        sticky = [
            {
                client.post(url, json=ROW, headers={"X-Session-Id": name}).json()["predictions"][0]
                for _ in range(8)
            }
            for name in map(str, range(30))
        ]
        cookie = {
            client.post(url, json=ROW, headers={"cookie": "a=b; notebooked-session=7"}).text for _ in range(8)
        }
        named = client.post(url, json=ROW, headers={"X-Notebooked-Version": "2"}).json()
        unknown = client.post(url, json=ROW, headers={"X-Notebooked-Version": "9"})
        text = client.get(f"{endpoint.url}/metrics").text

    # 400 draws at 30 %: 120 on average, and beyond 70 to 170 once in ten million runs.
    assert 70 < versions["2"] < 170
    assert all(len(answers) == 1 for answers in sticky)
    assert len({answer for answers in sticky for answer in answers}) == 2
    assert len(cookie) == 1
    assert named == {"predictions": ["two"]}
    assert unknown.status_code == 404
    answered = {
        sample.labels["version"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "notebooked_requests_total" and sample.labels["code"] == "200"
    }
    assert answered["1"] + answered["2"] == 400 + 30 * 8 + 8 + 1
    assert answered["2"] > versions["2"]


def test_the_champion_answers_for_a_challenger_that_fails(control: EndpointControl, tmp_path: Path) -> None:
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one")))
    endpoint = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two"), weight=50))
    challenger = endpoint.versions[1]
    psutil.Process(challenger.pid).suspend()
    psutil.Process(challenger.pid).kill()

    with httpx.Client(trust_env=False, verify=False, timeout=20) as client:
        statuses = {client.post(f"{endpoint.url}/invocations", json=ROW).status_code for _ in range(60)}

    assert statuses == {200}
    wait_until(lambda: control.get("e").versions[1].restarts == 1)
    wait_until(lambda: control.get("e").status is Status.HEALTHY)


def test_a_challenger_with_all_of_the_traffic_is_the_champion(
    control: EndpointControl, tmp_path: Path
) -> None:
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one")))
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m2", "two"), weight=10))

    endpoint = control.traffic("e", {"2": 100})

    assert endpoint.champion is not None
    assert endpoint.champion.version == "2"
    assert control.predict("e", ROW) == {"predictions": ["two"]}
    assert control.rollback("e").champion.version == "1"  # type: ignore[union-attr]
    with pytest.raises(DeploymentError, match="add up to 100"):
        control.traffic("e", {"1": 50, "2": 40})
    with pytest.raises(DeploymentError, match="no version '7'"):
        control.traffic("e", {"1": 50, "7": 50})


def test_what_the_client_does_wrong_is_named(control: EndpointControl, tmp_path: Path) -> None:
    endpoint = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one"), size_limit=2000))

    with pytest.raises(InvalidInputError) as refused:
        control.predict("e", {"inputs": [[1.0, 2.0], [1.0, "x"]]})
    assert refused.value.details["row"] == 1
    assert refused.value.details["column"] == 1
    large = post(endpoint.url, content=b" " * 3000, headers={"content-type": "application/json"})
    assert large.status_code == 413
    streamed = post(
        endpoint.url, content=(b" " * 1000 for _ in range(3)), headers={"content-type": "application/json"}
    )
    assert streamed.status_code == 413
    assert post(endpoint.url, content=b"<a/>", headers={"content-type": "text/xml"}).status_code == 415
    assert post(endpoint.url, content=b'{"inputs": [[1, NaN]]}').status_code == 400
    echoed = post(endpoint.url, json=[[1, 2]], headers={"X-Amzn-SageMaker-Custom-Attributes": "trace=7"})
    assert echoed.headers["x-amzn-sagemaker-custom-attributes"] == "trace=7"


def test_what_the_model_does_wrong_stays_in_the_log(control: EndpointControl, tmp_path: Path) -> None:
    control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one")))

    with pytest.raises(ProviderError) as failed:
        control.predict("e", {"inputs": [[-1.0, 2.0]]})

    assert not isinstance(failed.value, InvalidInputError)
    assert "secret-path" not in str(failed.value)
    error_id = failed.value.details["error_id"]
    log = list(control.logs("e"))
    assert any(error_id in line for line in log)
    assert any("negative length" in line for line in log)


def test_delete_lets_an_open_request_finish(control: EndpointControl, tmp_path: Path) -> None:
    url = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one", seconds=1.0))).url
    with Load(url, threads=1) as load:
        load.wait_for("one")
        answered = len(load.answers)
        wait_until(lambda: _in_flight(url) == 1)
        control.delete("e")
        load._stop.set()

    assert len(load.answers) == answered + 1 or len(load.answers) == answered + 2


def _in_flight(url: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "notebooked_in_flight":
                return sample.value
    return 0


def test_the_port_asked_for_is_used_and_kept(
    control: EndpointControl, tmp_path: Path, free_port: int
) -> None:
    model = plain_model(tmp_path / "m1", "one")
    assert control.deploy(DeploymentSpec("e", model, port=free_port)).port == free_port
    assert control.deploy(DeploymentSpec("e", model)).port == free_port

    moved = control.deploy(DeploymentSpec("e", model, port=0, host="localhost"))

    assert moved.port == free_port
    assert moved.host == "127.0.0.1"


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_state_folder_with_a_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    control = EndpointControl(deep)
    try:
        control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one")))
        assert control.predict("e", ROW) == {"predictions": ["one"]}
    finally:
        control.delete("e")
        for process in processes_of(deep):
            process.kill()


def _linked_environment(folder: Path) -> str:
    """A virtual environment with what a worker needs and nothing else, linked from this one; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (target,) = folder.glob("lib/python*/site-packages")
    wanted, seen = ["fastapi", "uvicorn", "orjson", "prometheus-client"], set[str]()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for part in {
            file.parts[0] for file in distribution.files or () if not file.parts[0].startswith("..")
        }:
            link = target / part
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(part))))
    return str(folder / "bin/python")


def test_a_worker_in_another_environment_needs_little(control: EndpointControl, tmp_path: Path) -> None:
    python = _linked_environment(tmp_path / "venv")
    for module in ("notebooked_dagster", "psutil", "sklearn", "uvloop"):
        tried = subprocess.run(
            [python, "-c", f"import {module}"], cwd=tmp_path, capture_output=True, timeout=60
        )
        assert b"ModuleNotFoundError" in tried.stderr

    endpoint = control.deploy(DeploymentSpec("e", plain_model(tmp_path / "m1", "one"), python=python))

    assert control.predict("e", ROW) == {"predictions": ["one"]}
    assert endpoint.champion is not None
    assert python in psutil.Process(endpoint.champion.pid).cmdline()
