"""What a training process is told: its environment and its command line. Nothing that is not named gets in."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from notebooked_dagster.providers.arguments import data_location, hyperparameter_arguments
from notebooked_dagster.providers.base import Experiment

from .process import MARK

# What a process needs to find its programs, its home, its language, its threads and devices, and what decides the last
# digits of its numbers: the same notebook, run by hand beside it, has that too. No credentials.
_PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CONDA_PREFIX", "VIRTUAL_ENV",
    "*_NUM_THREADS", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
    "OPENBLAS_*", "MKL_*", "OMP_*", "KMP_*", "GOMP_*", "BLIS_*", "NVPL_*", "VECLIB_*", "CUBLAS_*", "NUMBA_*", "XLA_*",
    "TF_*", "PYTORCH_*", "NPY_*", "PYTHONHASHSEED",
    "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "TORCH_HOME", "SCIKIT_LEARN_DATA", "NLTK_DATA", "MPLBACKEND",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "MLFLOW_*", "DO_NOT_TRACK",
)  # fmt: skip
# Only where they hold no password.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# What building a virtual environment may need on top: where the package index is.
_BUILD = ("PIP_*", "UV_*", "NETRC", "*_PROXY", "*_proxy")


def inherited(parent: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """The part of an environment that a job may see.

    Args:
        parent: The environment of the process that asks.
        extra: More names, or patterns such as ``AWS_*``, that the user wants passed on.
    """
    allowed = (*_PASSED, *extra)
    chosen = {
        name: value
        for name, value in parent.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)
    }
    for name, value in parent.items():
        if name.lower() in _PROXIES and not (urlsplit(value).password or urlsplit(value).username):
            chosen[name] = value
    # An MLflow run of the parent's is not this job's.
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        if name not in extra:
            chosen.pop(name, None)
    return chosen


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
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "Agg",
        **inherited(parent, extra),
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
    if experiment.autolog:
        environment["NOTEBOOKED_MLFLOW_AUTOLOG"] = "auto" if experiment.autolog == "auto" else "1"
    return {
        **environment,
        **experiment.environment,
        "SM_MODEL_DIR": str(folder / "model"),
        "SM_OUTPUT_DATA_DIR": str(folder / "output"),
        "SM_HPS": json.dumps(dict(experiment.hyperparameters), default=str),
        MARK: str(folder),
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
