"""Load a model folder: by its own ``inference.py``, or as a plain MLflow model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import orjson

from .request import JSON, RequestError, Table
from .signature import Signature

_HOOKS = ("model_fn", "input_fn", "predict_fn", "output_fn")


class ModelFolderError(Exception):
    """The folder holds nothing that can be served, or what it holds is damaged."""


class Model(Protocol):
    """What answers a request."""

    signature: Signature
    input_example: bytes | None

    def predict(self, table: Table, accept: str) -> tuple[bytes, str]:
        """The reply's body and content type. Raises RequestError where the request is at fault."""


class ScriptModel:
    """A folder with ``inference.py``: its functions do the work, so that serving is what the notebook does."""

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        module = _import_script(folder / "inference.py")
        missing = [name for name in _HOOKS if not callable(getattr(module, name, None))]
        if missing:
            raise ModelFolderError(f"{folder / 'inference.py'} does not define {', '.join(missing)}.")
        self._input: Callable[[bytes, str], Any] = module.input_fn
        self._predict: Callable[[Any, Any], Any] = module.predict_fn
        self._output: Callable[[Any, str], Any] = module.output_fn
        self.signature = Signature.parse((metadata.get("signature") or {}).get("inputs"))
        self.input_example = _example(metadata.get("input_example"))
        self._model = module.model_fn(str(folder))

    def predict(self, table: Table, accept: str) -> tuple[bytes, str]:
        """See ``Model``. What ``input_fn`` raises is laid to the request, what ``predict_fn`` raises is not."""
        try:
            data = self._input(table.body, table.content_type)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise RequestError(
                400, f"The model's input_fn refused the body: {type(error).__name__}: {error}"
            ) from error
        return _reply(self._output(self._predict(data, self._model), accept))


class PyfuncModel:
    """A plain MLflow model, loaded as pyfunc."""

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        import mlflow.pyfunc

        self._model = mlflow.pyfunc.load_model(str(folder))
        declared = (metadata.get("signature") or {}).get("inputs")
        schema = self._model.metadata.get_input_schema()
        self.signature = Signature.parse(declared if declared is not None else schema and schema.to_dict())
        self.input_example = _example(metadata.get("input_example")) or self._saved_example()

    def _saved_example(self) -> bytes | None:
        example = getattr(self._model, "input_example", None)
        if example is None:
            return None
        if hasattr(example, "to_dict"):
            example = example.to_dict(orient="split")
            return _dumps({"dataframe_split": {"columns": example["columns"], "data": example["data"]}})
        return _dumps({"inputs": example.tolist() if hasattr(example, "tolist") else example})

    def predict(self, table: Table, accept: str) -> tuple[bytes, str]:
        """See ``Model``."""
        prediction = self._model.predict(self._frame(table))
        if hasattr(prediction, "to_dict"):
            prediction = prediction.to_dict(orient="records" if prediction.ndim > 1 else "list")
        return _dumps(
            {"predictions": prediction.tolist() if hasattr(prediction, "tolist") else prediction}
        ), JSON

    def _frame(self, table: Table) -> Any:
        import numpy as np

        if self.signature.shape:
            return np.asarray(
                table.array if table.array is not None else table.rows, dtype=self.signature.dtype
            )
        names = self.signature.names
        if table.array is not None and not names:
            return np.asarray(table.array)
        import pandas as pd

        if table.by_column is not None:
            columns = {
                key: value if isinstance(value, list) else [value] for key, value in table.by_column.items()
            }
            frame = pd.DataFrame(columns)
        else:
            rows = table.rows if table.rows is not None else table.array
            frame = pd.DataFrame(
                rows, columns=None if rows and isinstance(rows[0], dict) else table.columns or names
            )
        if table.text:
            frame = self._typed(frame)
        return frame

    def _typed(self, frame: Any) -> Any:
        import pandas as pd

        for column in self.signature.columns:
            if column.name in frame and column.type not in ("string", "str", "object", "any"):
                frame[column.name] = pd.to_numeric(frame[column.name])
        return frame


def load(folder: Path) -> Model:
    """Load a model folder.

    Raises:
        ModelFolderError: There is no ``inference.py`` and no MLflow model, or ``model.json`` is damaged.
        Exception: Whatever the user's own code or its framework raises while loading.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"There is no model folder {folder}.")
    metadata = read_metadata(folder)
    if (folder / "inference.py").is_file():
        return ScriptModel(folder, metadata)
    if (folder / "MLmodel").is_file():
        return PyfuncModel(folder, metadata)
    raise ModelFolderError(f"{folder} holds neither inference.py nor an MLflow model (MLmodel).")


def read_metadata(folder: Path) -> dict[str, Any]:
    """``model.json``; empty where there is none."""
    path = folder / "model.json"
    if not path.is_file():
        return {}
    try:
        metadata = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ModelFolderError(f"{path} is damaged: {error}.") from error
    if not isinstance(metadata, dict):
        raise ModelFolderError(f"{path} is damaged: it is not a JSON object.")
    return metadata


def _import_script(path: Path) -> ModuleType:
    """Import ``inference.py`` under its own name with its folder first on the path, as running it there would."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("inference", path)
    if spec is None or spec.loader is None:
        raise ModelFolderError(f"{path} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["inference"] = module
    spec.loader.exec_module(module)
    return module


def _example(example: Any) -> bytes | None:
    """The input example as the body of a request."""
    if example is None:
        return None
    if isinstance(example, dict):
        known = {"inputs", "instances", "dataframe_split", "dataframe_records"} & example.keys()
        if known:
            return _dumps(example)
        if {"columns", "data"} <= example.keys():
            return _dumps({"dataframe_split": {"columns": example["columns"], "data": example["data"]}})
        rows = all(isinstance(value, list) for value in example.values())
        return _dumps({"inputs": example} if rows else {"dataframe_records": [example]})
    if isinstance(example, list) and example:
        if isinstance(example[0], dict):
            return _dumps({"dataframe_records": example})
        return _dumps({"instances": example})
    return None


def _reply(output: Any) -> tuple[bytes, str]:
    """What ``output_fn`` returned: a body, a body and its content type, or a value to write as JSON."""
    content_type = JSON
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], str):
        output, content_type = output
    if isinstance(output, bytes):
        return output, content_type
    if isinstance(output, str):
        return output.encode(), content_type
    return _dumps(output), content_type


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    for method in ("tolist", "item", "isoformat"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
