"""``plan`` tells what would happen on a cluster, and changes nothing; the Role names what the provider calls."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.base import Experiment, Plan
from notebooked_dagster.providers.kubernetes import KubernetesProvider
from notebooked_dagster.providers.kubernetes.deployments import pods_of_shares
from notebooked_dagster.providers.kubernetes.plan import amount
from notebooked_dagster.providers.kubernetes.policy import PLAN_RULES, RULES
from notebooked_dagster.providers.kubernetes.training import index_of
from tests.clouds.kube import ACCOUNT, KubeServer
from tests.clouds.kube_kit import BUCKET, kube_server, kubernetes_provider, s3
from tests.clouds.kube_models import problems
from tests.contract.scripts import write_scripts


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeServer]:
    with kube_server(tmp_path / "kube") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, kube: KubeServer) -> KubernetesProvider:
    return kubernetes_provider(tmp_path / "state", kube)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"), timeout=3600)


def texts(plan: Plan, state: str) -> str:
    return "\n".join(item.text for item in plan.items if item.state == state)


def test_it_tells_files_objects_and_what_is_there(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, tmp_path: Path
) -> None:
    data = tmp_path / "numbers.txt"
    data.write_text("1 2 6")
    wanted = dataclasses.replace(
        experiment, data_path=str(data), instance_count=2, environment={"API_TOKEN": "hush"}
    )
    plan = provider.plan(wanted, "live")
    assert plan.files["train.py"] > 100
    assert plan.files[f"data: {data}"] == 5
    assert plan.facts["pods"] == 2
    assert plan.facts["each asks for"] == "1 cpu, 2Gi memory"
    there = texts(plan, "exists")
    assert "Kubernetes v1.31.0" in there
    assert f"The service account {ACCOUNT!r}" in there
    assert f"The object store s3://{BUCKET}/notebooked" in there
    assert "'live' would be made" in texts(plan, "new")
    shown = json.dumps(plan.request)
    assert "<container.py>" in shown
    assert "hush" not in shown
    assert problems(dict(plan.request)) == []


def test_it_changes_nothing(kube: KubeServer, provider: KubernetesProvider, experiment: Experiment) -> None:
    provider.plan(dataclasses.replace(experiment, data_path=f"s3://{BUCKET}/a.csv"), "live")
    changing = [call for call in kube.calls if call.split()[0] in ("patch", "delete", "create")]
    assert set(changing) == {"create /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"}
    assert "Contents" not in s3(kube).list_objects_v2(Bucket=BUCKET)


def test_what_is_missing_is_named_with_what_to_do(
    kube: KubeServer, experiment: Experiment, tmp_path: Path
) -> None:
    kube.denied |= {"create jobs", "create pods/proxy"}
    hard = {"requests.cpu": "4", "limits.memory": "64Gi"}
    quota = {"metadata": {"name": "team"}, "spec": {"hard": hard}}
    kube.cluster.add("resourcequotas", {**quota, "status": {"hard": hard, "used": {"requests.cpu": "3500m"}}})
    provider = kubernetes_provider(tmp_path / "state", kube, service_account="nobody")
    plan = provider.plan(dataclasses.replace(experiment, data_path=f"s3://{BUCKET}/nothing.csv"))
    missing = texts(plan, "missing")
    assert "not create jobs, create pods/proxy" in missing
    assert "no service account 'nobody'" in missing
    assert "requests.cpu is 4, of which 3500m are used" in missing
    assert "limits.memory" not in missing
    assert f"nothing at s3://{BUCKET}/nothing.csv" in missing
    lost = kubernetes_provider(tmp_path / "state", kube, storage={"url": "s3://no-such-bucket/x"})
    assert "no-such-bucket" in texts(lost.plan(experiment), "missing")
    kube.denied.add("list resourcequotas")
    assert "cannot list resource" in texts(provider.plan(experiment), "unknown")


def test_without_a_cluster_the_rest_is_told(kube: KubeServer, experiment: Experiment, tmp_path: Path) -> None:
    plan = kubernetes_provider(tmp_path / "state", kube, context="nowhere").plan(experiment)
    assert "nowhere" in texts(plan, "missing")
    assert "object store" in texts(plan, "exists")
    assert plan.policies["caller"]["role"]["metadata"]["namespace"] == "NAMESPACE"


def test_the_role_names_exactly_what_a_whole_life_calls(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    model = provider.train(experiment).model_uri
    assert model is not None
    hanging = dataclasses.replace(experiment, hyperparameters={"act": "hang"})
    provider.cancel(provider.train(hanging, wait=False).id)
    provider.list_jobs()
    kube.cluster.quota["pods"] = 0
    provider.status(provider.train(experiment, wait=False).id)
    kube.cluster.quota.clear()
    ingress = {"ingress": {"host": "{endpoint}.example.com"}, "autoscaling": {"max": 2}}
    outside = dataclasses.replace(experiment, options={"endpoint": ingress})
    assert provider.deploy(outside, model, "live").url == "http://live.example.com"
    provider.deploy(outside, model, "live")
    provider.rollback("live")
    provider.deploy(experiment, model, "live")
    provider.predict("live", {"dataframe_records": [{"x": 1.0}]})
    provider.list_endpoints()
    provider.delete_endpoint("live")
    provider.plan(experiment)
    wanted = {
        f"{verb} {resource}" for (_, resource), verbs in {**RULES, **PLAN_RULES}.items() for verb in verbs
    }
    made = {call for call in kube.calls if "/" not in call.split()[1] or call.split()[1].count("/") == 1}
    assert made - {"get /version"} == wanted
    assert kube.cluster.things["ingresses"] == kube.cluster.things["horizontalpodautoscalers"] == {}


def test_the_policies_are_objects_that_kubernetes_takes(
    provider: KubernetesProvider, experiment: Experiment
) -> None:
    policies = provider.plan(experiment).policies
    for document in (*policies["caller"].values(), *policies["pods"].values()):
        assert problems(document) == []


def test_kubeflow_is_told_with_what_it_takes(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    assert "kubeflow" not in json.dumps(provider.plan(experiment).policies)
    wanted = dataclasses.replace(
        experiment,
        options={"training": {"operator": "kubeflow"}},
        instance_count=3,
        environment={"API_TOKEN": "hush"},
    )
    assert "no kubeflow.org/v1 PyTorchJob" in texts(provider.plan(wanted), "missing")
    kube.cluster.kubeflow = True
    plan = provider.plan(wanted)
    assert "Kubeflow's training operator" in texts(plan, "exists")
    assert plan.facts["pods"] == 3
    assert "hush" not in json.dumps(plan.request)
    assert problems(dict(plan.request)) == []
    assert plan.request["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 2
    rules = plan.policies["caller"]["role"]["rules"]
    (rule,) = [rule for rule in rules if rule["apiGroups"] == ["kubeflow.org"]]
    waiting = provider.train(wanted, wait=False)
    until_made = time.monotonic() + 20
    while len(kube.cluster.things["pods"]) < 3:
        assert time.monotonic() < until_made
        time.sleep(0.02)
    assert sorted(map(index_of, kube.cluster.things["pods"].values())) == [0, 1, 2]
    provider.cancel(waiting.id)
    provider.list_jobs()
    used = {call.split()[0] for call in kube.calls if call.endswith(" pytorchjobs")}
    assert used == set(rule["verbs"])
    with pytest.raises(ConfigError, match="too long for Kubeflow"):
        provider.train(dataclasses.replace(wanted, name="a-name-that-is-as-long-as-it-may-be"))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"training": {"memory": "lots"}}, "options.training.memory"),
        ({"training": {"tolerations": [{"value": "x"}]}}, "options.training.tolerations.0"),
        ({"training": {"labels": {"notebooked/job": "mine"}}}, "options.training.labels"),
        ({"endpoint": {"autoscaling": {"min": 3, "max": 2}}}, "options.endpoint.autoscaling"),
        ({"endpoint": {"replica": 3}}, "options.endpoint.replica"),
        ({"training": {"operator": "kubeflow", "backoff": 1}}, "options.training"),
        ({"endpoint": {"mode": "raw"}}, "options.endpoint"),
        ({"endpoint": {"operator": "kserve", "keep_warm": True}}, "options.endpoint"),
        ({"endpoint": {"autoscaling": {"min": 0, "max": 2}}}, "options.endpoint.autoscaling"),
        ({"endpoint": {"operator": "kserve", "gateway": "10.0.0.1"}}, "options.endpoint.gateway"),
    ],
)
def test_options_that_cannot_be_are_refused(
    provider: KubernetesProvider, experiment: Experiment, settings: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        provider.train(dataclasses.replace(experiment, options=settings))
    assert caught.value.key == key


def test_all_options_make_a_job_that_kubernetes_takes(
    provider: KubernetesProvider, experiment: Experiment
) -> None:
    training = {
        "cpu": 2, "cpu_limit": 4, "memory": "8Gi", "gpu": 1, "disk": "20Gi", "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, {"operator": "Exists"}],
        "priority_class": "batch", "run_as_user": 1000, "image": "registry.example.com/ml:1", "labels": {"team": "a"},
        "annotations": {"example.com/a": "b"}, "backoff": 2, "ttl": None,
    }  # fmt: skip
    wanted = dataclasses.replace(
        experiment, options={"training": training}, instance_type="g5.xlarge", instance_count=2
    )
    request = dict(provider.plan(wanted).request)
    assert problems(request) == []
    pod = request["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "gpu", "node.kubernetes.io/instance-type": "g5.xlarge"}
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "8Gi", "cpu": "4", "nvidia.com/gpu": "1"}
    assert "ttlSecondsAfterFinished" not in request["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize(
    ("weights", "most", "fewest", "pods"),
    [
        ({"1": 50, "2": 50}, 10, 1, {"1": 1, "2": 1}),
        ({"1": 90, "2": 10}, 10, 1, {"1": 9, "2": 1}),
        ({"1": 90, "2": 10}, 4, 1, {"1": 3, "2": 1}),
        ({"1": 50, "2": 50}, 10, 3, {"1": 2, "2": 2}),
        ({"1": 99, "2": 1}, 2, 1, {"1": 1, "2": 1}),
    ],
)
def test_shares_are_numbers_of_pods(
    weights: dict[str, int], most: int, fewest: int, pods: dict[str, int]
) -> None:
    assert pods_of_shares(weights, most, fewest) == pods


def test_quantities_are_numbers() -> None:
    assert [amount(text) for text in ("1500m", "2", "4Gi", "1k")] == [1.5, 2.0, 4 * 2**30, 1000.0]
