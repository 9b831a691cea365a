"""MLflow as we use it: on a SQLite file, on a real server, and on one that is not there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from notebooked_dagster.errors import TrackingError
from notebooked_dagster.providers import jobs
from notebooked_dagster.providers.base import Experiment, JobStatus
from notebooked_dagster.providers.local import LocalProvider
from notebooked_dagster.tracking import Tracking, local_uri
from notebooked_dagster.tracking.lineage import data_hash, git_tags, prefixed
from tests.contract.scripts import write_scripts
from tests.contract.suite import acting, wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real tracking server on loopback; it takes up to a minute to start."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts")],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.3)
    yield url
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """A SQLite store that has been made once for all tests of this module."""
    uri = local_uri(tmp_path_factory.mktemp("state"))
    Tracking(uri, "first").experiment_id  # noqa: B018
    return uri


@pytest.fixture(params=["database", pytest.param("server", marks=pytest.mark.slow)])
def uri(request) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture
def provider(tmp_path: Path) -> LocalProvider:
    return LocalProvider(tmp_path / "state", stop_grace=0.5)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"))


def tracked(experiment: Experiment, uri: str, act: str = "mlflow", **changes) -> Experiment:
    return acting(experiment, act, tracking_uri=uri, **changes)


def test_a_training_leaves_a_complete_run_and_a_registered_version(uri, provider, experiment, tmp_path):
    job = provider.train(
        tracked(
            experiment, uri, registered_model="complete", tags={"dagster_run_id": "r-1", "hash/model": "h"}
        )
    )
    assert job.message == ""
    tracking = Tracking(uri, "sample")
    assert job.mlflow_run_id is not None
    run = tracking.client.get_run(job.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"mean": 2.0, "count": 3.0}
    assert run.data.params == {"shift": "0.0", "act": "mlflow", "note": ""}
    tags = run.data.tags
    assert tags["notebooked/dagster_run_id"] == "r-1"
    assert tags["notebooked/hash/train"] == "abc"
    assert tags["notebooked/job"] == job.id
    names = {item.path for item in tracking.client.list_artifacts(job.mlflow_run_id)}
    assert names >= {"scripts", "notebooked_model", "logs"}
    scripts = {item.path for item in tracking.client.list_artifacts(job.mlflow_run_id, "scripts")}
    assert "scripts/train.py" in scripts
    assert "scripts/source_map.json" in scripts

    assert job.model_version is not None
    for name in (
        f"models:/complete/{job.model_version}",
        "models:/complete@challenger",
        f"runs:/{job.mlflow_run_id}",
    ):
        folder = tracking.resolve(name, cache=tmp_path / "cache")
        assert (folder / "model.json").is_file()
        assert (folder / "inference.py").is_file()
    assert job.mlflow_run_id in tracking.run_url(job.mlflow_run_id)


def test_aliases_move(uri, tmp_path):
    tracking = Tracking(uri, "aliases")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    versions = []
    for number in range(2):
        run_id = tracking.start_run(name=f"run {number}")
        tracking.log_model_folder(run_id, tmp_path / "model")
        versions.append(tracking.register("moving", run_id))
        assert tracking.register("moving", run_id) == versions[-1]
        tracking.end_run(run_id)
        assert tracking.promote("moving").version == versions[-1]
    models = tracking.models
    assert models.find("moving", "challenger") is None
    assert models.find("moving", "champion").version == versions[1]
    assert tracking.demote("moving").version == versions[0]
    assert models.find("moving", "champion").version == versions[0]
    with pytest.raises(TrackingError, match="no champion before"):
        tracking.demote("moving")
    with pytest.raises(TrackingError):
        tracking.promote("moving", "99")
    with pytest.raises(TrackingError):
        tracking.resolve("models:/unheard-of@champion", cache=tmp_path)
    with pytest.raises(TrackingError, match="names no model"):
        tracking.resolve("models:/", cache=tmp_path)


@pytest.mark.parametrize(("act", "status"), [("fail", "FAILED"), ("kill", "KILLED")])
def test_the_run_of_a_training_that_failed_is_ended(database, provider, experiment, act, status):
    with pytest.raises(Exception, match="Training of 'sample'") as caught:
        provider.train(tracked(experiment, database, act))
    job = provider.status(caught.value.details["job"])
    assert Tracking(database, "sample").run_status(job.mlflow_run_id) == status


def test_the_run_of_a_killed_runner_is_ended_later(database, provider, experiment):
    job = provider.train(tracked(experiment, database, "hang"), wait=False)
    job = wait_for(provider, job.id, line="hanging")
    record = jobs.read(provider.state / "jobs" / job.id)
    os.kill(record.runner.pid, signal.SIGKILL)
    assert wait_for(provider, job.id).status is JobStatus.KILLED
    tracking = Tracking(database, "sample")
    assert tracking.run_status(job.mlflow_run_id) == "RUNNING"
    assert provider.reconcile() == [job.id]
    assert tracking.run_status(job.mlflow_run_id) == "KILLED"
    assert provider.reconcile() == []


def test_open_runs_of_jobs_that_are_gone_are_ended(database):
    tracking = Tracking(database, "orphans")
    mine = tracking.start_run(name="mine", tags={"notebooked/job": "alive"})
    orphan = tracking.start_run(name="orphan", tags={"notebooked/job": "dead"})
    foreign = tracking.start_run(name="foreign")
    assert tracking.reconcile(["alive"]) == [orphan]
    assert [tracking.run_status(run) for run in (mine, orphan, foreign)] == ["RUNNING", "KILLED", "RUNNING"]


def test_a_server_that_is_down_does_not_lose_the_training(database, provider, experiment):
    job = provider.train(tracked(experiment, f"http://127.0.0.1:{free_port()}", registered_model="later"))
    assert job.status is JobStatus.SUCCEEDED
    assert "cannot be reached" in job.message
    assert job.mlflow_run_id is None
    assert any(line.startswith("[notebooked] WARNING") for line in provider.logs(job.id))
    # When it is back, what was trained is sent.
    again = LocalProvider(provider.state, tracking_uri=database)
    synced = again.sync(job.id)
    assert synced.message == ""
    assert synced.model_version == "1"
    assert Tracking(database, "sample").client.get_run(synced.mlflow_run_id).data.metrics["mean"] == 2.0


def test_a_server_that_never_answers_does_not_hang_it(provider, experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        job = provider.train(tracked(experiment, f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert job.status is JobStatus.SUCCEEDED
    assert job.message


def test_where_tracking_is_required_its_absence_is_an_error(provider, experiment):
    strict = LocalProvider(provider.state, tracking_required=True)
    with pytest.raises(TrackingError, match="cannot be reached") as caught:
        strict.train(tracked(experiment, f"http://127.0.0.1:{free_port()}"))
    assert caught.value.exit_code == 2


def test_credentials_are_not_written_down(provider, experiment):
    job = provider.train(tracked(experiment, f"http://me:s3cret@127.0.0.1:{free_port()}"))
    folder = provider.state / "jobs" / job.id
    for name in ("job.json", "spec.json", "log.txt", "runner.log"):
        assert "s3cret" not in (folder / name).read_text()


def test_two_processes_may_make_the_database_at_once(tmp_path):
    uri = local_uri(tmp_path)
    code = "import sys; from notebooked_dagster.tracking import Tracking; Tracking(sys.argv[1], 'x').start_run(name='r')"
    started = [
        subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], ends
    assert ends == ["", ""]


def test_threads_of_one_process_may_start_runs_at_once(database):
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(Tracking(database, "threads").start_run(name="r")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 4


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "m.db").write_text("this is no database, but long enough to be taken for one" * 20)
    with pytest.raises(TrackingError, match="cannot be used"):
        Tracking(f"sqlite:///{tmp_path}/m.db", "x").start_run(name="r")


def test_lineage_of_a_repository(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    assert git_tags(tmp_path) == {}
    monkeypatch.setenv("NOTEBOOKED_COMMIT", "of the image")
    assert git_tags(tmp_path)["notebooked/commit"] == "of the image"
    git("init", "-b", "trunk")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "x")
    tags = git_tags(tmp_path / "a")
    assert len(tags["notebooked/commit"]) == 40
    assert (tags["notebooked/dirty"], tags["notebooked/branch"]) == ("false", "trunk")
    (tmp_path / "a").write_text("2")
    assert git_tags(tmp_path)["notebooked/dirty"] == "true"


def test_data_hashes_follow_content_and_names(tmp_path):
    (tmp_path / "a").write_text("1")
    one, file_hash = data_hash(tmp_path), data_hash(tmp_path / "a")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "module.pyc").write_text("made by whoever imported it")
    assert data_hash(tmp_path) == one
    (tmp_path / "a").rename(tmp_path / "b")
    assert data_hash(tmp_path) != one
    assert data_hash(tmp_path / "b") == file_hash
    assert prefixed({"x": "1", "mlflow.note": "2"}) == {"notebooked/x": "1", "mlflow.note": "2"}


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, notebooked_dagster.tracking; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
