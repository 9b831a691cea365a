"""What a client may send: its body decoded once, so that it can be checked against the signature."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import orjson

_KEYS = ("inputs", "instances", "dataframe_split", "dataframe_records")
_CODES = {
    404: "NOT_FOUND",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    503: "UNAVAILABLE",
    504: "TIMEOUT",
}
JSON = "application/json"
CSV = "text/csv"
JSON_LINES = ("application/jsonlines", "application/x-jsonlines", "application/jsonl", "application/x-ndjson")


class RequestError(Exception):
    """A request that cannot be answered with a prediction.

    Args:
        status: The HTTP status.
        message: What is wrong and where, for the client.
        fields: ``column`` and ``row`` (0-based) where they are known.
    """

    def __init__(self, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields

    def body(self) -> bytes:
        """The reply, in the shape MLflow's server uses, with our fields beside it."""
        code = _CODES.get(self.status, "BAD_REQUEST")
        return orjson.dumps({"error_code": code, "message": self.message, **self.fields})


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, or one value a column, or a bare array; exactly one of the three is set.

    Attributes:
        body: What the model's ``input_fn`` gets.
        content_type: JSON or CSV.
        columns: Column names of ``rows`` where the request names them.
        rows: Lists (in the order of ``columns`` or of the signature) or objects keyed by column.
        by_column: One list a column, or one value for a single row.
        array: Nested lists, where the form does not say whether they are rows.
        text: The cells are strings that came from CSV.
    """

    body: bytes
    content_type: str
    columns: tuple[str, ...] | None = None
    rows: list[Any] | None = None
    by_column: dict[str, Any] | None = None
    array: list[Any] | None = None
    text: bool = False


def decode(body: bytes, content_type: str, known_columns: tuple[str, ...] = ()) -> Table:
    """Decode a body.

    Args:
        body: As it came.
        content_type: The header; JSON where it is empty.
        known_columns: The signature's names, by which a CSV header is told from data.

    Raises:
        RequestError: 415 for another media type, 400 for a body that is not what its type says.
    """
    media = content_type.partition(";")[0].strip().lower()
    if not media or media == JSON or media.endswith("+json"):
        return _json(body)
    if media == CSV:
        return _csv(body, content_type, known_columns)
    if media in JSON_LINES:
        lines = [line for line in body.splitlines() if line.strip()]
        return _json(b"[" + b",".join(lines) + b"]")
    raise RequestError(415, f"Content type {media!r} is not supported: send application/json or text/csv.")


def _json(body: bytes) -> Table:
    if not body.strip():
        raise RequestError(400, 'The body is empty: send JSON such as {"inputs": [[…]]} or a CSV.')
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = " NaN and Infinity are not JSON: send null." if b"NaN" in body or b"Infinity" in body else ""
        raise RequestError(400, f"The body is not valid JSON: {error}.{hint}") from None
    if isinstance(document, list):
        return _array(document, body)
    if not isinstance(document, dict):
        raise RequestError(400, f"The body must be a JSON object or array, not {_kind(document)}.")
    present = [key for key in _KEYS if key in document]
    if len(present) != 1:
        said = f"has {' and '.join(present)}" if present else "has none of them"
        raise RequestError(400, f"The body must have exactly one of {', '.join(_KEYS)}; it {said}.")
    key = present[0]
    value = document[key]
    if key == "dataframe_split":
        return _split(value, body)
    if key == "dataframe_records":
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise RequestError(400, "dataframe_records must be a list of objects, one a row.")
        return Table(body, JSON, rows=_some(value))
    if isinstance(value, dict):
        return Table(body, JSON, by_column=value)
    if not isinstance(value, list):
        raise RequestError(400, f"{key} must be a list or an object, not {_kind(value)}.")
    return _array(value, body)


def _array(value: list[Any], body: bytes) -> Table:
    if value and isinstance(value[0], dict):
        for number, row in enumerate(value):
            if not isinstance(row, dict):
                raise RequestError(
                    400, f"Row {number} is {_kind(row)}; the rows before it are objects.", row=number
                )
        return Table(body, JSON, rows=value)
    return Table(body, JSON, array=_some(value))


def _split(value: Any, body: bytes) -> Table:
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise RequestError(400, "dataframe_split must be an object with the lists `columns` and `data`.")
    columns = value.get("columns")
    if columns is not None and not isinstance(columns, list):
        raise RequestError(400, "dataframe_split.columns must be a list of names.")
    return Table(
        body,
        JSON,
        columns=tuple(str(name) for name in columns) if columns else None,
        rows=_some(value["data"]),
    )


def _csv(body: bytes, content_type: str, known_columns: tuple[str, ...]) -> Table:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"The CSV is not UTF-8 (byte {error.start}).") from None
    try:
        rows: list[Any] = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except csv.Error as error:
        raise RequestError(400, f"The CSV cannot be read: {error}.") from None
    if not rows:
        raise RequestError(400, "The CSV has no rows.")
    columns: tuple[str, ...] | None = None
    if _is_header(rows[0], content_type.replace(" ", "").lower(), known_columns):
        columns = tuple(rows.pop(0))
        _some(rows)
    return Table(body, CSV, columns=columns, rows=rows, text=True)


def _is_header(first: list[str], content_type: str, known_columns: tuple[str, ...]) -> bool:
    """Whether a CSV's first row names columns: as the client says (RFC 4180), or by what it looks like."""
    if "header=present" in content_type or "header=absent" in content_type:
        return "header=present" in content_type
    if known_columns:
        return sum(cell in known_columns for cell in first) * 2 > len(first)
    return not any(_number(cell) for cell in first)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == ""
    return True


def _some(rows: list[Any]) -> list[Any]:
    if not rows:
        raise RequestError(400, "There is nothing to predict: the input has no rows.")
    return rows


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
