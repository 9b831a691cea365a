"""What goes wrong on a cluster, and that nothing is lost, doubled or left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooked_dagster.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    DeploymentConflictError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    NotebookedError,
    ProviderError,
    QuotaError,
    TrainingCancelledError,
    TrainingFailedError,
    TrainingKilledError,
    TrainingTimeoutError,
)
from notebooked_dagster.providers.base import EndpointStatus, Experiment, JobStatus
from notebooked_dagster.providers.kubernetes import KubernetesProvider
from tests.clouds.kube import KubeServer
from tests.clouds.kube_kit import BUCKET, kube_server, kubernetes_provider, s3, settings
from tests.contract.scripts import write_scripts
from tests.unit.providers.faults import JobFaults, Kit, deployed_at_once, on_line, until

ROWS = {"dataframe_records": [{"x": 1.0}]}


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeServer]:
    with kube_server(tmp_path / "kube") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, kube: KubeServer) -> KubernetesProvider:
    return kubernetes_provider(tmp_path / "state", kube)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    scripts = write_scripts(tmp_path / "scripts")
    # Slow enough to be cut off in between.
    train = scripts / "train.py"
    train.write_text(train.read_text().replace("range(40)", "range(12)"))
    return Experiment("sample", scripts, idempotency_token="run-1")


def acting(experiment: Experiment, act: str, **training: object) -> Experiment:
    return dataclasses.replace(
        experiment, hyperparameters={"act": act}, options={"training": training} if training else {}
    )


def jobs(kube: KubeServer) -> list[str]:
    return list(kube.cluster.things["jobs"])


def pod(kube: KubeServer) -> str:
    """The last pod of the only job."""
    found = [p for p in kube.cluster.things["pods"].values() if "notebooked/job" in p["metadata"]["labels"]]
    return str(found[-1]["metadata"]["name"])


def ended(kube: KubeServer) -> None:
    """Wait until the only job has ended."""
    (name,) = jobs(kube)
    until(lambda: kube.cluster.things["jobs"][name].get("status", {}).get("conditions"))


@pytest.fixture
def kit(kube: KubeServer) -> Kit:
    def put(key: str, content: bytes | None) -> None:
        if content is None:
            s3(kube).delete_object(Bucket=BUCKET, Key=key)
        else:
            s3(kube).put_object(Bucket=BUCKET, Key=key, Body=content)

    return Kit(
        machine=lambda state, **more: kubernetes_provider(state, kube, **more),
        emulator=kube,
        jobs=lambda: jobs(kube),
        ended=lambda name: kube.cluster.things["jobs"][name].get("status", {}).get("conditions"),
        put=put,
        submit="create jobs",
        refusals={
            "quota": "exceeded quota: team",
            "denied": "It takes `create` on `jobs`",
            "expired": "log in again",
        },
        listing=frozenset({"list jobs", "get /apis/kubeflow.org/v1"}),
        model="model.tar.gz",
        facts="model.tar.gz",
    )


class TestJobs(JobFaults):
    """The faults of every cloud."""


# Submitting


@pytest.mark.parametrize("moment", ["before the job", "before the id"])
def test_a_process_killed_while_submitting_leaves_one_job_which_the_next_finds(
    kube: KubeServer, experiment: Experiment, tmp_path: Path, moment: str
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.registry import get_provider
provider = get_provider("kubernetes", state_dir={str(tmp_path / "state")!r}, **{settings(kube)!r})
die = lambda *given, **more: os.kill(os.getpid(), signal.SIGKILL)
session, create = provider.session, provider.session.create
if {moment!r} == "before the job":
    session.create = die
else:
    session.create = lambda *given: (create(*given), die())
provider.train(Experiment("sample", Path({str(experiment.scripts)!r}), idempotency_token="run-1"))
"""
    died = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(jobs(kube)) == (0 if moment == "before the job" else 1)
    job = kubernetes_provider(tmp_path / "state", kube).train(experiment)
    assert job.status is JobStatus.SUCCEEDED
    assert jobs(kube) == [job.id]


def test_another_machine_finds_a_job_that_the_cluster_has_removed(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, tmp_path: Path
) -> None:
    first = provider.train(dataclasses.replace(experiment, name="two_words"))
    other = kubernetes_provider(tmp_path / "another-machine", kube)
    # As a run looks that is tried again, and then trains.
    looked_up = other.job_of("two_words", "run-1")
    assert looked_up is not None
    assert other.train(dataclasses.replace(experiment, name="two_words")).id == first.id
    # And so it is when the cluster has removed the Job, some time after it ended.
    kube.cluster.remove("jobs", first.id)
    third = kubernetes_provider(tmp_path / "a-third-machine", kube).job_of("two_words", "run-1")
    assert third is not None
    assert (third.status, third.metrics, third.experiment) == (
        JobStatus.SUCCEEDED,
        first.metrics,
        "two_words",
    )
    assert list(provider.logs(first.id)) == list(other.logs(first.id))


def test_two_machines_that_submit_at_once_submit_one_job(
    kube: KubeServer, experiment: Experiment, tmp_path: Path
) -> None:
    providers = [kubernetes_provider(tmp_path / f"machine-{number}", kube) for number in range(4)]
    done: list[str] = []
    threads = [
        threading.Thread(target=lambda each=each: done.append(each.train(experiment, wait=False).id))
        for each in providers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == jobs(kube) * 4


def test_lost_replies_throttling_and_faults_are_waited_out(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    kube.fail("create jobs", "lost", times=2)
    kube.fail("get jobs", "throttle", times=3)
    kube.fail("get pods/log", "error", times=3)
    kube.fail("list pods", "drop", times=2)
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert len(jobs(kube)) == 1
    assert all(item.times == 0 for item in kube.faults)


def test_a_token_that_expired_is_replaced(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    kube.fail("create jobs", "expired")
    assert provider.train(experiment, wait=False).id in jobs(kube)


def test_what_the_cluster_does_not_have_is_a_configuration_error(
    kube: KubeServer, experiment: Experiment, tmp_path: Path
) -> None:
    nowhere = kubernetes_provider(tmp_path / "a", kube, namespace="nowhere")
    with pytest.raises(ConfigError, match=r'namespaces "nowhere" not found') as caught:
        nowhere.train(experiment)
    assert caught.value.key == "kubernetes.namespace"
    with pytest.raises(CredentialsError, match="there is no context 'nobody'"):
        kubernetes_provider(tmp_path / "b", kube, context="nobody").train(experiment)
    homeless = kubernetes_provider(tmp_path / "c", kube, storage={"url": None})
    with pytest.raises(ConfigError) as storeless:
        homeless.train(experiment)
    assert storeless.value.key == "kubernetes.storage.url"
    assert jobs(kube) == []


def test_data_that_is_not_there_starts_nothing_and_data_in_the_store_is_read_in_place(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, tmp_path: Path
) -> None:
    for data in (f"s3://{BUCKET}/nothing/here.csv", "s3://no-such-bucket/a.csv", "gs://bucket/a.csv"):
        with pytest.raises((DataError, ProviderError)):
            provider.train(dataclasses.replace(experiment, data_path=data))
    assert jobs(kube) == []
    s3(kube).put_object(Bucket=BUCKET, Key="lake/numbers.txt", Body=b"1 2 6")
    for key in ("table-old/a", "table-old/b", "table.bak", "table/a"):
        assert not provider.storage.holds(f"s3://{BUCKET}/table")
        s3(kube).put_object(Bucket=BUCKET, Key=key, Body=b"")
    assert all(
        provider.storage.holds(f"s3://{BUCKET}{name}") for name in ("", "/table", "/table/", "/table.bak")
    )
    job = provider.train(dataclasses.replace(experiment, data_path=f"s3://{BUCKET}/lake/numbers.txt"))
    assert job.metrics == {"mean": 3.0, "count": 3.0}


# Waiting


def test_interrupting_who_waits_stops_the_job(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, tmp_path: Path
) -> None:
    def sink(line: str) -> None:
        if line == "hanging":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        provider.train(acting(experiment, "hang"), on_log=sink)
    until(lambda: not jobs(kube))
    # Deleted is not forgotten: whoever knows the token is told how it ended, and what it printed.
    other = kubernetes_provider(tmp_path / "another-machine", kube)
    with pytest.raises(TrainingCancelledError) as caught:
        other.train(experiment)
    assert "hanging" in list(other.logs(caught.value.details["job"]))


# What happens to pods


def test_a_pod_without_memory_is_told_as_killed(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    with pytest.raises(TrainingKilledError, match="out of memory, of which it had 2Gi") as caught:
        provider.train(
            acting(experiment, "hang"),
            on_log=on_line("hanging", lambda: kube.cluster.run_out_of_memory(pod(kube))),
        )
    assert "options.training.memory" in (caught.value.hint or "")
    listed = {job.id: job.status for job in kubernetes_provider(provider.state, kube).list_jobs()}
    assert listed[caught.value.details["job"]] is JobStatus.KILLED


def test_an_evicted_pod_is_told_as_that(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    evict = on_line("hanging", lambda: kube.cluster.evict(pod(kube)))
    with pytest.raises(ProviderError, match="low on resource: memory") as caught:
        provider.train(acting(experiment, "hang"), on_log=evict)
    assert "taken away" in str(caught.value)
    assert "options.training.backoff" in (caught.value.hint or "")


def test_with_backoff_an_evicted_pod_is_begun_again_and_a_script_that_fails_is_not(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    evict = on_line("step 1", lambda: kube.cluster.evict(pod(kube)))
    job = provider.train(acting(experiment, "slow", backoff=2, grace=2), on_log=evict)
    assert job.status is JobStatus.SUCCEEDED
    assert [line for line in provider.logs(job.id) if line == "step 0"] == ["step 0"] * 2
    failing = dataclasses.replace(acting(experiment, "fail", backoff=2), idempotency_token="run-2")
    with pytest.raises(TrainingFailedError, match="not a number"):
        provider.train(failing)
    assert len([name for name in kube.cluster.things["pods"] if name.startswith(job.id)]) == 2
    assert len(kube.cluster.things["pods"]) == 3


def test_what_keeps_a_pod_from_starting_is_told_and_given_up_in_time(
    kube: KubeServer, experiment: Experiment, tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, object], dict[str, object], type[NotebookedError], str]] = [
        ({}, {"image": "missing:1"}, ConfigError, "ImagePullBackOff"),
        ({}, {"cpu": "64"}, QuotaError, "Insufficient cpu"),
        ({}, {"node_selector": {"pool": "gpu"}}, QuotaError, "didn't match Pod's node affinity"),
        ({"storage": {"access_from": "nothing"}}, {}, ConfigError, 'secret "nothing" not found'),
        ({"service_account": "nobody"}, {}, ConfigError, 'serviceaccount "nobody" not found'),
        ({}, {}, QuotaError, "exceeded quota: team"),
    ]
    begun = []
    for number, (section, training, error, said) in enumerate(cases):
        if error is QuotaError and not training:
            until(lambda: len(kube.cluster.things["pods"]) == 4)
            kube.cluster.quota["pods"] = 0
        provider = kubernetes_provider(tmp_path / str(number), kube, **section)
        wanted = dataclasses.replace(
            experiment,
            options={"training": {"start_timeout": 3, "grace": 2, **training}},
            idempotency_token=f"run-{number}",
        )
        job = provider.train(wanted, wait=False)
        begun.append((provider, wanted, job.id, error, said))
    for provider, _, job_id, _, said in begun:
        until(lambda job_id=job_id, said=said, look=provider._look: said in str(look(job_id)))
    for provider, wanted, job_id, error, said in begun:
        with pytest.raises(error, match="could not start") as caught:
            provider.train(wanted)
        assert said in str(caught.value)
        assert caught.value.hint
        assert provider.status(job_id).status is JobStatus.FAILED
    assert jobs(kube) == []


def test_a_job_deleted_by_hand_is_no_success_and_keeps_its_log(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    delete = on_line("hanging", lambda: kube.cluster.remove("jobs", jobs(kube)[0]))
    with pytest.raises(ProviderError, match="its Job was deleted while it ran") as caught:
        provider.train(acting(experiment, "hang"), on_log=delete)
    assert "hanging" in list(provider.logs(caught.value.details["job"]))


def test_a_pod_deleted_by_hand_is_no_success(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    delete = on_line("hanging", lambda: kube.cluster.remove("pods", pod(kube)))
    with pytest.raises(ProviderError, match="its pod is gone"):
        provider.train(acting(experiment, "hang"), on_log=delete)


def test_pods_that_may_not_use_the_store_and_requirements_that_do_not_install_are_told_apart(
    kube: KubeServer, experiment: Experiment, tmp_path: Path
) -> None:
    # Something that does not know the keys.
    lost = kubernetes_provider(tmp_path / "a", kube, storage={"cluster_endpoint_url": kube.url})
    with pytest.raises(CredentialsError, match="package could not be read") as caught:
        lost.train(experiment)
    assert "cluster_endpoint_url" in (caught.value.hint or "")
    (experiment.scripts / "requirements.txt").write_text("impossible==1.0\n")
    with pytest.raises(ConfigError, match="requirements cannot be installed"):
        kubernetes_provider(tmp_path / "b", kube).train(
            dataclasses.replace(experiment, idempotency_token="run-2")
        )


def test_several_pods_find_each_other_and_one_model_is_kept(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    told = acting(experiment, "environment")
    job = provider.train(dataclasses.replace(told, instance_count=2))
    assert job.status is JobStatus.SUCCEEDED
    lines = list(provider.logs(job.id))
    for rank in ("0", "1"):
        mine = next(line for line in lines if f'"RANK": "{rank}"' in line)
        assert f'"MASTER_ADDR": "{job.id}-0.{job.id}"' in mine
        assert mine.startswith("[1] ") == (rank == "1")
    service = kube.cluster.things["services"][job.id]
    assert service["spec"]["clusterIP"] == "None"
    kube.cluster.remove("jobs", job.id)
    assert job.id not in kube.cluster.things["services"]


MEETING = """
import os, pathlib, time
place, me = pathlib.Path({meeting!r}), os.environ["RANK"]
(place / f".{{me}}").write_text(" ".join(os.environ[n] for n in ("MASTER_ADDR", "WORLD_SIZE", "SM_CURRENT_HOST")))
(place / f".{{me}}").rename(place / me)
while not (place / "1").exists():
    time.sleep(0.02)
"""


def test_kubeflow_runs_the_pods_where_it_is_installed(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, tmp_path: Path
) -> None:
    # The chief waits for the worker, which the operator ends with it.
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    script = experiment.scripts / "train.py"
    script.write_text(MEETING.format(meeting=str(meeting)) + script.read_text())
    told = dataclasses.replace(acting(experiment, "learn", operator="kubeflow"), instance_count=2)
    with pytest.raises(ConfigError, match=r"not installed in this cluster: no kubeflow\.org/v1") as caught:
        provider.train(told)
    assert caught.value.key == "options.training.operator"
    kube.cluster.kubeflow = True
    job = provider.train(told)
    assert job.status is JobStatus.SUCCEEDED
    # What torch.distributed begins from is the operator's own.
    assert {path.name: path.read_text() for path in meeting.iterdir()} == {
        "0": f"{job.id}-master-0 2 {job.id}-master-0",
        "1": f"{job.id}-master-0 2 {job.id}-worker-0",
    }
    assert kube.cluster.things["jobs"] == {}
    # Another machine knows its name alone.
    elsewhere = kubernetes_provider(tmp_path / "elsewhere", kube)
    assert elsewhere.status(job.id).status is JobStatus.SUCCEEDED
    assert [item.status for item in elsewhere.list_jobs()] == [JobStatus.SUCCEEDED]
    kube.denied |= {"get pytorchjobs", "list pytorchjobs"}
    # A Role that was made for experiments without Kubeflow is no error.
    assert kubernetes_provider(tmp_path / "third", kube).list_jobs() == []


def test_how_a_job_of_kubeflow_fails_or_is_stopped_is_told_as_ever(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, tmp_path: Path
) -> None:
    kube.cluster.kubeflow = True
    with pytest.raises(TrainingFailedError, match="not a number"):
        provider.train(acting(experiment, "fail", operator="kubeflow"))
    hanging = dataclasses.replace(
        acting(experiment, "hang", operator="kubeflow", grace=2), idempotency_token="run-2"
    )
    evict = on_line("hanging", lambda: kube.cluster.evict(f"{_kubeflow_job(kube)}-master-0"))
    with pytest.raises(ProviderError, match="taken away"):
        provider.train(hanging, on_log=evict)
    late = dataclasses.replace(hanging, idempotency_token="run-3", timeout=1)
    with pytest.raises(TrainingTimeoutError):
        provider.train(late)
    kube.cluster.quota["pods"] = 0
    stuck = provider.train(dataclasses.replace(hanging, idempotency_token="run-4"), wait=False)
    until(lambda: "exceeded quota" in str(provider._look(stuck.id)))
    provider.cancel(stuck.id)
    until(lambda: provider.status(stuck.id).status is JobStatus.CANCELLED)
    assert stuck.id not in kube.cluster.things["pytorchjobs"]


def _kubeflow_job(kube: KubeServer) -> str:
    """The one that runs."""
    return next(
        name
        for name, job in kube.cluster.things["pytorchjobs"].items()
        if not any(item["type"] == "Failed" for item in job["status"].get("conditions", ()))
    )


def test_waiting_for_a_node_is_not_the_scripts_time(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment
) -> None:
    kube.cluster.node["cpu"] = 0.5
    job = provider.train(dataclasses.replace(acting(experiment, "hang"), timeout=1), wait=False)
    time.sleep(1.5)
    assert provider.status(job.id).status is JobStatus.PENDING
    kube.cluster.node["cpu"] = 16.0
    with pytest.raises(TrainingTimeoutError):
        provider.train(experiment)


# Serving


@pytest.fixture
def model(provider: KubernetesProvider, experiment: Experiment) -> str:
    uri = provider.train(experiment).model_uri
    assert uri is not None
    return uri


def deployments(kube: KubeServer) -> list[str]:
    return sorted(kube.cluster.things["deployments"])


def test_an_endpoint_that_never_becomes_ready_keeps_the_old(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, tmp_path: Path
) -> None:
    provider.deploy(experiment, model, "live")
    (experiment.scripts / "inference.py").write_text("raise RuntimeError('no weights')\n")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "mean.json").write_text("1.0")
    with pytest.raises(DeploymentError, match="serves what it served before") as caught:
        provider.deploy(experiment, str(broken), "live")
    assert "no weights" in str(caught.value)
    for endpoint in ({"image": "missing:1"}, {"cpu": "64"}):
        options = {"endpoint": {**endpoint, "health_timeout": 1}}
        with pytest.raises(DeploymentError, match=r"ErrImagePull|ImagePullBackOff|Insufficient cpu"):
            provider.deploy(dataclasses.replace(experiment, options=options), model, "live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    until(lambda: deployments(kube) == ["nbd-live-v1"])
    assert provider.endpoint("live").status is EndpointStatus.HEALTHY


def test_a_version_that_fails_with_its_own_example_gets_no_traffic(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    code = experiment.scripts / "inference.py"
    code.write_text(
        code.read_text().replace("return [(row", "raise ValueError('wrong shape')\n    return [(row")
    )
    trained = provider.train(dataclasses.replace(experiment, idempotency_token="run-2")).model_uri
    assert trained is not None
    with pytest.raises(DeploymentError, match=r"input example: .*wrong shape"):
        provider.deploy(experiment, trained, "live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    with pytest.raises(DeploymentError):
        provider.deploy(experiment, trained, "new")
    with pytest.raises(EndpointNotFoundError):
        provider.endpoint("new")


def test_a_challenger_that_fails_leaves_the_split_as_it_was(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str
) -> None:
    provider.deploy(experiment, model, "live")
    provider.deploy(experiment, model, "live", weight=25)
    before = provider.endpoint("live")
    assert [(item.role, item.weight) for item in before.deployments] == [("champion", 75), ("challenger", 25)]
    options = {"endpoint": {"image": "missing:1", "health_timeout": 1}}
    with pytest.raises(DeploymentError):
        provider.deploy(dataclasses.replace(experiment, options=options), model, "live", weight=50)
    assert provider.endpoint("live").deployments == before.deployments
    after = provider.deploy(experiment, model, "live", weight=50)
    assert [(item.version, item.weight) for item in after.deployments] == [("1", 50), ("3", 50)]
    scaled = {"endpoint": {"autoscaling": {"max": 3}}}
    with pytest.raises(ConfigError, match="number of pods"):
        provider.deploy(dataclasses.replace(experiment, options=scaled), model, "live", weight=50)


def test_two_deployments_at_once_are_one_and_a_conflict(
    kube: KubeServer, experiment: Experiment, model: str, tmp_path: Path
) -> None:
    results = deployed_at_once(
        lambda number: kubernetes_provider(tmp_path / f"machine-{number}", kube),
        experiment,
        model,
        machines=3,
    )
    failed = [item for item in results if isinstance(item, NotebookedError)]
    assert [repr(item) for item in failed if not isinstance(item, DeploymentConflictError)] == []
    mine = kubernetes_provider(tmp_path / "another", kube)
    assert mine.predict("live", ROWS) == {"predictions": [3.0]}
    roles = {item.version for item in mine.endpoint("live").deployments}
    until(lambda: {name.rpartition("-v")[2] for name in deployments(kube)} == roles)


def test_somebody_elses_change_is_a_conflict_and_nothing_is_left(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, tmp_path: Path
) -> None:
    provider.deploy(experiment, model, "live")
    answers = provider._hosting._versions.answers

    def meanwhile(*given: object, **more: object) -> None:
        provider._hosting._versions.answers = answers  # type: ignore[method-assign]
        kubernetes_provider(tmp_path / "another", kube).deploy(experiment, model, "live")

    provider._hosting._versions.answers = meanwhile  # type: ignore[method-assign]
    with pytest.raises(DeploymentConflictError):
        provider.deploy(experiment, model, "live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert provider.endpoint("live").deployments[0].version == "3"


def test_lost_replies_of_a_deployment_are_no_second_version(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str
) -> None:
    kube.fail("create deployments", "lost")
    kube.fail("create services", "lost")
    provider.deploy(experiment, model, "live")
    # The control plane is upgraded while the second version starts.
    kube.fail("get deployments", "error", times=6)
    kube.fail("patch services", "lost")
    kube.fail("patch deployments", "throttle")
    endpoint = provider.deploy(experiment, model, "live")
    assert [(item.version, item.role, item.status) for item in endpoint.deployments] == [
        ("2", "champion", EndpointStatus.HEALTHY),
        ("1", "previous", EndpointStatus.STOPPED),
    ]
    kube.fail("create services/proxy", "drop")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert "[notebooked] The model is loaded." in list(provider.endpoint_logs("live"))
    with pytest.raises(InvalidInputError):
        provider.predict("live", {"dataframe_records": [{"y": 1}]})


def test_somebody_elses_service_is_left_alone(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str
) -> None:
    spec = {"ports": [{"port": 80}], "selector": {"app": "theirs"}}
    kube.cluster.add("services", {"metadata": {"name": "nbd-theirs"}, "spec": spec})
    assert provider.list_endpoints() == []
    with pytest.raises(EndpointNotFoundError):
        provider.delete_endpoint("theirs")
    with pytest.raises(DeploymentConflictError):
        provider.deploy(experiment, model, "theirs")
    assert kube.cluster.things["services"]["nbd-theirs"]["spec"]["selector"] == {"app": "theirs"}


@pytest.mark.parametrize("cut", ["", "delete deployments"])
def test_deleting_leaves_the_model_and_nothing_else_also_when_it_was_cut_off(
    kube: KubeServer, provider: KubernetesProvider, experiment: Experiment, model: str, cut: str
) -> None:
    provider.deploy(experiment, model, "live")
    if cut:
        kube.fail(cut, "denied")
        with pytest.raises(ProviderError):
            provider.delete_endpoint("live")
        assert provider.list_endpoints() == []
    assert provider.delete_endpoint("live") == [f"The model {model} is kept."]
    assert kube.cluster.things["services"] == kube.cluster.things["deployments"] == {}
    left = [item["Key"] for item in s3(kube).list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert not [key for key in left if "/endpoints/" in key]
    assert model.removeprefix(f"s3://{BUCKET}/") in left
