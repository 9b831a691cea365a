"""Requests and replies held against the service models that botocore ships: what AWS publishes of its own API."""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape


@cache
def service(name: str) -> ServiceModel:
    """A service's model."""
    return ServiceModel(Loader().load_service_model(name, "service-2"), name)


def operation(name: str, action: str) -> OperationModel:
    """An operation's model; raises where the service has none of that name."""
    return service(name).operation_model(action)


def problems(shape: Shape | None, value: Any, path: str = "") -> list[str]:
    """What is wrong with a value, in the words of AWS's own validation messages."""
    if shape is None:
        return []
    found = _own(shape, value, path)
    if found:
        return found
    if shape.type_name == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                found.append(
                    f"Value null at '{_join(path, name)}' failed to satisfy constraint: Member must not be null"
                )
        for name, item in value.items():
            if name not in shape.members:
                found.append(f"Unknown member {name!r} at '{path}'")
            elif item is not None:
                found += problems(shape.members[name], item, _join(path, name))
    elif shape.type_name == "list":
        for index, item in enumerate(value):
            found += problems(shape.member, item, f"{path}.{index + 1}.member")
    elif shape.type_name == "map":
        for key, item in value.items():
            found += problems(shape.key, key, f"{path}.{key}.key")
            found += problems(shape.value, item, f"{path}.{key}.value")
    return found


_TYPES: dict[str, type | tuple[type, ...]] = {
    "structure": dict, "list": list, "map": dict, "string": str, "boolean": bool, "integer": int, "long": int,
    "float": (int, float), "double": (int, float), "timestamp": (int, float, datetime), "blob": (str, bytes),
}  # fmt: skip


def _own(shape: Shape, value: Any, path: str) -> list[str]:
    kind = _TYPES[shape.type_name]
    if not isinstance(value, kind) or (isinstance(value, bool) and shape.type_name != "boolean"):
        return [f"Value {value!r} at '{path}' is no {shape.type_name}"]
    told = f"Value '{value}' at '{path}' failed to satisfy constraint: Member must"
    limits = shape.metadata
    measured = value if isinstance(value, int | float) else len(value) if hasattr(value, "__len__") else None
    found = []
    if measured is not None and not isinstance(value, bool):
        word = "value" if isinstance(value, int | float) else "length"
        if "min" in limits and measured < limits["min"]:
            found.append(f"{told} have {word} greater than or equal to {limits['min']}")
        if "max" in limits and measured > limits["max"]:
            found.append(f"{told} have {word} less than or equal to {limits['max']}")
    if isinstance(value, str):
        if "enum" in limits and value not in limits["enum"]:
            found.append(f"{told} satisfy enum value set: [{', '.join(limits['enum'][:5])}, …]")
        if "pattern" in limits and not _matches(limits["pattern"], value):
            found.append(f"{told} satisfy regular expression pattern: {limits['pattern']}")
    return found


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.fullmatch(_python(pattern), value) is not None
    except re.error:
        return True  # a range of halves of characters, which Java has and Python has not


def _python(pattern: str) -> str:
    """A Java pattern as Python has it: Unicode classes, and the ends that ``fullmatch`` stands for."""
    for java, ours in (("\\p{L}", r"\w"), ("\\p{Z}", r"\s"), ("\\p{N}", r"\d"), ("\\p{M}", r"\w")):
        pattern = pattern.replace(java, ours)
    return pattern


def _join(path: str, name: str) -> str:
    first = name[:1].lower() + name[1:]
    return f"{path}.{first}" if path else first
