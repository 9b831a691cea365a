"""Why a training failed: from what it printed and its exit code to one sentence, a hint and an error of the right kind."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from notebooked_dagster import errors
from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.providers.base import JobStatus

_HEADER = "Traceback (most recent call last):"
_CHAINS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_EXCEPTION = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?:: (?P<text>.*))?$")
_MISSING = re.compile(r"No module named '(?P<name>[\w.]+)'")
_CELL = re.compile(r"cell (?P<cell>\d+), line (?P<line>\d+)")
_FULL = ("No space left on device", "Errno 28", "File too large", "Errno 27", "Disk quota exceeded")
_LONGEST_TRACEBACK = 16_000


class Failure(BaseModel):
    """Why a job did not succeed, as the fields of the error that is raised for it.

    Attributes:
        error: The class's name in ``errors``.
        message: One sentence.
        hint: What to do about it.
        traceback: Remapped to the notebook where that was possible.
        cell: 1-based number of the notebook cell.
        line: 1-based line in that cell.
    """

    error: str
    message: str
    hint: str = ""
    traceback: str = ""
    cell: int | None = None
    line: int | None = None

    def as_error(self, **details: Any) -> NotebookedError:
        """The error to raise.

        Args:
            details: Evidence for machines: the job's id, its exit code, where its log lies.
        """
        kind = getattr(errors, self.error, errors.TrainingFailedError)
        text = f"{self.message}\n{self.traceback}".rstrip() if self.traceback else self.message
        error: NotebookedError = kind(
            text, hint=self.hint or None, cell=self.cell, line=self.line, details=details
        )
        return error


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job stands at its end."""

    status: JobStatus
    failure: Failure | None = None


def explain(
    experiment: str,
    exit_code: int,
    log_end: str,
    code: Path,
    *,
    traceback: str = "",
    own_environment: bool = False,
    memory_limit: int | None = None,
    disk_is_full: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Why a ``train.py`` that ended with an exit code other than 0 did so.

    Args:
        experiment: The experiment's name.
        exit_code: Of ``train.py``.
        log_end: The last some thousand characters of what it printed.
        code: The folder of its scripts, with the source map and the requirements.
        traceback: The last traceback of the log; looked for in ``log_end`` where empty.
        own_environment: Whether its packages come from its requirements, and not from this process's environment.
        memory_limit: Bytes it might use.
        disk_is_full: Whether there is no room where it wrote; asked only where nothing else explains the end.
    """
    traceback = traceback or find_traceback(log_end)
    remapped = remapped_traceback(traceback, code)
    kind, text = last_exception(traceback)
    place = list(_CELL.finditer(remapped))
    failure = Failure(
        error="TrainingFailedError",
        message=f"Training of {experiment!r} failed: {kind}: {text}".rstrip(": ")
        if kind
        else f"train.py of {experiment!r} ended with exit code {exit_code}.",
        hint="",
        traceback=remapped,
        cell=int(place[-1]["cell"]) if place else None,
        line=int(place[-1]["line"]) if place else None,
    )
    status = JobStatus.FAILED
    if kind == "ModuleNotFoundError" and (match := _MISSING.search(text)):
        failure.error = "MissingPackageError"
        failure.message = (
            f"Training of {experiment!r} needs the package {match['name']!r}, which is not installed."
        )
        failure.hint = _package_hint(match["name"], own_environment, code)
    elif kind in ("MemoryError", "numpy._core._exceptions._ArrayMemoryError") or kind.endswith(
        "OutOfMemoryError"
    ):
        status = JobStatus.KILLED
        failure.error = "TrainingKilledError"
        limit = f"; its memory_limit is {size_text(memory_limit)}" if memory_limit else ""
        failure.message = f"Training of {experiment!r} ran out of memory{limit}: {kind} {text}".rstrip() + "."
        failure.hint = "Raise the limit, or train on less data or in smaller batches."
    elif any(sign in text for sign in _FULL) or (not kind and disk_is_full()):
        # On a full disk the log, too, may have missed the traceback.
        failure.message = (
            f"Training of {experiment!r} could not write: the disk is full ({text or 'no room'})."
        )
        failure.hint = f"Make room where {code.parent} lies, then train again."
    elif kind == "FileNotFoundError":
        failure.error = "DataError"
        failure.message = f"Training of {experiment!r} did not find a file: {text}."
        failure.hint = "Put it there, or set data_path."
    elif exit_code == 2 and (match := re.search(r"error: (unrecognized arguments: .*|argument .*)", log_end)):
        failure.error = "ConfigError"
        failure.message = f"train.py of {experiment!r} does not take what it was given: {match[1]}."
        failure.hint = "Correct `hyperparameters`; `python train.py --help` lists what there is."
    elif not kind and log_end:
        failure.message += (
            f" It last said: {log_end.strip().splitlines()[-1][:500] if log_end.strip() else '(nothing)'}"
        )
    return Outcome(status, failure)


def _package_hint(module: str, own_environment: bool, code: Path) -> str:
    package = module.partition(".")[0]
    if own_environment:
        return f"Name the package that brings `{package}` in the notebook's requirements cell."
    requirement = _requirement(package, code)
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


def remapped_traceback(traceback: str, code: Path) -> str:
    """A traceback that names cells of the notebook, where the source map in ``code`` knows them."""
    if not traceback:
        return ""
    try:
        from notebooked_dagster.codegen.traceback import remap

        text: str = remap(traceback, code)
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


def size_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
