"""A model of texts gets texts, in whatever form a client sends them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import notebooked_dagster.codegen as codegen

DESCRIPTION = {
    "signature": {"inputs": None},
    "input_example": {"inputs": ["what a great product", "it broke"]},
    "input_kind": "array",
}


@pytest.fixture(scope="module")
def support() -> ModuleType:
    path = Path(str(codegen.__file__)).parent / "templates" / "script_support.py"
    spec = importlib.util.spec_from_file_location("script_support_of_texts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["a", "b", "c"]},
        {"instances": ["a", "b", "c"]},
        ["a", "b", "c"],
        {"inputs": [["a"], ["b"], ["c"]]},
        {"dataframe_records": [{"text": "a"}, {"text": "b"}, {"text": "c"}]},
        {"dataframe_split": {"columns": ["text"], "data": [["a"], ["b"], ["c"]]}},
    ],
)
def test_each_row_is_one_text(support: ModuleType, body: Any) -> None:
    assert list(support.read_body(json.dumps(body), "application/json", DESCRIPTION)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"dataframe_records": [{"text": "a", "lang": "en"}]}, "columns text, lang"),
        ({"inputs": [1, 2]}, "row 0 is 1"),
        ({"inputs": ["a", None]}, "row 1 is None"),
    ],
)
def test_what_is_no_text_is_refused(support: ModuleType, body: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        support.read_body(json.dumps(body), "application/json", DESCRIPTION)


def test_a_model_of_a_table_is_left_alone(support: ModuleType) -> None:
    table = {
        "signature": {"inputs": [{"name": "x", "type": "double"}]},
        "input_example": {"dataframe_records": [{"x": 1.0}]},
        "input_kind": "frame",
    }
    found = support.read_body(json.dumps({"dataframe_records": [{"x": 2.0}]}), "application/json", table)
    assert list(found.columns) == ["x"]
