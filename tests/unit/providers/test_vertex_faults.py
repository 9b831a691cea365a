"""What goes wrong at Google's, and that nothing is lost, doubled or left behind."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
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
    ProviderError,
    QuotaError,
    TrainingFailedError,
)
from notebooked_dagster.providers.base import EndpointStatus, Experiment, JobStatus
from notebooked_dagster.providers.vertex import VertexProvider
from tests.clouds.gcp import ACCOUNT, ApiError, GcpServer
from tests.clouds.gcp_kit import BUCKET, gcp_server, settings, vertex_provider
from tests.clouds.gcs import Reply
from tests.contract.scripts import write_scripts
from tests.unit.providers.faults import Kit, StopFaults, acting, deployed_at_once

ROWS = {"dataframe_records": [{"x": 1.0}]}


@pytest.fixture
def gcp(tmp_path: Path) -> Iterator[GcpServer]:
    with gcp_server(tmp_path / "gcp") as server:
        yield server


@pytest.fixture
def provider(tmp_path: Path, gcp: GcpServer) -> VertexProvider:
    return vertex_provider(tmp_path / "state", gcp)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    scripts = write_scripts(tmp_path / "scripts")
    # Slow enough to be cut off in between.
    train = scripts / "train.py"
    train.write_text(train.read_text().replace("range(40)", "range(12)"))
    return Experiment("sample", scripts, idempotency_token="run-1")


def names(gcp: GcpServer) -> list[str]:
    """Our names of the jobs that Vertex AI has."""
    return [job.message.labels["notebooked_job"] for job in gcp.vertex.jobs.values()]


def ended(gcp: GcpServer) -> None:
    """Wait until the only job has ended."""
    (job,) = gcp.vertex.jobs.values()
    deadline = time.monotonic() + 20
    while not job.message.HasField("end_time") and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture
def kit(gcp: GcpServer) -> Kit:
    def stop(name: str) -> None:
        (job,) = gcp.vertex.jobs.values()
        job.cancelling.set()

    def put(name: str, content: bytes | None) -> None:
        if content is None:
            gcp.gcs.remove(BUCKET, name)
        else:
            gcp.gcs.put(BUCKET, name, content)

    return Kit(
        machine=lambda state, **more: vertex_provider(state, gcp, **more),
        emulator=gcp.vertex,
        jobs=lambda: names(gcp),
        ended=lambda name: all(job.message.HasField("end_time") for job in gcp.vertex.jobs.values()),
        put=put,
        submit="CreateCustomJob",
        refusals={
            "quota": "custom_model_training_cpus",
            "denied": "aiplatform.customJobs.create",
            "expired": "renew",
        },
        listing=frozenset({"ListCustomJobs"}),
        stop=stop,
    )


class TestJobs(StopFaults):
    """The faults of every cloud."""


# Submitting


@pytest.mark.parametrize("moment", ["before the job", "before the id"])
def test_a_process_killed_while_submitting_leaves_one_job_which_the_next_finds(
    gcp: GcpServer, experiment: Experiment, tmp_path: Path, moment: str
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.registry import get_provider
provider = get_provider("vertex", state_dir={str(tmp_path / "state")!r}, **{settings(gcp)!r})
die = lambda *given, **more: os.kill(os.getpid(), signal.SIGKILL)
jobs, create = provider._jobs, provider._jobs._create
if {moment!r} == "before the job":
    jobs._create = die
else:
    jobs._create = lambda *given: (create(*given), die())
provider.train(Experiment("sample", Path({str(experiment.scripts)!r}), idempotency_token="run-1"))
"""
    died = subprocess.run([sys.executable, "-c", program], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(gcp.vertex.jobs) == (0 if moment == "before the job" else 1)
    # Where nothing tells that a job was made, the next waits until the first can no longer make one.
    job = vertex_provider(tmp_path / "state", gcp, claim=1.0).train(experiment)
    assert job.status is JobStatus.SUCCEEDED
    assert names(gcp) == [job.id]


def test_two_machines_that_submit_at_once_submit_one_job(
    gcp: GcpServer, experiment: Experiment, tmp_path: Path
) -> None:
    providers = [vertex_provider(tmp_path / f"machine-{number}", gcp) for number in range(4)]
    for provider in providers:
        _ = provider.session.client("jobs"), provider.storage
    done: list[str] = []
    threads = [
        threading.Thread(target=lambda each=each: done.append(each.train(experiment, wait=False).id))
        for each in providers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 4
    assert names(gcp) == [done[0]]


def test_the_mark_may_be_gone_as_long_as_the_job_is_there(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    first = provider.train(experiment)
    gcp.gcs.remove(BUCKET, f"notebooked/jobs/{first.id}/job.json")
    assert vertex_provider(tmp_path / "another-machine", gcp).train(experiment).id == first.id
    assert names(gcp) == [first.id]


def test_a_job_that_somebody_deleted_may_be_submitted_anew(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    first = provider.train(experiment)
    gcp.vertex.jobs.clear()
    again = vertex_provider(tmp_path / "another-machine", gcp).train(experiment)
    assert (again.id, again.status) == (first.id, JobStatus.SUCCEEDED)
    assert names(gcp) == [first.id]


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_reply_to_the_submission_is_no_second_job(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, times: int
) -> None:
    gcp.vertex.fail("CreateCustomJob", "lost", times=times)
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert len(gcp.vertex.jobs) == 1


def test_who_was_held_up_makes_no_job_beside_the_one_of_who_took_over(
    gcp: GcpServer, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = vertex_provider(tmp_path / "state", gcp, claim=1.2)
    monkeypatch.setattr(provider.session, "pause", lambda attempt: time.sleep(0.25))
    gcp.vertex.fail("CreateCustomJob", "error")
    with pytest.raises(ProviderError, match="cannot be started"):
        provider.train(experiment)
    assert gcp.vertex.calls.count("CreateCustomJob") == 1
    assert vertex_provider(tmp_path / "other", gcp, claim=1.2).train(experiment).status is JobStatus.SUCCEEDED
    assert len(gcp.vertex.jobs) == 1


def test_a_lost_reply_to_the_mark_is_no_lost_job(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    submit = provider._jobs.submit
    seen: list[str] = []

    def losing(*given: object) -> None:
        seen.append("")
        gcp.vertex.fail("WriteObject", "lost", times=2)
        submit(*given)  # type: ignore[arg-type]

    provider._jobs.submit = losing  # type: ignore[method-assign]
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert (len(seen), len(gcp.vertex.jobs)) == (1, 1)


def test_throttling_and_faults_of_the_service_are_waited_out(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    gcp.vertex.fail("GetCustomJob", "throttle", times=3)
    gcp.vertex.fail("ListLogEntries", "throttle", times=6)
    gcp.vertex.fail("CreateCustomJob", "error", times=1)
    gcp.vertex.fail("CreateCustomJob", "throttle", times=1)
    gcp.vertex.fail("ReadObject", "error", times=2)
    assert provider.train(experiment).status is JobStatus.SUCCEEDED
    assert len(gcp.vertex.jobs) == 1


@pytest.mark.parametrize(
    ("settings", "changes", "key"),
    [
        ({}, {"instance_type": "n1-standard-5000x"}, None),
        ({}, {"instance_type": "abacus-large-2"}, "instance_type"),
        ({"service_account": "missing@my-project.iam.gserviceaccount.com"}, {}, "gcp.service_account"),
    ],
)
def test_what_the_region_does_not_have_is_a_configuration_error(
    gcp: GcpServer,
    experiment: Experiment,
    tmp_path: Path,
    settings: dict[str, str],
    changes: dict[str, str],
    key: str | None,
) -> None:
    provider = vertex_provider(tmp_path / "state", gcp, **settings)
    if key is None:
        assert provider.train(dataclasses.replace(experiment, **changes)).status is JobStatus.SUCCEEDED  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError) as caught:
        provider.train(dataclasses.replace(experiment, **changes))  # type: ignore[arg-type]
    assert caught.value.key == key
    assert provider.list_jobs() == []


def test_no_machine_free_is_said_to_be_that(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    gcp.vertex.no_capacity.add("n1-standard-4")
    with pytest.raises(QuotaError, match="Resources are insufficient in region"):
        provider.train(experiment)


def test_data_that_is_not_there_starts_nothing(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    for data in (f"gs://{BUCKET}/nothing/here.csv", "gs://no-such-bucket/a.csv"):
        with pytest.raises((DataError, ProviderError)):
            provider.train(dataclasses.replace(experiment, data_path=data))
    assert gcp.vertex.jobs == {}
    with pytest.raises(DataError, match="from Cloud Storage"):
        provider.train(dataclasses.replace(experiment, data_path="s3://bucket/a.csv"))


def test_data_in_the_bucket_is_read_in_place(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    gcp.gcs.put(BUCKET, "lake/numbers.txt", b"1 2 6")
    job = provider.train(dataclasses.replace(experiment, data_path=f"gs://{BUCKET}/lake/numbers.txt"))
    assert job.metrics == {"mean": 3.0, "count": 3.0}


def test_the_same_data_is_sent_once(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    data = tmp_path / "numbers.txt"
    data.write_text("1 2 6")
    for token in ("a", "b"):
        job = provider.train(dataclasses.replace(experiment, data_path=str(data), idempotency_token=token))
        assert job.metrics == {"mean": 3.0, "count": 3.0}
    sent = [name for name in gcp.gcs.names(BUCKET, "notebooked/data/") if name.endswith("numbers.txt")]
    assert len(sent) == 1


# Waiting


def test_a_log_that_may_not_be_read_yet_is_waited_for(
    gcp: GcpServer, experiment: Experiment, tmp_path: Path
) -> None:
    provider = vertex_provider(tmp_path / "state", gcp, log_grace=0.0)
    job = provider.train(acting(experiment, "fail"), wait=False)
    ended(gcp)
    gcp.vertex.fail("ListLogEntries", "throttle", times=5)
    assert "the loss is not a number" in provider.status(job.id).traceback


def test_who_gives_out_tokens_may_be_out_of_reach(provider: VertexProvider) -> None:
    from google.auth.exceptions import TransportError

    answers = iter([TransportError("no route"), None])  # type: ignore[no-untyped-call]

    def call() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "done"

    assert provider.session.again(call) == "done"


def test_a_model_that_cannot_be_written_is_not_blamed_on_the_script(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    # A file where the folder is to be, as a mount that lets nobody write would have it.
    provider_request = provider.request

    def spoiled(job_id: str, *given: object) -> dict[str, object]:
        gcp.gcs.put(BUCKET, f"notebooked/jobs/{job_id}/model", b"")
        return provider_request(job_id, *given)  # type: ignore[arg-type]

    provider.request = spoiled  # type: ignore[method-assign]
    with pytest.raises(ProviderError, match="could not be written to the bucket"):
        provider.train(experiment)


def started_again(gcp: GcpServer) -> subprocess.CompletedProcess[str]:
    """What the container of the only job does on the machine that Vertex AI puts in the place of its own."""
    from tests.clouds.vertex_containers import argv

    (job,) = gcp.vertex.jobs.values()
    spec = job.message.job_spec
    container = spec.worker_pool_specs[0].container_spec
    variables = {item.name: item.value for item in container.env}
    places = {
        "NOTEBOOKED_GCS_ROOT": str(gcp.gcs.root),
        "AIP_MODEL_DIR": f"{spec.base_output_directory.output_uri_prefix}/model/",
    }
    return subprocess.run(
        [sys.executable, *argv(list(container.command), [])],
        env={**os.environ, **variables, **places},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_container_that_is_started_again_after_a_failure_trains_no_second_time(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    with pytest.raises(TrainingFailedError, match="exit code 3"):
        provider.train(acting(experiment, "exit"))
    again = started_again(gcp)
    assert (again.returncode, again.stdout) == (3, "")


SAVES = """
import os, pathlib, signal, sys, time
saved = pathlib.Path(os.environ["SAVED"])
def save(*_):
    saved.write_text("epoch 7")
    sys.exit(0)
if saved.exists():
    print("goes on from", saved.read_text())
else:
    signal.signal(signal.SIGTERM, save)
    print("waiting")
    time.sleep(600)
"""


def test_a_machine_that_is_taken_away_lets_the_script_save_and_the_next_one_goes_on(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    train = experiment.scripts / "train.py"
    train.write_text(SAVES + train.read_text())
    spot = dataclasses.replace(experiment, environment={"SAVED": str(tmp_path / "saved")})
    job = provider.train(spot, wait=False)
    assert "waiting" in list(_until_said(provider, job.id, "waiting"))
    gcp.vertex.running[0].process.terminate()
    ended(gcp)
    again = started_again(gcp)
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "goes on from epoch 7")
    assert gcp.gcs.names(BUCKET, f"notebooked/jobs/{job.id}/model/") != []


def _until_said(provider: VertexProvider, job_id: str, wanted: str) -> Iterator[str]:
    for line in provider.logs(job_id, follow=True):
        yield line
        if line == wanted:
            return


def test_requirements_that_cannot_be_installed_are_the_users_error(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    (experiment.scripts / "requirements.txt").write_text("impossible==1.0\n")
    with pytest.raises(ConfigError, match="requirements cannot be installed"):
        provider.train(experiment)


def test_a_hundred_waiting_jobs_are_one_call(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    for number in range(6):
        hanging = acting(experiment, "hang")
        provider.train(dataclasses.replace(hanging, idempotency_token=str(number)), wait=False)
    gcp.vertex.calls.clear()
    assert len(provider.list_jobs()) == 6
    assert gcp.vertex.calls == ["ListCustomJobs"]
    now = datetime.now(UTC)
    assert len(provider.states(now - timedelta(hours=1))) == 6
    assert provider.states(now + timedelta(hours=1)) == {}


def test_what_a_job_cost_is_told(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    facts = provider.train(experiment).facts
    assert facts["instance"] == "1 x n1-standard-4"
    assert facts["billed (s)"] >= 1
    assert facts["cost (USD, estimated)"] == pytest.approx(
        0.21849885 * float(facts["billed (s)"]) / 3600, abs=1e-4
    )
    assert str(facts["console"]).startswith("https://console.cloud.google.com/")
    options = {"training": {"accelerator": "NVIDIA_TESLA_T4", "accelerator_count": 2}}
    wanted = dataclasses.replace(experiment, options=options, idempotency_token="run-2")
    assert "cost (USD, estimated)" not in provider.train(wanted).facts
    own = vertex_provider(
        tmp_path / "state", gcp, prices={"n1-standard-4": 3600.0, "NVIDIA_TESLA_T4": 7200.0}
    )
    facts = own.train(dataclasses.replace(wanted, idempotency_token="run-3")).facts
    assert facts["instance"] == "1 x n1-standard-4 with 2 x NVIDIA_TESLA_T4"
    assert facts["cost (USD, estimated)"] == 18000.0 * float(facts["billed (s)"]) / 3600


def test_the_mlflow_run_of_a_killed_submitter_is_ended_by_who_takes_the_job_up(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    from notebooked_dagster.tracking import Tracking, local_uri

    uri = local_uri(tmp_path / "mlflow-state")
    tracked = dataclasses.replace(experiment, tracking_uri=uri)
    first = provider.train(tracked, wait=False)
    # The machine that submitted it is gone, with all it had on disk.
    done = vertex_provider(tmp_path / "another-machine", gcp, tracking_uri=uri).train(tracked)
    assert done.id == first.id
    assert done.mlflow_run_id is not None
    client = Tracking(uri, "sample").client
    runs = client.search_runs([client.get_experiment_by_name("sample").experiment_id])
    assert [(run.info.run_id, run.info.status) for run in runs] == [(done.mlflow_run_id, "FINISHED")]


# What is sent


def test_what_is_sent_holds_the_arguments_and_no_credentials(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    wanted = dataclasses.replace(
        experiment, hyperparameters={"note": "it's", "shift": 0.25}, environment={"LEVEL": "2"}
    )
    job = provider.train(wanted)
    (message,) = [item.message for item in gcp.vertex.jobs.values()]
    variables = {item.name: item.value for item in message.job_spec.worker_pool_specs[0].container_spec.env}
    assert variables["LEVEL"] == "2"
    assert set(variables) == {
        "LEVEL", "NOTEBOOKED_EXPERIMENT", "NOTEBOOKED_PACKAGE", "NOTEBOOKED_OUTPUT",
    }  # fmt: skip
    package = gcp.gcs.path(BUCKET, f"notebooked/jobs/{job.id}/source/package.tar.gz")
    with tarfile.open(package) as archive:
        told = json.load(archive.extractfile("notebooked_job.json"))  # type: ignore[arg-type]
    assert told["arguments"] == ["--note=it's", "--shift=0.25"]
    secrets = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text()
    assert "subject-token" in secrets
    assert "subject-token" not in str(message)


def test_all_options_reach_the_request(gcp: GcpServer, experiment: Experiment, tmp_path: Path) -> None:
    key = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
    provider = vertex_provider(tmp_path / "state", gcp, kms_key=key, network="projects/1/global/networks/n")
    options = {
        "training": {
            "spot": True,
            "disk_size": 200,
            "disk_type": "pd-standard",
            "image": "europe-docker.pkg.dev/p/r/i:1",
            "labels": {"team": "ml-co"},
        }
    }
    wanted = dataclasses.replace(
        experiment, options=options, timeout=3599.5, instance_type="e2-standard-8", instance_count=3
    )
    job = provider.train(wanted)
    (message,) = [item.message for item in gcp.vertex.jobs.values()]
    spec = message.job_spec
    assert [pool.replica_count for pool in spec.worker_pool_specs] == [1, 2]
    assert spec.worker_pool_specs[1].machine_spec.machine_type == "e2-standard-8"
    assert (spec.scheduling.timeout.seconds, spec.scheduling.strategy) == (3600, 4)
    assert (spec.service_account, spec.network) == (ACCOUNT, "projects/1/global/networks/n")
    disk = spec.worker_pool_specs[0].disk_spec
    assert (disk.boot_disk_type, disk.boot_disk_size_gb) == ("pd-standard", 200)
    assert message.encryption_spec.kms_key_name == key
    assert message.labels["team"] == "ml-co"
    assert job.facts["instance"] == "3 x e2-standard-8"
    assert "cost (USD, estimated)" not in job.facts  # a spot machine's price is nobody's to say
    # The log tells whose line it is; the first machine's end is the job's.
    assert "training ends" in list(provider.logs(job.id))
    others = {line.partition("] ")[0] for line in provider.logs(job.id) if line.startswith("[workerpool")}
    assert others <= {"[workerpool1-0", "[workerpool1-1"}


def test_a_gpu_that_the_api_does_not_know_is_a_configuration_error(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    options = {"training": {"accelerator": "T4"}, "endpoint": {"accelerator": "T4"}}
    wrong = dataclasses.replace(experiment, options=options)
    with pytest.raises(ConfigError, match="no such value") as caught:
        provider.train(wrong)
    assert caught.value.key == "options.training"
    assert provider.list_jobs() == []
    uri = provider.train(experiment).model_uri
    assert uri is not None
    with pytest.raises(ConfigError, match="no such value"):
        provider.deploy(wrong, uri, "live")
    assert provider.list_endpoints() == []


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"trainin": {}}, "options.trainin"),
        ({"training": {"spott": True}}, "options.training.spott"),
        ({"training": {"labels": {"Team": "x"}}}, "options.training.labels"),
        ({"endpoint": {"min_replicas": 3}}, "options.endpoint"),
        ({"endpoint": {"canary": [50, 10]}}, "options.endpoint"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, options: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        provider.train(dataclasses.replace(experiment, options=options))
    assert caught.value.key == key
    assert gcp.vertex.calls == []


@pytest.mark.parametrize("missing", ["region", "bucket"])
def test_what_is_not_configured_is_named(
    gcp: GcpServer, experiment: Experiment, tmp_path: Path, missing: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        vertex_provider(tmp_path / "state", gcp, **{missing: None}).train(experiment)
    assert caught.value.key == f"gcp.{missing}"


def test_a_machine_of_another_cloud_is_refused(provider: VertexProvider, experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match="no machine of Google's"):
        provider.train(dataclasses.replace(experiment, instance_type="ml.m5.large"))


def test_without_credentials_it_says_where_they_come_from(
    gcp: GcpServer,
    provider: VertexProvider,
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud"))
    with pytest.raises(CredentialsError, match="gcloud auth application-default login"):
        provider.train(experiment)


# Endpoints


@pytest.fixture
def served(provider: VertexProvider, experiment: Experiment) -> str:
    """The model that the endpoint ``live`` serves."""
    uri = provider.train(experiment).model_uri
    assert uri is not None
    provider.deploy(experiment, uri, "live")
    return uri


def other(provider: VertexProvider, experiment: Experiment) -> str:
    """A model that answers 10 more."""
    wanted = dataclasses.replace(experiment, hyperparameters={"shift": 10.0}, idempotency_token="run-10")
    uri = provider.train(wanted).model_uri
    assert uri is not None
    return uri


def models(gcp: GcpServer) -> list[str]:
    return sorted(name.rpartition("/")[2] for name in gcp.vertex.models)


def running(gcp: GcpServer, name: str = "live") -> list[str]:
    """The versions that run, and cost."""
    live = next(item for key, item in gcp.vertex.endpoints.items() if key.endswith(f"/nbd-{name}"))
    return sorted(item.id for item in live.message.deployed_models)


def broken_model(tmp_path: Path, code: str) -> str:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "inference.py").write_text(code)
    return str(folder)


NO_WEIGHTS = "def model_fn(folder):\n    raise OSError('no weights')\n"


def test_a_model_that_does_not_load_never_gets_traffic_and_leaves_nothing(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    before = (models(gcp), running(gcp))
    with pytest.raises(DeploymentError, match="no weights") as caught:
        provider.deploy(experiment, broken_model(tmp_path, NO_WEIGHTS), "live")
    assert "serves what it served before" in caught.value.message
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert (models(gcp), running(gcp)) == before
    assert provider.endpoint("live").status is EndpointStatus.HEALTHY


def test_a_container_that_never_becomes_healthy_keeps_the_old_one(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    gcp.vertex.patience = 1.0
    slow = "import time\ndef model_fn(folder):\n    time.sleep(60)\n"
    with pytest.raises(DeploymentError, match="never became ready"):
        provider.deploy(experiment, broken_model(tmp_path, slow), "live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert running(gcp) == ["1"]


def test_a_first_deployment_that_fails_leaves_no_endpoint(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(DeploymentError, match="no weights"):
        provider.deploy(experiment, broken_model(tmp_path, NO_WEIGHTS), "first")
    assert provider.list_endpoints() == []
    assert gcp.vertex.models == {}
    assert gcp.gcs.names(BUCKET, "notebooked/endpoints/") == []


def test_of_two_deployments_at_once_one_is_told_to_wait(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    outcomes = deployed_at_once(
        lambda number: vertex_provider(tmp_path / f"state-{number}", gcp), experiment, served
    )
    kinds = sorted(type(item).__name__ for item in outcomes)
    # Either one was told to wait, or they were far enough apart to follow each other.
    assert kinds in (["DeploymentConflictError", "Endpoint"], ["Endpoint", "Endpoint"])
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    champion = next(item.version for item in provider.endpoint("live").deployments if item.weight == 100)
    assert running(gcp) == [champion]


def test_a_deployment_that_was_overtaken_moves_no_traffic(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    second = vertex_provider(tmp_path / "other", gcp)
    hosting = provider._hosting
    start = hosting._start

    def overtaken(*given: object) -> None:
        start(*given)  # type: ignore[arg-type]
        hosting._start = start  # type: ignore[method-assign]
        second.deploy(experiment, served, "live")

    hosting._start = overtaken  # type: ignore[method-assign]
    with pytest.raises(DeploymentConflictError, match="versions are others"):
        provider.deploy(experiment, other(provider, experiment), "live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert running(gcp) == ["3"]
    assert models(gcp) == ["nbd-live-v1", "nbd-live-v3"]


@pytest.mark.parametrize("operation", ["UploadModel", "CreateEndpoint", "DeployModel", "UpdateEndpoint"])
@pytest.mark.parametrize("fault", ["lost", "error"])
def test_a_deployment_survives_a_lost_reply_and_a_fault_of_the_service(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, operation: str, fault: str
) -> None:
    uri = provider.train(experiment).model_uri
    assert uri is not None
    gcp.vertex.fail(operation, fault)
    provider.deploy(experiment, uri, "live")
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}
    assert (models(gcp), running(gcp)) == (["nbd-live-v1"], ["1"])


def test_deleting_removes_all_that_was_made_and_names_what_stays(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str
) -> None:
    provider.deploy(experiment, served, "live-two")
    left = provider.delete_endpoint("live")
    assert any(served in sentence for sentence in left)
    assert [name.rpartition("/")[2] for name in gcp.vertex.endpoints] == ["nbd-live-two"]
    assert models(gcp) == ["nbd-live-two-v1"]
    kept = gcp.gcs.names(BUCKET, "notebooked/endpoints/")
    assert all(name.startswith("notebooked/endpoints/nbd-live-two/") for name in kept)
    assert provider.predict("live-two", ROWS) == {"predictions": [3.0]}
    with pytest.raises(EndpointNotFoundError):
        provider.predict("live", ROWS)


def test_what_two_deployments_leave_is_one_version_for_a_rollback_that_costs_nothing(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str
) -> None:
    for _ in range(2):
        provider.deploy(experiment, served, "live")
    assert models(gcp) == ["nbd-live-v2", "nbd-live-v3"]
    assert running(gcp) == ["3"]
    back = provider.rollback("live")
    assert {item.role: item.version for item in back.deployments} == {"champion": "2", "previous": "3"}
    assert running(gcp) == ["2"]


def test_the_version_before_may_be_kept_warm(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str
) -> None:
    warm = dataclasses.replace(experiment, options={"endpoint": {"keep_warm": True}})
    provider.deploy(warm, other(provider, experiment), "live")
    assert running(gcp) == ["1", "2"]
    gcp.vertex.calls.clear()
    provider.rollback("live")
    assert "DeployModel" not in gcp.vertex.calls
    assert provider.predict("live", ROWS) == {"predictions": [3.0]}


def test_traffic_moves_in_the_steps_that_are_asked_for(
    gcp: GcpServer,
    provider: VertexProvider,
    experiment: Experiment,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, int]] = []
    update = gcp.vertex.update_endpoint
    monkeypatch.setattr(
        gcp.vertex, "update_endpoint", lambda p: (seen.append(dict(p.endpoint.traffic_split)), update(p))[1]
    )
    canary = {"endpoint": {"canary": [40, 60], "bake": 0, "max_replicas": 3, "cpu_target": 70}}
    done = provider.deploy(
        dataclasses.replace(experiment, options=canary), other(provider, experiment), "live"
    )
    assert seen == [{"1": 60, "2": 40}, {"1": 40, "2": 60}, {"2": 100}]
    assert [(item.role, item.weight) for item in done.deployments] == [("champion", 100), ("previous", 0)]
    live = next(iter(gcp.vertex.endpoints.values())).message
    resources = live.deployed_models[0].dedicated_resources
    assert (resources.max_replica_count, resources.autoscaling_metric_specs[0].target) == (3, 70)


def test_a_canary_that_fails_gives_its_traffic_back(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str, tmp_path: Path
) -> None:
    folder = Path(broken_model(tmp_path, (experiment.scripts / "inference.py").read_text()))
    code = folder / "inference.py"
    code.write_text(
        code.read_text().replace(
            "def predict_fn(data, model):\n", "def predict_fn(data, model):\n    raise OSError('no luck')\n"
        )
    )
    (folder / "mean.json").write_text("1.0")
    (folder / "model.json").write_text(json.dumps({"input_example": ROWS}))
    canary = dataclasses.replace(experiment, options={"endpoint": {"canary": [50], "bake": 5}})
    with pytest.raises(DeploymentError, match="no luck"):
        provider.deploy(canary, str(folder), "live")
    assert {provider.predict("live", ROWS)["predictions"][0] for _ in range(10)} == {3.0}
    assert running(gcp) == ["1"]
    assert [(item.role, item.weight) for item in provider.endpoint("live").deployments] == [("champion", 100)]


@pytest.mark.parametrize("turn", ["lost", "never"])
def test_a_canary_that_stops_answering_or_is_never_asked_gives_its_traffic_back(
    gcp: GcpServer,
    provider: VertexProvider,
    experiment: Experiment,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
    turn: str,
) -> None:
    turns = itertools.cycle("12")
    lost: list[str] = []

    def answer(*_: object) -> Reply:
        if turn == "lost" and next(turns) == "2":
            lost.append("2")
            if len(lost) == 5:
                # The outage that made it fail is not over when the traffic is to go back.
                gcp.vertex.fail("UpdateEndpoint", "error", times=5)
            raise ApiError(504, "DEADLINE_EXCEEDED", "The model did not answer in time.")
        return Reply(200, {"X-Vertex-AI-Deployed-Model-Id": "1"}, b'{"predictions": [3.0]}')

    challenger = other(provider, experiment)
    monkeypatch.setattr(gcp.vertex, "raw_predict", answer)
    canary = dataclasses.replace(experiment, options={"endpoint": {"canary": [90], "bake": 0}})
    said = "stopped answering: The model did not answer" if turn == "lost" else "answered 0 of 34 requests"
    with pytest.raises(DeploymentError, match=said):
        provider.deploy(canary, challenger, "live")
    assert len(lost) == (5 if turn == "lost" else 0)
    assert running(gcp) == ["1"]
    assert [(item.role, item.weight) for item in provider.endpoint("live").deployments] == [("champion", 100)]


def test_a_name_that_google_takes_for_another_replaces_nothing(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment
) -> None:
    uri = provider.train(experiment).model_uri
    assert uri is not None
    provider.deploy(experiment, uri, "a_b")
    with pytest.raises(DeploymentError, match="not 'a-b' of this project"):
        provider.deploy(experiment, uri, "a-b")
    for ask in (provider.endpoint, provider.delete_endpoint, provider.rollback):
        with pytest.raises(EndpointNotFoundError):
            ask("a-b")
    assert provider.predict("a_b", ROWS) == {"predictions": [3.0]}
    assert models(gcp) == ["nbd-a-b-v1"]


@pytest.mark.parametrize("cut", ["DeleteModel", "DeleteObject"])
def test_a_deletion_that_is_cut_off_is_finished_by_the_next(
    gcp: GcpServer, provider: VertexProvider, served: str, cut: str
) -> None:
    gcp.vertex.fail(cut, "denied")
    with pytest.raises(ProviderError):
        provider.delete_endpoint("live")
    assert any(served in sentence for sentence in provider.delete_endpoint("live"))
    assert gcp.vertex.models == gcp.vertex.endpoints == {}
    assert gcp.gcs.names(BUCKET, "notebooked/endpoints/") == []
    with pytest.raises(EndpointNotFoundError):
        provider.delete_endpoint("live")


def test_an_endpoint_of_somebody_else_is_not_ours(
    gcp: GcpServer, provider: VertexProvider, served: str
) -> None:
    from google.cloud.aiplatform_v1 import CreateEndpointRequest

    request = CreateEndpointRequest(endpoint_id="nbd-theirs", endpoint={"display_name": "theirs"})
    gcp.vertex.create_endpoint(CreateEndpointRequest.pb(request))
    deadline = time.monotonic() + 5
    while len(gcp.vertex.endpoints) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [endpoint.name for endpoint in provider.list_endpoints()] == ["live"]
    with pytest.raises(EndpointNotFoundError):
        provider.delete_endpoint("theirs")


def test_what_the_container_says_of_bad_input_is_the_callers_error(
    gcp: GcpServer,
    provider: VertexProvider,
    experiment: Experiment,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provider._hosting._input, "check", lambda name, body: None)
    with pytest.raises(ProviderError, match="failed to answer"):
        provider.predict("live", {"dataframe_records": [{"x": "text"}]})
    (experiment.scripts / "inference.py").write_text(
        "def model_fn(folder):\n    return 0\ndef input_fn(body, kind):\n    raise ValueError('no such column')\n"
    )
    folder = experiment.scripts.parent / "picky"
    folder.mkdir()
    (folder / "mean.json").write_text("1.0")
    provider.deploy(experiment, str(folder), "picky")
    with pytest.raises(InvalidInputError, match="no such column") as caught:
        provider.predict("picky", ROWS)
    assert caught.value.details["status"] == 400


def test_what_a_version_printed_can_be_read(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, served: str
) -> None:
    assert "[notebooked] The model is loaded." in list(provider.endpoint_logs("live"))
    gcp.vertex.say(
        "aiplatform.googleapis.com/Endpoint", {"endpoint_id": "nbd-live"}, "x", {"deployed_model_id": "2"}
    )
    assert list(provider.endpoint_logs("live", "2")) == ["x"]


def test_an_example_of_the_input_is_known(gcp: GcpServer, provider: VertexProvider, served: str) -> None:
    assert provider.input_example(provider.endpoint("live")) == ROWS


@pytest.mark.parametrize("name", ["Live", "-live", "a" * 51, "li.ve"])
def test_a_name_that_google_does_not_take_is_refused(
    gcp: GcpServer, provider: VertexProvider, experiment: Experiment, name: str
) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        provider.deploy(experiment, "model", name)
    assert gcp.vertex.calls == []
