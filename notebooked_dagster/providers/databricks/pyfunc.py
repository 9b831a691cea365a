"""The generated inference code behind MLflow's pyfunc; it is sent with that code, and needs what Model Serving has anyway.

Model Serving parses a request by the model's signature before it comes here. It is written again as JSON, so that the same
``input_fn`` reads it that reads it everywhere else.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any


class Inference:
    """What MLflow calls."""

    def __init__(self, folder: str) -> None:
        self._code = importlib.import_module("inference")
        self._model = self._code.model_fn(folder)

    def predict(self, data: Any, params: Any = None) -> Any:
        """Answer a request."""
        read = self._code.input_fn(body(data), "application/json")
        answer = self._code.output_fn(self._code.predict_fn(read, self._model), "application/json")
        if isinstance(answer, tuple):
            answer = answer[0]
        if isinstance(answer, str | bytes):
            answer = json.loads(answer)
        # Model Serving puts its own `predictions` around what it is given.
        if isinstance(answer, dict) and set(answer) == {"predictions"}:
            answer = answer["predictions"]
        return answer


def body(data: Any) -> str:
    """What MLflow made of a request, as a request again."""
    if hasattr(data, "to_json"):
        return '{"dataframe_records": ' + str(data.to_json(orient="records", date_format="iso")) + "}"
    return json.dumps({"inputs": plain(data)})


def plain(value: Any) -> Any:
    """A value without NumPy in it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _load_pyfunc(path: str) -> Inference:
    """What MLflow's python_function flavor loads a model with."""
    here = str(Path(__file__).resolve().parent)
    if here not in sys.path:
        sys.path.insert(0, here)
    return Inference(path)
