"""What MLflow's own autologging adds to the run of a training, with the real provider and a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.dagster_kit import CELLS, SmallProject, notebook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
LIGHTGBM = tuple(
    (
        kind,
        tags,
        source.replace(
            "from sklearn.linear_model import LogisticRegression", "import lightgbm as lgb"
        ).replace(
            "model = LogisticRegression(C=C, max_iter=200)\nmodel.fit(X_train, y_train)",
            "model = lgb.LGBMClassifier(n_estimators=7, reg_lambda=C, verbose=-1)\n"
            "model.fit(X_train, y_train, eval_set=[(X_test, y_test)])",
        ),
    )
    for kind, tags, source in CELLS
)


def trained(root: Path, attributes: str, cells: Any) -> tuple[Any, Any]:
    """The MLflow run of one training, and a client of its store."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    project = SmallProject(root)
    project.notebook.write_text(notebook(cells), encoding="utf-8")
    project.declare("iris", f"notebook: notebooks/iris.ipynb\nparity: false\nendpoint: false\n{attributes}")
    done = project.run("notebooked", "train", "iris")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{root}/.notebooked/mlflow/mlflow.db")
    (run,) = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert run.info.status == "FINISHED"
    return run, client


def test_a_curve_of_a_framework_that_has_one(tmp_path: Path) -> None:
    run, client = trained(tmp_path / "p", "", LIGHTGBM)
    curve = next(name for name in run.data.metrics if "logloss" in name)
    assert len(client.get_metric_history(run.info.run_id, curve)) == 7
    assert {"C", "reg_lambda"} <= set(run.data.params)
    # What the script logs is there beside it, once.
    assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1


def test_nothing_more_for_the_others(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "p", "", CELLS)
    assert set(run.data.metrics) == {"accuracy"}
    assert set(run.data.params) == {"C"}


def test_everything_where_it_is_asked_for(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "p", "autolog: true", CELLS)
    assert {"accuracy", "training_score"} <= set(run.data.metrics)
    assert {"C", "solver"} <= set(run.data.params)
