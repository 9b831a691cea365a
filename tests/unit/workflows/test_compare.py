"""Metrics of two states side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.workflows import Comparison, compare, read_metrics, render

BASE = {"iris": {"accuracy": 0.9, "loss": 0.3, "gone": 1.0}}
HEAD = {"iris": {"accuracy": 0.95, "loss": 0.4, "f1": 0.8}, "wine": {"rmse": 2.0}}


@pytest.mark.parametrize(
    ("metric", "base", "head", "verdict"),
    [
        ("accuracy", 0.9, 0.95, "better"),
        ("accuracy", 0.95, 0.9, "worse"),
        ("rmse", 2.0, 1.0, "better"),
        ("log_loss", 0.2, 0.3, "worse"),
        ("accuracy", 0.9, 0.9, "same"),
        ("accuracy", 0.9, 0.9 * (1 + 1e-12), "same"),
        ("rmse", 2.0, math.nan, "worse"),
        ("accuracy", math.nan, 0.5, "better"),
        ("rmse", math.nan, math.nan, "same"),
        ("accuracy", None, 0.9, "new"),
        ("accuracy", 0.9, None, "gone"),
    ],
)
def test_a_verdict(metric: str, base: float | None, head: float | None, verdict: str) -> None:
    assert Comparison("iris", metric, base, head).verdict == verdict


def test_every_metric_of_either_is_there() -> None:
    assert [(row.experiment, row.metric, row.verdict) for row in compare(BASE, HEAD)] == [
        ("iris", "accuracy", "better"),
        ("iris", "f1", "new"),
        ("iris", "gone", "gone"),
        ("iris", "loss", "worse"),
        ("wine", "rmse", "new"),
    ]


def test_a_comment() -> None:
    text = render(compare(BASE, HEAD), "markdown")
    assert "| iris | accuracy | 0.9 | 0.95 | +0.05 | better |" in text
    assert "| iris | loss | 0.3 | 0.4 | +0.1 | **worse** |" in text


def test_open_metrics() -> None:
    lines = render(compare({}, HEAD), "openmetrics").splitlines()
    assert 'accuracy{experiment="iris"} 0.95' in lines
    assert lines[-1] == "# EOF"


def test_it_reads_what_status_prints(tmp_path: Path) -> None:
    for name, metrics in HEAD.items():
        folder = tmp_path / f"metrics-{name}"
        folder.mkdir()
        (folder / f"{name}.json").write_text(
            json.dumps([{"experiment": name, "model": {"metrics": metrics}}])
        )
    assert read_metrics(tmp_path) == HEAD
    assert read_metrics(tmp_path / "not there") == {}
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="status"):
        read_metrics(tmp_path)
