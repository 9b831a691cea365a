"""What ``train.py`` is told on its command line, wherever it runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from notebooked_dagster.errors import ConfigError, DataError
from notebooked_dagster.providers.base import Experiment

Options = TypeVar("Options", bound=BaseModel)
_EXPERIMENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_HYPERPARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset({"data_path", "model_dir", "output_dir", "help"})
# Linux takes no single argument longer than this.
_LONGEST_ARGUMENT = 128 * 1024 - 1
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def checked_options(
    model: type[Options], given: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]] | None = None
) -> Options:
    """An experiment's options on top of what the provider's section says.

    Args:
        model: What they have to be.
        given: The experiment's.
        sections: The provider's, by the name that the options have for them.

    Raises:
        ConfigError: There is no such option, or its value cannot be.
    """
    merged: dict[str, Any] = {name: dict(values) for name, values in (sections or {}).items()}
    for name, values in given.items():
        below = merged.get(name, {})
        both = isinstance(values, Mapping) and isinstance(below, Mapping)
        merged[name] = {**below, **values} if both else values
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, ("options", *first["loc"])))
        raise ConfigError(
            f"{first['msg']}.", key=place, hint="docs/reference/defs.md has every key."
        ) from None


def check_experiment_name(name: str) -> None:
    """Raise ConfigError where an experiment's name cannot name a folder."""
    if not _EXPERIMENT.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of an experiment.",
            key="name",
            hint="Use lower-case letters, digits, '_' and '-', starting with a letter or digit.",
        )


def copy_scripts(source: Path, target: Path) -> None:
    """Copy an experiment's scripts; hidden folders, caches and what training by hand left behind stay behind."""
    always = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")

    def ignore(folder: str, names: list[str]) -> set[str]:
        left = set(always(folder, names))
        if Path(folder) == source:
            results = {name for name in ("model", "output", "mlruns") if name in names}
            left |= {name for name in results if not any((source / name).glob("*.py"))}
        return left

    shutil.copytree(source, target, ignore=ignore)


def is_url(data: str) -> bool:
    """Whether a data path is an address, and no file of this machine."""
    return _URL.match(data) is not None


def is_elsewhere(data: str | None, scheme: str) -> bool:
    """Whether data is at an address that does not start so."""
    return data is not None and is_url(data) and not data.startswith(scheme)


def data_location(experiment: Experiment) -> str | None:
    """The data as the job gets it: an absolute path, or a URL as it stands.

    A relative path is looked for from the working folder, then from the notebook's.

    Raises:
        DataError: There is nothing there.
    """
    data = experiment.data_path
    if data is None or is_url(data):
        return data
    path = Path(data).expanduser()
    candidates = [path if path.is_absolute() else Path.cwd() / path]
    if experiment.notebook is not None and not path.is_absolute():
        candidates.append(experiment.notebook.expanduser().resolve().parent / path)
    for candidate in candidates:
        if candidate.exists():
            return str(candidate.resolve())
    raise DataError(
        f"The data of experiment {experiment.name!r} is not there.",
        path=candidates[0],
        key="data_path",
        hint="Correct data_path, or put the file there; nothing was started.",
    )


def hyperparameter_arguments(experiment: Experiment) -> list[str]:
    """``--name=value`` for each hyperparameter.

    Raises:
        ConfigError: A hyperparameter's name or value cannot be passed.
    """
    return [f"--{name}={encode(name, value)}" for name, value in experiment.hyperparameters.items()]


def encode(name: str, value: Any) -> str:
    """A hyperparameter's value as an argument: strings as they are, all else as JSON.

    Raises:
        ConfigError: The name is not one, or the value is no JSON value or too long for a command line.
    """
    key = f"hyperparameters.{name}"
    if not _HYPERPARAMETER.fullmatch(name) or name in _RESERVED:
        raise ConfigError(
            f"{name!r} cannot be the name of a hyperparameter.",
            key=key,
            hint="Use letters, digits and '_'; data_path, model_dir and output_dir have options of their own.",
        )
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The value of hyperparameter {name!r} cannot be passed to a script: {error}.",
            key=key,
            hint="Use a number, a string, true, false, null, or a list or mapping of those.",
        ) from error
    if "\0" in text or len(text.encode()) + len(name) + 3 > _LONGEST_ARGUMENT:
        raise ConfigError(
            f"The value of hyperparameter {name!r} does not fit on a command line.",
            key=key,
            hint="Put it in a data file and pass the path.",
        )
    return text
