"""What goes wrong at Databricks, and that nothing is lost, doubled or left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.errors import (
    ConfigError,
    DeploymentConflictError,
    DeploymentError,
    EndpointNotFoundError,
    ProviderError,
    QuotaError,
)
from notebooked_dagster.providers.base import EndpointStatus, Experiment, JobStatus
from notebooked_dagster.providers.databricks import DatabricksProvider
from notebooked_dagster.providers.databricks.jobs import tokens
from notebooked_dagster.providers.databricks.registry import write_model
from tests.clouds.databricks import CATALOG, SCHEMA, VOLUME, DatabricksServer
from tests.clouds.databricks_kit import databricks_provider, databricks_server, settings
from tests.contract.scripts import write_scripts
from tests.unit.providers.faults import Kit, StopFaults, acting, deployed_at_once

ROWS = {"dataframe_records": [{"x": 1.0}]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DatabricksServer]:
    with databricks_server(tmp_path / "databricks") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, server: DatabricksServer) -> DatabricksProvider:
    return databricks_provider(tmp_path / "state")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    scripts = write_scripts(tmp_path / "scripts")
    # Slow enough to be cut off in between.
    train = scripts / "train.py"
    train.write_text(train.read_text().replace("range(40)", "range(12)"))
    return Experiment("sample", scripts, idempotency_token="run-1")


def names(server: DatabricksServer) -> list[str]:
    """Our names of the runs that the workspace has."""
    return [run.request["run_name"] for run in server.workspace.runs.values()]


def ended(server: DatabricksServer) -> None:
    """Wait until the only run has ended."""
    (run,) = server.workspace.runs.values()
    deadline = time.monotonic() + 20
    while not run.ended and time.monotonic() < deadline:
        time.sleep(0.02)


def volume(server: DatabricksServer) -> Path:
    """Our folder of the volume."""
    return server.workspace.root / "Volumes" / CATALOG / SCHEMA / VOLUME / "notebooked"


@pytest.fixture
def kit(server: DatabricksServer) -> Kit:
    def stop(name: str) -> None:
        (run,) = server.workspace.runs.values()
        run.cancelling.set()

    def put(path: str, content: bytes | None) -> None:
        file = volume(server).parent / path
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)

    return Kit(
        machine=databricks_provider,
        emulator=server.workspace,
        jobs=lambda: names(server),
        ended=lambda name: all(run.ended for run in server.workspace.runs.values()),
        put=put,
        submit="submit_run",
        refusals={"quota": "higher limit", "denied": "plan --policy", "expired": "databricks auth login"},
        listing=frozenset({"list_runs"}),
        stop=stop,
    )


class TestJobs(StopFaults):
    """The faults of every cloud."""


# Submitting


@pytest.mark.parametrize("moment", ["before the run", "before the id"])
def test_a_process_killed_while_submitting_leaves_one_run_which_the_next_finds(
    server: DatabricksServer, experiment: Experiment, tmp_path: Path, moment: str
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.registry import get_provider
provider = get_provider("databricks", state_dir={str(tmp_path / "state")!r}, **{settings()!r})
die = lambda *given, **more: os.kill(os.getpid(), signal.SIGKILL)
jobs, submit = provider._jobs, provider._jobs._submitted
if {moment!r} == "before the run":
    jobs._submitted = die
else:
    jobs._submitted = lambda request: (submit(request), die())
provider.train(Experiment("sample", Path({str(experiment.scripts)!r}), idempotency_token="run-1"))
"""
    died = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(server.workspace.runs) == (0 if moment == "before the run" else 1)
    job = databricks_provider(tmp_path / "state").train(experiment)
    assert job.status is JobStatus.SUCCEEDED
    assert names(server) == [job.id]


def test_a_run_whose_id_nobody_wrote_down_is_found_by_its_name(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, tmp_path: Path
) -> None:
    first = provider.train(experiment)
    (volume(server) / "jobs" / first.id / "run.json").unlink()
    other = databricks_provider(tmp_path / "another-machine")
    assert other.status(first.id).metrics == first.metrics


def test_two_machines_that_submit_at_once_submit_one_run(
    server: DatabricksServer, experiment: Experiment, tmp_path: Path
) -> None:
    done: list[str] = []
    threads = [
        threading.Thread(
            target=lambda n=n: done.append(
                databricks_provider(tmp_path / f"machine-{n}").train(experiment).id
            )
        )
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 3
    assert names(server) == [done[0]]


@pytest.mark.parametrize("kind", ["lost", "throttle", "error", "drop"])
def test_short_trouble_while_submitting_makes_one_run(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, kind: str
) -> None:
    server.workspace.fail("submit_run", kind, times=2)
    job = provider.train(experiment)
    assert job.status is JobStatus.SUCCEEDED
    assert names(server) == [job.id]


def test_a_machine_that_the_workspace_has_not_is_the_users_error(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment
) -> None:
    with pytest.raises(ConfigError, match=r"z9\.huge is not supported") as caught:
        provider.train(dataclasses.replace(experiment, instance_type="z9.huge"))
    assert caught.value.key == "instance_type"
    assert provider.list_jobs() == []


def test_a_run_that_somebody_deleted_may_be_submitted_anew(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, tmp_path: Path
) -> None:
    first = provider.train(experiment, wait=False)
    ended(server)
    (run_id,) = server.workspace.runs
    server.workspace.delete_run(run_id)
    again = databricks_provider(tmp_path / "another-machine").train(experiment)
    assert again.status is JobStatus.SUCCEEDED
    (run,) = server.workspace.runs.values()
    assert (again.id, run.run_id != run_id) == (first.id, True)
    assert run.token == list(tokens(first.id))[1]
    # Whoever comes next goes the same way, and finds that run.
    third = databricks_provider(tmp_path / "a-third-machine").train(experiment)
    assert third.metrics == again.metrics
    assert len(server.workspace.runs) == 1


def test_tokens_are_short_enough_and_all_different() -> None:
    found = list(tokens("nbd-" + "a" * 32 + "-" + "0" * 20))
    assert max(map(len, found)) <= 64
    assert len(set(found)) == len(found)


# Waiting


def test_no_capacity_is_said_to_be_that(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment
) -> None:
    server.workspace.no_capacity.add("g5.xlarge")
    with pytest.raises(QuotaError, match="INSUFFICIENT_INSTANCE_CAPACITY") as caught:
        provider.train(dataclasses.replace(experiment, instance_type="g5.xlarge"))
    assert "another instance_type" in (caught.value.hint or "")


def test_requirements_that_cannot_be_installed_are_the_users_error(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment
) -> None:
    (experiment.scripts / "requirements.txt").write_text("impossible==1\n")
    with pytest.raises(ConfigError, match="requirements cannot be installed") as caught:
        provider.train(experiment)
    assert any("No matching distribution" in line for line in provider.logs(caught.value.details["job"]))


# What comes home


def test_variables_go_along_in_a_file_and_references_to_secrets_in_the_request(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment
) -> None:
    environment = {"PLAIN": "what is in the file", "TOKEN": "{{secrets/scope/key}}"}
    job = provider.train(dataclasses.replace(acting(experiment, "environment"), environment=environment))
    (run,) = server.workspace.runs.values()
    assert run.request["tasks"][0]["new_cluster"]["spark_env_vars"] == {"TOKEN": "{{secrets/scope/key}}"}
    assert "what is in the file" not in json.dumps(run.request)
    assert any('"PLAIN": "what is in the file"' in line for line in provider.logs(job.id))
    with pytest.raises(ConfigError, match="only a cluster"):
        provider.train(
            dataclasses.replace(
                experiment, environment=environment, options={"training": {"serverless": True}}
            )
        )


def test_serverless_compute_names_no_machine(
    server: DatabricksServer, experiment: Experiment, tmp_path: Path
) -> None:
    provider = databricks_provider(tmp_path / "state", training={"serverless": True})
    job = provider.train(experiment)
    (run,) = server.workspace.runs.values()
    assert "new_cluster" not in run.request["tasks"][0]
    assert run.request["environments"][0]["spec"]["environment_version"]
    assert job.facts["instance"] == "serverless"


def test_what_it_cost_is_told_where_there_is_a_price(
    server: DatabricksServer, experiment: Experiment, tmp_path: Path
) -> None:
    job = databricks_provider(tmp_path / "state", prices={"i3.xlarge": 3600.0}).train(experiment)
    assert job.facts["cost (USD, estimated)"] == job.facts["machine time (s)"]
    plain = databricks_provider(tmp_path / "other").status(job.id)
    assert "cost (USD, estimated)" not in plain.facts


# Serving


@pytest.fixture
def models(provider: DatabricksProvider, experiment: Experiment) -> list[str]:
    """Two models that answer differently: x + 2 and x + 12."""
    found = []
    for shift in (0.0, 10.0):
        changed = dataclasses.replace(
            experiment, hyperparameters={"shift": shift}, idempotency_token=f"shift-{shift}"
        )
        found.append(str(provider.train(changed).model_uri))
    return found


def broken(server: DatabricksServer, uri: str, inference: str) -> str:
    """A copy of a model whose code is another."""
    source = server.workspace.root / uri.removeprefix("dbfs:///")
    folder = server.folder / "broken"
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (folder / "inference.py").write_text(inference)
    return str(folder)


def entities(server: DatabricksServer, name: str) -> dict[str, int]:
    config = server.workspace.endpoints[name].config
    assert config is not None
    return {
        route["served_entity_name"]: route["traffic_percentage"]
        for route in config["traffic_config"]["routes"]
    }


def test_an_endpoint_that_never_becomes_ready_keeps_the_old_version(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, models: list[str]
) -> None:
    provider.deploy(experiment, models[0], "live")
    bad = broken(server, models[0], "raise RuntimeError('no licence')")
    with pytest.raises(DeploymentError, match="no licence") as caught:
        provider.deploy(dataclasses.replace(experiment, scripts=Path(bad)), bad, "live")
    assert "It serves what it served before." in caught.value.message
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert list(server.workspace.models["main.ml.notebooked_live"]["versions"]) == ["1"]
    # What failed does not stand in the way of what comes next, and its number is not given again.
    endpoint = provider.deploy(experiment, models[1], "live")
    assert endpoint.deployments[0].version == "3"
    assert provider.predict("live", ROWS) == {"predictions": [13.0]}


def test_a_version_that_fails_with_its_own_example_gets_no_traffic(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, models: list[str]
) -> None:
    provider.deploy(experiment, models[0], "live")
    code = (experiment.scripts / "inference.py").read_text()
    bad = broken(
        server, models[0], code.replace("return [(row", "return [no_such_name for _ in data] or [(row")
    )
    with pytest.raises(DeploymentError, match="fails with its own input example"):
        provider.deploy(dataclasses.replace(experiment, scripts=Path(bad)), bad, "live")
    assert entities(server, "live") == {"v1": 100}
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_a_first_deployment_that_fails_leaves_no_endpoint(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, models: list[str]
) -> None:
    bad = broken(server, models[0], "raise RuntimeError('no licence')")
    with pytest.raises(DeploymentError):
        provider.deploy(dataclasses.replace(experiment, scripts=Path(bad)), bad, "live")
    assert provider.list_endpoints() == []
    with pytest.raises(EndpointNotFoundError):
        provider.predict("live", ROWS)


@pytest.mark.parametrize(
    "operation", ["create_endpoint", "update_config", "create_version", "finalize_version"]
)
def test_a_lost_reply_does_nothing_twice(
    server: DatabricksServer,
    provider: DatabricksProvider,
    experiment: Experiment,
    models: list[str],
    operation: str,
) -> None:
    if operation == "update_config":
        provider.deploy(experiment, models[1], "live")
    server.workspace.fail(operation, "lost")
    endpoint = provider.deploy(experiment, models[0], "live")
    assert endpoint.status is EndpointStatus.HEALTHY
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    versions = server.workspace.models["main.ml.notebooked_live"]["versions"]
    assert len(versions) == (2 if operation == "update_config" else 1)


def test_two_deployments_at_once_are_one_and_a_conflict(
    server: DatabricksServer,
    provider: DatabricksProvider,
    experiment: Experiment,
    models: list[str],
    tmp_path: Path,
) -> None:
    provider.deploy(experiment, models[0], "live")
    server.workspace.pace = 0.5
    results = deployed_at_once(
        lambda number: databricks_provider(tmp_path / f"machine-{number}"), experiment, models[1]
    )
    conflicts = [item for item in results if isinstance(item, DeploymentConflictError)]
    assert (len(results), len(conflicts)) == (2, 1)
    assert provider.predict("live", ROWS) == {"predictions": [13.0]}
    assert sum(entities(server, "live").values()) == 100


def test_a_process_killed_between_traffic_and_roles_leaves_both_as_they_were_to_be(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, models: list[str]
) -> None:
    provider.deploy(experiment, models[0], "live")
    provider.deploy(experiment, models[1], "live")
    live = server.workspace.endpoints["live"]
    # As it is when nobody came to write down that the traffic has moved.
    live.tags["notebooked_roles"] = "champion=1"
    live.tags["notebooked_next"] = "champion=2/previous=1@2=100"
    roles = {item.role: item.version for item in provider.endpoint("live").deployments}
    assert roles == {"champion": "2", "previous": "1"}
    provider.rollback("live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert "notebooked_next" not in live.tags


def test_traffic_moves_in_steps_and_comes_back(
    server: DatabricksServer,
    provider: DatabricksProvider,
    experiment: Experiment,
    models: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"endpoint": {"canary": [10, 50], "bake": 0, "keep_warm": True}}
    changed = dataclasses.replace(experiment, options=options)
    provider.deploy(changed, models[0], "live")
    endpoint = provider.deploy(changed, models[1], "live")
    # With `keep_warm` the version before runs on without traffic.
    assert entities(server, "live") == {"v1": 0, "v2": 100}
    assert {item.role: item.weight for item in endpoint.deployments} == {"champion": 100, "previous": 0}
    assert server.workspace.calls.count("update_config") == 4

    def fails(*_: object) -> None:
        # The outage that made it fail is not over when the traffic is to go back.
        server.workspace.fail("update_config", "error", times=5)
        raise DeploymentError("It has stopped answering.")

    monkeypatch.setattr(provider._hosting, "_watch", fails)
    with pytest.raises(DeploymentError, match="stopped answering"):
        provider.deploy(changed, models[0], "live")
    assert entities(server, "live") == {"v2": 100}


def test_what_somebody_else_made_is_left_alone(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, models: list[str]
) -> None:
    provider.deploy(experiment, models[0], "live")
    server.workspace.endpoints["live"].tags.clear()
    assert provider.list_endpoints() == []
    with pytest.raises(EndpointNotFoundError):
        provider.delete_endpoint("live")
    with pytest.raises(DeploymentConflictError):
        provider.deploy(experiment, models[1], "live")
    assert server.workspace.endpoints["live"].config is not None


@pytest.mark.parametrize("cut", ["", "delete_model"])
def test_what_is_deleted_and_what_stays_also_when_it_was_cut_off(
    server: DatabricksServer,
    provider: DatabricksProvider,
    experiment: Experiment,
    models: list[str],
    cut: str,
) -> None:
    endpoint = provider.deploy(experiment, models[0], "live", labels={"model_version": "7"})
    assert provider.input_example(endpoint) == {"dataframe_records": [{"x": 1.0}]}
    assert any("Building v1" in line for line in provider.endpoint_logs("live"))
    if cut:
        server.workspace.fail(cut, "denied")
        with pytest.raises(ProviderError):
            provider.delete_endpoint("live")
        assert provider.list_endpoints() == []
    left = provider.delete_endpoint("live")
    assert left == [f"The model {models[0]} is kept."]
    assert server.workspace.models == {}
    assert not (volume(server) / "endpoints" / "live").exists()


def test_what_is_registered_is_a_model_of_mlflows(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment, models: list[str]
) -> None:
    provider.deploy(experiment, models[0], "live")
    import mlflow.pyfunc
    from google.protobuf import json_format
    from mlflow.protos import databricks_uc_registry_messages_pb2 as messages

    for kind, document in server.workspace.registered:
        name = kind if kind.endswith("Response") else f"{kind}Request"
        json_format.ParseDict(document, getattr(messages, name)())
    folder = server.workspace.files_of("main.ml.notebooked_live", "1")
    before = list(sys.path)
    try:
        model = mlflow.pyfunc.load_model(str(folder))
        import pandas

        assert model.predict(pandas.DataFrame({"x": [1.0]})) == [3.0]
        with pytest.raises(mlflow.exceptions.MlflowException):
            model.predict(pandas.DataFrame({"y": [1.0]}))
    finally:
        sys.path[:] = before
        for name in ("inference", "notebooked_pyfunc"):
            sys.modules.pop(name, None)


def test_a_model_of_an_array_says_so_as_mlflow_does(experiment: Experiment, tmp_path: Path) -> None:
    from mlflow.types import Schema

    signature = {"inputs": {"tensor": {"shape": [-1, 4], "dtype": "float64"}}, "outputs": [{"type": "long"}]}
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "model.json").write_text(json.dumps({"signature": signature}))
    write_model(experiment, tmp_path / "trained", tmp_path / "packed")
    written = json.loads((tmp_path / "packed" / "MLmodel").read_text())["signature"]
    assert Schema.from_json(written["inputs"]).numpy_types() == ["float64"]
    assert Schema.from_json(written["outputs"]).to_dict() == [{"type": "long", "required": True}]
