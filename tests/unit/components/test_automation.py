"""Who asks for what: the conditions of the assets, evaluated by Dagster on a project's own definitions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.resources import Workplace
from tests.end_to_end.dagster_kit import SmallProject


class Ticks:
    """A project's definitions, and the daemon's evaluations of their conditions."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.defs = project_definitions(_place(root))
        self.instance = instance
        self.cursor = None

    def asked(self) -> dict[str, int]:
        """What the next tick asks for, and for how many partitions of it."""
        result = dg.evaluate_automation_conditions(
            defs=self.defs,
            instance=self.instance,
            asset_selection=dg.AssetSelection.groups("iris"),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return {
            part: number
            for part in ("training_code", "inference_code", "model", "endpoint")
            if (number := result.get_num_requested(dg.AssetKey(["iris", part]))) > 0
        }

    def made(self, part: str, version: str, partition: str | None = None) -> None:
        """As if a run had made it."""
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                ["iris", part], partition=partition, tags={"dagster/data_version": version}
            )
        )

    def observed(self, version: str) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetObservation(["iris", "notebook"], tags={"dagster/data_version": version})
        )

    def everything(self) -> None:
        self.observed("n1")
        for part in ("training_code", "inference_code", "model", "endpoint"):
            self.made(part, f"{part}1")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as made:
        yield made


@pytest.fixture
def ticks(tmp_path: Path, instance: dg.DagsterInstance) -> Ticks:
    project = SmallProject(tmp_path / "project", "parity: false")
    made = Ticks(project.root, instance)
    made.everything()
    assert made.asked() == {}
    return made


def test_an_edit_is_left_to_the_sensor(ticks: Ticks) -> None:
    ticks.observed("n2")
    assert ticks.asked() == {}
    assert ticks.asked() == {}


def test_code_that_was_generated_by_hand_is_trained_and_deployed(ticks: Ticks) -> None:
    ticks.made("training_code", "training_code2")
    assert ticks.asked() == {"model": 1}
    assert ticks.asked() == {}
    ticks.made("model", "model2")
    assert ticks.asked() == {"endpoint": 1}
    assert ticks.asked() == {}


def test_code_that_was_generated_again_but_means_the_same_asks_for_nothing(ticks: Ticks) -> None:
    ticks.made("training_code", "training_code1")
    ticks.made("inference_code", "inference_code1")
    assert ticks.asked() == {}


def test_inference_code_alone_is_deployed(ticks: Ticks) -> None:
    ticks.made("inference_code", "inference_code2")
    assert ticks.asked() == {"endpoint": 1}


def test_a_run_that_makes_all_of_it_between_two_ticks_leaves_nothing_to_ask_for(ticks: Ticks) -> None:
    ticks.observed("n2")
    ticks.made("training_code", "training_code2")
    ticks.made("model", "model2")
    ticks.made("endpoint", "endpoint2")
    assert ticks.asked() == {}
    assert ticks.asked() == {}


def test_a_training_that_failed_is_not_asked_for_again(ticks: Ticks) -> None:
    ticks.made("training_code", "training_code2")
    # No scripts lie there, so it fails as a training with a mistake in it does.
    result = ticks.defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=ticks.instance,
        asset_selection=[dg.AssetKey(["iris", "model"])],
        raise_on_error=False,
    )
    assert not result.success
    assert ticks.asked() == {}
    assert ticks.asked() == {}
    # Mended: the sensor's run, or somebody by hand, makes new code.
    ticks.made("training_code", "training_code3")
    assert ticks.asked() == {"model": 1}


def test_every_partition_is_asked_for_when_the_code_changes(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    project = SmallProject(
        tmp_path / "project",
        "parity: false\npartitions: {datasets: [a, b]}",
    )
    ticks = Ticks(project.root, instance)
    ticks.observed("n1")
    ticks.made("training_code", "t1")
    ticks.made("inference_code", "i1")
    ticks.made("model", "a1", "a")
    ticks.made("endpoint", "a1", "a")
    assert ticks.asked() == {}
    ticks.made("training_code", "t2")
    assert ticks.asked() == {"model": 2}


def _place(root: Path) -> Workplace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEBOOKED_PROJECT_ROOT", str(root))
        return Workplace.here()
