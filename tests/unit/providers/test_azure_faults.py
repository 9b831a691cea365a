"""What goes wrong in Azure, and that nothing is lost, doubled or left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    DeploymentConflictError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    ProviderError,
    QuotaError,
    TrainingFailedError,
)
from notebooked_dagster.providers.azure import AzureProvider, session
from notebooked_dagster.providers.azure.serving import azure_name
from notebooked_dagster.providers.base import EndpointStatus, Experiment, JobStatus
from tests.clouds.azure import CONTAINER, GROUP, LOGS, WORKSPACE, WORKSPACE_ID, AzureServer
from tests.clouds.azure_kit import azure_provider, azure_server
from tests.contract.scripts import write_scripts
from tests.unit.providers.faults import Kit, StopFaults, acting, deployed_at_once, until

ROWS = {"dataframe_records": [{"x": 1.0}]}
LIVE = azure_name(WORKSPACE_ID, "live")


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[AzureServer]:
    with azure_server(tmp_path / "azure") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, azure: AzureServer) -> AzureProvider:
    return azure_provider(tmp_path / "state", azure)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"), idempotency_token="run-1")


@pytest.fixture
def kit(azure: AzureServer, monkeypatch: pytest.MonkeyPatch) -> Kit:
    # What is short for the SDK is long for a test.
    monkeypatch.setattr(session, "_RETRIES", 0)

    def put(path: str, content: bytes | None) -> None:
        if content is not None:
            azure.blobs.put(CONTAINER, path, content)
            return
        for name in azure.blobs.below(CONTAINER, path):
            del azure.blobs.blobs[CONTAINER, name]

    return Kit(
        machine=lambda state, **more: azure_provider(state, azure, **more),
        emulator=azure.ml,
        jobs=lambda: list(azure.ml.jobs),
        ended=lambda job: azure.ml.jobs[job].status in ("Completed", "Canceled"),
        put=put,
        submit="Jobs_CreateOrUpdate",
        refusals={"quota": "Quotas in the portal", "denied": "jobs/write", "expired": "az login"},
        listing=frozenset({"Jobs_List"}),
        model="model",
        facts="model/model.json",
        output="output",
        stop=lambda job: azure.ml.jobs_cancel(None, {}, job),
        no_model="saved no model",
    )


class TestJobs(StopFaults):
    """The faults of every cloud."""


# Submitting


def test_a_process_killed_after_submitting_leaves_one_job_which_the_next_finds(
    azure: AzureServer, experiment: Experiment, tmp_path: Path
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.registry import get_provider
provider = get_provider("azure", state_dir={str(tmp_path / "state")!r}, resource_group={GROUP!r}, workspace={WORKSPACE!r}, endpoint_url={azure.url!r}, poll=0.05)
submit = provider._submit
provider._submit = lambda *given: (submit(*given), os.kill(os.getpid(), signal.SIGKILL))
provider.train(Experiment("sample", Path({str(experiment.scripts)!r}), idempotency_token="run-1"))
"""
    died = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    job = azure_provider(tmp_path / "state", azure).train(experiment)
    assert job.status is JobStatus.SUCCEEDED
    assert list(azure.ml.jobs) == [job.id]


def test_a_lost_reply_to_the_submission_is_no_second_job(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    azure.ml.fail("Jobs_CreateOrUpdate", "lost", times=2)
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert len(azure.ml.jobs) == 1


def test_a_job_that_is_there_with_other_contents_is_taken_for_ours(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two machines with one token at the same moment: both saw no job of the name.
    looks = iter([None])
    look = provider._look
    monkeypatch.setattr(
        provider, "_look", lambda job_id: next(looks) if looks.__length_hint__() else look(job_id)
    )
    other = azure_provider(provider.state.parent / "other", azure)
    first = other.train(acting(experiment, "slow"), wait=False)
    assert provider.train(experiment).id == first.id
    assert azure.ml.calls.count("Jobs_CreateOrUpdate") == 2
    assert len(azure.ml.jobs) == 1


def test_throttling_and_faults_of_the_service_are_waited_out(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    azure.ml.fail("Jobs_Get", "throttle", times=3)
    azure.ml.fail("Jobs_CreateOrUpdate", "error", times=2)
    azure.ml.fail("Runs_GetDetails", "error", times=2)
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert len(azure.ml.jobs) == 1


def test_blobs_that_may_not_be_written_are_told_as_that(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    azure.ml.fail("Blob_PUT", "denied")
    with pytest.raises(CredentialsError, match="cannot be written"):
        provider.train(experiment)
    assert provider.list_jobs() == []


@pytest.mark.parametrize(
    ("machine", "said"), [("Standard_Abacus", "Standard_Abacus"), ("ml.m5.large", "no machine of Azure")]
)
def test_a_machine_that_the_region_does_not_have_is_a_configuration_error(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, machine: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        provider.train(dataclasses.replace(experiment, instance_type=machine))
    assert caught.value.key == "instance_type"
    assert provider.list_jobs() == []


def test_no_machine_free_is_said_to_be_that(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    azure.ml.no_capacity.add("Standard_DS3_v2")
    with pytest.raises(QuotaError, match="not enough capacity"):
        provider.train(experiment)


def test_data_that_is_not_there_is_a_data_error(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    data = "azureml://datastores/workspaceblobstore/paths/nothing/here.csv"
    with pytest.raises(DataError, match="not found"):
        provider.train(dataclasses.replace(experiment, data_path=data))
    with pytest.raises(DataError, match="s3://"):
        provider.train(dataclasses.replace(experiment, data_path="s3://bucket/x.csv", idempotency_token="b"))


def test_the_same_data_is_sent_once_and_a_folder_arrives_as_one(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, tmp_path: Path
) -> None:
    data = tmp_path / "numbers.txt"
    data.write_text("1 2 6")
    for token in ("a", "b"):
        job = provider.train(dataclasses.replace(experiment, data_path=str(data), idempotency_token=token))
        assert job.metrics == {"mean": 3.0, "count": 3.0}
    sent = [name for name in azure.blobs.below(CONTAINER, "notebooked/data") if name.endswith("numbers.txt")]
    assert len(sent) == 1
    request = azure.ml.jobs[job.id].body["properties"]["inputs"]["data"]
    assert (request["jobInputType"], request["mode"]) == ("uri_file", "ReadOnlyMount")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("1")
    # The script reads one file; that it was given the folder is what counts.
    with pytest.raises(TrainingFailedError, match="directory"):
        provider.train(dataclasses.replace(experiment, data_path=str(folder), idempotency_token="c"))
    (asked,) = [job.body["properties"]["inputs"]["data"] for name, job in azure.ml.jobs.items() if job.body["properties"]["inputs"]["data"]["jobInputType"] == "uri_folder"]  # fmt: skip
    assert asked["uri"].endswith("/files")


# Waiting


def test_a_hundred_waiting_jobs_are_a_call_a_page(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    for number in range(12):
        provider.train(
            dataclasses.replace(experiment, hyperparameters={"act": "hang"}, idempotency_token=str(number)),
            wait=False,
        )
    until(lambda: all(job.status == "Running" for job in azure.ml.jobs.values()))
    provider.list_jobs()
    azure.ml.calls.clear()
    assert len(provider.list_jobs()) == 12
    assert azure.ml.calls == ["Jobs_List", "Jobs_List"]


def test_what_a_job_cost_is_told(azure: AzureServer, provider: AzureProvider, experiment: Experiment) -> None:
    facts = provider.train(experiment).facts
    assert facts["instance"] == "1 x Standard_DS3_v2"
    assert facts["ran (s)"] >= 1
    assert facts["cost (USD, estimated)"] == pytest.approx(0.293 * facts["ran (s)"] / 3600, abs=1e-4)
    assert str(facts["console"]).startswith("https://ml.azure.com/")


# What is sent


def test_what_is_sent_holds_no_credentials_and_keeps_the_platform_s_mlflow_out(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    tracked = {"MLFLOW_TRACKING_URI": "https://mlflow.example", "LEVEL": "it's"}
    wanted = dataclasses.replace(experiment, hyperparameters={"act": "environment"}, environment=tracked)
    job = provider.train(wanted)
    request = json.dumps(azure.ml.jobs[job.id].body)
    assert not any(token in request for token in azure.tokens)
    assert "mlflow.example" not in azure.ml.jobs[job.id].body["properties"]["command"]
    printed = next(line for line in provider.logs(job.id) if line.startswith("{"))
    seen = json.loads(printed)
    assert (seen["MLFLOW_TRACKING_URI"], seen["LEVEL"]) == ("https://mlflow.example", "it's")
    assert not {"MLFLOW_TRACKING_TOKEN", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"} & set(seen)


def test_options_reach_the_request(azure: AzureServer, experiment: Experiment, tmp_path: Path) -> None:
    identity = f"/subscriptions/{'0' * 8}-0000-0000-0000-{'0' * 12}/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/jobs"
    provider = azure_provider(tmp_path / "state", azure, identity=identity)
    training = {"spot": True, "max_runtime": 3600, "input_mode": "download", "output_mode": "mount", "shared_memory": "8g", "tags": {"team": "ml & co"}}  # fmt: skip
    job = provider.train(dataclasses.replace(experiment, options={"training": training}, instance_count=2))
    request = azure.ml.jobs[job.id].body["properties"]
    assert request["queueSettings"] == {"jobTier": "Spot"}
    assert request["limits"]["timeout"] == "PT3600S"
    assert request["resources"] == {"instanceCount": 2, "instanceType": "Standard_DS3_v2", "shmSize": "8g"}
    assert request["distribution"] == {"distributionType": "PyTorch", "processCountPerInstance": 1}
    assert request["identity"] == {"identityType": "Managed", "resourceId": identity}
    assert request["outputs"]["model"]["mode"] == "ReadWriteMount"
    assert request["tags"] == {"notebooked": "sample", "team": "ml & co"}
    assert "cost (USD, at most)" in job.facts


def test_an_image_of_the_user_s_is_used_as_it_is(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    own = dataclasses.replace(experiment, options={"training": {"image": "mine.azurecr.io/train:1"}})
    job = provider.train(own)
    name, version = azure.ml.jobs[job.id].body["properties"]["environmentId"].split("/")[-3::2]
    assert azure.ml.environments[name, version]["properties"] == {
        "image": "mine.azurecr.io/train:1",
        "osType": "Linux",
    }
    given = {"training": {"environment": "azureml://registries/azureml/environments/sklearn-1.5/versions/20"}}
    request = provider.plan(dataclasses.replace(experiment, options=given)).request
    assert request["properties"]["environmentId"] == given["training"]["environment"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"trainin": {}}, "options.trainin"),
        ({"training": {"spott": True}}, "options.training.spott"),
        ({"training": {"spot": True, "compute": "cpu-cluster"}}, "options.training"),
        ({"endpoint": {"environment": "sklearn"}}, "options.endpoint.environment"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, options: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        provider.train(dataclasses.replace(experiment, options=options))
    assert caught.value.key == key
    assert azure.ml.calls == []


def test_a_cluster_has_machines_of_its_own(
    azure: AzureServer, experiment: Experiment, tmp_path: Path
) -> None:
    provider = azure_provider(tmp_path / "state", azure, compute="cpu-cluster")
    with pytest.raises(ConfigError, match="machines of its own"):
        provider.train(dataclasses.replace(experiment, instance_type="Standard_D4s_v3"))
    serverless = {"training": {"compute": None}}
    request = provider.plan(
        dataclasses.replace(experiment, instance_type="Standard_D4s_v3", options=serverless)
    ).request
    assert request["properties"]["resources"]["instanceType"] == "Standard_D4s_v3"


@pytest.mark.parametrize("missing", ["resource_group", "workspace"])
def test_what_is_not_configured_is_named(
    azure: AzureServer, experiment: Experiment, tmp_path: Path, missing: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        azure_provider(tmp_path / "state", azure, **{missing: None}).train(experiment)
    assert caught.value.key == f"azure.{missing}"


def test_without_credentials_it_says_where_they_come_from(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(CredentialsError, match="az login"):
        provider.train(experiment)


# Endpoints


@pytest.fixture
def served(provider: AzureProvider, experiment: Experiment) -> str:
    """The model that the endpoint ``live`` serves."""
    uri = provider.train(experiment).model_uri
    assert uri is not None
    provider.deploy(experiment, uri, "live")
    return uri


def broken(folder: Path, text: str = "raise OSError('no weights')\n") -> str:
    folder.mkdir()
    (folder / "inference.py").write_text(text)
    (folder / "model.json").write_text(json.dumps({"input_example": ROWS}))
    return str(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def model_fn(folder):\n    raise OSError('no weights')\n", "no weights"),
        (
            "def model_fn(folder):\n    return 1\n"
            "def input_fn(body, kind):\n    return body\n"
            "def predict_fn(data, model):\n    raise KeyError('no such column')\n"
            "def output_fn(prediction, accept):\n    return prediction\n",
            "no such column",
        ),
    ],
)
def test_a_model_that_does_not_load_or_answer_never_gets_traffic_and_leaves_nothing(
    azure: AzureServer,
    provider: AzureProvider,
    experiment: Experiment,
    served: str,
    tmp_path: Path,
    text: str,
    said: str,
) -> None:
    before = (set(azure.ml.assets), set(azure.blobs.blobs))
    with pytest.raises(DeploymentError, match=said):
        provider.deploy(experiment, broken(tmp_path / "broken", text), "live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert list(azure.ml.endpoints[LIVE].deployments) == ["version-1"]
    # Its number stays taken.
    taken = (CONTAINER, f"notebooked/endpoints/{LIVE}/v2/reserved")
    assert (set(azure.ml.assets), set(azure.blobs.blobs) - {taken}) == before
    assert provider.deploy(experiment, served, "live").deployments[0].version == "3"
    assert provider.endpoint("live").status is EndpointStatus.HEALTHY


def test_a_first_deployment_that_fails_leaves_no_endpoint(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(DeploymentError, match="no weights"):
        provider.deploy(experiment, broken(tmp_path / "broken"), "first")
    assert provider.list_endpoints() == []
    assert azure.ml.endpoints == azure.ml.assets == {}
    assert azure.blobs.below(CONTAINER, "notebooked") == {}


def test_of_two_deployments_at_once_one_is_told_to_wait(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    outcomes = deployed_at_once(
        lambda number: azure_provider(tmp_path / f"state-{number}", azure), experiment, served
    )
    kinds = sorted(type(item).__name__ for item in outcomes)
    # Either one was told to wait, or they were far enough apart to follow each other.
    assert kinds in (["DeploymentConflictError", "Endpoint"], ["Endpoint", "Endpoint"])
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    roles = {f"version-{item.version}" for item in provider.endpoint("live").deployments}
    assert set(azure.ml.endpoints[LIVE].deployments) == roles


def test_who_deploys_is_alone_until_a_minute_after_it_died(
    azure: AzureServer,
    provider: AzureProvider,
    experiment: Experiment,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = provider.storage.uri("locks", LIVE)
    with (
        provider.storage.lock(lock, "taken"),
        pytest.raises(DeploymentConflictError, match="another deployment is under way"),
    ):
        provider.deploy(experiment, served, "live")
    # A process that died holds it on; then nobody does.
    name = f"notebooked/locks/{LIVE}"
    azure.blobs.put(CONTAINER, name, b"")
    blob = azure.blobs.blobs[CONTAINER, name]
    blob.lease, blob.until = "somebody", time.time() + 60
    with pytest.raises(DeploymentConflictError):
        provider.deploy(experiment, served, "live")
    blob.until = time.time() - 1
    assert provider.deploy(experiment, served, "live").deployments[0].version == "2"
    assert (CONTAINER, name) not in azure.blobs.blobs

    def taken_over(*_: object) -> None:
        azure.blobs.blobs[CONTAINER, name].lease = "somebody"

    # Who was cut off for longer than that moves no traffic.
    monkeypatch.setattr(provider._hosting, "_try", taken_over)
    with pytest.raises(DeploymentConflictError, match="another deployment is under way"):
        provider.deploy(experiment, served, "live")
    champion = provider.endpoint("live").deployments[0]
    assert (champion.version, champion.weight) == ("2", 100)


@pytest.mark.parametrize("name", ["first", "live"])
def test_a_deployment_whose_process_died_is_cleared_away_by_the_next(
    azure: AzureServer,
    provider: AzureProvider,
    experiment: Experiment,
    served: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(provider._hosting, "_try", die)
        broken.setattr(provider._hosting, "_withdraw", lambda *given: None)
        with pytest.raises(KeyboardInterrupt):
            provider.deploy(experiment, served, name)
    half = provider.endpoint(name)
    assert half.status is (EndpointStatus.HEALTHY if name == "live" else EndpointStatus.CREATING)
    provider.deploy(experiment, served, name)
    assert provider.predict(name, ROWS) == {"predictions": [3.0]}
    live = azure.ml.endpoints[azure_name(WORKSPACE_ID, name)].deployments
    assert set(live) == {f"version-{item.version}" for item in provider.endpoint(name).deployments}


def test_what_azure_is_busy_with_is_a_conflict(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str
) -> None:
    azure.ml.fail("OnlineDeployments_CreateOrUpdate", "conflict")
    with pytest.raises(DeploymentConflictError, match="already in progress"):
        provider.deploy(experiment, served, "live")
    azure.ml.endpoints[LIVE].state = "Updating"
    with pytest.raises(DeploymentConflictError, match="Updating"):
        provider.deploy(experiment, served, "live")
    azure.ml.endpoints[LIVE].state = "Succeeded"
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_a_deployment_waits_out_a_network_that_is_away(
    azure: AzureServer, experiment: Experiment, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_RETRIES", 0)
    here = azure_provider(tmp_path / "another", azure)
    azure.ml.fail("OnlineDeployments_Get", "drop", times=3)
    assert here.deploy(experiment, served, "live").deployments[0].version == "2"


@pytest.mark.parametrize("cut", ["", "Versions_Delete"])
def test_deleting_removes_all_that_was_made_and_names_what_stays_also_when_it_was_cut_off(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str, cut: str
) -> None:
    provider.deploy(experiment, served, "live-two")
    if cut:
        azure.ml.fail(cut, "denied")
        with pytest.raises(CredentialsError):
            provider.delete_endpoint("live")
        with pytest.raises(EndpointNotFoundError):
            provider.endpoint("live")
    left = provider.delete_endpoint("live")
    two = azure_name(WORKSPACE_ID, "live-two")
    assert any(served in sentence for sentence in left)
    assert any("nbd-inference" in sentence for sentence in left)
    assert list(azure.ml.endpoints) == [two]
    assert {name for _, name, _ in azure.ml.assets} == {two}
    assert all(
        name.startswith(f"notebooked/endpoints/{two}/")
        for name in azure.blobs.below(CONTAINER, "notebooked/endpoints")
    )
    assert azure.blobs.below(CONTAINER, "notebooked/locks") == {}
    assert provider.predict("live-two", ROWS) == {"predictions": [3.0]}


def test_what_two_deployments_leave_is_one_version_for_a_rollback(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str
) -> None:
    for _ in range(2):
        provider.deploy(experiment, served, "live")
    assert sorted(azure.ml.endpoints[LIVE].deployments) == ["version-2", "version-3"]
    assert {version for _, _, version in azure.ml.assets} == {"2", "3"}
    alone = dataclasses.replace(experiment, options={"endpoint": {"standby": False}})
    provider.deploy(alone, served, "live")
    assert sorted(azure.ml.endpoints[LIVE].deployments) == ["version-4"]
    with pytest.raises(DeploymentError, match="no previous version"):
        provider.rollback("live")


def test_a_version_scales_from_its_first_day_to_its_last(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str
) -> None:
    scaling = {"min": 2, "max": 5, "cpu_target": 60}
    scaled = dataclasses.replace(experiment, options={"endpoint": {"autoscaling": scaling, "standby": False}})
    for version in ("2", "3"):
        provider.deploy(scaled, served, "live")
        # The setting of the version before went with it.
        ((name, setting),) = azure.ml.settings.items()
        assert name == f"{LIVE}-version-{version}"
        (profile,) = setting["properties"]["profiles"]
        assert profile["capacity"] == {"minimum": "2", "maximum": "5", "default": "2"}
        assert [rule["metricTrigger"]["threshold"] for rule in profile["rules"]] == [60, 30]
        deployment = azure.ml.endpoints[LIVE].deployments[f"version-{version}"]
        assert deployment.body["sku"]["capacity"] == 2
        assert setting["properties"]["targetResourceUri"].endswith(f"/{LIVE}/deployments/version-{version}")
    provider.delete_endpoint("live")
    assert azure.ml.settings == {}


def test_a_version_that_may_not_scale_does_not_serve(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str
) -> None:
    scaled = dataclasses.replace(experiment, options={"endpoint": {"autoscaling": {"max": 2}}})
    azure.ml.fail("AutoscaleSettings_CreateOrUpdate", "denied")
    azure.ml.fail("AutoscaleSettings_Delete", "denied")
    with pytest.raises(CredentialsError, match="Autoscaling"):
        provider.deploy(scaled, served, "live")
    assert list(azure.ml.endpoints[LIVE].deployments) == ["version-1"]
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_traffic_moves_in_the_steps_of_the_options(
    azure: AzureServer,
    provider: AzureProvider,
    experiment: Experiment,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, int]] = []
    change = azure.ml.onlineendpoints_createorupdate

    def watched(body: Any, query: dict[str, str], name: str) -> Any:
        seen.append(dict(body["properties"]["traffic"]))
        return change(body, query, name)

    monkeypatch.setattr(azure.ml, "onlineendpoints_createorupdate", watched)
    endpoint = {"strategy": "linear", "canary_percent": 40, "bake": 0}
    provider.deploy(dataclasses.replace(experiment, options={"endpoint": endpoint}), served, "live")
    assert seen == [
        {"version-1": 60, "version-2": 40},
        {"version-1": 20, "version-2": 80},
        {"version-2": 100},
    ]


def test_a_canary_that_stops_answering_gives_the_traffic_back(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str
) -> None:
    def stop() -> None:
        until(lambda: bool((azure.ml.endpoints[LIVE].body["properties"]["traffic"]).get("version-2")))
        azure.ml.fail("Score", "error", times=50)

    threading.Thread(target=stop, daemon=True).start()
    endpoint = {"strategy": "canary", "canary_percent": 10, "bake": 60}
    with pytest.raises(DeploymentError, match="500"):
        provider.deploy(dataclasses.replace(experiment, options={"endpoint": endpoint}), served, "live")
    azure.ml.faults.clear()
    assert azure.ml.endpoints[LIVE].body["properties"]["traffic"] == {"version-1": 100}
    assert list(azure.ml.endpoints[LIVE].deployments) == ["version-1"]
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_an_endpoint_with_a_key_is_asked_with_it(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str
) -> None:
    keyed = dataclasses.replace(experiment, options={"endpoint": {"auth": "key"}})
    provider.deploy(keyed, served, "keyed")
    assert provider.predict("keyed", ROWS) == {"predictions": [3.0]}
    assert "OnlineEndpoints_ListKeys" in azure.ml.calls
    azure.ml.generation = "rotated-"
    assert provider.predict("keyed", ROWS) == {"predictions": [3.0]}


def test_input_that_only_the_container_can_judge_is_the_caller_s_error_too(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, tmp_path: Path
) -> None:
    text = "def model_fn(folder):\n    return 1\ndef input_fn(body, kind):\n    raise ValueError('not so')\n"
    folder = broken(tmp_path / "picky", text)
    (Path(folder) / "model.json").write_text("{}")
    provider.deploy(experiment, folder, "picky")
    with pytest.raises(InvalidInputError, match="not so") as caught:
        provider.predict("picky", ROWS)
    assert caught.value.details["status"] == 400


def test_an_endpoint_that_may_not_be_asked_or_is_busy_says_so(
    azure: AzureServer, provider: AzureProvider, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    azure.ml.fail("Score", "denied")
    with pytest.raises(CredentialsError, match="does not let us ask"):
        provider.predict("live", ROWS)
    monkeypatch.setattr(session, "_RETRIES", 0)
    provider.session._pipelines.clear()
    azure.ml.fail("Score", "throttle")
    with pytest.raises(ProviderError, match="busy"):
        provider.predict("live", ROWS)


def test_an_endpoint_of_somebody_else_is_not_ours(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, served: str
) -> None:
    body = {
        "location": "westeurope",
        "identity": {"type": "SystemAssigned"},
        "properties": {"authMode": "Key", "traffic": {}},
    }
    azure.ml.onlineendpoints_createorupdate(body, {}, azure_name(WORKSPACE_ID, "theirs"))
    assert [endpoint.name for endpoint in provider.list_endpoints()] == ["live"]
    with pytest.raises(DeploymentError, match="not of this project"):
        provider.deploy(experiment, served, "theirs")
    with pytest.raises(EndpointNotFoundError):
        provider.delete_endpoint("theirs")
    assert azure_name(WORKSPACE_ID, "theirs") in azure.ml.endpoints


def test_names_at_azure_are_the_only_ones_of_the_region() -> None:
    other = WORKSPACE_ID.replace(WORKSPACE, "another")
    names = {azure_name(WORKSPACE_ID, "live"), azure_name(other, "live"), azure_name(WORKSPACE_ID, "l" * 50)}
    assert len(names) == 3
    assert all(len(name) <= 32 for name in names)


def test_the_log_of_a_running_job_is_read_from_where_it_was_left(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    job = provider.train(acting(experiment, "slow"), wait=False)
    until(lambda: azure.ml.jobs[job.id].status == "Running")
    lines, cursor = provider._lines(job.id, None)
    path = f"ExperimentRun/dcid.{job.id}/user_logs/std_log.txt"
    until(lambda: len(azure.blobs.below(LOGS, path).get(path, b"").splitlines()) > len(lines) + 2)
    more, _ = provider._lines(job.id, cursor)
    assert more
    whole, _ = provider._lines(job.id, None)
    assert whole[: len(lines) + len(more)] == [*lines, *more]


def test_the_logs_of_several_machines_are_told_apart(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    job = provider.train(experiment)
    folder = f"ExperimentRun/dcid.{job.id}/user_logs"
    del azure.blobs.blobs[LOGS, f"{folder}/std_log.txt"]
    for number in (10, 2, 0):
        azure.blobs.put(LOGS, f"{folder}/std_log_process_{number}.txt", f"hello from {number}\nhalf".encode())
    lines, cursor = provider._lines(job.id, None)
    assert lines == ["hello from 0", "[2] hello from 2", "[10] hello from 10"]
    # What has no end is a line when nothing followed it.
    assert provider._lines(job.id, cursor)[0] == ["half", "[2] half", "[10] half"]
