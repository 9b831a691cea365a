"""Requests against signatures: what fits passes, what does not is named by column and row."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooked_dagster.serving.worker.request import RequestError, decode
from notebooked_dagster.serving.worker.signature import Signature

TABLE = Signature.parse(
    [
        {"name": "length", "type": "double"},
        {"name": "count", "type": "long"},
        {"name": "kind", "type": "string"},
        {"name": "open", "type": "boolean"},
        {"name": "note", "type": "string", "required": False},
    ]
)
ARRAY = Signature.parse({"tensor": {"shape": [-1, 3], "dtype": "float64"}})
IMAGES = Signature.parse([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2, 2]}}])

GOOD_ROW = {"length": 1.5, "count": 2, "kind": "a", "open": True}


def check(signature: Signature, document: Any, content_type: str = "application/json") -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    signature.check(decode(body, content_type, signature.names))


def refusal(signature: Signature, document: Any, content_type: str = "application/json") -> RequestError:
    with pytest.raises(RequestError) as caught:
        check(signature, document, content_type)
    return caught.value


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_records": [GOOD_ROW, {**GOOD_ROW, "note": "n"}]},
        {"instances": [GOOD_ROW]},
        [GOOD_ROW],
        {"dataframe_split": {"columns": list(GOOD_ROW), "data": [list(GOOD_ROW.values())]}},
        {"dataframe_split": {"columns": ["open", "kind", "count", "length"], "data": [[True, "a", 2, 1]]}},
        {"inputs": {"length": [1, 2.5], "count": [1, 2], "kind": ["a", "b"], "open": [True, False]}},
        {"inputs": GOOD_ROW},
        {"dataframe_records": [{**GOOD_ROW, "length": None, "count": 3.0, "kind": None}]},
    ],
    ids=[
        "records",
        "instances",
        "plain",
        "split",
        "split reordered",
        "columns",
        "one row",
        "missing and whole",
    ],
)
def test_every_form_of_a_good_table_passes(document: Any) -> None:
    check(TABLE, document)


@pytest.mark.parametrize(
    ("change", "column", "said"),
    [
        ({"length": "long"}, "length", "'long' is not of type double"),
        ({"length": True}, "length", "True is not of type double"),
        ({"count": 1.5}, "count", "1.5 is not of type long"),
        ({"count": None}, "count", "null is not of type long"),
        ({"kind": 3}, "kind", "3 is not of type string"),
        ({"open": 1}, "open", "1 is not of type boolean"),
        ({"open": "true"}, "open", "'true' is not of type boolean"),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, Any], column: str, said: str) -> None:
    error = refusal(TABLE, {"dataframe_records": [GOOD_ROW, {**GOOD_ROW, **change}]})

    assert error.status == 400
    assert error.fields == {"column": column, "row": 1}
    assert f"Column {column!r}, row 1: {said}" in error.message


def test_missing_and_unknown_columns_are_named() -> None:
    row = {key: value for key, value in GOOD_ROW.items() if key != "length"}
    error = refusal(TABLE, {"dataframe_records": [GOOD_ROW, {**row, "lenght": 1.0}]})

    assert error.fields["missing"] == ["length"]
    assert error.fields["unknown"] == ["lenght"]
    assert error.fields["row"] == 1
    assert "did you mean 'length'?" in error.message
    assert refusal(TABLE, {"inputs": {"length": [1.0]}}).fields["missing"] == ["count", "kind", "open"]


def test_rows_of_the_wrong_width() -> None:
    error = refusal(TABLE, {"instances": [[1.0, 2, "a", True, "n"], [1.0, 2]]})

    assert error.fields["row"] == 1
    assert "has 2 values; the model takes 5 columns" in error.message
    assert (
        "different lengths"
        in refusal(TABLE, {"inputs": {"length": [1, 2], "count": [1], "kind": ["a"], "open": [True]}}).message
    )


def test_arrays() -> None:
    check(ARRAY, {"inputs": [[1, 2, 3], [1.5, None, 0]]})
    check(ARRAY, [[1, 2, 3]])
    check(IMAGES, {"instances": [[[1, 2], [3, 4]]]})

    assert "has 2 values where the model takes 3" in refusal(ARRAY, [[1, 2, 3], [1, 2]]).message
    assert refusal(ARRAY, [[1, 2, 3], [1, 2]]).fields == {"row": 1}
    assert refusal(ARRAY, [[1, 2, 3], [1, "x", 2]]).fields == {"row": 1, "column": 1}
    assert "Row 0 is not a list" in refusal(ARRAY, [1, 2, 3]).message
    assert "not named columns" in refusal(ARRAY, [{"a": 1}]).message
    assert "Row 0 (at [0, 1])" in refusal(IMAGES, {"inputs": [[[1, 2], [3]]]}).message


def test_csv() -> None:
    check(TABLE, b"length,count,kind,open\n1.5,2,a,true\n,3,b,false\n", "text/csv")
    check(TABLE, b"1.5,2,a,true,note\n", "text/csv; header=absent")
    check(ARRAY, b"1,2,3\n4,5,6\n", "text/csv; charset=utf-8")

    error = refusal(TABLE, b"length,count,kind,open\n1.5,2,a,true\n1.5,two,a,true\n", "text/csv")
    assert error.fields == {"column": "count", "row": 1}
    assert refusal(ARRAY, b"1,2,3\n4,5\n", "text/csv").fields == {"row": 1}
    assert "not UTF-8" in refusal(ARRAY, b"\xff\xfe1", "text/csv").message
    assert "no rows" in refusal(ARRAY, b"\n", "text/csv").message
    assert "no rows" in refusal(TABLE, b"length,count,kind,open\n", "text/csv").message


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "not valid JSON"),
        (b'{"inputs": [[NaN]]}', 400, "send null"),
        (b'"text"', 400, "a string"),
        (b"{}", 400, "exactly one of"),
        (b'{"inputs": [], "instances": []}', 400, "has inputs and instances"),
        (b'{"inputs": []}', 400, "no rows"),
        (b'{"inputs": 3}', 400, "a list or an object, not a number"),
        (b'{"dataframe_records": {"a": 1}}', 400, "a list of objects"),
        (b'{"dataframe_split": [[1]]}', 400, "columns"),
        (b'[{"a": 1}, 2]', 400, "Row 1 is a number"),
    ],
)
def test_bodies_that_say_nothing(body: bytes, status: int, said: str) -> None:
    error = refusal(Signature(), body)

    assert error.status == status
    assert said in error.message


def test_media_types() -> None:
    check(ARRAY, b"[[1,2,3]]", "")
    check(ARRAY, b"[[1,2,3]]", "application/vnd.x+json")
    check(ARRAY, b"[1,2,3]\n\n[4,5,6]\n", "application/jsonlines")
    assert refusal(ARRAY, b"<a/>", "text/xml").status == 415


def test_a_signature_that_says_nothing_checks_nothing() -> None:
    for unknown in (None, [], {}, [{"type": "tensor", "name": "a", "tensor-spec": {"shape": [1]}}], "x", [1]):
        check(Signature.parse(unknown), {"inputs": [["anything", None]]})


def test_a_column_named_twice() -> None:
    columns = [*GOOD_ROW, "kind"]
    error = refusal(TABLE, {"dataframe_split": {"columns": columns, "data": [[1, 2, "a", True, "b"]]}})
    assert error.fields == {"column": "kind"}


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "instances", "dataframe_split", "dataframe_records", "columns", "data", *GOOD_ROW]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def verdict(signature: Signature, body: bytes, media: str) -> int:
    """The status a request would get before it reaches the model."""
    try:
        check(signature, body, media)
    except RequestError as error:
        return error.status if json.loads(error.body())["message"] else 500
    return 200


@given(
    document=ANYTHING,
    key=st.sampled_from(["inputs", "instances", "dataframe_records", "dataframe_split", None]),
)
@settings(max_examples=400)
def test_any_json_either_fits_or_is_refused(document: Any, key: str | None) -> None:
    body = json.dumps(document if key is None else {key: document}).encode()
    for signature in (TABLE, ARRAY, IMAGES):
        assert verdict(signature, body, "application/json") in (200, 400)


@given(
    body=st.binary(max_size=60),
    media=st.sampled_from(["text/csv", "application/json", "application/jsonlines"]),
)
@settings(max_examples=400)
def test_any_bytes_either_fit_or_are_refused(body: bytes, media: str) -> None:
    for signature in (TABLE, ARRAY):
        assert verdict(signature, body, media) in (200, 400)
