"""Loaded models behind the check of their input: predictions, refusals, warnings, figures."""

from __future__ import annotations

import asyncio
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from notebooked_dagster.serving.worker.engine import Engine, Reply
from notebooked_dagster.serving.worker.metrics import Metrics, render
from notebooked_dagster.serving.worker.model import ModelFolderError, PyfuncModel, load
from tests.unit.serving.model_folders import INFERENCE, array_model, table_model


def engine_of(folder: Path) -> Engine:
    return Engine(load(folder), Metrics("e", "1"))


def ask(engine: Engine, document: Any, content_type: str = "application/json") -> Reply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return asyncio.run(engine.answer(body, content_type, "application/json"))


def test_an_array_model(tmp_path: Path) -> None:
    engine = engine_of(array_model(tmp_path / "m"))
    rows = np.random.default_rng(1).normal(size=(20, 4))
    expected = joblib.load(tmp_path / "m/model.joblib").predict(rows).tolist()

    assert engine.smoke() is None
    assert json.loads(ask(engine, {"inputs": rows.tolist()}).body) == {"predictions": expected}
    assert ask(engine, {"inputs": [[1, 2]]}).status == 400


def test_a_model_fitted_with_a_frame_keeps_its_column_names(tmp_path: Path) -> None:
    engine = engine_of(table_model(tmp_path / "m"))
    record = {"length": 0.5, "width": 0.1, "count": 3}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine.smoke() is None
        by_record = ask(engine, {"dataframe_records": [record]})
        split = {"columns": list(record), "data": [list(record.values())]}
        by_split = ask(engine, {"dataframe_split": split})

    assert by_record.status == by_split.status == 200
    assert by_record.body == by_split.body


def test_a_missing_value_the_model_cannot_take_is_the_clients_fault(tmp_path: Path) -> None:
    engine = engine_of(table_model(tmp_path / "m"))

    reply = ask(engine, {"dataframe_records": [{"length": 1.0, "width": None, "count": 3}]})

    answer = json.loads(reply.body)
    assert reply.status == 400
    assert (answer["column"], answer["row"]) == ("width", 0)
    assert "does not take missing values" in answer["message"]


def test_a_failing_model_tells_the_client_an_id_and_the_log_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = INFERENCE.replace("return model.predict(data)", "raise KeyError('the secret')")
    engine = engine_of(array_model(tmp_path / "m", inference=broken))

    with caplog.at_level(logging.ERROR):
        reply = ask(engine, {"inputs": [[0, 0, 0, 0]]})

    assert reply.status == 500
    answer = json.loads(reply.body)
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    assert answer["error_id"] in caplog.text
    assert "the secret" in caplog.text
    assert "KeyError" in (engine.smoke() or "")
    text = render([engine.metrics.snapshot()]).decode()
    assert 'notebooked_requests_total{code="500",endpoint="e",version="1"} 1.0' in text
    assert 'notebooked_errors_total{endpoint="e",kind="prediction",version="1"} 1.0' in text


def test_what_input_fn_refuses_is_a_bad_request(tmp_path: Path) -> None:
    strict = INFERENCE.replace(
        "document = json.loads(body)", "document = json.loads(body)\n    raise ValueError('too early')"
    )
    engine = engine_of(array_model(tmp_path / "m", inference=strict))

    reply = ask(engine, {"inputs": [[0, 0, 0, 0]]})

    assert reply.status == 400
    assert b"too early" in reply.body


@pytest.mark.parametrize(
    ("returned", "body", "content_type"),
    [
        ("b'raw'", b"raw", "application/json"),
        ("('a,b', 'text/csv')", b"a,b", "text/csv"),
        (
            "{'predictions': prediction, 'p': np.float32(0.5)}",
            b'{"predictions":[0],"p":0.5}',
            "application/json",
        ),
        ("[float('nan')]", b"[null]", "application/json"),
    ],
)
def test_whatever_output_fn_returns_is_sent(
    tmp_path: Path, returned: str, body: bytes, content_type: str
) -> None:
    script = INFERENCE.replace(
        'return json.dumps({"predictions": prediction.tolist()})', f"return {returned}"
    )
    reply = ask(engine_of(array_model(tmp_path / "m", inference=script)), [[0, 0, 0, 0]])

    assert (reply.status, reply.body, reply.content_type) == (200, body, content_type)


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no model folder"):
        load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError, match=r"neither inference\.py nor an MLflow model"):
        load(tmp_path / "empty")
    folder = array_model(tmp_path / "m", inference="def model_fn(model_dir): ...")
    with pytest.raises(ModelFolderError, match="does not define input_fn, predict_fn, output_fn"):
        load(folder)


def test_figures_of_two_versions_are_one_valid_text() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    first, second = Metrics("e", "1"), Metrics("e", "2", restarts=3)
    first.answered(200, 0.01)
    second.answered(200, 0.02)
    second.answered(400, 0.02)

    text = render([first.snapshot(), second.snapshot()]).decode()

    assert text.count("# TYPE notebooked_requests_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counts = {
        (s.labels["version"], s.labels["code"]): s.value
        for s in families["notebooked_requests"].samples
        if s.name.endswith("_total")
    }
    assert counts == {("1", "200"): 1, ("2", "200"): 1, ("2", "400"): 1}


@pytest.mark.filterwarnings("ignore")
def test_a_plain_mlflow_model_without_a_script(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    frame = pd.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 1.0]})
    model = LinearRegression().fit(frame, [1.0, 2.0, 3.0])
    mlflow.sklearn.save_model(
        model,
        tmp_path / "m",
        signature=mlflow.models.infer_signature(frame, model.predict(frame)),
        input_example=frame.head(1),
        serialization_format="pickle",
    )
    loaded = load(tmp_path / "m")
    assert isinstance(loaded, PyfuncModel)
    assert loaded.signature.names == ("a", "b")
    engine = Engine(loaded, Metrics("e", "1"))
    assert engine.smoke() is None

    expected = {"predictions": model.predict(frame).tolist()}
    for document, content_type in (
        ({"dataframe_split": frame.to_dict(orient="split")}, "application/json"),
        ({"dataframe_records": frame.to_dict(orient="records")}, "application/json"),
        ({"inputs": frame.to_dict(orient="list")}, "application/json"),
        ({"instances": frame.to_dict(orient="records")}, "application/json"),
        (frame.to_csv(index=False).encode(), "text/csv"),
        (frame.to_csv(index=False, header=False).encode(), "text/csv"),
    ):
        reply = ask(engine, document, content_type)
        assert reply.status == 200, reply.body
        assert json.loads(reply.body)["predictions"] == pytest.approx(expected["predictions"])
    assert ask(engine, {"dataframe_records": [{"a": 1.0}]}).status == 400


def test_two_predictions_are_never_made_at_once(tmp_path: Path) -> None:
    """A small request that comes while a large one is predicted in the thread waits for it."""
    counting = (
        "import threading, time\nNOW = 0\nMOST = 0\nLOCK = threading.Lock()\n"
        + INFERENCE.replace(
            "return model.predict(data)",
            "return counted(model, data)",
        )
        + "\n\ndef counted(model, data):\n"
        "    global NOW, MOST\n"
        "    with LOCK:\n        NOW += 1\n        MOST = max(MOST, NOW)\n"
        "    time.sleep(0.2 if len(data) > 1 else 0)\n"
        "    with LOCK:\n        NOW -= 1\n"
        "    return np.full(len(data), MOST)\n"
    )
    engine = engine_of(array_model(tmp_path / "m", inference=counting))
    assert engine.smoke() is None  # it knows now that small ones are quick
    large = json.dumps({"inputs": [[1.0, 2.0, 3.0, 4.0]] * 5000}).encode()
    small = json.dumps({"inputs": [[1.0, 2.0, 3.0, 4.0]]}).encode()

    async def both() -> list[Reply]:
        first = asyncio.create_task(engine.answer(large, "application/json", "application/json"))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(engine.answer(small, "application/json", "application/json"))
        return [await first, await second]

    replies = asyncio.run(both())
    assert [reply.status for reply in replies] == [200, 200]
    assert json.loads(replies[1].body)["predictions"] == [1]


def test_a_prediction_s_time_begins_when_its_turn_comes(tmp_path: Path) -> None:
    """The second waits for most of its limit and never ends: the model hangs, the server is not busy."""
    sleeping = "import time\n" + INFERENCE.replace(
        "return model.predict(data)", "time.sleep(abs(data[0][0])); return model.predict(data)"
    )
    folder = array_model(tmp_path / "m", inference=sleeping)
    engine = Engine(load(folder), Metrics("e", "1"), time_limit=1.0)

    async def both() -> list[Reply]:
        asked = [
            asyncio.create_task(
                engine.answer(
                    json.dumps({"inputs": [[seconds, 0.0, 0.0, 0.0]] * 2000}).encode(),
                    "application/json",
                    "application/json",
                )
            )
            for seconds in (0.7, 3.0)
        ]
        return [await item for item in asked]

    first, second = asyncio.run(both())
    assert (first.status, second.status) == (200, 504)
    assert engine.stuck
