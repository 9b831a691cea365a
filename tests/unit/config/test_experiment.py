"""defs.yaml of one experiment."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from notebooked_dagster.config import ExperimentConfig, MetricGate, load_experiment, parse_experiment
from notebooked_dagster.errors import ConfigError

HEAD = "type: notebooked_dagster.NotebookExperiment\nattributes:\n"


def write(tmp_path: Path, body: str, name: str = "wine") -> Path:
    path = tmp_path / name / "defs.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEAD + body, encoding="utf-8")
    return path


def test_the_folder_names_the_experiment(tmp_path: Path) -> None:
    config = load_experiment(write(tmp_path, "  notebook: n.ipynb\n"), {})
    assert (config.name, config.endpoint_name, config.model_registry_name) == ("wine", "wine", "wine")


def test_short_forms(tmp_path: Path) -> None:
    body = (
        "  notebook: n.ipynb\n  schedule: '@daily'\n  endpoint: other\n  parity: false\n  lint: false\n"
        "  memory_limit: 2G\n  metric_gate: {metric: auc, min: 0.9}\n  partitions: [a, b]\n  data_path: '{partition}.csv'\n"
    )
    config = load_experiment(write(tmp_path, body), {})
    assert config.schedule is not None
    assert config.schedule.cron == "@daily"
    assert config.endpoint.name == "other"
    assert not config.parity.enabled
    assert not config.lint.enabled
    assert config.memory_limit == 2 * 1024**3
    assert config.metric_gate[0].metric == "auc"
    assert config.partitions is not None
    assert config.partitions.datasets == ("a", "b")


def test_daily_partitions(tmp_path: Path) -> None:
    body = "  notebook: n.ipynb\n  data_path: d/{partition}\n  partitions: {daily: 2026-01-31}\n"
    config = load_experiment(write(tmp_path, body), {})
    assert config.partitions is not None
    assert config.partitions.daily == date(2026, 1, 31)


def test_no_endpoint_and_no_registry(tmp_path: Path) -> None:
    config = load_experiment(
        write(tmp_path, "  notebook: n.ipynb\n  endpoint: false\n  registered_model: false\n"), {}
    )
    assert not config.endpoint.enabled
    assert config.model_registry_name is None


@pytest.mark.parametrize(
    ("body", "line", "key"),
    [
        ("  notebook: n.ipynb\n  hyperparameter: {}\n", 4, "hyperparameter"),
        ("  notebook: n.ipynb\n  hyperparameters: {learning-rate: 1}\n", 4, "hyperparameters"),
        ("  notebook: n.ipynb\n  endpoint:\n    weight: 101\n", 5, "endpoint.weight"),
        ("  notebook: n.ipynb\n  metric_gate: {metric: a}\n", 4, "metric_gate[0]"),
        ("  notebook: n.ipynb\n  metric_gate:\n    - {metric: a, min: 2, max: 1}\n", 5, "metric_gate[0]"),
        ("  notebook: n.ipynb\n  partitions: {daily: 2026-01-01, datasets: [a]}\n", 4, "partitions"),
        ("  notebook: n.ipynb\n  data_path: d.csv\n  partitions: [a]\n", 2, None),
        ("  notebook: n.ipynb\n  owners: [nobody]\n", 4, "owners"),
    ],
)
def test_the_place_of_a_fault(tmp_path: Path, body: str, line: int, key: str | None) -> None:
    path = write(tmp_path, body)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, {})
    assert (caught.value.path, caught.value.line, caught.value.key) == (path, line, key)


def test_attributes_parsed_by_others_are_placed_in_the_file_too(tmp_path: Path) -> None:
    path = write(tmp_path, "  notebook: n.ipynb\n  timeout: -1\n")
    with pytest.raises(ConfigError) as caught:
        parse_experiment({"notebook": "n.ipynb", "timeout": -1}, path, {})
    assert caught.value.line == 4


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "defs.yaml"
    path.write_text("type: other.Thing\nattributes: {}\n")
    with pytest.raises(ConfigError, match="declares no notebook experiment"):
        load_experiment(path, {})


@pytest.mark.parametrize(
    ("gate", "higher"),
    [
        ({"metric": "x", "min": 1}, True),
        ({"metric": "x", "max": 1}, False),
        ({"metric": "val_loss", "better_than": "champion"}, False),
        ({"metric": "accuracy", "better_than": "champion"}, True),
        ({"metric": "loss", "better_than": "champion", "direction": "higher"}, True),
    ],
)
def test_which_way_is_better(gate: dict[str, object], higher: bool) -> None:
    assert MetricGate.model_validate(gate).higher_is_better is higher


def test_no_value_is_shown_in_pydantics_own_errors() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ExperimentConfig.model_validate(
            {"name": "a", "notebook": "a.ipynb", "environment": {"K": ["hunter2"]}}
        )
    assert "hunter2" not in str(caught.value)
