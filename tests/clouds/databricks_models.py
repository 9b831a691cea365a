"""What Databricks' API says, held against the dataclasses of its SDK."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from typing import Any, get_args, get_type_hints


class Mismatch(Exception):
    """Something has a field that the API does not know, or a value that is none of its."""


def strict(document: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The document, where the SDK's dataclass has every field of it."""
    again = kind.from_dict(json.loads(json.dumps(document))).as_dict()
    if (wrong := _difference(document, again)) is not None:
        raise Mismatch(f"{kind.__name__} does not know {wrong}")
    return document


def asked(document: dict[str, Any], method: Callable[..., Any]) -> dict[str, Any]:
    """The body of a request, where the SDK's method has every field of it as an argument."""
    hints = get_type_hints(method)
    for key, value in document.items():
        if key not in hints:
            raise Mismatch(f"{method.__qualname__} does not know {key}")
        for kind in _leaves(hints[key]):
            for item in value if isinstance(value, list) else [value]:
                if dataclasses.is_dataclass(kind):
                    strict(item, kind)
                elif isinstance(kind, type) and issubclass(kind, enum.Enum):
                    kind(item)
    return document


def _leaves(hint: Any) -> list[Any]:
    inner = [leaf for part in get_args(hint) for leaf in _leaves(part)]
    return inner or [hint]


def _difference(given: Any, again: Any, place: str = "") -> str | None:
    if isinstance(given, dict) and isinstance(again, dict):
        for key, value in given.items():
            if value in ({}, []):
                continue
            if key not in again:
                return f"{place}{key}"
            if (found := _difference(value, again[key], f"{place}{key}.")) is not None:
                return found
        return None
    if isinstance(given, list) and isinstance(again, list) and len(given) == len(again):
        pairs = (
            _difference(one, other, f"{place}{n}.")
            for n, (one, other) in enumerate(zip(given, again, strict=True))
        )
        return next((found for found in pairs if found is not None), None)
    return None if given == again else f"{place.rstrip('.')} = {given!r}"
