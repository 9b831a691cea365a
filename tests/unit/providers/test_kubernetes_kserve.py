"""KServe serves: shares are exact, what is cut off is finished, and what fails leaves what serves."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.errors import (
    ConfigError,
    DeploymentConflictError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus, Experiment
from notebooked_dagster.providers.kubernetes import KubernetesProvider
from notebooked_dagster.providers.kubernetes.policy import KSERVE_RULES
from tests.clouds.kube import KubeServer
from tests.clouds.kube_kit import BUCKET, kserve_provider, kube_server, kubernetes_provider, s3
from tests.clouds.kube_models import problems
from tests.contract.scripts import write_model, write_scripts
from tests.unit.providers.faults import deployed_at_once

ROWS = {"dataframe_records": [{"x": 1.0}]}
NAME = "nbd-live-kserve"


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeServer]:
    with kube_server(tmp_path / "kube") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, kube: KubeServer) -> KubernetesProvider:
    return kserve_provider(tmp_path / "state", kube)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"))


@pytest.fixture
def model(experiment: Experiment, tmp_path: Path) -> str:
    return write_model(experiment.scripts, tmp_path / "model")


@pytest.fixture
def other(experiment: Experiment, tmp_path: Path) -> str:
    return write_model(experiment.scripts, tmp_path / "other", shift=10.0)


def serving(experiment: Experiment, **endpoint: Any) -> Experiment:
    return dataclasses.replace(experiment, options={"endpoint": endpoint})


def service(kube: KubeServer) -> dict[str, Any]:
    return kube.cluster.things["inferenceservices"][NAME]


def revisions(kube: KubeServer) -> int:
    created = service(kube)["status"]["components"]["predictor"]["latestCreatedRevision"]
    return int(created.rpartition("-")[2])


def shares(endpoint: Endpoint) -> list[tuple[str, str, int]]:
    return [(item.version, item.role, item.weight) for item in endpoint.deployments]


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cluster_without_kserve_is_told_before_anything_is_made(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str
) -> None:
    kube.cluster.kserve = False
    with pytest.raises(ConfigError, match="KServe is not installed in this cluster") as caught:
        provider.deploy(experiment, model, "live")
    assert caught.value.key == "options.endpoint.operator"
    assert [call for call in kube.calls if call.startswith("create ")] == []
    missing = [item.text for item in provider.plan(experiment).items if item.state == "missing"]
    assert any("KServe is not installed" in text for text in missing)


def test_a_share_is_exact_and_moves_without_a_new_revision(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, other: str
) -> None:
    first = provider.deploy(experiment, model, "live")
    assert first.url == f"http://{NAME}.ml.example.com"
    split = provider.deploy(experiment, other, "live", weight=10)
    assert shares(split) == [("1", "champion", 90), ("2", "challenger", 10)]
    traffic = service(kube)["status"]["components"]["predictor"]["traffic"]
    assert [item["percent"] for item in traffic] == [10, 90]
    # Also where it is not named, a version has a share, and can get some again.
    named = provider.traffic("live", {"1": 100})
    assert shares(named) == [("1", "champion", 100), ("2", "challenger", 0)]
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    provider.traffic("live", {"1": 0, "2": 100})
    assert provider.predict("live", ROWS) == {"predictions": [13.0]}
    assert revisions(kube) == 2
    assert set(kube.cluster.revisions.hosts) == {f"{NAME}.ml.example.com"}
    # KServe counts from the one that had all, and begins the other again.
    provider.traffic("live", {"1": 70, "2": 30})
    assert service(kube)["spec"]["predictor"]["canaryTrafficPercent"] == 70
    assert revisions(kube) == 3
    # Whoever comes next has a champion to count from again.
    third = provider.deploy(experiment, model, "live", weight=5)
    assert shares(third) == [("1", "champion", 95), ("3", "challenger", 5)]


def test_what_is_never_ready_leaves_the_shares_as_they_were(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, other: str
) -> None:
    provider.deploy(experiment, model, "live")
    before = provider.deploy(experiment, other, "live", weight=25)
    broken = serving(experiment, image="missing:1", health_timeout=1)
    with pytest.raises(DeploymentError, match=r"ErrImagePull|ImagePullBackOff") as caught:
        provider.deploy(broken, model, "live", weight=50)
    assert "serves what it served before" in str(caught.value)
    assert provider.endpoint("live").deployments == before.deployments
    assert provider.endpoint("live").status is EndpointStatus.HEALTHY
    assert service(kube)["spec"]["predictor"]["canaryTrafficPercent"] == 25
    assert sorted(kube.cluster.things["podtemplates"]) == ["nbd-live-v1", "nbd-live-v2"]
    # Nor is the challenger gone that made room for what could not even be begun.
    provider.traffic("live", {"1": 100})
    kube.fail("update inferenceservices", "denied")
    with pytest.raises(NotebookedError, match=r"Version 3 of endpoint .* cannot be started"):
        provider.deploy(experiment, model, "live", weight=50)
    assert shares(provider.endpoint("live")) == [("1", "champion", 100), ("2", "challenger", 0)]


def test_what_fails_with_its_own_example_and_what_knative_refuses_get_no_traffic(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, tmp_path: Path
) -> None:
    wrong = write_scripts(tmp_path / "wrong")
    code = wrong / "inference.py"
    code.write_text(
        code.read_text().replace("return [(row", "raise ValueError('wrong shape')\n    return [(row")
    )
    failing = write_model(wrong, tmp_path / "failing")
    with pytest.raises(DeploymentError, match=r"input example: .*wrong shape"):
        provider.deploy(dataclasses.replace(experiment, scripts=wrong), failing, "live")
    with pytest.raises(EndpointNotFoundError):
        provider.endpoint("live")
    assert kube.cluster.things["inferenceservices"] == kube.cluster.things["podtemplates"] == {}
    provider.deploy(experiment, model, "live")
    with pytest.raises(DeploymentError, match=r"denied the request: must not set .*nodeSelector"):
        provider.deploy(serving(experiment, node_selector={"pool": "gpu"}), model, "live")
    with pytest.raises(InvalidInputError):
        provider.predict("live", {"dataframe_records": [{"y": 1.0}]})
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_of_two_deployments_at_once_the_earlier_is_told(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, tmp_path: Path
) -> None:
    provider.deploy(experiment, model, "live")
    results = deployed_at_once(
        lambda number: kserve_provider(tmp_path / f"machine-{number}", kube), experiment, model
    )
    failed = [item for item in results if isinstance(item, NotebookedError)]
    assert [repr(item) for item in failed if not isinstance(item, DeploymentConflictError)] == []
    live = provider.endpoint("live")
    until(lambda: provider.endpoint("live").status is EndpointStatus.HEALTHY)
    assert {item.role for item in live.deployments} <= {"champion", "previous"}
    assert service(kube)["spec"]["predictor"]["labels"]["notebooked/version"] == live.deployments[0].version
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_what_was_cut_off_after_the_service_was_changed_is_finished(
    kube: KubeServer,
    provider: KubernetesProvider,
    experiment: Experiment,
    model: str,
    other: str,
    tmp_path: Path,
) -> None:
    provider.deploy(experiment, model, "live")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    provider._hosting._kserve._share = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        provider.deploy(experiment, other, "live")
    assert service(kube)["spec"]["predictor"]["canaryTrafficPercent"] == 0
    later = kserve_provider(tmp_path / "later", kube)
    after = later.rollback("live")
    assert shares(after) == [("1", "champion", 100), ("2", "previous", 0)]
    assert later.predict("live", ROWS) == {"predictions": [3.0]}
    told = service(kube)["status"]["components"]["predictor"]
    # The second had all traffic before the first got it back.
    assert [told["previousRolledoutRevision"], told["latestRolledoutRevision"]] == [
        f"{NAME}-predictor-00002",
        f"{NAME}-predictor-00003",
    ]


def test_lost_replies_are_no_second_revision_and_a_rollback_that_fails_changes_nothing(
    kube: KubeServer,
    provider: KubernetesProvider,
    experiment: Experiment,
    model: str,
    other: str,
    tmp_path: Path,
) -> None:
    kube.fail("create inferenceservices", "lost")
    kube.fail("create podtemplates", "lost")
    kube.fail("create services", "lost")
    provider.deploy(experiment, model, "live")
    kube.fail("update inferenceservices", "lost")
    kube.fail("get inferenceservices", "error", times=2)
    kube.fail("patch services", "lost")
    assert shares(provider.deploy(experiment, model, "live"))[0] == ("2", "champion", 100)
    assert revisions(kube) == 2
    assert "[notebooked] The model is loaded." in list(provider.endpoint_logs("live"))
    # A deployment is killed whose version is the latest revision already, with nothing of the traffic.
    killed = kserve_provider(tmp_path / "killed", kube)

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    killed._hosting._kserve._ask_example = kill  # type: ignore[method-assign]
    killed._hosting._kserve.withdraw = kill  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.deploy(experiment, other, "live")
    # What a rollback would start cannot start any more.
    store = s3(kube)
    store.delete_object(Bucket=BUCKET, Key="notebooked/endpoints/nbd-live/v1/model.tar.gz")
    with pytest.raises(DeploymentError, match="serves what it served before"):
        provider.rollback("live")
    assert shares(provider.endpoint("live"))[0] == ("2", "champion", 100)
    assert provider.endpoint("live").status is EndpointStatus.HEALTHY
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_without_knative_there_are_no_shares_and_the_rest_is_as_ever(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, other: str
) -> None:
    kube.cluster.kserve_mode = "RawDeployment"
    provider.deploy(experiment, model, "live")
    provider.deploy(experiment, other, "live")
    assert provider.predict("live", ROWS) == {"predictions": [13.0]}
    before = len(kube.calls)
    with pytest.raises(ConfigError, match="raw mode, in which the traffic cannot be shared out"):
        provider.deploy(experiment, model, "live", weight=10)
    with pytest.raises(ConfigError, match="serverless mode, which cannot be changed"):
        provider.deploy(serving(experiment, mode="serverless"), model, "live")
    assert {call.split()[0] for call in kube.calls[before:]} <= {"get", "list"}
    assert shares(provider.rollback("live")) == [("1", "champion", 100), ("2", "previous", 0)]
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_deleting_leaves_the_model_and_nothing_else_also_when_it_was_cut_off(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    plain = kubernetes_provider(provider.state, kube)
    with pytest.raises(ConfigError, match=r"not served by what options\.endpoint\.operator says"):
        plain.deploy(experiment, model, "live")
    kube.fail("delete podtemplates", "denied")
    with pytest.raises(ProviderError):
        plain.delete_endpoint("live")
    assert plain.list_endpoints() == []
    assert plain.delete_endpoint("live") == [f"The model {model} is kept."]
    things = kube.cluster.things
    assert things["services"] == things["inferenceservices"] == things["podtemplates"] == things["pods"] == {}
    listed = s3(kube).list_objects_v2(Bucket=BUCKET).get("Contents", ())
    assert not [item["Key"] for item in listed if "/endpoints/" in item["Key"]]
    # Somebody else's of that name is left alone.
    kube.cluster.kserve_mode = "ModelMesh"
    containers = [{"name": "kserve-container", "image": "theirs:1"}]
    theirs = {"metadata": {"name": NAME}, "spec": {"predictor": {"containers": containers}}}
    kube.cluster.add("inferenceservices", theirs)
    with pytest.raises(DeploymentConflictError, match="is not ours"):
        provider.deploy(experiment, model, "live")
    assert service(kube)["spec"]["predictor"]["containers"] == containers


def test_the_role_names_what_is_called_and_only_with_the_option(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, tmp_path: Path
) -> None:
    plain = kubernetes_provider(tmp_path / "plain", kube).plan(experiment)
    assert "inferenceservices" not in json.dumps(plain.policies)
    scaled = serving(experiment, autoscaling={"min": 0, "max": 3, "concurrency": 8}, mode="serverless")
    plan = provider.plan(scaled)
    assert plan.facts["serves as"] == "serving.kserve.io/v1beta1 InferenceService"
    assert "KServe (serving.kserve.io/v1beta1 InferenceService)." in [item.text for item in plan.items]
    assert problems(plan.policies["caller"]["role"]) == []
    provider.deploy(scaled, model, "live")
    predictor = service(kube)["spec"]["predictor"]
    wanted = {"minReplicas": 0, "maxReplicas": 3, "scaleMetric": "concurrency", "scaleTarget": 8}
    assert {key: predictor[key] for key in wanted} == wanted
    by_cpu = serving(experiment, autoscaling={"max": 3})
    provider.deploy(by_cpu, model, "live")
    assert service(kube)["spec"]["predictor"]["scaleMetric"] == "cpu"
    provider.delete_endpoint("live")
    kinds = {resource for _, resource in KSERVE_RULES}
    made = {call for call in kube.calls if call.split()[1] in kinds}
    assert made == {f"{verb} {kind}" for (_, kind), verbs in KSERVE_RULES.items() for verb in verbs}
