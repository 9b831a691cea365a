"""The files of a new project."""

from __future__ import annotations

import json

FILES = {
    "workspace.yaml": """\
# What `dagster dev` loads.
load_from:
  - python_module:
      module_name: notebooked_dagster.definitions
      location_name: notebooked_dagster
""",
    "dagster.yaml": """\
# The Dagster instance; DAGSTER_HOME is this folder. Paths are relative to the folder a command is started in: start
# commands here, and everything Dagster keeps is under .notebooked/dagster.
# NOTEBOOKED_DATABASE_URL=postgresql://… moves it to PostgreSQL; see docs/deployment.md.
storage:
  custom:
    module: notebooked_dagster.resources.storage
    class: ProjectStorage
    config:
      base_dir: .notebooked/dagster

# NOTEBOOKED_RUN_LAUNCHER=kubernetes, ecs or docker executes each run in a container of its own. Runs with a device's tag
# go to that device (edge.yaml; docs/edge.md).
run_launcher:
  module: notebooked_dagster.resources.launcher
  class: ProjectRunLauncher
local_artifact_storage:
  module: dagster._core.storage.root
  class: LocalArtifactStorage
  config:
    base_dir: .notebooked/dagster
compute_logs:
  module: dagster._core.storage.local_compute_log_manager
  class: LocalComputeLogManager
  config:
    base_dir: .notebooked/dagster/logs
telemetry:
  enabled: false
nux:
  enabled: false
""",
    "dg.toml": """\
# For `dg check defs`, `dg list defs`, `dg launch`, `dg scaffold defs notebooked_dagster.NotebookExperiment <name>`.
directory_type = "project"

[project]
root_module = "assets"
defs_module = "assets"
code_location_target_module = "notebooked_dagster.definitions"
""",
    "README.md": """\
# Notebooks in production

`notebooks/` holds the notebooks, `assets/<experiment>/defs.yaml` says which of them are trained and served, and how.

    export DAGSTER_HOME=$PWD
    dagster dev -w workspace.yaml     # the UI, http://localhost:3000
    notebooked lint notebooks         # the audit
    notebooked inspect <notebook>     # how a notebook is understood
    notebooked train <experiment>     # scripts and model
    notebooked deploy <experiment>    # a live endpoint
    notebooked predict <experiment>   # ask it
    notebooked status
""",
    ".gitignore": """\
.notebooked/
.venv/
__pycache__/
.ipynb_checkpoints/
/scripts/
/history/
/storage/
/schedules/
/.logs_queue/
/.telemetry/
.env
""",
}

_CELLS = (
    ("markdown", "# Iris species\nA small classifier to start from."),
    (
        "code",
        "from sklearn.datasets import load_iris\nfrom sklearn.linear_model import LogisticRegression\n"
        "from sklearn.metrics import accuracy_score\nfrom sklearn.model_selection import train_test_split",
    ),
    ("code", "C = 1.0\nmax_iter = 500"),
    (
        "code",
        "X, y = load_iris(return_X_y=True, as_frame=True)\n"
        "X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)",
    ),
    ("code", "model = LogisticRegression(C=C, max_iter=max_iter)\nmodel.fit(X_train, y_train)"),
    ("code", 'accuracy = accuracy_score(y_test, model.predict(X_test))\nprint(f"accuracy {accuracy:.3f}")'),
    ("code", "model.predict(X_test.head(3))"),
)


def sample_notebook() -> str:
    """A notebook that trains on data that ships with scikit-learn; without tags and outputs."""
    cells = []
    for number, (kind, source) in enumerate(_CELLS, 1):
        cell: dict[str, object] = {"cell_type": kind, "id": f"sample-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cell["source"] = source.splitlines(keepends=True)
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    document = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1) + "\n"
