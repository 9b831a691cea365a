"""A virtual environment from an experiment's requirements, built once for each set of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import filelock

from notebooked_dagster.errors import MissingPackageError, ProviderError

from .logs import tail

# The union first: the same interpreter serves the model afterwards.
_FILES = ("requirements.txt", "requirements-train.txt")
# What the model server's worker imports besides the model's own packages.
_SERVING = ("fastapi", "uvicorn", "orjson", "prometheus-client")
_NOT_FOUND = ("No solution found", "No matching distribution", "not found in the package registry")
_BUILD_WAIT = 3600.0

Run = Callable[[Sequence[str], Mapping[str, str]], int]
"""Runs a command with an environment, its output going to the job's log; returns the exit code."""


def requirements_file(code: Path) -> Path | None:
    """The requirements the environment is made from; None where the experiment has none."""
    return next((code / name for name in _FILES if (code / name).is_file()), None)


def environment_python(
    code: Path, cache: Path, *, log: Path, run: Run, say: Callable[[str], None], build_env: Mapping[str, str]
) -> Path:
    """The interpreter of the environment for these requirements; built where it is not there yet.

    Args:
        code: The folder with the scripts and requirements.
        cache: ``<state>/cache/environments``.
        log: Where ``run`` writes what the command prints; quoted when it fails.
        run: Runs a command.
        say: Takes progress, a line at a time.
        build_env: The environment in which packages are installed.

    Raises:
        MissingPackageError: A requirement is not to be had.
        ProviderError: The environment cannot be built for another reason.
    """
    file = requirements_file(code)
    text = file.read_text(encoding="utf-8") if file is not None else ""
    key = hashlib.sha256(f"{sys.version}\n{sys.executable}\n{_SERVING}\n{text}".encode()).hexdigest()[:20]
    folder = cache / key
    python = folder / "bin" / "python"
    complete = folder / ".complete"
    cache.mkdir(parents=True, exist_ok=True)
    if not complete.exists():
        say(f"waiting for, or building, the environment {key} …")
    try:
        with filelock.FileLock(cache / f"{key}.lock", timeout=_BUILD_WAIT):
            if complete.exists() and python.exists():
                say(f"environment {key} is there already")
                complete.touch()
                return python
            shutil.rmtree(folder, ignore_errors=True)
            say(f"building the environment {key} in {folder}")
            for step in _steps(folder, file, build_env):
                if (code_number := run(step, build_env)) != 0:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise _failed(step, code_number, log)
            complete.touch()
    except filelock.Timeout as error:
        raise ProviderError(
            "Another job has been building the same environment for an hour.", path=folder
        ) from error
    return python


def _steps(folder: Path, file: Path | None, environment: Mapping[str, str]) -> list[list[str]]:
    uv = _find_uv(environment)
    python = str(folder / "bin" / "python")
    if uv is not None:
        steps = [[uv, "venv", "--python", sys.executable, str(folder)]]
        install = [uv, "pip", "install", "--python", python]
    else:
        steps = [[sys.executable, "-m", "venv", str(folder)]]
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    wanted = ["-r", str(file)] if file is not None else []
    return [*steps, [*install, *wanted, *_SERVING]]


def has_package(python: Path, name: str) -> bool:
    """Whether an environment holds an importable package, without starting its interpreter."""
    return any(python.parent.parent.glob(f"lib/python*/site-packages/{name}/__init__.py"))


def _failed(step: Sequence[str], code: int, log: Path) -> ProviderError | MissingPackageError:
    said = [
        line for line in tail(log, 8000).splitlines() if line.strip() and not line.startswith("[notebooked]")
    ]
    text = "\n".join(said[-12:])
    if any(sign in text for sign in _NOT_FOUND):
        return MissingPackageError(
            f"The experiment's own environment cannot be built: a requirement is not to be had.\n{text}",
            hint="Correct the notebook's requirements cell, or point pip or uv at the index that has it.",
        )
    return ProviderError(
        f"The experiment's own environment cannot be built: `{' '.join(step)}` ended with {code}.\n{text}",
        hint="Run the command by hand to see more; without `own_environment` training uses Dagster's packages.",
    )


def _find_uv(environment: Mapping[str, str]) -> str | None:
    beside = Path(sys.executable).with_name("uv")
    if beside.is_file() and os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which("uv", path=environment.get("PATH"))
