"""From how a training process ended, and what it printed, to one sentence, a hint and an error of the right kind."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from notebooked_dagster.providers.base import JobStatus

from .jobs import Failure, JobSpec
from .logs import tail
from .process import Ending

_HEADER = "Traceback (most recent call last):"
_CHAINS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_EXCEPTION = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?:: (?P<text>.*))?$")
_MISSING = re.compile(r"No module named '(?P<name>[\w.]+)'")
_CELL = re.compile(r"cell (?P<cell>\d+), line (?P<line>\d+)")
_FULL = ("No space left on device", "Errno 28", "File too large", "Errno 27", "Disk quota exceeded")
_FULL_BELOW = 512 * 1024
_LONGEST_TRACEBACK = 16_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job stands at its end."""

    status: JobStatus
    failure: Failure | None = None


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
            f"Training of {spec.experiment!r} ran out of memory: it held {_size(ending.peak_memory)}, and its "
            f"memory_limit is {_size(spec.memory_limit or 0)}.",
            "Raise `memory_limit`, or train on less data or in smaller batches.",
        )
    if ending.exit_code < 0:
        return Outcome(JobStatus.KILLED, _killed(ending, spec, _remap(traceback, folder)))
    if ending.exit_code != 0:
        return _failed(ending, spec, folder, traceback)
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
            f"It held up to {_size(ending.peak_memory)} when last seen. Train on less data or in smaller batches, or "
            "give it more memory; if somebody killed it by hand, train again."
        )
    elif number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        message += ": native code of a package crashed"
        hint = "The log names the Python line. Packages built for another machine or for each other's wrong version do this."
    return Failure(error="TrainingKilledError", message=message + ".", hint=hint, traceback=traceback)


def _failed(ending: Ending, spec: JobSpec, folder: Path, traceback: str) -> Outcome:
    remapped = _remap(traceback, folder)
    kind, text = last_exception(traceback)
    place = list(_CELL.finditer(remapped))
    failure = Failure(
        error="TrainingFailedError",
        message=f"Training of {spec.experiment!r} failed: {kind}: {text}".rstrip(": ")
        if kind
        else f"train.py of {spec.experiment!r} ended with exit code {ending.exit_code}.",
        hint="",
        traceback=remapped,
        cell=int(place[-1]["cell"]) if place else None,
        line=int(place[-1]["line"]) if place else None,
    )
    status = JobStatus.FAILED
    log_end = tail(folder / "log.txt", 4000)
    if kind == "ModuleNotFoundError" and (match := _MISSING.search(text)):
        failure.error = "MissingPackageError"
        failure.message = (
            f"Training of {spec.experiment!r} needs the package {match['name']!r}, which is not installed."
        )
        failure.hint = _package_hint(match["name"], spec, folder)
    elif kind in ("MemoryError", "numpy._core._exceptions._ArrayMemoryError") or kind.endswith(
        "OutOfMemoryError"
    ):
        status = JobStatus.KILLED
        failure.error = "TrainingKilledError"
        limit = f"; its memory_limit is {_size(spec.memory_limit)}" if spec.memory_limit else ""
        failure.message = (
            f"Training of {spec.experiment!r} ran out of memory{limit}: {kind} {text}".rstrip() + "."
        )
        failure.hint = "Raise the limit, or train on less data or in smaller batches."
    elif any(sign in text for sign in _FULL) or (not kind and _disk_is_full(folder)):
        # On a full disk the log, too, may have missed the traceback.
        failure.message = (
            f"Training of {spec.experiment!r} could not write: the disk is full ({text or 'no room'})."
        )
        failure.hint = f"Make room where {folder} lies, then train again."
    elif kind == "FileNotFoundError":
        failure.error = "DataError"
        failure.message = f"Training of {spec.experiment!r} did not find a file: {text}."
        failure.hint = "Put it there, or set data_path."
    elif ending.exit_code == 2 and (
        match := re.search(r"error: (unrecognized arguments: .*|argument .*)", log_end)
    ):
        failure.error = "ConfigError"
        failure.message = f"train.py of {spec.experiment!r} does not take what it was given: {match[1]}."
        failure.hint = "Correct `hyperparameters`; `python train.py --help` lists what there is."
    elif not kind and log_end:
        failure.message += (
            f" It last said: {log_end.strip().splitlines()[-1][:500] if log_end.strip() else '(nothing)'}"
        )
    return Outcome(status, failure)


def _disk_is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_BELOW


def _package_hint(module: str, spec: JobSpec, folder: Path) -> str:
    package = module.partition(".")[0]
    if spec.own_environment:
        return f"Name the package that brings `{package}` in the notebook's requirements cell."
    requirement = _requirement(package, folder / "code")
    return f"`pip install '{requirement}'` where Dagster runs, or set `own_environment: true`."


def _requirement(package: str, code: Path) -> str:
    wanted = package.replace("_", "-").lower()
    for name in ("requirements-train.txt", "requirements.txt"):
        try:
            lines = (code / name).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            bare = re.split(r"[\s\[=<>!~;@#]", line.strip(), maxsplit=1)[0].replace("_", "-").lower()
            if bare == wanted:
                return line.strip()
    return package


def find_traceback(text: str) -> str:
    """The last traceback in a log, with the exceptions that led to it; empty where there is none."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.strip() == _HEADER]
    if not starts:
        return ""
    first = len(starts) - 1
    while first > 0 and any(line.strip() in _CHAINS for line in lines[starts[first - 1] : starts[first]]):
        first -= 1
    indent = len(lines[starts[-1]]) - len(lines[starts[-1]].lstrip())
    end = starts[-1] + 1
    while end < len(lines) and (not lines[end].strip() or lines[end][indent : indent + 1].isspace()):
        end += 1
    # The exception's own line, and the rest of a message of several lines.
    end += 1
    while end < len(lines) and lines[end].strip() and not lines[end].startswith("[notebooked]"):
        end += 1
    found = "\n".join(lines[starts[first] : end])
    return found if len(found) <= _LONGEST_TRACEBACK else "…\n" + found[-_LONGEST_TRACEBACK:]


def last_exception(traceback: str) -> tuple[str, str]:
    """The class and message of the exception a traceback ends with; empty strings where there is none."""
    lines = traceback.splitlines()
    starts = [number for number, line in enumerate(lines) if line.strip() == _HEADER]
    if not starts:
        return "", ""
    for number in range(starts[-1] + 1, len(lines)):
        line = lines[number]
        if line and not line[0].isspace() and (match := _EXCEPTION.match(line)):
            return match["kind"], " ".join([match["text"] or "", *lines[number + 1 :]]).strip()[:2000]
    return "", ""


def _remap(traceback: str, folder: Path) -> str:
    if not traceback:
        return ""
    try:
        from notebooked_dagster.codegen.traceback import remap

        text: str = remap(traceback, folder / "code")
    except Exception as error:
        # A damaged source map must not hide why training failed.
        with contextlib.suppress(OSError):
            print(f"The traceback could not be mapped to the notebook: {error!r}", file=sys.stderr)
        return traceback
    return text


def read_metrics(folder: Path) -> tuple[dict[str, float], str]:
    """``output/metrics.json``, and what is wrong with it in a sentence; empty where nothing is."""
    path = folder / "output" / "metrics.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, f"The metrics cannot be read ({path}: {error})."
    if not isinstance(data, dict):
        return {}, f"{path} does not hold a JSON object of metrics."
    good = {str(name): float(value) for name, value in data.items() if isinstance(value, int | float)}
    bad = sorted(set(map(str, data)) - set(good))
    return good, f"Metrics that are not numbers were left out: {', '.join(bad)}." if bad else ""


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
