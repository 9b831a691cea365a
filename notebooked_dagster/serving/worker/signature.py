"""Check a request against the model's signature, and say which column and row is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .request import RequestError, Table

_FLOATS = frozenset({"double", "float", "float16", "float32", "float64", "number", "numeric"})
_INTEGERS = frozenset(
    {"long", "integer", "int", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)
_BOOLEANS = frozenset({"boolean", "bool"})
_STRINGS = frozenset({"string", "str", "binary", "datetime", "datetime64[ns]", "category"})
_ANY_NUMBER: frozenset[type] = frozenset({int, float})
_BOOLEAN_TEXT = frozenset({"true", "false", "0", "1"})


@dataclass(frozen=True, slots=True)
class Column:
    """One input column: its name, its type by MLflow's or NumPy's word, and whether it may be left out."""

    name: str
    type: str
    required: bool = True

    def accepts(self, value: Any) -> bool:
        """Whether a JSON value is of this type. Null stands for a missing value where the type has one."""
        kind = type(value)
        if self.type in _FLOATS:
            return kind is float or kind is int or value is None
        if self.type in _INTEGERS:
            return (
                kind is int or (kind is float and value.is_integer()) or (value is None and not self.required)
            )
        if self.type in _BOOLEANS:
            # Not 0 and 1: beside true and false they would make a column of neither type, and the model answer wrongly.
            return kind is bool or (value is None and not self.required)
        if self.type in _STRINGS:
            return kind is str or value is None
        return True

    def accepts_text(self, text: str) -> bool:
        """Whether a CSV cell can be read as this type."""
        if self.type in _FLOATS or self.type in _INTEGERS:
            if text == "":
                return self.type in _FLOATS or not self.required
            try:
                number = float(text)
            except ValueError:
                return False
            return self.type in _FLOATS or number.is_integer()
        if self.type in _BOOLEANS:
            return text.lower() in _BOOLEAN_TEXT or (text == "" and not self.required)
        return True


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes: named columns, or a tensor; anything where neither is set.

    Attributes:
        columns: In the order the model was fitted with.
        shape: Of the tensor; -1 where any length will do. The first is the number of rows.
        dtype: NumPy's name of the tensor's type.
    """

    columns: tuple[Column, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    @classmethod
    def parse(cls, inputs: Any) -> Signature:
        """Read ``signature.inputs`` of ``model.json`` or of an ``MLmodel`` file; unknown forms check nothing."""
        if isinstance(inputs, Mapping) and isinstance(inputs.get("tensor"), Mapping):
            return cls._tensor(inputs["tensor"])
        if not isinstance(inputs, Sequence) or isinstance(inputs, str) or not inputs:
            return cls()
        first = inputs[0]
        if isinstance(first, Mapping) and first.get("type") == "tensor":
            spec = first.get("tensor-spec", {})
            # Several named tensors are left to the model: their forms differ too much to judge here.
            return cls._tensor(spec) if len(inputs) == 1 and "name" not in first else cls()
        if not all(isinstance(item, Mapping) and "name" in item for item in inputs):
            return cls()
        return cls(
            columns=tuple(
                Column(
                    str(item["name"]),
                    str(item.get("type", "any")).lower(),
                    bool(item.get("required", not item.get("optional", False))),
                )
                for item in inputs
            )
        )

    @classmethod
    def _tensor(cls, spec: Mapping[str, Any]) -> Signature:
        shape = tuple(-1 if size is None else int(size) for size in spec.get("shape", ()))
        return cls(shape=shape, dtype=str(spec.get("dtype", "any")).lower())

    def check(self, table: Table) -> None:
        """Raise RequestError (400) where the request does not fit."""
        if self.columns:
            self._check_table(table)
        elif self.shape:
            self._check_tensor(table)

    def _check_table(self, table: Table) -> None:
        if table.by_column is not None:
            self._check_by_column(table.by_column)
        elif table.rows is not None and isinstance(table.rows[0], dict):
            self._check_records(table.rows)
        elif table.rows is not None:
            self._check_rows(table.rows, table.columns, text=table.text)
        elif table.array is not None:
            rows = table.array if isinstance(table.array[0], list) else self._bare(table.array)
            self._check_rows(rows, None, text=False)

    def _bare(self, values: list[Any]) -> list[Any]:
        """A flat list: a column of a one-column model, otherwise a mistake worth its own words."""
        if len(self.columns) == 1:
            return [[value] for value in values]
        raise RequestError(
            400,
            f"Row 0 is not a list or an object: the model takes {len(self.columns)} columns a row.",
            row=0,
        )

    def _check_names(self, names: Iterable[Any], row: int | None = None) -> None:
        given = set(names)
        missing = [column.name for column in self.columns if column.required and column.name not in given]
        known = set(self.names)
        extra = [str(name) for name in names if name not in known]
        if not missing and not extra:
            return
        place = f" in row {row}" if row is not None else ""
        parts = []
        if missing:
            parts.append(f"missing {_list(missing)}")
        if extra:
            guesses = difflib.get_close_matches(extra[0], missing, n=1)
            parts.append(f"unknown {_list(extra)}" + (f" (did you mean {guesses[0]!r}?)" if guesses else ""))
        fields: dict[str, Any] = {"column": (missing or extra)[0]}
        if missing:
            fields["missing"] = missing
        if extra:
            fields["unknown"] = extra
        if row is not None:
            fields["row"] = row
        raise RequestError(400, f"The columns do not match the model's{place}: {'; '.join(parts)}.", **fields)

    def _check_records(self, rows: list[Any]) -> None:
        known = set(self.names)
        for number, row in enumerate(rows):
            if row.keys() != known:
                self._check_names(row, number)
            for column in self.columns:
                if column.name in row and not column.accepts(row[column.name]):
                    raise _wrong_type(column, row[column.name], number)

    def _check_by_column(self, by_column: dict[str, Any]) -> None:
        self._check_names(by_column)
        lengths = {name: len(value) for name, value in by_column.items() if isinstance(value, list)}
        if len(set(lengths.values())) > 1:
            raise RequestError(400, f"The columns have different lengths: {lengths}.")
        for column in self.columns:
            if column.name in by_column:
                value = by_column[column.name]
                for number, cell in enumerate(value if isinstance(value, list) else [value]):
                    if not column.accepts(cell):
                        raise _wrong_type(column, cell, number)

    def _check_rows(self, rows: list[Any], names: tuple[str, ...] | None, *, text: bool) -> None:
        columns = self.columns
        if names is not None:
            self._check_names(names)
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise RequestError(400, f"Column {twice[0]!r} is named twice.", column=twice[0])
            by_name = {column.name: column for column in columns}
            columns = tuple(by_name[name] for name in names)
        width = len(columns)
        # Most models take numbers only, and most requests are right: compare the set of types, in C, before cells.
        floats = not text and all(column.type in _FLOATS for column in columns)
        for number, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != width:
                size = f"has {len(row)} values" if isinstance(row, list) else "is not a list"
                raise RequestError(400, f"Row {number} {size}; the model takes {width} columns.", row=number)
            if floats and _ANY_NUMBER.issuperset(map(type, row)):
                continue
            for column, value in zip(columns, row, strict=True):
                if not (column.accepts_text(value) if text else column.accepts(value)):
                    raise _wrong_type(column, value, number)

    def _check_tensor(self, table: Table) -> None:
        cell = Column("", _tensor_type(self.dtype))
        if table.array is not None or (table.rows is not None and isinstance(table.rows[0], list)):
            value: Any = table.array if table.array is not None else table.rows
            self._check_level(value, 0, (), cell, text=table.text)
        elif table.rows is not None or table.by_column is not None:
            raise RequestError(
                400, f"The model takes an array of shape {_shape(self.shape)}, not named columns."
            )

    def _check_level(
        self, value: Any, depth: int, place: tuple[int, ...], cell: Column, *, text: bool
    ) -> None:
        row = {"row": place[0]} if place else {}
        where = (
            f"Row {place[0]}" + (f" (at {list(place)})" if len(place) > 1 else "") if place else "The input"
        )
        if not isinstance(value, list):
            raise RequestError(
                400,
                f"{where} is not a list: the model takes an array of shape {_shape(self.shape)}.",
                **row,
            )
        expected = self.shape[depth]
        if expected != -1 and len(value) != expected:
            raise RequestError(
                400,
                f"{where} has {len(value)} values where the model takes {expected} "
                f"(its input has the shape {_shape(self.shape)}).",
                **row,
            )
        if depth + 1 < len(self.shape):
            for number, item in enumerate(value):
                self._check_level(item, depth + 1, (*place, number), cell, text=text)
            return
        if not text and cell.type in _FLOATS and _ANY_NUMBER.issuperset(map(type, value)):
            return
        for number, item in enumerate(value):
            if not (cell.accepts_text(item) if text else cell.accepts(item)):
                at = [*place, number]
                raise RequestError(
                    400,
                    f"The value at {at} is {_show(item)}; the model takes {self.dtype}.",
                    row=at[0],
                    column=at[-1] if len(at) > 1 else 0,
                )


def _tensor_type(dtype: str) -> str:
    """Integers of an array are sent as any JSON number that is whole; a type we do not know checks nothing."""
    return dtype if dtype in _FLOATS | _INTEGERS | _BOOLEANS else "string" if dtype in _STRINGS else "any"


def _wrong_type(column: Column, value: Any, row: int) -> RequestError:
    return RequestError(
        400,
        f"Column {column.name!r}, row {row}: {_show(value)} is not of type {column.type}.",
        column=column.name,
        row=row,
    )


def _show(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join("any" if size == -1 else str(size) for size in shape) + ")"


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
