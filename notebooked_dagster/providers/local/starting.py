"""Start the runner of a job, wait for it, and find out what became of one that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import filelock

import notebooked_dagster
from notebooked_dagster.errors import ProviderError
from notebooked_dagster.providers import jobs
from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.failures import Failure
from notebooked_dagster.providers.jobs import Handover, JobRecord
from notebooked_dagster.serving.processes import alive

from .process import kill_abandoned

_READY_WITHIN = 60.0
_CANCEL_MARGIN = 20.0
_POLL = 0.05


def start_runner(folder: Path, handover: Handover) -> None:
    """Start the runner of a job that has just been made; returns when the job is the runner's.

    Raises:
        ProviderError: It could not take the job over; nothing runs.
    """
    package_root = str(Path(notebooked_dagster.__file__).resolve().parent.parent)
    environment = {**handover.environment, "PYTHONPATH": package_root}
    # The runner is not part of the job it runs: it must not be found by the job's mark.
    environment.pop("NOTEBOOKED_JOB", None)
    with (folder / "runner.log").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "notebooked_dagster.providers.local.runner", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(handover.model_dump_json().encode())
            process.stdin.close()
        answer = process.stdout.readline()
    if answer != b"ready\n":
        said = (folder / "runner.log").read_text(encoding="utf-8", errors="replace").strip()
        raise ProviderError(
            f"The runner of training job {folder.name!r} did not start.\n{said[-2000:]}".rstrip(),
            path=folder / "runner.log",
        )


def settle(folder: Path) -> JobRecord:
    """A job's record; where its runner is gone without a last word, that is put right first.

    Raises:
        StateError: The record is damaged.
    """
    record = jobs.read(folder)
    if record.status.finished or _owned(record):
        return record
    with filelock.FileLock(folder / ".settle"):
        record = jobs.read(folder)
        if record.status.finished or _owned(record):
            return record
        kill_abandoned(record.trainer, str(folder))
        record.status = JobStatus.KILLED
        record.finished_at = _last_sign(folder)
        record.failure = Failure(
            error="TrainingKilledError",
            message=f"Training of {record.experiment!r} stopped without a last word: its runner was killed, or the "
            "machine was restarted.",
            hint="Train again; the log shows how far it got.",
        )
        if record.runner is None:
            record.failure.message = (
                f"Training of {record.experiment!r} never began: whoever started it was killed."
            )
        with contextlib.suppress(OSError):
            jobs.write(folder, record)
    return record


def never_began(record: JobRecord) -> bool:
    """Whether a finished job is one that nobody ever ran."""
    return record.status is JobStatus.KILLED and record.runner is None


def _owned(record: JobRecord) -> bool:
    return alive(record.runner if record.runner is not None else record.starter)


def _last_sign(folder: Path) -> datetime:
    for name in ("heartbeat", "log.txt"):
        with contextlib.suppress(OSError):
            return datetime.fromtimestamp((folder / name).stat().st_mtime, UTC)
    return datetime.now(UTC)


def stop(folder: Path, grace: float) -> JobRecord:
    """Ask a job's runner to stop it, and wait until it has; a runner that does not answer is killed.

    Raises:
        ProviderError: It cannot be stopped.
    """
    deadline = time.monotonic() + grace + _CANCEL_MARGIN
    asked = False
    while True:
        record = settle(folder)
        if record.status.finished:
            return record
        if record.runner is not None and not asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.runner.pid, signal.SIGTERM)
            asked = True
        if time.monotonic() > deadline:
            if record.runner is None:
                raise ProviderError(f"Training job {record.id!r} cannot be stopped: it has no runner yet.")
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.runner.pid, signal.SIGKILL)
            deadline = time.monotonic() + _CANCEL_MARGIN
        time.sleep(_POLL)
