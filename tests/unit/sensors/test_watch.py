"""What a look at the notebooks finds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.sensors.watch import Look, NotebookWatch, Recorded, Watched
from tests.end_to_end.dagster_kit import notebook

NEVER = Recorded()


class Project:
    """A folder of notebooks and what a sensor would keep between two looks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "notebooks").mkdir()
        self.cursor: str | None = None
        self.clock = 1_700_000_000_000_000_000

    def write(self, name: str, text: str | None = None) -> Path:
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.write_text(notebook() if text is None else text, encoding="utf-8")
        self.clock += 1_000_000_000
        os.utime(path, ns=(self.clock, self.clock))
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / "notebooks" / f"{name}.ipynb"
        text = path.read_text(encoding="utf-8")
        assert json.dumps(old)[1:-1] in text
        self.write(name, text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))

    def look(self, names: Sequence[str], recorded: Recorded = NEVER, **settings: object) -> Look:
        watched = [
            Watched(
                ExperimentConfig.model_validate(
                    {"name": name, "notebook": f"notebooks/{name}.ipynb", **settings}
                ),
                self.root / "notebooks" / f"{name}.ipynb",
            )
            for name in names
        ]
        watch = NotebookWatch(watched, self.root / "state", self.root / "notebooks")
        found = watch.look(self.cursor, lambda _: recorded)
        self.cursor = found.generation
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_first_look_asks_for_everything_that_was_never_made(project: Project) -> None:
    project.write("a")
    (change,) = project.look(["a"]).changes
    assert change.first
    assert change.stale == ("code", "model", "endpoint")


def test_a_first_look_asks_only_for_what_is_not_as_dagster_recorded_it(project: Project) -> None:
    project.write("a")
    now = project.look(["a"]).changes[0].versions
    for recorded, stale in (
        (Recorded(now.training, now.inference, True, True), ()),
        (Recorded(now.training, "other", True, True), ("code", "endpoint")),
        (Recorded("other", now.inference, True, True), ("code", "model", "endpoint")),
        (Recorded(now.training, now.inference, False, False), ("model", "endpoint")),
        (Recorded(now.training, now.inference, True, False), ("endpoint",)),
    ):
        project.cursor = None
        assert project.look(["a"], recorded).changes[0].stale == stale


def test_nothing_changed_says_nothing_and_writes_nothing(project: Project) -> None:
    project.write("a")
    first = project.look(["a"])
    second = project.look(["a"])
    assert (second.changes, second.problems, second.generation) == ((), (), first.generation)


@pytest.mark.parametrize(
    ("old", "new", "stages", "stale"),
    [
        ("Which of three?", "Prose only.", (), ()),
        ("print(accuracy)", "print(accuracy)  # a comment", (), ()),
        (
            "    return model.predict(rows)",
            "    return list(model.predict(rows))",
            ("inference",),
            ("code", "endpoint"),
        ),
        ("max_iter=200", "max_iter=300", ("train",), ("code", "model", "endpoint")),
    ],
)
def test_an_edit_makes_stale_what_it_means(
    project: Project, old: str, new: str, stages: tuple[str, ...], stale: tuple[str, ...]
) -> None:
    project.write("a")
    project.look(["a"])
    project.edit("a", old, new)
    (change,) = project.look(["a"]).changes
    assert not change.first
    assert set(stages) <= set(change.stages)
    assert ("train" in change.stages) == ("train" in stages)
    assert change.stale == stale


def test_a_declaration_counts_as_code(project: Project) -> None:
    project.write("a")
    project.look(["a"], hyperparameters={"C": 1.0})
    (change,) = project.look(["a"], hyperparameters={"C": 2.0}).changes
    assert change.stale == ("code", "model", "endpoint")


def test_a_broken_notebook_is_reported_once_and_stops_nobody(project: Project) -> None:
    project.write("a")
    project.write("b")
    project.look(["a", "b"])
    project.write("a", '{"cells": [')
    project.edit("b", "max_iter=200", "max_iter=300")
    look = project.look(["a", "b"])
    assert [change.experiment.name for change in look.changes] == ["b"]
    assert len(look.problems) == 1
    assert "a.ipynb" in look.problems[0]
    assert project.look(["a", "b"]).problems == ()
    project.write("a", '{"cells": [ ')
    assert project.look(["a", "b"]).problems == ()
    project.write("a", "")
    (text,) = project.look(["a", "b"]).problems  # another problem
    assert "empty" in text


def test_a_file_moved_over_another_of_the_same_time_and_size_is_seen(project: Project) -> None:
    path = project.write("a")
    project.look(["a"])
    facts = path.stat()
    other = path.with_suffix(".other")
    other.write_text(path.read_text(encoding="utf-8").replace("max_iter=200", "max_iter=300"))
    os.utime(other, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_size == facts.st_size
    (change,) = project.look(["a"]).changes
    assert change.stale == ("code", "model", "endpoint")


def test_a_mended_notebook_is_compared_with_what_it_was_before_it_broke(project: Project) -> None:
    path = project.write("a")
    project.look(["a"])
    good = path.read_text(encoding="utf-8")
    project.write("a", "nonsense")
    project.look(["a"])
    project.write("a", good)
    assert project.look(["a"]).changes[0].stale == ()


def test_a_deleted_notebook_is_reported_once(project: Project) -> None:
    path = project.write("a")
    project.look(["a"])
    path.unlink()
    (text,) = project.look(["a"]).problems
    assert "was deleted" in text
    assert project.look(["a"]).problems == ()


def test_a_renamed_notebook_is_recognised(project: Project) -> None:
    path = project.write("a")
    project.write("b")
    project.look(["a"])
    path.rename(path.with_name("c.ipynb"))
    project.write("b", notebook([("markdown", (), "# other")]))
    (text,) = project.look(["a"]).problems
    assert "c.ipynb" in text
    assert "renamed" in text


def test_an_undeclared_notebook_is_mentioned_once(project: Project) -> None:
    project.write("a")
    project.write("new")
    assert [path.name for path in project.look(["a"]).undeclared] == ["new.ipynb"]
    assert project.look(["a"]).undeclared == ()
    project.write("newer")
    assert [path.name for path in project.look(["a"]).undeclared] == ["newer.ipynb"]


def test_a_lost_or_foreign_snapshot_starts_anew(project: Project) -> None:
    project.write("a")
    now = project.look(["a"]).changes[0].versions
    project.cursor = "something else"
    (change,) = project.look(["a"], Recorded(now.training, now.inference, True, True)).changes
    # It was made before: a look was lost, no first time.
    assert not change.first
    assert change.stale == ()
    (project.root / "state" / "sensors" / "notebook_changes.json").write_text("{ damaged")
    project.cursor = "1"
    assert project.look(["a"]).changes[0].first


def test_an_edit_whose_look_was_lost_is_still_asked_for(project: Project) -> None:
    project.write("a")
    project.look(["a"])
    project.cursor = None  # the tick died before Dagster kept its cursor
    found = project.look(["a"], Recorded("older", "older", has_model=True, has_endpoint=True))
    assert [(change.first, bool(change.stale)) for change in found.changes] == [(False, True)]


def test_what_was_never_made_is_a_first_time(project: Project) -> None:
    project.write("a")
    assert [change.first for change in project.look(["a"]).changes] == [True]
