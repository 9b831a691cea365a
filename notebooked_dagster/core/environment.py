"""What of an environment the processes that we start may see. Nothing that is not named gets in."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

# What a process needs to find its programs, its home, its language, its threads and devices, and what decides the last
# digits of its numbers: the same notebook, run by hand beside it, has that too. And the commit it is of. No credentials.
_PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CONDA_PREFIX", "VIRTUAL_ENV",
    "*_NUM_THREADS", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
    "OPENBLAS_*", "MKL_*", "OMP_*", "KMP_*", "GOMP_*", "BLIS_*", "NVPL_*", "VECLIB_*", "CUBLAS_*", "NUMBA_*", "XLA_*",
    "TF_CPP_*", "TF_XLA_*", "TF_ENABLE_*", "TF_FORCE_*", "TF_GPU_*", "TF_NUM_*", "TF_DETERMINISTIC_*", "TF_USE_*", "PYTORCH_*", "NPY_*", "PYTHONHASHSEED",
    "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "TORCH_HOME", "SCIKIT_LEARN_DATA", "NLTK_DATA", "MPLBACKEND",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "MLFLOW_*", "DO_NOT_TRACK", "NOTEBOOKED_COMMIT",
)  # fmt: skip
# Whatever else they are called, and unless somebody names them.
_SECRET = (
    "*TOKEN*",
    "*PASSWORD*",
    "*PASSWD*",
    "*SECRET*",
    "*CREDENTIAL*",
    "*API_KEY*",
    "*ACCESS_KEY*",
    "MLFLOW_TRACKING_USERNAME",
)
#: What MLflow's client signs in with: for a training that logs there, and for no server.
TRACKING_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# Where traces go to: what serves sends its own. A collector's token is let through by name only, like every other.
_TRACES = "OTEL_*"
_TRACE_SECRETS = ("*_HEADERS", "*_CLIENT_KEY")
# Only where they hold no password.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def has_login(value: str) -> bool:
    """Whether an address holds a user's name, a password or a token."""
    try:
        parts = urlsplit(value)
        return bool(parts.password or parts.username)
    except ValueError:
        return True  # no address that anybody can read


def inherited(parent: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """The part of an environment that a training or a model server may see.

    Args:
        parent: The environment of the process that asks.
        extra: More names, or patterns such as ``AWS_*``, that the user wants passed on.
    """
    named = tuple(extra)
    chosen = {
        name: value
        for name, value in parent.items()
        if _is_one_of(name, named) or (_is_one_of(name, _PASSED) and not _is_one_of(name, _SECRET))
    }
    for name, value in parent.items():
        traces = fnmatch.fnmatchcase(name, _TRACES) and not _is_one_of(name, _TRACE_SECRETS)
        if (traces or name.lower() in _PROXIES) and not has_login(value):
            chosen[name] = value
    # An MLflow run of the parent's is not this job's.
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        if name not in named:
            chosen.pop(name, None)
    return chosen


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
