"""What the real command says to a wrong word, and to a hand on what it generated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.dagster_kit import SmallProject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallProject]:
    """A project with a model and an endpoint."""
    made = SmallProject(tmp_path_factory.mktemp("person") / "project")
    for command in ("train", "deploy"):
        done = made.run("notebooked", command, "iris")
        assert done.returncode == 0, done.stderr
    yield made
    made.delete_endpoint()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("jobs", "irsi"), 1, "Did you mean iris?"),
        (("cancel", "nothing"), 2, "There is no training job 'nothing'"),
        (("logs", "nothing"), 2, "There is no training job 'nothing'"),
        (("train", "irsi"), 1, "Did you mean iris?"),
        (("predict", "nothing"), 2, "There is no endpoint 'nothing'"),
        (("predict", "iris", "--data", "{"), 1, "is not JSON"),
        (("predict", "iris", "--data", '{"inputs": [["a"]]}'), 1, "values"),
        (("train", "iris", "--set", "nope=3"), 1, "nope"),
        (("deploy", "iris", "--model-uri", "nowhere"), 2, "nowhere"),
    ],
)
def test_a_wrong_word_gets_one_clear_message(
    project: SmallProject, words: tuple[str, ...], code: int, said: str
) -> None:
    finished = project.run("notebooked", *words)
    assert finished.returncode == code, finished.stderr
    assert said in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_hand_on_a_script_is_never_lost(project: SmallProject) -> None:
    script = project.root / "scripts" / "iris" / "train.py"
    generated = script.read_text(encoding="utf-8")
    script.write_text(generated + "# mine\n", encoding="utf-8")
    refused = project.run("notebooked", "convert", "iris")
    assert refused.returncode == 1
    assert "edited by hand" in refused.stderr
    assert script.read_text(encoding="utf-8").endswith("# mine\n")
    assert "# mine" in project.run("notebooked", "diff", "iris").stdout
    assert project.run("notebooked", "convert", "iris", "--force").returncode == 0
    assert script.read_text(encoding="utf-8") == generated
