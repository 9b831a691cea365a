from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from notebooked_dagster import errors
from notebooked_dagster.errors import NotebookedError


def every_error() -> list[type[NotebookedError]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, NotebookedError)
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_error_stands_in_the_tree_drawn_in_the_docstring(error: type[NotebookedError]) -> None:
    assert error.__doc__
    assert errors.__doc__ is not None
    assert f" {error.__name__}" in errors.__doc__.replace("    NotebookedError", " NotebookedError")
    assert error.exit_code in (errors.EXIT_USER, errors.EXIT_PROVIDER, errors.EXIT_INTERNAL)


def test_an_error_says_where_what_and_what_to_do() -> None:
    error = errors.ConfigError("is not a number.", path="a.yaml", line=3, key="x.y", hint="Write 1.")
    assert str(error) == "a.yaml, line 3, key x.y: is not a number. Write 1."
    assert error.exit_code == 1


def test_an_error_as_data_is_json() -> None:
    error = errors.DeploymentError("no", path=Path("m"), cell=2, details={"log": ["a"]})
    assert json.loads(json.dumps(error.to_dict())) == {
        "error": "DeploymentError",
        "message": "no",
        "exit_code": 2,
        "cell": 2,
        "path": "m",
        "details": {"log": ["a"]},
    }
