"""The ``notebooked`` command: its frame, and the commands that need no provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from notebooked_dagster.cli import main
from notebooked_dagster.cli.app import COMMANDS
from notebooked_dagster.errors import EndpointNotFoundError
from tests.end_to_end.dagster_kit import SmallProject

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT / "notebooks" / "experiments"
UNTAGGED = SAMPLES / "wine_untagged.ipynb"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def process(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from notebooked_dagster.cli import main; main(prog_name='notebooked')"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}, timeout=60,
    )  # fmt: skip


def notebook(path: Path, *sources: str) -> Path:
    cells = [
        {"cell_type": "code", "source": s, "metadata": {}, "outputs": [], "execution_count": None}
        for s in sources
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": cells}))
    return path


TRAINS = (
    "from sklearn.linear_model import LinearRegression\nfrom sklearn.datasets import load_diabetes",
    "X, y = load_diabetes(return_X_y=True)",
    "model = LinearRegression().fit(X, y)",
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom notebooked_dagster.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = 'dagster mlflow pandas IPython nbformat rich pydantic fastapi notebooked_dagster.cli.lint'.split()\n"
        "print([name for name in heavy if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_inspecting_imports_neither_dagster_nor_mlflow() -> None:
    code = (
        "import sys\nfrom notebooked_dagster.cli import main\n"
        f"try:\n    main(['inspect', {str(UNTAGGED)!r}, '--json'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('dagster', 'mlflow', 'pandas', 'nbformat', 'rich') if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_shared_options(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert all(option in result.stdout for option in ("--json", "--project", "--verbose"))


def test_a_misspelt_command_names_the_nearest() -> None:
    result = run("lnt")
    assert result.exit_code == 1
    assert "Did you mean lint?" in result.stderr


def test_wrong_usage_is_a_user_error_also_as_json() -> None:
    assert run("lint").exit_code == 1
    result = run("lint", "--json")
    assert json.loads(result.stderr)["exit_code"] == 1
    assert result.stdout == ""


def test_an_error_names_file_and_fix_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    path.write_text('{"cells": [')
    result = run("inspect", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(path) in result.stderr
    as_json = json.loads(run("inspect", path, "--json").stderr)
    assert (as_json["error"], as_json["path"]) == ("NotebookReadError", str(path))


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (EndpointNotFoundError("gone", hint="Look."), 2),
        (ZeroDivisionError("oops"), 3),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (OSError(28, "No space left on device", "/x"), 1),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, problem: BaseException, code: int) -> None:
    @click.command()
    def failing() -> None:
        raise problem

    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: failing)
    result = run("lint")
    assert result.exit_code == code
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    # The file and what to do.
    assert not isinstance(problem, OSError) or ("/x: " in result.stderr and "\n  " in result.stderr)
    monkeypatch.setenv("NOTEBOOKED_DEBUG", "1")
    assert ("Traceback" in run("lint").stderr) == (code in (1, 2, 3))


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from notebooked_dagster.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "lint", str(SAMPLES)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_NOTEBOOKED_COMPLETE" in run("completion", shell).stdout


def test_completion_completes_commands() -> None:
    done = process(_NOTEBOOKED_COMPLETE="bash_complete", COMP_WORDS="notebooked ins", COMP_CWORD="1")
    assert done.stdout.strip() == "plain,inspect"


def test_the_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    assert process("lint", notebook(tmp_path / "good.ipynb", "x = 1")).returncode == 0
    assert process("lint", tmp_path / "missing.ipynb").returncode == 1
    assert process("--version").stdout.startswith("notebooked, version ")


def test_inspect_as_text_and_json() -> None:
    text = run("inspect", UNTAGGED).stdout
    assert "trains model with model.fit" in text
    data: dict[str, Any] = json.loads(run("--json", "inspect", UNTAGGED).stdout)
    assert {"imports", "preprocess", "train", "inference"} <= data["slices"].keys()
    assert data["models"][0] == "model"
    assert all(0 <= cell["confidence"] <= 1 and cell["reason"] for cell in data["cells"])
    assert data["cells"][0]["cell"] == 2


def test_inspect_prints_a_slice_and_refuses_one_that_is_not_there(tmp_path: Path) -> None:
    assert "fit" in run("inspect", UNTAGGED, "--slice", "train").stdout
    result = run("inspect", notebook(tmp_path / "a.ipynb", "x = 1"), "--slice", "train")
    assert result.exit_code == 1
    assert "no stage 'train'" in result.stderr


def test_lint_fails_on_what_it_is_told_to(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb", "!pip install pandas")
    assert run("lint", path).exit_code == 0
    assert run("lint", path, "--fail-on", "warning").exit_code == 1
    assert run("lint", path, "--fail-on", "warning", "--ignore", "NB001,NB204").exit_code == 0
    assert run("lint", path, "--fail-on", "warning", "--select", "NB1").exit_code == 0
    notebook(tmp_path / "b.ipynb", "print(nowhere)")
    assert run("lint", tmp_path).exit_code == 1
    assert run("lint", tmp_path, "--fail-on", "never").exit_code == 0


@pytest.mark.parametrize("format_", ["json", "sarif"])
def test_lint_prints_one_document(tmp_path: Path, format_: str) -> None:
    notebook(tmp_path / "a.ipynb", "!pip install pandas")
    notebook(tmp_path / ".ipynb_checkpoints" / "a.ipynb", "!pip install pandas")
    json.loads(run("lint", tmp_path, "--format", format_).stdout)
    data = json.loads(run("lint", tmp_path, "--json").stdout)
    assert [Path(entry["path"]).name for entry in data["notebooks"]] == ["a.ipynb"]


def test_lint_goes_on_behind_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("{")
    notebook(tmp_path / "b.ipynb", "!pip install pandas")
    result = run("lint", tmp_path)
    assert result.exit_code == 1
    assert "NB204" in result.stdout
    assert "a.ipynb" in result.stderr


def test_lint_of_nothing(tmp_path: Path) -> None:
    assert "no notebook" in run("lint", tmp_path).stderr
    assert run("lint", tmp_path / "missing.ipynb").exit_code == 1


def test_an_experiment_stands_for_its_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as its declaration says, and wherever the command is called: other paths are relative to there."""
    project = SmallProject(tmp_path / "project", "extra_tags: {fit: train}\nlint: {ignore: [NB204]}\n")
    path = notebook(project.notebook, "!pip install pandas", *TRAINS)
    tagged = json.loads(path.read_text())
    tagged["cells"][-1]["metadata"] = {"tags": ["fit"]}
    path.write_text(json.dumps(tagged))
    here = tmp_path / "here"
    notebook(here / "other.ipynb", "!pip install pandas")
    monkeypatch.chdir(here)

    def said(*words: str) -> Any:
        done = run("--project", project.root, "--json", *words)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    first, second = said("lint", "iris", "other.ipynb")["notebooks"]
    assert (first["path"], second["path"]) == (str(path), "other.ipynb")
    assert not any(found["rule"] == "NB204" for found in first["findings"])
    assert any(found["rule"] == "NB204" for found in second["findings"])
    roles = {cell["cell"]: cell["roles"] for cell in said("inspect", "iris")["cells"]}
    assert roles[len(tagged["cells"])] == ["train"]
    assert said("tag", "iris")["path"] == str(path)
    assert Path(said("convert", "iris", "-o", "scripts")["folder"]).resolve() == here / "scripts"
    assert (here / "scripts/train.py").exists()
    # And the other way round, where only one is of it.
    assert said("status", "../project/notebooks/iris.ipynb")[0]["experiment"] == "iris"
    missing = run("--project", project.root, "lint", "irsi")
    assert (missing.exit_code, "Did you mean iris?" in missing.stderr) == (1, True)
    missing = run("--project", project.root, "lint", "here/irsi")
    assert (missing.exit_code, "no such file or folder" in missing.stderr) == (1, True)


def test_tag_suggests_and_leaves_the_file_alone() -> None:
    before = UNTAGGED.read_bytes()
    data = json.loads(run("tag", UNTAGGED, "--suggest", "--json").stdout)
    assert any("train" in cell["tags"] for cell in data["cells"])
    assert not data["written"]
    assert UNTAGGED.read_bytes() == before
    prefixed = json.loads(run("tag", UNTAGGED, "--prefix", "nb:", "--json").stdout)
    assert all(tag.startswith("nb:") for cell in prefixed["cells"] for tag in cell["tags"])


def test_init_makes_a_project_that_is_understood(tmp_path: Path) -> None:
    result = run("init", tmp_path / "new", "--json")
    assert result.exit_code == 0
    written = {entry["path"] for entry in json.loads(result.stdout)["files"]}
    assert {"workspace.yaml", "dagster.yaml", "assets/sample/defs.yaml", "notebooks/sample.ipynb"} <= written
    data = json.loads(run("inspect", tmp_path / "new/notebooks/sample.ipynb", "--json").stdout)
    assert {"preprocess", "train", "inference"} <= data["slices"].keys()
    assert run("lint", tmp_path / "new", "--fail-on", "info").exit_code == 0


def test_init_adopts_notebooks_that_train_and_overwrites_nothing(tmp_path: Path) -> None:
    notebook(tmp_path / "work/My Model 2.ipynb", *TRAINS)
    notebook(tmp_path / "other/my-model-2.ipynb", *TRAINS)
    notebook(tmp_path / "look.ipynb", "print(1)")
    (tmp_path / "bad.ipynb").write_text("{")
    (tmp_path / "README.md").write_text("mine")
    data = json.loads(run("init", tmp_path, "--json").stdout)
    actions = {entry["path"]: entry["action"] for entry in data["files"]}
    assert actions["work/My Model 2.ipynb"] == actions["other/my-model-2.ipynb"] == "adopted"
    assert actions["look.ipynb"] == actions["bad.ipynb"] == "skipped"
    assert actions["README.md"] == "kept"
    assert (tmp_path / "README.md").read_text() == "mine"
    found = {
        path.parent.name: yaml.safe_load(path.read_text())
        for path in (tmp_path / "assets").glob("*/defs.yaml")
    }
    assert set(found) == {"my_model_2", "my_model_2_2"}
    assert all(d["type"] == "notebooked_dagster.NotebookExperiment" for d in found.values())
    assert {d["attributes"]["notebook"] for d in found.values()} == {
        "work/My Model 2.ipynb",
        "other/my-model-2.ipynb",
    }
    assert run("init", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "README.md").read_text() != "mine"


def test_init_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert run("init", tmp_path, "--dry-run").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_what_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", tmp_path)
    good = run("--project", tmp_path, "doctor", "--json")
    assert (good.exit_code, json.loads(good.stdout)["ok"]) == (0, True)
    (tmp_path / "assets/sample/defs.yaml").write_text("attributes: {notebook: gone.ipynb}")
    (tmp_path / "assets/other").mkdir()
    (tmp_path / "assets/other/defs.yaml").write_text("a: [")
    monkeypatch.setenv("NOTEBOOKED_TRACKING_URI", "http://me:hunter2secret@127.0.0.1:9/")
    bad = run("--project", tmp_path, "doctor", "--json")
    states = {c["name"]: c["state"] for c in json.loads(bad.stdout)["checks"]}
    assert bad.exit_code == 1
    assert (
        states["assets/sample/defs.yaml"] == states["assets/other/defs.yaml"] == states["mlflow"] == "error"
    )
    assert "hunter2secret" not in bad.stdout


def test_doctor_sees_the_project_as_other_commands_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init", tmp_path)
    (tmp_path / ".env").write_text("NOTEBOOKED_TRACKING_URI=http://127.0.0.1:9\n")
    (tmp_path / "dagster.yaml").write_text("storage: [1")
    # What .env sets is unset again after the test.
    monkeypatch.setenv("NOTEBOOKED_TRACKING_URI", "")
    monkeypatch.delenv("NOTEBOOKED_TRACKING_URI")
    result = run("--project", tmp_path, "doctor", "--json")
    checks = {c["name"]: c for c in json.loads(result.stdout)["checks"]}
    assert checks[".env"]["message"] == "sets NOTEBOOKED_TRACKING_URI"
    assert "127.0.0.1:9" in checks["mlflow"]["message"]
    assert (checks["dagster instance"]["state"], result.exit_code) == ("error", 1)
    assert str(tmp_path / "dagster.yaml") in checks["dagster instance"]["message"]
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    run("init", tmp_path, "--force")
    damaged = tmp_path / ".notebooked/dagster/history/runs.db"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_text("no database, whatever it is")
    checks = {
        c["name"]: c for c in json.loads(run("--project", tmp_path, "doctor", "--json").stdout)["checks"]
    }
    assert checks["dotenv"]["fix"] == "Save it as UTF-8."
    assert "Save it" not in checks["dotenv"]["message"]
    # It goes on, and names the file that it could not go on for before.
    assert checks["dagster"]["state"] == checks[f"database {damaged}"]["state"] == "error"
