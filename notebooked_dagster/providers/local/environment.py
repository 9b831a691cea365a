"""What a training process is told: its environment and its command line. Nothing that is not named gets in."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from notebooked_dagster.core import tracing
from notebooked_dagster.core.environment import TRACKING_CREDENTIALS, inherited
from notebooked_dagster.providers.arguments import data_location, hyperparameter_arguments
from notebooked_dagster.providers.base import Experiment
from notebooked_dagster.providers.pipes import CONTEXT

from .process import MARK

# What building a virtual environment may need on top: where the package index is.
_BUILD = ("PIP_*", "UV_*", "NETRC", "*_PROXY", "*_proxy")


def for_building(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment in which packages are installed: it may hold the index's credentials."""
    return {
        **inherited(parent),
        **{n: v for n, v in parent.items() if any(fnmatch.fnmatchcase(n, p) for p in _BUILD)},
    }


def job_environment(
    experiment: Experiment, folder: Path, *, parent: Mapping[str, str], extra: Iterable[str] = ()
) -> dict[str, str]:
    """Everything a training process finds in its environment, but for its MLflow run.

    The experiment's own variables win over inherited ones; the folders and the mark are the job's.
    """
    environment = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONFAULTHANDLER": "1",
        "MPLBACKEND": "Agg",
        **inherited(parent, extra),
        **tracing.environment(),
    }
    data = data_location(experiment)
    if data is not None:
        environment["NOTEBOOKED_DATA_PATH"] = data
        local = Path(data)
        environment["SM_CHANNEL_TRAINING"] = str(local.parent) if local.is_file() else data
    if experiment.notebook is not None:
        notebook_folder = experiment.notebook.expanduser().resolve().parent
        environment["NOTEBOOKED_NOTEBOOK_DIR"] = str(notebook_folder)
        # In Jupyter a notebook imports the modules that lie beside it.
        environment["PYTHONPATH"] = str(notebook_folder)
    if experiment.pipes is not None:
        environment.update(_pipes_variables(folder / "pipes"))
    if experiment.tracking_uri is not None:
        environment |= {name: parent[name] for name in TRACKING_CREDENTIALS if name in parent}
    if experiment.autolog:
        environment["NOTEBOOKED_MLFLOW_AUTOLOG"] = "auto" if experiment.autolog == "auto" else "1"
    return {
        **environment,
        **experiment.tracking_credentials,
        **experiment.environment,
        "SM_MODEL_DIR": str(folder / "model"),
        "SM_OUTPUT_DATA_DIR": str(folder / "output"),
        "SM_HPS": json.dumps(dict(experiment.hyperparameters), default=str),
        MARK: str(folder),
    }


def _pipes_variables(folder: Path) -> dict[str, str]:
    from dagster_pipes import (
        DAGSTER_PIPES_CONTEXT_ENV_VAR,
        DAGSTER_PIPES_MESSAGES_ENV_VAR,
        encode_param,
    )

    return {
        DAGSTER_PIPES_CONTEXT_ENV_VAR: encode_param({"path": str(folder / CONTEXT)}),
        DAGSTER_PIPES_MESSAGES_ENV_VAR: encode_param({"folder": str(folder / "messages")}),
        # The folder is this machine's: it costs nothing to look often.
        "NOTEBOOKED_PIPES_INTERVAL": "0",
    }


def command(experiment: Experiment, folder: Path) -> list[str]:
    """The arguments of ``train.py``, without the interpreter and the script.

    Raises:
        ConfigError: A hyperparameter's name or value cannot be passed.
        DataError: The data path does not exist.
    """
    arguments = hyperparameter_arguments(experiment)
    data = data_location(experiment)
    if data is not None:
        arguments.append(f"--data-path={data}")
    return [*arguments, f"--model-dir={folder / 'model'}", f"--output-dir={folder / 'output'}"]
