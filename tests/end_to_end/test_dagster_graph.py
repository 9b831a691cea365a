"""The asset graph of one experiment, run in process with the real provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.resources import Workplace
from tests.end_to_end.dagster_kit import Events, SmallProject

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallProject]:
    made = SmallProject(
        tmp_path / "project",
        "hyperparameters: {C: 0.5}\nmetric_gate: {metric: accuracy, min: 0.8}\nowners: ['team:ml']",
    )
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(made.root))
    yield made
    made.delete_endpoint()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def execute(
    instance: dg.DagsterInstance, job: str = "iris_job", **run_config: Any
) -> dg.ExecuteInProcessResult:
    defs = project_definitions(Workplace.here())
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        run_config={"ops": {f"iris__{op}": {"config": value} for op, value in run_config.items()}},
        raise_on_error=False,
    )


def failure(result: dg.ExecuteInProcessResult, step: str) -> dg.DagsterEvent:
    return next(
        event for event in result.all_events if event.is_step_failure and event.step_key == f"iris__{step}"
    )


def metadata(instance: dg.DagsterInstance, part: str) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(dg.AssetKey(["iris", part]))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: found.value for name, found in event.asset_materialization.metadata.items()}


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {item.check_name: item.passed for item in result.get_asset_check_evaluations()}


def test_the_whole_graph(project: SmallProject, instance: dg.DagsterInstance) -> None:
    result = execute(instance)
    assert result.success
    assert checks(result) == {
        "lint": True,
        "skew": True,
        "metric_gate": True,
        "smoke_prediction": True,
        "endpoint_health": True,
    }
    model = metadata(instance, "model")
    assert model["metric accuracy"] >= 0.8
    assert model["framework"] == "sklearn"
    assert Path(model["model_uri"]).is_dir()
    code = metadata(instance, "training_code")
    assert "model.fit(X_train, y_train)" in code["train.py"]
    url = metadata(instance, "endpoint")["URL"]
    example = json.loads((Path(model["model_uri"]) / "model.json").read_text())["input_example"]
    reply = httpx.post(f"{url}/invocations", json=example, timeout=30)
    assert reply.status_code == 200
    assert len(reply.json()["predictions"]) >= 1

    # Nothing changed: the versions say so, whatever is made again.
    def versions() -> list[str | None]:
        found = []
        for part in ("training_code", "inference_code"):
            event = instance.get_latest_materialization_event(dg.AssetKey(["iris", part]))
            assert event is not None
            assert event.asset_materialization is not None
            found.append((event.asset_materialization.tags or {}).get("dagster/data_version"))
        return found

    before = versions()
    project.edit("Which of three?", "Prose.")
    assert execute(instance).success
    assert versions() == before
    project.edit("    return model.predict(rows)", "    return list(model.predict(rows))")
    assert execute(instance).success
    assert versions()[0] == before[0]
    assert versions()[1] != before[1]
    assert metadata(instance, "training_code")["changed stages"] == "inference"


def test_run_config_overrules_the_declaration(project: SmallProject, instance: dg.DagsterInstance) -> None:
    result = execute(instance, model={"hyperparameters": {"C": 7.0}})
    assert result.success
    assert metadata(instance, "model")["hyperparameters"]["C"] == 7.0


def test_a_gate_keeps_a_model_from_being_deployed(
    project: SmallProject, instance: dg.DagsterInstance
) -> None:
    assert execute(instance).success
    served = metadata(instance, "endpoint")["model_uri"]
    project.declare(
        "iris", "notebook: notebooks/iris.ipynb\ntracking: false\nmetric_gate: {metric: accuracy, min: 1.5}"
    )
    result = execute(instance)
    assert not result.success
    assert checks(result)["metric_gate"] is False
    assert Events(instance).counts()["endpoint"] == 1
    # Asking for the endpoint alone is no way round it.
    defs = project_definitions(Workplace.here())
    job = dg.define_asset_job("alone", dg.AssetSelection.assets(["iris", "endpoint"]).without_checks())
    alone = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("alone")
    result = alone.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert "does not pass its gate" in str(failure(result, "endpoint").step_failure_data.user_failure_data)
    assert metadata(instance, "endpoint")["model_uri"] == served


def test_an_edited_script_is_not_overwritten(project: SmallProject, instance: dg.DagsterInstance) -> None:
    assert execute(instance).success
    script = project.root / "scripts" / "iris" / "train.py"
    script.write_text(script.read_text() + "\n# by hand\n")
    project.edit("max_iter=200", "max_iter=300")
    result = execute(instance)
    assert not result.success
    told = failure(result, "scripts").step_failure_data.user_failure_data
    assert told is not None
    assert "train.py" in (told.description or "")
    assert "# by hand" in script.read_text()
    assert execute(instance, scripts={"force": True}).success
    assert "# by hand" not in script.read_text()


def test_a_training_that_fails_names_the_cell(project: SmallProject, instance: dg.DagsterInstance) -> None:
    project.edit("model.fit(X_train, y_train)", "model.fit(X_train, y_train[:3])")
    result = execute(instance)
    assert not result.success
    told = failure(result, "model").step_failure_data.user_failure_data
    assert told is not None
    assert "cell 5" in (told.description or "")
    assert told.metadata["exit_code"].value == 1
    assert Events(instance).made("endpoint") == 0


def test_parity(project: SmallProject, instance: dg.DagsterInstance) -> None:
    result = execute(instance, "iris_parity_job")
    assert result.success
    (found,) = result.get_asset_check_evaluations()
    assert found.passed
    assert found.description is not None
    assert "accuracy" in found.description
    assert "predictions" in found.description


def test_parity_notices_a_difference(project: SmallProject, instance: dg.DagsterInstance) -> None:
    # What only a notebook sees: its own process has IPython in it.
    project.edit("max_iter=200", "max_iter=1 if 'ipykernel' in __import__('sys').modules else 200")
    (found,) = execute(instance, "iris_parity_job").get_asset_check_evaluations()
    assert not found.passed


def test_one_model_a_data_set(project: SmallProject, instance: dg.DagsterInstance) -> None:
    project.declare(
        "iris",
        "notebook: notebooks/iris.ipynb\ntracking: false\nendpoint: false\n"
        "partitions: [north, south]\ndata_path: data/{partition}",
    )
    for name in ("north", "south"):
        (project.root / "data" / name).mkdir(parents=True)
    job = project_definitions(Workplace.here()).resolve_job_def("iris_job")
    assert job.execute_in_process(instance=instance, partition_key="south").success
    assert metadata(instance, "model")["data"].endswith("data/south")
    assert instance.get_materialized_partitions(dg.AssetKey(["iris", "model"])) == {"south"}


@pytest.mark.parametrize(
    ("attributes", "line", "key"),
    [
        ("notebok: notebooks/iris.ipynb", 3, "notebok"),
        ("notebook: notebooks/iris.ipynb\ntimeout: soon", 4, "timeout"),
        ("notebook: notebooks/iris.ipynb\n\tprovider: local", 4, None),
        ("notebook: notebooks/iris.ipynb\nprovider: local\nprovider: azure", 5, "attributes.provider"),
    ],
)
def test_a_wrong_declaration_is_one_clear_message(
    project: SmallProject, attributes: str, line: int, key: str | None
) -> None:
    path = project.declare("iris", attributes)
    with pytest.raises(ConfigError) as caught:
        project_definitions(Workplace.here())
    assert (caught.value.path, caught.value.line, caught.value.key) == (path, line, key)


def test_two_declarations_of_one_endpoint(project: SmallProject) -> None:
    project.declare("other", "notebook: notebooks/iris.ipynb\nendpoint: iris")
    with pytest.raises(ConfigError, match="both deploy to the endpoint 'iris'"):
        project_definitions(Workplace.here())


def test_a_project_of_one_config_yaml(project: SmallProject) -> None:
    (project.root / "assets" / "iris" / "defs.yaml").unlink()
    (project.root / "assets" / "iris").rmdir()
    (project.root / "config.yaml").write_text(
        "experiments:\n  - name: iris-two\n    notebook: notebooks/iris.ipynb\n    description: From the file.\n"
    )
    defs = project_definitions(Workplace.here())
    keys = {key.to_user_string() for key in defs.resolve_all_asset_keys()}
    assert keys == {
        f"iris_two/{part}" for part in ("notebook", "training_code", "inference_code", "model", "endpoint")
    }
    # The component that reads the file gives the same.
    path = project.root / "assets" / "all" / "defs.yaml"
    path.parent.mkdir()
    path.write_text("type: notebooked_dagster.NotebookedProject\nattributes: {config: config.yaml}\n")
    again = project_definitions(Workplace.here())
    assert {key.to_user_string() for key in again.resolve_all_asset_keys()} == keys


def test_the_description_is_the_first_markdown_cell(project: SmallProject) -> None:
    defs = project_definitions(Workplace.here())
    node = defs.resolve_asset_graph().get(dg.AssetKey(["iris", "notebook"]))
    assert node.description == "# Iris\n\nWhich of three?"
    assert node.owners == ["team:ml"]
    assert node.group_name == "iris"
