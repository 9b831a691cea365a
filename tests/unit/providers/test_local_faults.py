"""What goes wrong with real training processes, and what is left afterwards: no orphan, a reason, the rest intact."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from notebooked_dagster.core.secrets import fetch
from notebooked_dagster.errors import (
    ConfigError,
    DataError,
    MissingPackageError,
    ProviderError,
    StateError,
    TrainingFailedError,
    TrainingKilledError,
    TrainingTimeoutError,
)
from notebooked_dagster.providers import jobs
from notebooked_dagster.providers.base import Experiment, JobStatus
from notebooked_dagster.providers.local import LocalProvider
from tests.contract.scripts import write_scripts
from tests.contract.suite import acting, wait_for

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def provider(tmp_path: Path) -> LocalProvider:
    return LocalProvider(tmp_path / "state", stop_grace=0.5)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment("sample", write_scripts(tmp_path / "scripts"))


def folder_of(provider: LocalProvider, job_id: str) -> Path:
    return provider.state / "jobs" / job_id


def gone(pid: int) -> bool:
    """Whether a process ends within seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def family(folder: Path) -> list[int]:
    """The process ids of a hanging job: the trainer, its child, and a child in a session of its own."""
    record = jobs.read(folder)
    assert record.trainer is not None
    return [
        record.trainer.pid,
        *(int((folder / "work" / name).read_text()) for name in ("grandchild", "stray")),
    ]


@pytest.fixture
def hanging(provider, experiment):
    job = provider.train(acting(experiment, "hang"), wait=False)
    wait_for(provider, job.id, line="hanging")
    yield folder_of(provider, job.id)
    provider.cancel(job.id)


def test_a_time_limit_ends_grandchildren_too(provider, experiment):
    with pytest.raises(TrainingTimeoutError) as caught:
        provider.train(acting(experiment, "hang", timeout=2.0))
    assert all(gone(pid) for pid in family(folder_of(provider, caught.value.details["job"])))


def test_cancel_ends_grandchildren_too(provider, hanging):
    pids = family(hanging)
    assert provider.cancel(hanging.name).status is JobStatus.CANCELLED
    assert all(gone(pid) for pid in pids)


def test_killing_the_trainer_is_told_from_outside(provider, hanging):
    pids = family(hanging)
    os.kill(pids[0], signal.SIGKILL)
    job = wait_for(provider, hanging.name)
    assert (job.status, job.exit_code) == (JobStatus.KILLED, -9)
    assert "killed by signal 9" in job.message
    assert "out of memory" in job.message
    assert all(gone(pid) for pid in pids)


def test_killing_the_runner_is_recognised_and_leaves_no_orphan(provider, hanging):
    pids = family(hanging)
    runner = jobs.read(hanging).runner
    assert runner is not None
    os.kill(runner.pid, signal.SIGKILL)
    assert gone(runner.pid)
    job = provider.status(hanging.name)
    assert job.status is JobStatus.KILLED
    assert "runner was killed" in job.message
    assert job.finished_at is not None
    assert all(gone(pid) for pid in pids)


PARENT = """
import signal
import sys
from pathlib import Path
# Whoever runs the tests in the background of a shell has SIGINT ignored, and so would every child.
signal.signal(signal.SIGINT, signal.default_int_handler)
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.local import LocalProvider
state, scripts, act = sys.argv[1:]
print("waiting", flush=True)
LocalProvider(state, stop_grace=0.5).train(
    Experiment("sample", Path(scripts), hyperparameters={"act": act}, idempotency_token="t"))
"""


def waiting_parent(
    provider: LocalProvider, experiment: Experiment, act: str
) -> tuple[subprocess.Popen[bytes], Path]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(provider.state), str(experiment.scripts), act],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for job in provider.list_jobs():
            if "training begins" in list(provider.logs(job.id)):
                return parent, folder_of(provider, job.id)
        time.sleep(0.05)
    raise AssertionError("the job did not begin")


def test_killing_the_waiting_parent_does_not_hurt_the_job(provider, experiment):
    parent, folder = waiting_parent(provider, experiment, "slow")
    parent.kill()
    parent.wait()
    assert provider.status(folder.name).status is JobStatus.RUNNING
    # Whoever comes next with the same token takes the job over.
    job = provider.train(acting(experiment, "slow", idempotency_token="t"))
    assert job.id == folder.name
    assert job.status is JobStatus.SUCCEEDED
    assert job.exit_code == 0


def test_interrupting_the_waiting_parent_ends_the_job(provider, experiment):
    parent, folder = waiting_parent(provider, experiment, "hang")
    wait_for(provider, folder.name, line="hanging")
    pids = family(folder)
    parent.send_signal(signal.SIGINT)
    parent.wait(30)
    assert provider.status(folder.name).status is JobStatus.CANCELLED
    assert all(gone(pid) for pid in pids)


def test_a_job_killed_before_it_began_is_not_adopted(provider, experiment):
    spec = provider._spec(experiment)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    from notebooked_dagster.serving.processes import identify

    starter = identify(dead.pid)
    dead.wait()
    record, _ = provider._store.create(spec, token="t", starter=starter)
    assert provider.status(record.id).status is JobStatus.KILLED
    job = provider.train(dataclasses.replace(experiment, idempotency_token="t"))
    assert job.id != record.id
    assert job.status is JobStatus.SUCCEEDED


def test_running_out_of_an_allowance_of_memory(provider, experiment):
    with pytest.raises(TrainingKilledError, match=r"out of memory.*300 MiB"):
        provider.train(acting(experiment, "allocate", memory_limit=300 * 2**20, timeout=60))


def test_the_allowance_holds_for_the_whole_family(provider, experiment):
    with pytest.raises(TrainingKilledError, match=r"out of memory.*300 MiB"):
        provider.train(acting(experiment, "family", memory_limit=300 * 2**20, timeout=60))


def test_a_crash_in_native_code_names_the_signal(provider, experiment):
    with pytest.raises(TrainingKilledError, match=r"signal 11 \(SIGSEGV\)"):
        provider.train(acting(experiment, "crash"))


def test_a_full_disk_is_named(provider, experiment):
    with pytest.raises(TrainingFailedError, match="the disk is full"):
        provider.train(acting(experiment, "fill"))


def test_a_file_that_training_does_not_find_is_a_data_error(provider, experiment):
    with pytest.raises(DataError, match=r"no-such-file\.csv"):
        provider.train(acting(experiment, "nofile"))


def test_a_missing_package_comes_with_its_requirement(provider, tmp_path):
    scripts = write_scripts(tmp_path / "s", requirements="package-that-nobody-wrote==1.2\n")
    with pytest.raises(MissingPackageError, match=r"pip install 'package-that-nobody-wrote==1\.2'"):
        provider.train(acting(Experiment("sample", scripts), "missing"))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"id": 3}', b"\xff\xfe\x00", b'{"format": 99}'])
def test_a_damaged_state_file_is_named_and_hides_no_other_job(provider, experiment, damage):
    good, bad = provider.train(experiment), provider.train(experiment)
    path = folder_of(provider, bad.id) / "job.json"
    path.write_bytes(damage)
    with pytest.raises(StateError, match=r"job\.json") as caught:
        provider.status(bad.id)
    assert caught.value.exit_code == 2
    listed = {job.id: job for job in provider.list_jobs()}
    assert listed[good.id].status is JobStatus.SUCCEEDED
    assert str(path) in listed[bad.id].message
    assert provider.train(experiment).status is JobStatus.SUCCEEDED


def test_damage_while_a_job_runs_is_mended_by_its_runner(provider, experiment):
    job = provider.train(acting(experiment, "slow"), wait=False)
    (folder_of(provider, job.id) / "job.json").write_text("half of it")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if provider.status(job.id).status is JobStatus.SUCCEEDED:
                return
        except StateError:
            time.sleep(0.1)
    raise AssertionError("never mended")


def test_two_trainings_of_one_experiment_at_once(provider, experiment):
    first = provider.train(acting(experiment, "slow"), wait=False)
    second = provider.train(dataclasses.replace(experiment, hyperparameters={"shift": 5.0}))
    assert second.metrics["mean"] == 7.0
    assert wait_for(provider, first.id).metrics["mean"] == 2.0


def test_editing_the_scripts_does_not_change_a_job_that_runs(provider, experiment):
    job = provider.train(acting(experiment, "slow"), wait=False)
    (experiment.scripts / "inference.py").write_text("raise SystemExit")
    done = wait_for(provider, job.id)
    assert done.status is JobStatus.SUCCEEDED
    assert done.model_uri is not None
    assert "model_fn" in (Path(done.model_uri) / "inference.py").read_text()


def test_secrets_stay_where_they_are(provider, experiment, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret-of-the-parent")
    monkeypatch.setenv("WANTED_TOKEN", "s3cret-that-is-wanted")
    provider = LocalProvider(provider.state, pass_environment=["WANTED_*"])
    job = provider.train(acting(experiment, "environment", environment={"OWN_TOKEN": "s3cret-of-its-own"}))
    seen = json.loads(next(line for line in provider.logs(job.id) if line.startswith("{")))
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    # The job had both; what it printed of them is masked, character by character.
    assert seen["WANTED_TOKEN"] == "*" * len("s3cret-that-is-wanted")
    assert seen["OWN_TOKEN"] == "*" * len("s3cret-of-its-own")
    assert seen["SM_MODEL_DIR"] == job.model_uri
    folder = folder_of(provider, job.id)
    for name in ("job.json", "spec.json", "runner.log", "log.txt"):
        assert "s3cret" not in (folder / name).read_text()


def test_whatever_is_printed_arrives(provider, experiment):
    seen: list[str] = []
    provider.train(acting(experiment, "talk"), on_log=seen.append)
    assert "progress 100%" in seen
    assert "progress 10%" not in seen
    assert "latin-1: \ufffd\ufffd" in seen
    assert sum(len(line) for line in seen if line and set(line) == {"x"}) == 200_000
    assert [line for line in seen if line.startswith("line ")] == [
        f"line {number}" for number in range(20_000)
    ]
    assert "no newline at the endtraining ends" in seen


def test_a_sink_that_fails_does_not_fail_the_training(provider, experiment):
    def sink(line: str) -> None:
        raise KeyError(line)

    assert provider.train(experiment, on_log=sink).status is JobStatus.SUCCEEDED


def test_old_jobs_are_pruned_but_never_the_newest_good_one(provider, experiment):
    kept = LocalProvider(provider.state, keep_jobs=2)
    good = kept.train(experiment)
    for _ in range(4):
        with pytest.raises(TrainingFailedError):
            kept.train(acting(experiment, "fail"))
    kept.prune("sample")
    left = [job.id for job in kept.list_jobs()]
    assert len(left) == 3
    assert good.id in left


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"training": {"spot": True}}, "options.training"),
        ({"endpoint": {"port": 70000}}, "options.endpoint.port"),
    ],
)
def test_an_option_that_there_is_not_is_refused(provider, experiment, options, key):
    with pytest.raises(ConfigError) as caught:
        provider.train(dataclasses.replace(experiment, options=options))
    assert caught.value.key == key


def test_each_partitions_models_are_kept_and_what_nobody_waited_for(provider, experiment):
    kept = LocalProvider(provider.state, keep_jobs=1)
    first = kept.train(dataclasses.replace(experiment, tags={"partition": "a"}))
    unwaited = kept.train(dataclasses.replace(experiment, tags={"partition": "b"}), wait=False)
    wait_for(kept, unwaited.id)
    for _ in range(2):
        last = kept.train(dataclasses.replace(experiment, tags={"partition": "b"}))
    kept.prune("sample")
    assert {job.id for job in kept.list_jobs()} == {first.id, unwaited.id, last.id}
    # A week later somebody has surely looked.
    folder = provider.state / "jobs" / unwaited.id
    record = jobs.read(folder)
    record.finished_at -= timedelta(days=8)
    jobs.write(folder, record)
    assert kept.prune("sample") == [unwaited.id]


def test_a_state_folder_that_cannot_be_written_is_named(experiment, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        LocalProvider(tmp_path / "file" / "state").train(experiment)


def test_a_runner_that_cannot_start_says_why(provider, experiment, monkeypatch):
    monkeypatch.setattr("notebooked_dagster.providers.local.starting.sys.executable", "/bin/false")
    with pytest.raises(ProviderError, match="did not start"):
        provider.train(experiment)


@pytest.mark.slow
def test_an_environment_of_its_own_is_built_once(provider, tmp_path):
    scripts = write_scripts(tmp_path / "s", requirements="")
    own = dataclasses.replace(Experiment("sample", scripts), own_environment=True)
    first = provider.train(own)
    assert any("building the environment" in line for line in provider.logs(first.id))
    second = provider.train(own)
    assert any("is there already" in line for line in provider.logs(second.id))
    # The environment also serves what was trained in it.
    assert second.model_uri is not None
    try:
        provider.deploy(own, second.model_uri, "own")
        assert provider.predict("own", {"dataframe_records": [{"x": 1.0}]}) == {"predictions": [3.0]}
    finally:
        provider.delete_endpoint("own")


def test_a_requirement_that_is_not_to_be_had_is_named(provider, tmp_path, monkeypatch):
    # An empty folder in place of an index: nothing is looked up outside.
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    scripts = write_scripts(tmp_path / "s", requirements="package-that-nobody-wrote==1.2\n")
    with pytest.raises(MissingPackageError, match="package-that-nobody-wrote"):
        provider.train(dataclasses.replace(Experiment("sample", scripts), own_environment=True))
    assert not list((provider.state / "cache" / "environments").glob("*/bin"))


def test_a_secret_that_training_prints_is_not_kept(provider, experiment, tmp_path):
    (tmp_path / "secret").write_text("f3tched-by-reference")
    told = dataclasses.replace(
        experiment,
        hyperparameters={"act": "environment"},
        environment={
            "API_TOKEN": "s3cr3t-of-the-job",
            "LEVEL": "seven-7",
            # The variable's name does not tell that its value is a secret; where it came from does.
            "DSN": f"user:{fetch('file', str(tmp_path / 'secret'))}",
        },
    )
    job = provider.train(told)
    kept = Path(job.log).read_text()
    assert "s3cr3t-of-the-job" not in kept
    assert "f3tched-by-reference" not in kept
    assert "seven-7" in kept
    assert "it is masked" in kept
