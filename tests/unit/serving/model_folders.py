"""Small model folders, by the contract of a generated experiment folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

INFERENCE = """
import json
from pathlib import Path

import joblib
import numpy as np
import pandas as pd


def model_fn(model_dir):
    return joblib.load(Path(model_dir) / "model.joblib")


def input_fn(body, content_type):
    document = json.loads(body)
    if isinstance(document, dict) and "dataframe_split" in document:
        split = document["dataframe_split"]
        return pd.DataFrame(split["data"], columns=split["columns"])
    if isinstance(document, dict):
        document = next(iter(document.values()))
    if isinstance(document, dict) or (document and isinstance(document[0], dict)):
        return pd.DataFrame(document)
    return np.asarray(document, dtype=float)


def predict_fn(data, model):
    return model.predict(data)


def output_fn(prediction, accept):
    return json.dumps({"predictions": prediction.tolist()})
"""

COLUMNS = ("length", "width", "count")


def array_model(folder: Path, *, bias: float = 0.0, inference: str = INFERENCE, **metadata: Any) -> Path:
    """A classifier of arrays of shape (any, 4). ``bias`` 1 makes it answer 1 for zeros, 0 makes it answer 0."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 4))
    model = LogisticRegression().fit(features, (features[:, 0] > 0).astype(int))
    model.intercept_ = np.array([2 * bias - 1.0])
    joblib.dump(model, folder / "model.joblib")
    (folder / "inference.py").write_text(inference)
    facts = {
        "format": 1,
        "framework": "sklearn",
        "file": "model.joblib",
        "signature": {"inputs": {"tensor": {"shape": [-1, 4], "dtype": "float64"}}},
        "input_example": [[0.0, 0.0, 0.0, 0.0]],
        **metadata,
    }
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


def table_model(folder: Path) -> Path:
    """A classifier fitted with a DataFrame of three columns."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"length": rng.normal(size=50), "width": rng.normal(size=50), "count": range(50)})
    model = LogisticRegression(max_iter=1000).fit(frame, (frame["length"] > 0).astype(int))
    joblib.dump(model, folder / "model.joblib")
    (folder / "inference.py").write_text(INFERENCE)
    facts = {
        "format": 1,
        "framework": "sklearn",
        "signature": {
            "inputs": [
                {"name": "length", "type": "double"},
                {"name": "width", "type": "double"},
                {"name": "count", "type": "long"},
            ]
        },
        "input_example": [{"length": 0.5, "width": 0.1, "count": 3}],
    }
    (folder / "model.json").write_text(json.dumps(facts))
    return folder
