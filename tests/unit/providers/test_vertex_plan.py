"""``plan`` tells what would happen at Google's, and changes nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.providers.base import Experiment, Plan
from notebooked_dagster.providers.vertex import VertexProvider, images
from notebooked_dagster.providers.vertex.policy import BUCKET_PERMISSIONS, VERTEX_PERMISSIONS
from tests.clouds.gcp import ACCOUNT, ROUTES, GcpServer
from tests.clouds.gcp_kit import BUCKET, gcp_server, vertex_provider
from tests.contract.scripts import write_scripts


@pytest.fixture
def gcp(tmp_path: Path) -> Iterator[GcpServer]:
    with gcp_server(tmp_path / "gcp") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, gcp: GcpServer) -> VertexProvider:
    return vertex_provider(tmp_path / "state", gcp)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"), timeout=3600)


def texts(plan: Plan, state: str) -> str:
    return "\n".join(item.text for item in plan.items if item.state == state)


def test_it_tells_files_container_and_cost(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    data = tmp_path / "numbers.txt"
    data.write_text("1 2 6")
    plan = provider.plan(dataclasses.replace(experiment, data_path=str(data), instance_count=2), "live")
    assert plan.files["train.py"] > 100
    assert plan.files[f"data: {data}"] == 5
    assert plan.facts["at most (USD, at the time limit)"] == 0.44
    assert "2026" in str(plan.facts["price as of"])
    assert "europe-docker.pkg.dev/vertex-ai/training/pytorch-cpu" in str(plan.facts["container"])
    assert plan.facts["instance"] == "2 x n1-standard-4"
    assert "'live' would be made" in texts(plan, "new")
    there = texts(plan, "exists")
    assert f"The bucket '{BUCKET}' in europe-west4" in there
    assert f"The service account {ACCOUNT}" in there
    assert "custom_model_training_cpus: 42" in there
    assert "<container.py>" in json.dumps(plan.request)


def test_it_changes_nothing(gcp: GcpServer, provider: VertexProvider, experiment: Experiment) -> None:
    provider.plan(dataclasses.replace(experiment, data_path=f"gs://{BUCKET}/a.csv"), "live")
    assert set(gcp.vertex.calls) <= {
        "GetBucket", "GetEndpoint", "GetServiceAccount", "ListObjects", "ListQuotaInfos", "ReadObject",
        "TestIamPermissions",
    }  # fmt: skip
    assert gcp.gcs.names(BUCKET) == []
    assert provider.list_jobs() == []


def test_what_is_missing_is_named_with_what_to_do(
    gcp: GcpServer, experiment: Experiment, tmp_path: Path
) -> None:
    gcp.denied |= {"aiplatform.customJobs.cancel", "iam.serviceAccounts.actAs"}
    gcp.gcs.denied.add("storage.objects.delete")
    plan = vertex_provider(tmp_path / "state", gcp).plan(
        dataclasses.replace(
            experiment,
            data_path=f"gs://{BUCKET}/nothing.csv",
            instance_type="n1-standard-16",
            instance_count=3,
        )
    )
    missing = texts(plan, "missing")
    assert "project: not aiplatform.customJobs.cancel." in missing
    assert "not iam.serviceAccounts.actAs" in missing
    assert "not storage.objects.delete" in missing
    assert f"There is nothing at gs://{BUCKET}/nothing.csv" in missing
    assert "is 42 in europe-west4, and 48 are needed" in missing


def test_a_bucket_and_a_service_account_that_are_not_there_are_named(
    gcp: GcpServer, experiment: Experiment, tmp_path: Path
) -> None:
    nobody = "nobody@my-project.iam.gserviceaccount.com"
    provider = vertex_provider(tmp_path / "state", gcp, bucket="nowhere-bucket", service_account=nobody)
    plan = provider.plan(experiment)
    assert "There is no bucket 'nowhere-bucket'" in texts(plan, "missing")
    assert nobody in texts(plan, "missing")
    assert any("gcloud storage buckets create" in item.hint for item in plan.items)
    default = vertex_provider(tmp_path / "state", gcp, service_account=None).plan(experiment)
    assert "default service account" in texts(default, "unknown")


def test_a_bucket_elsewhere_is_named(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcp.gcs, "_location", "US-EAST1")
    assert "is in us-east1, and training in europe-west4" in texts(provider.plan(experiment), "missing")


def test_what_may_not_be_looked_at_is_unknown(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    gcp.vertex.fail("TestIamPermissions", "denied", times=2)
    gcp.vertex.fail("ListQuotaInfos", "denied")
    unknown = texts(provider.plan(experiment), "unknown")
    assert "permissions in the project cannot be looked at" in unknown
    assert "The quota cannot be looked at" in unknown


def test_without_credentials_nothing_else_is_asked(
    gcp: GcpServer,
    provider: VertexProvider,
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud"))
    plan = provider.plan(experiment)
    assert "credentials" in texts(plan, "missing").lower()
    assert gcp.vertex.calls == []


def test_secrets_of_the_environment_are_not_shown(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    plan = provider.plan(dataclasses.replace(experiment, environment={"API_TOKEN": "s3cr3t", "LEVEL": "2"}))
    shown = plan.request["job_spec"]["worker_pool_specs"][0]["container_spec"]["env"]
    assert {"name": "API_TOKEN", "value": "***"} in shown
    assert {"name": "LEVEL", "value": "2"} in shown
    assert "s3cr3t" not in json.dumps(plan.request)


def test_the_roles_name_exactly_what_the_provider_calls() -> None:
    folder = Path(__file__).parents[3] / "notebooked_dagster" / "providers" / "vertex"
    source = "\n".join(path.read_text() for path in folder.glob("*.py") if path.name != "policy.py")
    known = {re.sub(r"(?<!^)(?=[A-Z])", "_", route.name).lower() for route in ROUTES} | {"rawPredict"}
    called = {name for name in re.findall(r"[.:]([A-Za-z_]+)\b", source) if name in known}
    assert called == set(VERTEX_PERMISSIONS)


def test_the_caller_may_touch_only_our_folder(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    plan = provider.plan(dataclasses.replace(experiment, data_path="gs://lake-of-others/a.csv"))
    caller, account = plan.policies["caller"], plan.policies["service account"]
    assert f"buckets/{BUCKET}/objects/notebooked/" in caller["on the bucket"]["condition"]["expression"]
    assert set(caller["on the bucket"]["role"]["includedPermissions"]) < set(BUCKET_PERMISSIONS)
    assert caller["on the service account"]["where"].endswith(ACCOUNT)
    assert account["on the data"] == {"where": "gs://lake-of-others", "role": "roles/storage.objectViewer"}
    json.dumps(plan.policies)


def test_a_container_of_another_python_is_said_to_be_that(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images.sys, "version_info", (3, 14, 0))
    assert "pinned on another Python" in texts(provider.plan(experiment), "missing")
    monkeypatch.undo()
    own = dataclasses.replace(experiment, options={"training": {"image": "europe-docker.pkg.dev/p/r/i:1"}})
    assert "pinned on another Python" not in texts(provider.plan(own), "missing")


@pytest.mark.parametrize(
    ("region", "place"),
    [("us-central1", "us"), ("europe-west4", "europe"), ("asia-east1", "asia"), ("southamerica-east1", "us")],
)
def test_the_container_comes_from_nearby(region: str, place: str) -> None:
    assert images.choose(region, None, None).uri.startswith(f"{place}-docker.pkg.dev/")
    assert "pytorch-gpu." in images.choose(region, "NVIDIA_L4", None).uri
