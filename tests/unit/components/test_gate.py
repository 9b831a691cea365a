"""The metric gate: when a model passes, what it is compared with, and that nothing goes round it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from notebooked_dagster.components.gate import champion_metrics, gate_problems
from notebooked_dagster.config import MetricGate
from notebooked_dagster.config.experiment import lower_is_better
from notebooked_dagster.definitions import project_experiments
from notebooked_dagster.providers.base import Deployment, Endpoint, EndpointStatus
from notebooked_dagster.resources import Workplace
from tests.unit.components.kit import HandProject, hand_project


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> HandProject:
    gate = "metric_gate: {metric: accuracy, better_than: champion}"
    made = hand_project(tmp_path / "project", instance, monkeypatch, gate)
    assert made.run("notebook", "training_code", "inference_code").success
    return made


@pytest.mark.parametrize(
    ("gate", "value", "champion", "passes"),
    [
        ({"min": 0.8}, 0.8, None, True),
        ({"min": 0.8}, 0.79, None, False),
        ({"max": 0.2}, 0.2, None, True),
        ({"max": 0.2}, 0.21, None, False),
        ({"min": 0.1, "max": 0.2}, 0.3, None, False),
        ({"min": 0.8}, math.nan, None, False),
        ({"max": 0.8}, math.nan, None, False),
        ({"better_than": "champion"}, math.nan, None, False),
        ({"better_than": "champion"}, 0.5, math.nan, True),
        ({"better_than": "champion"}, 0.5, None, True),
        ({"better_than": "champion"}, 0.5, 0.5, True),
        ({"better_than": "champion"}, 0.49, 0.5, False),
        ({"better_than": "champion", "tolerance": 0.02}, 0.49, 0.5, True),
        ({"better_than": "champion", "direction": "lower"}, 0.49, 0.5, True),
        ({"better_than": "champion", "direction": "lower"}, 0.51, 0.5, False),
        ({"better_than": "champion", "direction": "lower", "tolerance": 0.02}, 0.51, 0.5, True),
    ],
)
def test_when_a_model_passes(
    gate: dict[str, Any], value: float, champion: float | None, passes: bool
) -> None:
    asked = MetricGate.model_validate({"metric": "score", **gate})
    known = None if champion is None else {"score": champion}
    assert (gate_problems(asked, {"score": value}, known) == []) is passes


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("accuracy", False),
        ("val_acc", False),
        ("roc_auc", False),
        ("r2", False),
        ("neg_mean_squared_error", False),
        ("neg_log_loss", False),
        ("log_loss", True),
        ("test_rmse", True),
        ("mean_absolute_error", True),
        ("brier_score", True),
        ("score_time", True),
        ("rows", None),
        ("n_features", None),
    ],
)
def test_which_way_is_better_by_the_words_of_a_name(metric: str, lower: bool | None) -> None:
    assert lower_is_better(metric) is lower


def test_a_metric_that_was_not_reported_does_not_pass() -> None:
    (problem,) = gate_problems(MetricGate(metric="score", min=0), {"loss": 1.0}, None)
    assert "no metric 'score'" in problem
    assert "loss" in problem


def test_the_champion_is_what_the_endpoint_serves(project: HandProject, tmp_path: Path) -> None:
    (spec,) = project_experiments(Workplace.here())
    assert champion_metrics(spec, project.provider, None) is None

    def serve(uri: str, role: str = "champion", **labels: str) -> None:
        made = Deployment("1", uri, 100, role, EndpointStatus.HEALTHY, labels=labels)
        project.provider.endpoints["iris"] = Endpoint("iris", "local", "", EndpointStatus.HEALTHY, (made,))

    serve("s3://m", metrics=json.dumps({"accuracy": 0.7}))
    assert champion_metrics(spec, project.provider, None) == {"accuracy": 0.7}
    (tmp_path / "model.json").write_text(json.dumps({"metrics": {"accuracy": 0.6}}))
    serve(str(tmp_path))
    assert champion_metrics(spec, project.provider, None) == {"accuracy": 0.6}
    serve("s3://nobody-knows")
    assert champion_metrics(spec, project.provider, None) is None
    serve("s3://m", role="challenger", metrics=json.dumps({"accuracy": 0.7}))
    assert champion_metrics(spec, project.provider, None) is None


def test_a_gate_that_only_compares_stops_a_deployment_that_is_asked_for_alone(project: HandProject) -> None:
    assert project.run("model", "endpoint").success
    project.provider.metrics = {"accuracy": 0.5}
    project.run("model")
    refused = project.run("endpoint")
    assert not refused.success
    (failed,) = [event for event in refused.all_events if event.is_step_failure]
    assert "worse than the champion's 0.9" in str(failed.step_failure_data.user_failure_data)
    # The model that is served can be deployed again; so can any other, on purpose.
    project.provider.metrics = {"accuracy": 0.9}
    assert project.run("model", "endpoint").success
    assert project.run("endpoint", endpoint={"model_uri": "s3://models/job-2"}).success
