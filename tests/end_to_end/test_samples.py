"""Every sample experiment through its whole asset graph: to the notebook's own score, and to its own predictions.

The notebook itself is the reference. It is executed as it stands, with one cell behind it that writes down its scores and
what it answers to a request; the saved model is asked the same in a process of its own, and so is the endpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import nbformat
import pytest

from notebooked_dagster.codegen import GenerateOptions, generate, write_scripts
from notebooked_dagster.definitions import project_definitions
from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.reader import read_notebook
from notebooked_dagster.providers.local import LocalProvider
from notebooked_dagster.resources import Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"

RECORD = """
import json as _json
import numpy as _np
import pandas as _pd

def _plain(value):
    if isinstance(value, _pd.DataFrame):
        return value.to_dict("records")
    return _np.asarray(value).tolist()

with open({target!r}, "w") as _stream:
    _json.dump({{"scores": {{name: float(globals()[name]) for name in {scores!r}}},
                "request": {request}, "answer": _plain({answer})}}, _stream)
"""

ASK = """
import json, sys
import inference
model = inference.model_fn(".")
data = inference.input_fn(sys.stdin.read(), "application/json")
answer = inference.output_fn(inference.predict_fn(data, model), "application/json")
answer = answer[0] if isinstance(answer, tuple) else answer
assert "notebooked_dagster" not in sys.modules
print("ANSWER " + (answer if isinstance(answer, str) else answer.decode()))
"""


@dataclass(frozen=True)
class Sample:
    """A notebook, its scores by variable name, and in its own names a request and the answer it gives to it."""

    path: str
    scores: tuple[str, ...]
    request: str
    answer: str
    framework: str


SAMPLES = (
    Sample(
        "experiments/digits_classifier.ipynb",
        ("accuracy", "macro_f1"),
        '{"inputs": X_test[:7].tolist()}',
        "predict(X_test[:7])",
        "sklearn",
    ),
    Sample(
        "experiments/breast_cancer_lightgbm.ipynb",
        ("auc", "recall", "accuracy"),
        '{"dataframe_records": df.drop(columns="malignant").head(5).to_dict("records")}',
        'predict(df.drop(columns="malignant").head(5))',
        "lightgbm",
    ),
    Sample(
        "experiments/co2_forecast.ipynb",
        ("test_mape", "test_rmse"),
        '{"inputs": [9]}',
        "predict(9)",
        "statsmodels",
    ),
    Sample(
        "experiments/digits_torch.ipynb",
        ("accuracy",),
        '{"inputs": (X_test[:7] * 16).tolist()}',
        "predict(X_test[:7] * 16)",
        "torch",
    ),
    Sample(
        "experiments/wine_untagged.ipynb",
        ("acc",),
        '{"dataframe_records": X_test.head(5).to_dict("records")}',
        "model.predict(scaler.transform(X_test.head(5)))",
        "sklearn",
    ),
    Sample(
        "experiments/diabetes_from_csv.ipynb",
        ("mae", "rmse", "r2"),
        '{"dataframe_records": X_test.head(5).to_dict("records")}',
        "best_model.predict(X_test.head(5))",
        "sklearn",
    ),
)
TEMPLATE = Sample(
    "_templates/experiment.ipynb",
    ("accuracy",),
    '{"dataframe_records": data.data.head(5).to_dict("records")}',
    "predict(data.data.head(5))",
    "sklearn",
)


def run(arguments: list[str], folder: Path, *, stdin: str = "", **variables: str) -> str:
    """Run Python in ``folder`` with nothing of this project's environment; its output."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NOTEBOOKED_", "SM_", "MLFLOW_", "PYTHONPATH"))
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", **variables},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def execute(sample: Sample, work: Path) -> dict[str, Any]:
    """Run the notebook in a kernel; its scores, and its answer to the sample's request."""
    source = NOTEBOOKS / sample.path
    notebook = nbformat.read(source, as_version=4)
    target = work / "notebook.json"
    record = RECORD.format(
        target=str(target), scores=sample.scores, request=sample.request, answer=sample.answer
    )
    notebook.cells.append(nbformat.v4.new_code_cell(record))
    nbformat.write(notebook, work / "in.ipynb")
    command = ["-m", "papermill", "--no-progress-bar", "--cwd", str(source.parent), "-k", "python3"]
    run([*command, str(work / "in.ipynb"), str(work / "out.ipynb")], work)
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def ask_model(folder: Path, request: Any) -> Any:
    """What a saved model answers where nothing but its own folder and its requirements are."""
    said = run(["-c", ASK], folder, stdin=json.dumps(request))
    return json.loads(said.partition("ANSWER ")[2])["predictions"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This repository's declarations and notebooks."""
    root = tmp_path / "project"
    for name in ("assets", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("NOTEBOOKED_PROJECT_ROOT", str(root))
    yield root
    provider = LocalProvider(root / ".notebooked")
    for endpoint in provider.list_endpoints():
        provider.delete_endpoint(endpoint.name)


def test_every_declared_experiment_is_a_sample_here() -> None:
    declared = {path.parent.name for path in (ROOT / "assets").glob("*/defs.yaml")}
    assert declared == {Path(sample.path).stem for sample in SAMPLES}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: Path(sample.path).stem)
def test_a_sample_from_notebook_to_endpoint(sample: Sample, project: Path, tmp_path: Path) -> None:
    if sample.framework == "torch":
        pytest.importorskip("torch")
    theirs = execute(sample, tmp_path)
    name = Path(sample.path).stem
    # The parity check executes the notebook once more: asked where the model is another's than scikit-learn's.
    config = {"defaults": {"tracking": False, "parity": {"with_job": sample.framework == "torch"}}}
    (project / "config.yaml").write_text(json.dumps(config))
    defs = project_definitions(Workplace.here())
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def(f"{name}_job").execute_in_process(instance=instance)
    outcomes = {item.check_name: item for item in result.get_asset_check_evaluations()}
    assert {name: item.description for name, item in outcomes.items() if not item.passed} == {}
    assert outcomes.keys() >= {"skew", "lint", "metric_gate", "smoke_prediction", "endpoint_health"}
    assert ("parity" in outcomes) is (sample.framework == "torch")
    made = {
        event.asset_key.path[-1]: event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    assert made.keys() == {"training_code", "inference_code", "model", "endpoint"}

    model = Path(str(made["model"]["model_uri"].value))
    description = json.loads((model / "model.json").read_text())
    assert description["framework"] == sample.framework
    metrics = json.loads((model.parent / "output" / "metrics.json").read_text())
    for name, value in theirs["scores"].items():
        assert metrics[name] == pytest.approx(value, rel=1e-9), (name, metrics)
    same(ask_model(model, theirs["request"]), theirs["answer"])
    url = str(made["endpoint"]["URL"].value)
    same(httpx.post(f"{url}/invocations", json=theirs["request"]).json()["predictions"], theirs["answer"])


def test_the_template_without_dagster(tmp_path: Path) -> None:
    """Its scripts alone, in an empty folder: nothing of this package is needed to run them."""
    source = NOTEBOOKS / TEMPLATE.path
    theirs = execute(TEMPLATE, tmp_path)
    scripts = generate(analyse(read_notebook(source)), GenerateOptions(experiment=source.stem))
    write_scripts(scripts, tmp_path / "scripts")
    empty = tmp_path / "empty"
    empty.mkdir()
    model, output = tmp_path / "model", tmp_path / "output"
    places = ["--model-dir", str(model), "--output-dir", str(output)]
    run([str(tmp_path / "scripts" / "train.py"), *places], empty, NOTEBOOKED_NOTEBOOK_DIR=str(source.parent))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(theirs["scores"]["accuracy"], rel=1e-9)
    same(ask_model(model, theirs["request"]), theirs["answer"])


def same(ours: Any, theirs: Any) -> None:
    """Assert equality of JSON values, floats to nine digits."""
    if isinstance(theirs, list):
        assert isinstance(ours, list)
        assert len(ours) == len(theirs), (ours, theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, other in theirs.items():
            same(ours[key], other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-9)
    else:
        assert ours == theirs


def test_a_hyperparameter_changes_the_training(tmp_path: Path) -> None:
    source = NOTEBOOKS / "experiments" / "digits_classifier.ipynb"
    write_scripts(
        generate(analyse(read_notebook(source)), GenerateOptions(experiment="digits")), tmp_path / "s"
    )
    scores = []
    for value in ("5.0", "0.001"):
        output = tmp_path / value
        places = ["--model-dir", str(output / "model"), "--output-dir", str(output)]
        run([str(tmp_path / "s" / "train.py"), "--C", value, *places], tmp_path)
        scores.append(json.loads((output / "metrics.json").read_text())["accuracy"])
    assert scores[0] > 0.97
    assert scores[1] < 0.9
