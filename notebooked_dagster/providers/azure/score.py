"""Azure's scoring script: the generated inference code behind ``init`` and ``run``; it is sent with that code.

It runs where only the notebook's requirements and Azure's inference server are. Input that cannot be read is answered with
400, which Azure hands on in a header; every other exception is the server's 500, with its traceback in the log.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

HERE = Path(__file__).resolve().parent
_loaded: "dict[str, Any]" = {}


def model_folder(root: Path) -> Path:
    """The model: Azure mounts the folder it was registered from, by its own name, below a folder of the version's."""
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else root


def init() -> None:
    """Load the model."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    code = importlib.import_module("inference")
    _loaded.update(code=code, model=code.model_fn(str(model_folder(Path(os.environ["AZUREML_MODEL_DIR"])))))


@rawhttp  # type: ignore[untyped-decorator]
def run(request: Any) -> Any:
    """Answer a request."""
    code = _loaded["code"]
    kind = (request.headers.get("Content-Type") or "application/json").split(";")[0].strip()
    accept = (request.headers.get("Accept") or "application/json").split(",")[0].strip()
    body = request.get_data()
    try:
        data = code.input_fn(body.decode("utf-8") if kind in ("application/json", "text/csv") else body, kind)
    except Exception as error:
        said = {"error_code": "BAD_REQUEST", "message": f"{type(error).__name__}: {error}"}
        return AMLResponse(json.dumps(said), 400, {"Content-Type": "application/json"})
    answer = code.output_fn(code.predict_fn(data, _loaded["model"]), accept)
    if isinstance(answer, tuple):
        answer, accept = answer[0], answer[1]
    return AMLResponse(answer, 200, {"Content-Type": accept if "*" not in accept else "application/json"})
