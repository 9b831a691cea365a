"""How a training process of this machine ended, in the words of ``providers.failures``."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from notebooked_dagster.providers.base import JobStatus
from notebooked_dagster.providers.failures import (
    Failure,
    Outcome,
    explain,
    find_traceback,
    remapped_traceback,
    size_text,
)
from notebooked_dagster.providers.jobs import JobSpec

from .logs import tail
from .process import Ending

_FULL_BELOW = 512 * 1024


def judge(ending: Ending, spec: JobSpec, folder: Path) -> Outcome:
    """Say how a job ended.

    Args:
        ending: How its process did.
        spec: What it was asked to do.
        folder: The job's folder, with its log and what it made.
    """
    traceback = find_traceback(tail(folder / "log.txt"))
    if ending.reason == "cancel":
        return _stopped(
            JobStatus.CANCELLED, "TrainingCancelledError", f"Training of {spec.experiment!r} was cancelled."
        )
    if ending.reason == "timeout":
        return _stopped(
            JobStatus.TIMED_OUT,
            "TrainingTimeoutError",
            f"Training of {spec.experiment!r} ran longer than its time limit of {spec.timeout:g} s and was stopped.",
            "Raise `timeout`, or train on less; the log shows how far it got.",
        )
    if ending.reason == "memory":
        return _stopped(
            JobStatus.KILLED,
            "TrainingKilledError",
            f"Training of {spec.experiment!r} ran out of memory: it held {size_text(ending.peak_memory)}, and its "
            f"memory_limit is {size_text(spec.memory_limit or 0)}.",
            "Raise `memory_limit`, or train on less data or in smaller batches.",
        )
    if ending.exit_code < 0:
        return Outcome(
            JobStatus.KILLED, _killed(ending, spec, remapped_traceback(traceback, folder / "code"))
        )
    if ending.exit_code != 0:
        return explain(
            spec.experiment,
            ending.exit_code,
            tail(folder / "log.txt", 4000),
            folder / "code",
            traceback=traceback,
            own_environment=spec.own_environment,
            memory_limit=spec.memory_limit,
            disk_is_full=lambda: shutil.disk_usage(folder).free < _FULL_BELOW,
        )
    if not any((folder / "model").iterdir()):
        return Outcome(
            JobStatus.FAILED,
            Failure(
                error="TrainingFailedError",
                message=f"train.py of {spec.experiment!r} ended well but saved no model.",
                hint="It has to write into --model-dir (SM_MODEL_DIR); see whether the notebook binds a model, and whether a "
                "cell ends the script early (sys.exit, os._exit).",
            ),
        )
    return Outcome(JobStatus.SUCCEEDED)


def _stopped(status: JobStatus, error: str, message: str, hint: str = "") -> Outcome:
    return Outcome(status, Failure(error=error, message=message, hint=hint))


def _killed(ending: Ending, spec: JobSpec, traceback: str) -> Failure:
    number = -ending.exit_code
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "an unnamed signal"
    message = f"Training of {spec.experiment!r} was killed by signal {number} ({name})"
    hint = "Train again; the log shows how far it got."
    if number == signal.SIGKILL and ending.oom_kills:
        message += ": the system ran out of memory"
        hint = "Train on less data or in smaller batches, or on a machine with more memory."
    elif number == signal.SIGKILL:
        message += ", most often out of memory"
        hint = (
            f"It held up to {size_text(ending.peak_memory)} when last seen. Train on less data or in smaller batches, or "
            "give it more memory; if somebody killed it by hand, train again."
        )
    elif number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        message += ": native code of a package crashed"
        hint = "The log names the Python line. Packages built for another machine or for each other's wrong version do this."
    return Failure(error="TrainingKilledError", message=message + ".", hint=hint, traceback=traceback)
