"""A hyperparameter's value arrives as it was sent, whichever way it comes."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import notebooked_dagster.codegen

SUPPORT = Path(notebooked_dagster.codegen.__file__).parent / "templates" / "script_support.py"
# What a process's argument or environment can hold; and a text that is in JSON quotes is read as JSON, as documented.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30).filter(
    lambda text: not (len(text) >= 2 and text[0] == text[-1] == '"')
)
NUMBER = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = (
    st.booleans()
    | NUMBER
    | TEXT
    | st.none()
    | st.lists(NUMBER | TEXT | st.none() | st.booleans(), max_size=4)
)


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_support", SUPPORT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


support = module()


def sent(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def same(found: Any, value: Any) -> bool:
    return type(found) is type(value) and found == value


@given(VALUES, VALUES)
def test_over_the_command_line(value: Any, other: Any) -> None:
    default = value if type(other) is not type(value) else other
    args = support.arguments({"x": default}, [f"--x={sent(value)}"])
    assert same(args.hyperparameters["x"], value)


@given(VALUES)
def test_in_the_environment_one_by_one(value: Any) -> None:
    with mock.patch.dict(os.environ, {"SM_HP_X": sent(value)}):
        assert same(support.arguments({"x": value}, []).hyperparameters["x"], value)


@given(VALUES)
def test_in_the_environment_all_together(value: Any) -> None:
    with mock.patch.dict(os.environ, {"SM_HPS": json.dumps({"x": value})}):
        assert same(support.arguments({"x": value}, []).hyperparameters["x"], value)


@given(VALUES)
def test_the_default_stays_where_nothing_is_sent(value: Any) -> None:
    assert same(support.arguments({"x": value}, []).hyperparameters["x"], value)


def test_the_command_line_is_stronger_than_the_environment() -> None:
    with mock.patch.dict(os.environ, {"SM_HP_X": "2", "SM_HPS": '{"x": 3}'}):
        assert support.arguments({"x": 1}, ["--x", "5"]).x == 5
        assert support.arguments({"x": 1}, []).x == 2


@pytest.mark.parametrize(("default", "text"), [(1, "many"), (1.5, "[1]"), (True, "perhaps"), ([1], "3")])
def test_a_value_of_another_type_is_refused(
    default: Any, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        support.arguments({"x": default}, ["--x", text])
    assert "--x" in capsys.readouterr().err
