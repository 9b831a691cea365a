"""A small project of its own, and a look at what Dagster did in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from tests.warm import COMMANDS

BIN = Path(sys.executable).parent
CELLS = (
    ("markdown", (), "# Iris\n\nWhich of three?"),
    (
        "code",
        ("imports",),
        "from sklearn.datasets import load_iris\nfrom sklearn.linear_model import LogisticRegression\n"
        "from sklearn.model_selection import train_test_split",
    ),
    ("code", ("parameters",), "C = 1.0"),
    (
        "code",
        ("preprocess",),
        "X, y = load_iris(return_X_y=True)\n"
        "X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=3, stratify=y)",
    ),
    ("code", ("train",), "model = LogisticRegression(C=C, max_iter=200)\nmodel.fit(X_train, y_train)"),
    ("code", ("train",), "accuracy = model.score(X_test, y_test)\nprint(accuracy)"),
    ("code", ("inference",), "def predict(rows):\n    return model.predict(rows)"),
    ("code", (), "predict(X_test[:3])"),
)


def notebook(cells: Sequence[tuple[str, Sequence[str], str]] = CELLS) -> str:
    """A notebook's JSON."""
    made = []
    for kind, tags, source in cells:
        cell = {"cell_type": kind, "metadata": {"tags": list(tags)} if tags else {}, "source": source}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell)
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}, indent=1)


class SmallProject:
    """A project with one experiment, ``iris``, that trains in a second and logs to no MLflow."""

    def __init__(self, root: Path, attributes: str = "") -> None:
        self.root = root
        (root / "notebooks").mkdir(parents=True)
        self.notebook = root / "notebooks" / "iris.ipynb"
        self.notebook.write_text(notebook(), encoding="utf-8")
        self.declare("iris", f"notebook: notebooks/iris.ipynb\ntracking: false\n{attributes}")
        (root / "workspace.yaml").write_text(
            "load_from:\n  - python_module:\n      module_name: notebooked_dagster.definitions\n"
            "      location_name: notebooked_dagster\n"
        )
        (root / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NOTEBOOKED_", "DAGSTER_", "MLFLOW_", "SM_"))
        }
        self.environment: dict[str, str] = {
            **kept,
            "DAGSTER_HOME": str(root),
            "NOTEBOOKED_PROJECT_ROOT": str(root),
        }

    def declare(self, name: str, attributes: str) -> Path:
        """Write a ``defs.yaml``."""
        path = self.root / "assets" / name / "defs.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        indented = "".join(f"  {line}\n" for line in attributes.strip().splitlines())
        path.write_text(
            f"type: notebooked_dagster.NotebookExperiment\nattributes:\n{indented}", encoding="utf-8"
        )
        return path

    def edit(self, old: str, new: str) -> None:
        """Change the notebook's source as a person does, and save it."""
        text = self.notebook.read_text(encoding="utf-8")
        before, after = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
        assert before in text
        self.notebook.write_text(text.replace(before, after), encoding="utf-8")

    def run(
        self, *command: str, timeout: float = 240, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder."""
        return COMMANDS.run(
            command, cwd=self.root, env={**self.environment, **(environment or {})}, timeout=timeout
        )

    def delete_endpoint(self) -> None:
        """Stop what was deployed."""
        from notebooked_dagster.errors import EndpointNotFoundError
        from notebooked_dagster.providers.local import LocalProvider

        provider = LocalProvider(self.root / ".notebooked")
        for endpoint in provider.list_endpoints():
            try:
                provider.delete_endpoint(endpoint.name)
            except EndpointNotFoundError:
                continue


class Events:
    """How often each asset of the experiment was made, as Dagster's event log has it."""

    def __init__(self, instance: dg.DagsterInstance, experiment: str = "iris") -> None:
        self.instance = instance
        self.experiment = experiment

    def key(self, part: str) -> dg.AssetKey:
        return dg.AssetKey([self.experiment, part])

    def made(self, part: str) -> int:
        return len(self.instance.fetch_materializations(self.key(part), limit=100).records)

    def observed(self) -> int:
        return len(self.instance.fetch_observations(self.key("notebook"), limit=100).records)

    def counts(self) -> dict[str, int]:
        return {part: self.made(part) for part in ("training_code", "inference_code", "model", "endpoint")}

    def runs(self) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs())
