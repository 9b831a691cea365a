"""``plan`` tells what would happen, and changes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.azure import AzureProvider
from notebooked_dagster.providers.azure.policy import CALLER_ACTIONS, SCALING_ACTIONS, denied
from notebooked_dagster.providers.base import Experiment, Plan
from tests.clouds.azure import CONTAINER, WORKSPACE, AzureServer
from tests.clouds.azure_kit import azure_provider, azure_server
from tests.contract.scripts import write_scripts

READ_ONLY = {
    "Compute_Get",
    "Datastores_Get",
    "EnvironmentVersions_Get",
    "OnlineEndpoints_Get",
    "Permissions_ListForResource",
    "Usages_List",
    "VirtualMachineSizes_List",
    "Workspaces_Get",
}
# What each operation takes, by Azure's list of resource provider operations.
ACTIONS = {
    "Compute_Get": "workspaces/computes/read",
    "AutoscaleSettings_CreateOrUpdate": "autoscaleSettings/write",
    "AutoscaleSettings_Delete": "autoscaleSettings/delete",
    "CodeVersions_CreateOrUpdate": "workspaces/codes/versions/write",
    "Containers_Delete": "workspaces/models/delete workspaces/codes/delete",
    "Datastores_Get": "workspaces/datastores/read",
    "Discovery": "",
    "EnvironmentVersions_CreateOrUpdate": "workspaces/environments/write workspaces/environments/build/action",
    "EnvironmentVersions_Get": "workspaces/environments/read",
    "Jobs_Cancel": "workspaces/jobs/cancel/action",
    "Jobs_CreateOrUpdate": "workspaces/jobs/write workspaces/experiments/runs/write workspaces/experiments/runs/submit/action",
    "Jobs_Get": "workspaces/jobs/read",
    "Jobs_List": "workspaces/jobs/read",
    "ModelVersions_CreateOrUpdate": "workspaces/models/versions/write",
    "OnlineDeployments_CreateOrUpdate": "workspaces/onlineEndpoints/deployments/write",
    "OnlineDeployments_Delete": "workspaces/onlineEndpoints/deployments/delete",
    "OnlineDeployments_Get": "workspaces/onlineEndpoints/deployments/read",
    "OnlineDeployments_GetLogs": "workspaces/onlineEndpoints/deployments/getLogs/action",
    "OnlineDeployments_List": "workspaces/onlineEndpoints/deployments/read",
    "OnlineEndpoints_CreateOrUpdate": "workspaces/onlineEndpoints/write",
    "OnlineEndpoints_Delete": "workspaces/onlineEndpoints/delete",
    "OnlineEndpoints_Get": "workspaces/onlineEndpoints/read",
    "OnlineEndpoints_List": "workspaces/onlineEndpoints/read",
    "Operations_Get": "locations/mfeOperationsStatus/read",
    "Permissions_ListForResource": "",
    "Runs_GetDetails": "workspaces/experiments/runs/read",
    "Score": "workspaces/onlineEndpoints/score/action",
    "Usages_List": "locations/usages/read",
    "Versions_Delete": "workspaces/models/versions/delete workspaces/codes/versions/delete",
    "Versions_List": "workspaces/models/versions/read workspaces/codes/versions/read",
    "VirtualMachineSizes_List": "locations/vmsizes/read",
    "Workspaces_Get": "workspaces/read",
}


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[AzureServer]:
    with azure_server(tmp_path / "azure") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, azure: AzureServer) -> AzureProvider:
    return azure_provider(tmp_path / "state", azure)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"), timeout=3600)


def texts(plan: Plan, state: str) -> str:
    return "\n".join(item.text for item in plan.items if item.state == state)


def test_it_tells_files_environment_and_cost(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, tmp_path: Path
) -> None:
    data = tmp_path / "numbers.txt"
    data.write_text("1 2 6")
    plan = provider.plan(dataclasses.replace(experiment, data_path=str(data), instance_count=2), "live")
    assert plan.files["train.py"] > 100
    assert plan.files[f"data: {data}"] == 5
    assert plan.facts["at most (USD, at the time limit)"] == 0.59
    assert "2023" in str(plan.facts["price as of"])
    assert "mcr.microsoft.com/azureml/" in str(plan.facts["environment"])
    assert "'live' would be made" in texts(plan, "new")
    assert "environment nbd-training" in texts(plan, "new")
    for there in (WORKSPACE, CONTAINER, "caller's permissions", "8 are needed"):
        assert there in texts(plan, "exists")
    json.dumps(plan.request)


def test_it_changes_nothing(azure: AzureServer, provider: AzureProvider, experiment: Experiment) -> None:
    provider.plan(experiment, "live")
    assert set(azure.ml.calls) <= READ_ONLY
    assert azure.blobs.blobs == {}
    assert provider.list_jobs() == []


def test_what_is_missing_is_named_with_what_to_do(
    azure: AzureServer, experiment: Experiment, tmp_path: Path
) -> None:
    here = azure_provider(tmp_path / "state", azure, compute="gpu-cluster", datastore="elsewhere")
    plan = here.plan(
        dataclasses.replace(experiment, data_path="azureml://datastores/workspaceblobstore/paths/no.csv")
    )
    missing = texts(plan, "missing")
    assert "no cluster 'gpu-cluster'" in missing
    assert "no datastore 'elsewhere'" in missing
    assert "There is nothing at azureml://datastores/workspaceblobstore/paths/no.csv" in missing
    assert all(item.hint for item in plan.items if item.state == "missing")


@pytest.mark.parametrize(
    ("setting", "said"), [("workspace", "under resource group"), ("resource_group", "could not be found")]
)
def test_a_workspace_that_is_not_there_is_missing(
    azure: AzureServer, experiment: Experiment, tmp_path: Path, setting: str, said: str
) -> None:
    (item,) = azure_provider(tmp_path / "state", azure, **{setting: "elsewhere"}).plan(experiment).items
    assert item.state == "missing"
    assert said in item.text


def test_a_cluster_that_is_there_exists(azure: AzureServer, experiment: Experiment, tmp_path: Path) -> None:
    plan = azure_provider(tmp_path / "state", azure, compute="cpu-cluster").plan(experiment)
    assert "The cluster 'cpu-cluster' of STANDARD_DS3_V2" in texts(plan, "exists")
    assert plan.request["properties"]["computeId"].endswith("/computes/cpu-cluster")
    assert "instanceType" not in plan.request["properties"]["resources"]


def test_a_machine_or_a_quota_that_is_not_there_is_missing(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    plan = provider.plan(dataclasses.replace(experiment, instance_type="Standard_Abacus"))
    assert "no machine 'Standard_Abacus'" in texts(plan, "missing")
    azure.ml.quota = 2
    assert "2 cores are free, and 4 are needed" in texts(provider.plan(experiment), "missing")


def test_a_price_that_azure_tells_is_the_region_s_own(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, tmp_path: Path
) -> None:
    told = [("Windows", "Standard", 0.5), ("Linux", "Standard", 0.35), ("Linux", "LowPriority", 0.07)]
    azure.ml.prices["Standard_DS3_v2"] = {
        "billingCurrency": "USD",
        "unitOfMeasure": "OneHour",
        "values": [{"osType": system, "vmTier": tier, "retailPrice": price} for system, tier, price in told],
    }
    facts = provider.plan(experiment).facts
    assert (facts["price (USD/h)"], facts["at most (USD, at the time limit)"]) == (0.35, 0.35)
    assert "Azure" in str(facts["price as of"])
    spot = dataclasses.replace(experiment, options={"training": {"spot": True}})
    assert provider.plan(spot).facts["price (USD/h)"] == 0.07
    own = azure_provider(tmp_path / "own", azure, prices={"Standard_DS3_v2": 1.0})
    assert own.plan(experiment).facts["price as of"] == "azure.prices"


def test_permissions_that_the_caller_lacks_are_named(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    azure.ml.actions = ["*/read", "Microsoft.MachineLearningServices/workspaces/jobs/*"]
    missing = texts(provider.plan(experiment), "missing")
    assert "onlineEndpoints/write" in missing
    assert "jobs/write" not in missing


def test_blobs_that_the_caller_may_not_read_are_missing(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    azure.ml.fail("Blob_GET", "denied")
    assert "is not ours to use" in texts(provider.plan(experiment), "missing")


def test_without_credentials_nothing_else_is_asked(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    (item,) = provider.plan(experiment).items
    assert item.state == "missing"
    assert "credentials" in item.text.lower()
    assert "az login" in item.hint
    assert azure.ml.calls == []


def test_secrets_of_the_environment_are_not_shown(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    environment = {"API_TOKEN": "s3cr3t", "LEVEL": "2", "MLFLOW_TRACKING_PASSWORD": "s3cr3t"}
    plan = provider.plan(dataclasses.replace(experiment, environment=environment))
    assert plan.request["properties"]["environmentVariables"] == {
        "API_TOKEN": "***",
        "LEVEL": "2",
        "NOTEBOOKED_EXPERIMENT": "sample",
        "NOTEBOOKED_OWN_MLFLOW_TRACKING_PASSWORD": "***",
    }
    assert "s3cr3t" not in json.dumps(plan.request)


def test_the_role_names_exactly_what_the_provider_asks_for(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment, tmp_path: Path
) -> None:
    job = provider.train(experiment)
    provider.cancel(
        provider.train(dataclasses.replace(experiment, hyperparameters={"act": "hang"}), wait=False).id
    )
    provider.list_jobs()
    assert job.model_uri is not None
    scaled = dataclasses.replace(experiment, options={"endpoint": {"autoscaling": {"max": 2}}})
    for _ in range(3):
        provider.deploy(scaled, job.model_uri, "live")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "inference.py").write_text("raise OSError('no weights')\n")
    with pytest.raises(Exception, match="no weights"):
        provider.deploy(experiment, str(broken), "live")
    provider.predict("live", {"dataframe_records": [{"x": 1.0}]})
    provider.list_endpoints()
    provider.plan(experiment, "live")
    azure_provider(tmp_path / "other", azure, compute="cpu-cluster").plan(experiment)
    provider.delete_endpoint("live")
    needed = {
        f"Microsoft.{'Insights' if call.startswith('Autoscale') else 'MachineLearningServices'}/{name}"
        for call in set(azure.ml.calls)
        for name in ACTIONS[call].split()
    }
    allowed = {*CALLER_ACTIONS, *SCALING_ACTIONS}
    assert needed | {"Microsoft.Authorization/permissions/read"} == allowed


def test_autoscaling_is_told_with_what_it_takes(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    assert "Microsoft.Insights" not in json.dumps(provider.plan(experiment).policies)
    azure.ml.actions = list(CALLER_ACTIONS)
    scaled = dataclasses.replace(experiment, options={"endpoint": {"autoscaling": {"max": 3}}})
    plan = provider.plan(scaled, "live")
    assert "1 to 3 x Standard_DS3_v2, by its CPU (70 %)" in texts(plan, "new")
    assert "may not: Microsoft.Insights/autoscaleSettings/write" in texts(plan, "missing")
    assert set(SCALING_ACTIONS) <= set(plan.policies["caller"]["Actions"])


def test_the_roles_are_of_one_resource_group(
    azure: AzureServer, provider: AzureProvider, experiment: Experiment
) -> None:
    policies = provider.plan(experiment).policies
    for role in policies.values():
        assert role["AssignableScopes"] == [provider.session.scope]
        assert not any(action.endswith("/*") or action == "*" for action in role["Actions"])
    assert not any("listKeys" in action for action in policies["caller"]["Actions"])
    keyed = dataclasses.replace(experiment, options={"endpoint": {"auth": "key"}})
    assert any("listKeys" in action for action in provider.plan(keyed).policies["caller"]["Actions"])


def test_what_a_role_takes_away_is_denied() -> None:
    roles = [{"actions": ["*"], "notActions": ["*/write"], "dataActions": [], "notDataActions": []}]
    assert denied(roles, ["A/b/read", "A/b/write"], ["A/c/read"]) == ["A/b/write", "A/c/read"]
