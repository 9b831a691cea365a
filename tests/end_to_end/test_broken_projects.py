"""A project whose surroundings are wrong: one sentence that names the file, and the exit code of a user's error."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.resources import Workplace
from tests.end_to_end.dagster_kit import BIN, SmallProject

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> SmallProject:
    return SmallProject(tmp_path / "project", "parity: false")


def refused(project: SmallProject, *words: str, **environment: str) -> str:
    done = project.run("notebooked", *words, environment=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_component_that_does_not_exist(project: SmallProject) -> None:
    path = project.root / "assets" / "iris" / "defs.yaml"
    path.write_text(path.read_text().replace("NotebookExperiment", "NotebookExperimnt"))
    said = refused(project, "status")
    assert f"{path}, line 1, key type" in said
    assert "Did you mean notebooked_dagster.NotebookExperiment?" in said


@pytest.mark.parametrize("home", ["/no/such/folder", "relative"])
def test_a_wrong_dagster_home(project: SmallProject, home: str) -> None:
    assert "Correct DAGSTER_HOME" in refused(project, "status", DAGSTER_HOME=home)


def test_a_wrong_dagster_yaml(project: SmallProject) -> None:
    (project.root / "dagster.yaml").write_text("storage: {nonsense: 1}\n")
    said = refused(project, "status")
    assert str(project.root / "dagster.yaml") in said
    assert "nonsense" in said


def test_a_state_folder_that_cannot_be_made(project: SmallProject) -> None:
    said = refused(project, "train", "iris", NOTEBOOKED_STATE_DIR="/proc/nowhere")
    assert "/proc/nowhere" in said


HEAD = "type: notebooked_dagster.NotebookExperiment\n"
GOOD = f"{HEAD}attributes:\n  notebook: notebooks/iris.ipynb\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "mapping with `type` and `attributes`"),
        ("hello\n", "mapping with `type` and `attributes`"),
        ("attributes: {}\n", "key type"),
        ("type: [a]\n", "key type"),
        (f"{HEAD}attributes: [1]\n", "line 2, key attributes"),
        (f"{HEAD}attrs: 5\n", "Did you mean `attributes`?"),
        (f"{GOOD}  hyperparameters: {{C: 2020-01-01}}\n", "quote it"),
        (f"{GOOD}  schedule: {{cron: '0 0 31 2 *'}}\n", "invalid cron schedule"),
        (f"{GOOD}  tags: {{'a b': 'c d'}}\n", "Invalid tag value"),
        (f"{GOOD}  partitions: {{datasets: ['x...y']}}\n", "partition key"),
        (f"{GOOD}  description: &a [*a]\n", "contains itself"),
    ],
)
def test_a_declaration_of_a_wrong_form(
    project: SmallProject, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.root / "assets" / "iris" / "defs.yaml"
    path.write_text(text)
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(project.root))
    with pytest.raises(ConfigError) as caught:
        project_definitions(Workplace.here())
    assert said in str(caught.value)
    assert str(path.parent.parent) in str(caught.value)


def test_one_name_in_two_places(project: SmallProject) -> None:
    (project.root / "config.yaml").write_text("experiments: [{name: iris, notebook: notebooks/iris.ipynb}]\n")
    assert "Two experiments are called 'iris'" in refused(project, "status")


def heeds_signals() -> None:
    """Whoever runs the tests in the background of a shell, or under nohup, has some ignored, and so would every child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_interrupted_ends_its_training(
    project: SmallProject, number: signal.Signals
) -> None:
    project.edit(
        "model.fit(X_train, y_train)",
        "model.fit(X_train, y_train)\nimport time\nprint('ASLEEP', flush=True)\ntime.sleep(600)",
    )
    process = subprocess.Popen(
        [str(BIN / "notebooked"), "train", "iris"],
        cwd=project.root,
        env=project.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=heeds_signals,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "ASLEEP" in line:
            break
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait(60) == 130, said
    assert "Interrupted." in said
    (record,) = (project.root / ".notebooked" / "jobs").glob("*/job.json")
    assert '"status": "cancelled"' in record.read_text()
