"""What a training job reports by Dagster Pipes, and what becomes of it: one model, and all the rest attached to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.errors import TrainingFailedError
from notebooked_dagster.providers.base import Capability, JobStatus
from tests.unit.components.kit import HandProject, hand_project

PIPES = "pipes: {checks: [fair, {name: fresh, blocking: true}]}"


def message(method: str, **params: Any) -> str:
    """As ``dagster_pipes`` writes it."""
    return json.dumps({"__dagster_pipes_version": "0.1", "method": method, "params": params})


def log(text: str, level: str = "INFO") -> str:
    return message("log", message=text, level=level)


def check(
    name: str, passed: bool, severity: str = "ERROR", asset: str = "iris/model", **metadata: Any
) -> str:
    return message(
        "report_asset_check",
        asset_key=asset,
        check_name=name,
        passed=passed,
        severity=severity,
        metadata={key: {"raw_value": value, "type": "__infer__"} for key, value in metadata.items()},
    )


def custom(payload: Any) -> str:
    return message("report_custom_message", payload=payload)


def metric(name: str, value: float, step: int | None = None) -> str:
    return custom({"notebooked": "metric", "name": name, "value": value, "step": step})


def materialization(asset: str = "iris/model", version: str | None = None, **metadata: Any) -> str:
    values = {key: {"raw_value": value, "type": "__infer__"} for key, value in metadata.items()}
    return message("report_asset_materialization", asset_key=asset, data_version=version, metadata=values)


TOLD = [
    message("opened", extras={}),
    log("the data is %s old", "WARNING"),
    *[metric("loss", 1 / (step + 1), step) for step in range(3)],
    metric("accuracy", 0.9),
    check("fair", False, "WARN"),
    check("fair", True, rows=3),
    check("fresh", True),
    custom({"seen": 7}),
    materialization(version="mine", classes=3, job="mine"),
    message("closed"),
]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def declared(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, attributes: str
) -> HandProject:
    made = hand_project(tmp_path / "project", instance, monkeypatch, attributes)
    made.provider.told = list(TOLD)
    return made


@pytest.fixture
def project(tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> HandProject:
    return declared(tmp_path, instance, monkeypatch, PIPES)


def attached(project: HandProject, run_id: str) -> None:
    """What the messages above leave, however the training was waited for."""
    (made,) = project.models()
    # The job is the model; what its training calls by the same name does not take its place.
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == "job-1"
    assert made.metadata["job"].value == "job-1"
    assert made.metadata["classes"].value == 3
    assert made.metadata["messages"].value == [{"seen": 7}]
    assert made.metadata["loss by step"].value == {
        "step": [0, 1, 2],
        "value": [1.0, 0.5, pytest.approx(1 / 3)],
    }
    # Of several evaluations the last one counts.
    assert (project.verdicts("fair"), project.verdicts("fresh")) == ([True], [True])
    said = project.said(run_id)
    assert "the data is %s old" in said
    assert "step 1: loss = 0.5" in said
    assert "accuracy = 0.9" in said


def test_what_is_told_while_a_run_waits_is_attached_to_the_one_model(project: HandProject) -> None:
    done = project.run("model")
    assert done.success
    attached(project, done.run_id)
    (context,) = project.provider.contexts
    assert context is not None
    assert context["asset_keys"] == ["iris/model"]
    assert context["run_id"] == done.run_id
    assert context["extras"]["experiment"] == "iris"


def test_what_was_told_when_nobody_waited_is_attached_by_the_sensor(project: HandProject) -> None:
    done = project.run("model", wait=False)
    assert done.success
    project.provider.end("job-1")
    seen = [type(event).__name__ for _ in range(2) for event in project.look()]
    assert seen == ["AssetMaterialization", "AssetCheckEvaluation", "AssetCheckEvaluation"]
    assert project.look() == []
    attached(project, done.run_id)


def test_messages_that_are_out_of_reach_delay_the_model_and_lose_nothing(
    project: HandProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from notebooked_dagster.errors import ProviderError

    done = project.run("model", wait=False)
    project.provider.end("job-1")
    with monkeypatch.context() as away:

        def fails(job_id: str, cursor: Any = None) -> Any:
            raise ProviderError("No way to the bucket.")

        away.setattr(project.provider, "messages", fails)
        assert project.look() == []
        assert "No way to the bucket." in project.note
    assert (len(project.look()), len(project.look())) == (1, 2)
    attached(project, done.run_id)


def test_a_check_alone_is_told_again_from_what_the_training_had_said(project: HandProject) -> None:
    assert project.run("model").success
    assert project.judge("fair").success
    assert (project.verdicts("fair"), project.verdicts("fresh")) == ([True, True], [True])
    assert len(project.provider.jobs) == 1


def test_a_model_that_is_kept_keeps_its_checks(project: HandProject) -> None:
    assert project.run("model").success
    assert project.run("model", model={"only_if_changed": True}).success
    assert len(project.provider.jobs) == 1
    assert project.verdicts("fair") == [True, True]


def test_a_training_that_failed_says_its_verdicts_and_gives_them_to_no_model(project: HandProject) -> None:
    project.provider.after = TrainingFailedError("The loss is not a number.")
    done = project.run("model")
    assert not done.success
    assert project.models() == []
    assert project.verdicts("fair") == []
    assert "Before it failed, the check 'fresh' passed." in project.said(done.run_id)


def test_a_failure_that_nobody_waited_for_says_what_it_had_told(project: HandProject) -> None:
    done = project.run("model", wait=False)
    project.provider.end("job-1", JobStatus.FAILED, message="The loss is not a number.")
    assert [type(event).__name__ for event in project.look()] == ["AssetObservation"]
    assert "the data is %s old" in project.said(done.run_id)
    assert project.verdicts("fair") == []


def test_what_nobody_declared_is_said_and_fails_nothing(project: HandProject) -> None:
    project.provider.told = [
        message("opened", extras={}),
        check("odd", False),
        check("fair", True, asset="another/asset"),
        materialization("another/asset", rows=1),
        "{not json",
        '{"method": "unheard of", "params": {}}',
        message("report_asset_check", asset_key="iris/model"),
    ]
    done = project.run("model")
    assert done.success
    assert len(project.models()) == 1
    said = "\n".join(project.said(done.run_id))
    assert "reported the check 'odd' (failed) of iris/model, which is not declared" in said
    assert "'fair' (passed) of another/asset" in said
    assert "reported no check 'fair', which is declared" in said
    assert said.count("A message of the job cannot be read") == 3


def test_a_training_that_says_too_much_does_not_fill_the_event_log(
    project: HandProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notebooked_dagster.components.pipes._MOST_LINES", 5)
    project.provider.told = [log(f"line {number}") for number in range(3000)]
    done = project.run("model")
    assert done.success
    lines = [line for line in project.said(done.run_id) if line.startswith("line ")]
    assert lines == ["line 0", "line 1", "line 2", "line 3"]
    assert "The job has reported 5 lines; the others are in its log." in project.said(done.run_id)


def test_a_long_curve_is_thinned_and_keeps_its_end(project: HandProject) -> None:
    project.provider.told = [metric("loss", float(step), step) for step in range(1001)]
    done = project.run("model")
    assert len([line for line in project.said(done.run_id) if line.startswith("step ")]) == 28
    curve = project.models()[0].metadata["loss by step"].value
    assert isinstance(curve, dict)
    assert len(curve["step"]) <= 201
    assert (curve["step"][0], curve["step"][-1]) == (0, 1000)


def test_a_secret_of_the_declaration_is_masked(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_PASSWORD", "hunter2-hunter2")
    project = declared(
        tmp_path, instance, monkeypatch, f"{PIPES}\nenvironment: {{SOURCE_PASSWORD: '${{SOURCE_PASSWORD}}'}}"
    )
    project.provider.told = [
        log("connected with hunter2-hunter2"),
        materialization(url="x:hunter2-hunter2@y"),
    ]
    done = project.run("model")
    assert "connected with ***" in project.said(done.run_id)
    assert project.models()[0].metadata["url"].value == "x:***@y"


def test_a_blocking_check_that_failed_keeps_the_model_from_its_endpoint(project: HandProject) -> None:
    project.provider.told = [check("fair", False), check("fresh", False)]
    done = project.run("model", "endpoint")
    assert not done.success
    assert len(project.models()) == 1
    assert project.provider.endpoints == {}


def test_without_the_key_nothing_is_sent_along(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = declared(tmp_path, instance, monkeypatch, "")
    done = project.run("model")
    assert done.success
    assert project.provider.contexts == [None]
    assert "accuracy = 0.9" not in project.said(done.run_id)


def test_a_provider_that_cannot_trains_without_and_refuses_what_was_declared(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from notebooked_dagster.components.pipes import reports
    from notebooked_dagster.definitions import project_experiments
    from notebooked_dagster.errors import CapabilityError
    from notebooked_dagster.resources import Workplace

    project = declared(tmp_path, instance, monkeypatch, "pipes: true")
    monkeypatch.setattr(project.provider, "capabilities", project.provider.capabilities - {Capability.PIPES})
    done = project.run("model")
    assert done.success
    assert project.provider.contexts == [None]
    assert "Jobs of provider local do not report by Dagster Pipes." in project.said(done.run_id)

    project.small.declare("iris", f"notebook: notebooks/iris.ipynb\n{PIPES}")
    (spec,) = project_experiments(Workplace.here())
    with pytest.raises(CapabilityError, match="cannot report checks"):
        reports(spec, project.provider)


@pytest.mark.parametrize(
    ("pipes", "says"),
    [
        ({"checks": ["a b"]}, "cannot be a check's name"),
        ({"checks": ["metric_gate"]}, "is a check of ours"),
        ({"checks": ["a", {"name": "a"}]}, "named twice"),
        ({"cheks": ["a"]}, "cheks"),
    ],
)
def test_a_wrong_declaration_is_refused(pipes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ExperimentConfig.model_validate({"name": "a", "notebook": "a.ipynb", "pipes": pipes})


@pytest.mark.parametrize(
    ("pipes", "enabled"), [(True, True), (False, False), (None, False), ({"checks": ["a"]}, True)]
)
def test_the_short_forms(pipes: Any, enabled: bool) -> None:
    config = ExperimentConfig.model_validate({"name": "a", "notebook": "a.ipynb", "pipes": pipes})
    assert config.pipes.enabled is enabled
