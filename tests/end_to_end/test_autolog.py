"""What MLflow's own autologging adds to the run of a training, with the real provider and a real store."""

from __future__ import annotations

from typing import Any

import pytest

from tests.end_to_end.dagster_kit import CELLS, SmallProject, notebook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By experiment: the MLflow run of its one training, and a client of the store. All three are trained by one run."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    project = SmallProject(tmp_path_factory.mktemp("autolog") / "p")
    common = "parity: false\nendpoint: false\n"
    project.declare("iris", f"notebook: notebooks/iris.ipynb\n{common}")
    project.declare("asked", f"notebook: notebooks/iris.ipynb\nautolog: true\n{common}")
    (project.root / "notebooks" / "curve.ipynb").write_text(notebook(LIGHTGBM), encoding="utf-8")
    project.declare("curve", f"notebook: notebooks/curve.ipynb\n{common}")
    done = project.run(
        "dagster",
        "job",
        "execute",
        "-m",
        "notebooked_dagster.definitions",
        "-j",
        "all_experiments_job",
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(f"sqlite:///{project.root}/.notebooked/mlflow/mlflow.db")
    found = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            assert run.info.status == "FINISHED"
            found[experiment.name] = (run, client)
    return found


def test_a_curve_of_a_framework_that_has_one(runs: dict[str, tuple[Any, Any]]) -> None:
    run, client = runs["curve"]
    curve = next(name for name in run.data.metrics if "logloss" in name)
    assert len(client.get_metric_history(run.info.run_id, curve)) == 7
    assert {"C", "reg_lambda"} <= set(run.data.params)
    # What the script logs is there beside it, once.
    assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1


def test_nothing_more_for_the_others(runs: dict[str, tuple[Any, Any]]) -> None:
    run, _ = runs["iris"]
    assert set(run.data.metrics) == {"accuracy"}
    assert set(run.data.params) == {"C"}


def test_everything_where_it_is_asked_for(runs: dict[str, tuple[Any, Any]]) -> None:
    run, _ = runs["asked"]
    assert {"accuracy", "training_score"} <= set(run.data.metrics)
    assert {"C", "solver"} <= set(run.data.params)
