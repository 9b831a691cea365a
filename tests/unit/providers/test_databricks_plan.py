"""`plan` says what would be submitted and what is missing, and changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.errors import ConfigError, DataError
from notebooked_dagster.providers.base import Experiment, Plan
from notebooked_dagster.providers.databricks import DatabricksProvider
from tests.clouds.databricks import DatabricksServer
from tests.clouds.databricks_kit import databricks_provider, databricks_server
from tests.contract.scripts import write_scripts

DATA = "dbfs:///Volumes/main/ml/files/raw/data.csv"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DatabricksServer]:
    with databricks_server(tmp_path / "databricks") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, server: DatabricksServer) -> DatabricksProvider:
    return databricks_provider(tmp_path / "state", prices={"i3.xlarge": 0.5})


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"))


def texts(plan: Plan, state: str) -> str:
    return "\n".join(item.text for item in plan.items if item.state == state)


def test_all_is_there(provider: DatabricksProvider, experiment: Experiment) -> None:
    plan = provider.plan(experiment, "live")
    assert texts(plan, "missing") == texts(plan, "unknown") == ""
    assert "The credentials are those of ci@example.com." in texts(plan, "exists")
    assert "The endpoint 'live' would be made." in texts(plan, "new")
    assert {"train.py", "notebooked_launch.py"} <= set(plan.files)
    assert plan.facts["price (USD/h)"] == 0.5
    assert plan.facts["at most (USD, at the time limit)"] == 12.0
    (task,) = plan.request["tasks"]
    assert task["new_cluster"]["node_type_id"] == "i3.xlarge"
    assert len(plan.request["idempotency_token"]) <= 64


def test_it_changes_nothing(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment
) -> None:
    provider.plan(dataclasses.replace(experiment, data_path=DATA), "live")
    assert set(server.workspace.calls) <= {
        "me", "get_volume", "effective", "node_types", "spark_versions", "get_endpoint", "HEAD files", "HEAD directories",
        # The SDK's own look at what kind of host it talks to.
        "GET /.well-known/databricks-config",
    }  # fmt: skip
    assert server.workspace.runs == {}
    assert provider.list_jobs() == []


def test_what_is_missing_is_named_with_what_to_do(
    server: DatabricksServer, experiment: Experiment, tmp_path: Path
) -> None:
    server.workspace.denied |= {"WRITE_VOLUME", "CREATE_MODEL"}
    training = {"node_type_id": "z9.huge", "policy_id": "NONE", "spark_version": "1.0.x"}
    provider = databricks_provider(tmp_path / "state", volume="nowhere", training=training)
    plan = provider.plan(dataclasses.replace(experiment, data_path=DATA), "live")
    missing = texts(plan, "missing")
    assert "There is no volume main.ml.nowhere." in missing
    assert "volume main.ml.nowhere: not WRITE_VOLUME" in missing
    assert "schema main.ml: not CREATE_MODEL" in missing
    assert "The machine z9.huge is none of this workspace's." in missing
    assert "The runtime 1.0.x is none of this workspace's." in missing
    assert "The compute policy NONE" in missing
    assert f"There is nothing at {DATA}" in missing
    assert all(item.hint for item in plan.items if item.state == "missing" and "policy" not in item.text)


def test_what_may_not_be_looked_at_is_unknown(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment
) -> None:
    server.workspace.fail("effective", "denied", times=3)
    server.workspace.fail("node_types", "denied")
    unknown = texts(provider.plan(experiment), "unknown")
    assert "The grants on catalog main cannot be looked at" in unknown
    assert "The machines cannot be looked at" in unknown


def test_without_credentials_there_is_a_plan_all_the_same(
    server: DatabricksServer, provider: DatabricksProvider, experiment: Experiment
) -> None:
    server.workspace.fail("*", "expired", times=50)
    plan = provider.plan(experiment)
    assert "credentials cannot be used" in texts(plan, "missing")
    assert plan.request["run_name"].startswith("nbd-sample-")


def test_the_grants_name_what_they_are_on(provider: DatabricksProvider, experiment: Experiment) -> None:
    other = DATA.replace("main/ml/files", "raw/in/box")
    policies = provider.plan(dataclasses.replace(experiment, data_path=other)).policies
    assert (
        "GRANT WRITE VOLUME ON VOLUME `main`.`ml`.`files` TO `ci@example.com`" in policies["caller"]["grants"]
    )
    assert "GRANT READ VOLUME ON VOLUME `raw`.`in`.`box` TO `ci@example.com`" in policies["data"]["grants"]


@pytest.mark.parametrize("attributes", ["azure_attributes", "gcp_attributes", "aws_attributes"])
def test_spot_machines_are_asked_for_in_each_clouds_words(
    provider: DatabricksProvider, experiment: Experiment, attributes: str
) -> None:
    cloud = attributes.partition("_")[0]
    wanted = dataclasses.replace(experiment, options={"training": {"spot": True}}, instance_count=3)
    cluster = provider.request("nbd-a-1", provider.checked_spec(wanted), {}, cloud)["tasks"][0]["new_cluster"]
    assert cluster[attributes]["first_on_demand"] == 1
    assert cluster["num_workers"] == 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"data_path": "s3://bucket/data.csv"}, DataError),
        ({"instance_type": "no such machine"}, ConfigError),
        ({"instance_type": "i3.xlarge", "options": {"training": {"serverless": True}}}, ConfigError),
        (
            {"instance_count": 2, "options": {"training": {"serverless": True, "node_type_id": None}}},
            ConfigError,
        ),
        ({"options": {"training": {"serverless": True, "spot": True}}}, ConfigError),
        ({"options": {"endpoint": {"canary": [50, 10]}}}, ConfigError),
        ({"instance_count": 0}, ConfigError),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    server: DatabricksServer,
    provider: DatabricksProvider,
    experiment: Experiment,
    change: dict[str, object],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        provider.train(dataclasses.replace(experiment, **change))  # type: ignore[arg-type]
    assert not any(call.startswith(("PUT", "submit")) for call in server.workspace.calls)


def test_a_workspace_without_a_place_for_files_says_which_key(tmp_path: Path, experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match="No catalog") as caught:
        databricks_provider(tmp_path / "state", catalog=None).train(experiment)
    assert caught.value.key == "databricks.catalog"
