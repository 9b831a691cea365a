"""Run a notebook's own training and ask its model what the script's model was asked.

The notebook runs as it is, from top to bottom, in a kernel of its own; only the seed is set before its first cell and
hyperparameters after the cells that assign them. A last cell takes its metrics and predictions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import MissingPackageError, NotebookReadError, TrainingFailedError

_OUT = "parity.json"
_SEED = """\
import random as _nb_random
_nb_random.seed({seed})
try:
    import numpy as _nb_numpy
    _nb_numpy.random.seed({seed})
except ImportError:
    pass
import importlib.util as _nb_util
if _nb_util.find_spec("torch") is not None and {torch}:
    import torch as _nb_torch
    _nb_torch.manual_seed({seed})
"""
# Predictions go through the script's own inference code twice: once with the script's model and fitted objects, once
# with the notebook's. So what is compared is what was trained, not two ways of asking.
_HARVEST = """\
def _nb_harvest(_nb_names, _nb_model_dir, _nb_out, _nb_all):
    import json, sys
    found = {{"metrics": {{}}, "script": None, "notebook": None, "problem": ""}}
    for name in _nb_names:
        try:
            found["metrics"][name] = float(_nb_all[name])
        except (KeyError, TypeError, ValueError):
            pass
    try:
        from pathlib import Path
        sys.path.insert(0, _nb_model_dir)
        import inference
        import preprocess
        modules = [inference, preprocess]
        before = [dict(vars(module)) for module in modules]
        model = inference.model_fn(_nb_model_dir)
        description = json.loads((Path(_nb_model_dir) / "model.json").read_text(encoding="utf-8"))
        if description.get("input_example") is not None:
            body = json.dumps(description["input_example"])

            def ask():
                answer = inference.output_fn(inference.predict_fn(inference.input_fn(body, "application/json"), model))
                return json.loads(answer if isinstance(answer, str | bytes) else answer[0])["predictions"]

            found["script"] = ask()
            for module, old in zip(modules, before):
                for name, value in list(vars(module).items()):
                    if name in _nb_all and (name not in old or old[name] is not value):
                        if value is model:
                            model = _nb_all[name]
                        vars(module)[name] = _nb_all[name]
            found["notebook"] = ask()
    except Exception as error:
        found["problem"] = f"{{type(error).__name__}}: {{error}}"
    with open(_nb_out, "w", encoding="utf-8") as stream:
        json.dump(found, stream)


_nb_harvest({names!r}, {model_dir!r}, {out!r}, dict(globals()))
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of running the notebook.

    Attributes:
        metrics: By name, those of the script that the notebook has under the same name.
        predictions: Of the notebook's model for the script's input example; None where they could not be had.
        script_predictions: Of the script's model for the same.
        problem: Why there are no predictions; empty where there are.
        seconds: How long the notebook took.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    predictions: list[Any] | None = None
    script_predictions: list[Any] | None = None
    problem: str = ""
    seconds: float = 0.0


def run_notebook(
    notebook: Path,
    work: Path,
    *,
    hyperparameters: Mapping[int, Mapping[str, Any]],
    metrics: Sequence[str],
    model_dir: Path,
    seed: int,
    timeout: float,
) -> Ran:
    """Run a notebook to its end and compare notes.

    Args:
        notebook: The file; it is not changed.
        work: A folder for the executed copy.
        hyperparameters: Values by the index of the cell after which they are set.
        metrics: Names to take from the notebook's variables.
        model_dir: The script's model folder.
        seed: Of the random numbers.
        timeout: Seconds for a cell.

    Raises:
        MissingPackageError: papermill is not installed.
        TrainingFailedError: A cell of the notebook raised.
        NotebookReadError: The file is no notebook.
    """
    try:
        # Neither ships types.
        nbformat: Any = import_module("nbformat")
        papermill: Any = import_module("papermill")
        exceptions: Any = import_module("papermill.exceptions")
    except ImportError as error:
        raise MissingPackageError(
            f"Running a notebook needs the package {error.name!r}, which is not installed.",
            hint="`pip install 'notebooked-dagster[runbooks]'`.",
        ) from error
    try:
        document = nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise NotebookReadError(f"It cannot be read: {error}.", path=notebook) from error
    out = work / _OUT
    cells = []
    uses_torch = any("torch" in cell.source for cell in document.cells if cell.cell_type == "code")
    cells.append(nbformat.v4.new_code_cell(_SEED.format(seed=seed, torch=uses_torch)))
    for index, cell in enumerate(document.cells):
        cells.append(cell)
        if values := hyperparameters.get(index):
            text = "\n".join(f"{name} = {value!r}" for name, value in values.items())
            cells.append(nbformat.v4.new_code_cell(text))
    cells.append(
        nbformat.v4.new_code_cell(
            _HARVEST.format(names=list(metrics), model_dir=str(model_dir), out=str(out))
        )
    )
    # Ours have ids, which nbformat knows from 4.5 on; an older notebook's cells have none, and some notebooks repeat one.
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"
    document.cells = cells
    document.nbformat_minor = max(document.nbformat_minor, 5)
    source, executed = work / "notebook.ipynb", work / "executed.ipynb"
    nbformat.write(document, source)
    started = time.monotonic()
    try:
        papermill.execute_notebook(
            source,
            executed,
            cwd=str(notebook.parent),
            kernel_name="python3",
            progress_bar=False,
            log_output=False,
            execution_timeout=int(timeout),
        )
    except exceptions.PapermillExecutionError as error:
        raise TrainingFailedError(
            f"The notebook itself does not run: {error.ename}: {error.evalue}",
            path=notebook,
            # The seed's cell comes before the notebook's own, and hyperparameters may come between.
            hint="Run it in Jupyter from top to bottom; parity can only be told of a notebook that runs.",
        ) from error
    found = json.loads(out.read_text(encoding="utf-8"))
    return Ran(
        metrics=found["metrics"],
        predictions=found["notebook"],
        script_predictions=found["script"],
        problem=found["problem"],
        seconds=time.monotonic() - started,
    )
