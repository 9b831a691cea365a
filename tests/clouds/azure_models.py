"""Requests and replies held against the models that azure-ai-ml ships: what Microsoft publishes of its own API."""

from __future__ import annotations

import datetime
import importlib.util
import inspect
import re
import sys
import types
import typing
from functools import cache
from typing import Any

ARM = "azure.ai.ml._restclient.arm_ml_service.models"
HISTORY = "azure.ai.ml._restclient.runhistory.models"
_DURATION = re.compile(r"P(\d+D)?(T(?=\d)(\d+H)?(\d+M)?([\d.]+S)?)?")


def problems(module: str, name: str, value: Any, *, sent: bool) -> list[str]:
    """What is wrong with a value.

    Args:
        module: ``ARM`` or ``HISTORY``.
        name: The model's class.
        value: The JSON.
        sent: Whether it is a request, which must not say what only the service may.
    """
    return _model(getattr(_models(module), name), value, name, sent)


@cache
def _models(module: str) -> Any:
    """The models alone: what the package imports beside them takes seconds, and warns."""
    package = "azure.ai.ml"
    spec = importlib.util.find_spec(package)
    assert spec is not None
    bare = types.ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations or ())
    known = sys.modules.setdefault(package, bare)
    try:
        return importlib.import_module(module)
    finally:
        if known is bare:
            del sys.modules[package]


def _model(kind: Any, value: Any, path: str, sent: bool) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no {kind.__name__}"]
    kind = _discriminated(kind, value)
    fields, hints = _fields(kind)
    found = [f"{path}: unknown field {key!r} of {kind.__name__}" for key in value if key not in fields]
    for key, (attribute, visibility) in fields.items():
        hint = hints[attribute]
        optional = type(None) in typing.get_args(hint)
        item = value.get(key)
        if item is None:
            required = not optional and (not sent or visibility is None or "create" in visibility)
            if required:
                found.append(f"{path}: {key!r} is required of {kind.__name__}")
        elif sent and visibility is not None and not {"create", "update"} & set(visibility):
            found.append(f"{path}: {key!r} of {kind.__name__} is not for a request")
        else:
            found += _value(hint, item, f"{path}.{key}", sent)
    return found


def _discriminated(kind: Any, value: dict[str, Any]) -> Any:
    """The subclass that a value says it is."""
    mapping = kind.__dict__.get("__mapping__")
    while mapping:
        _calculated(kind)
        name = next((f._rest_name for f in kind._attr_to_rest_field.values() if f._is_discriminator), None)
        following = mapping.get(value.get(name)) if name else None
        if following is None:
            return kind
        kind, mapping = following, following.__dict__.get("__mapping__")
    return kind


def _calculated(kind: Any) -> None:
    # The SDK looks at a class when it first makes one of it.
    kind.__new__(kind)


@cache
def _fields(kind: Any) -> tuple[dict[str, tuple[str, Any]], dict[str, Any]]:
    _calculated(kind)
    module = importlib.import_module(kind.__module__)
    names = {"_models": importlib.import_module(kind.__module__.rpartition(".")[0])}
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        for attribute, text in inspect.get_annotations(base).items():
            if not attribute.startswith("_"):
                hints[attribute] = eval(text, {**vars(module), **names}) if isinstance(text, str) else text
    hints = {name: _resolved(hint, names) for name, hint in hints.items()}
    fields = {
        field._rest_name: (attribute, field._visibility)
        for attribute, field in kind._attr_to_rest_field.items()
    }
    return fields, hints


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    if isinstance(hint, typing.ForwardRef):
        return eval(hint.__forward_arg__, names)
    if isinstance(hint, str):
        return eval(hint, names)
    parts = typing.get_args(hint)
    if not parts or typing.get_origin(hint) is typing.Literal:
        return hint
    resolved = tuple(_resolved(part, names) for part in parts)
    origin = typing.get_origin(hint)
    return typing.Union[resolved] if origin in (typing.Union, types.UnionType) else origin[resolved]  # noqa: UP007


def _value(hint: Any, value: Any, path: str, sent: bool) -> list[str]:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return []
    if origin is typing.Literal:
        wanted = [getattr(part, "value", part) for part in parts]
        return [] if value in wanted else [f"{path}: {value!r} is none of {wanted}"]
    if origin in (typing.Union, types.UnionType):
        return _union([part for part in parts if part is not type(None)], value, path, sent)
    if origin is list:
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no list"]
        return [
            said
            for number, item in enumerate(value)
            for said in _value(parts[0], item, f"{path}[{number}]", sent)
        ]
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no mapping"]
        return [said for key, item in value.items() for said in _value(parts[1], item, f"{path}.{key}", sent)]
    if hint is datetime.timedelta:
        good = isinstance(value, str) and _DURATION.fullmatch(value) is not None and value != "P"
        return [] if good else [f"{path}: {value!r} is no duration"]
    if hint is datetime.datetime:
        try:
            datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        except (AttributeError, ValueError):
            return [f"{path}: {value!r} is no time"]
        return []
    if isinstance(hint, type) and issubclass(hint, int | float | str | bool):
        wrong = not isinstance(value, int | float if hint is float else hint) or (
            isinstance(value, bool) and hint is not bool
        )
        return [f"{path}: {value!r} is no {hint.__name__}"] if wrong else []
    return _model(hint, value, path, sent)


def _union(parts: list[Any], value: Any, path: str, sent: bool) -> list[str]:
    """``Union[str, SomeEnum]`` is an enumeration: a string that it does not know is wrong."""
    enums = [part for part in parts if isinstance(part, type) and hasattr(part, "__members__")]
    if enums:
        known = {item.value for item in enums[0]}
        return [] if value in known else [f"{path}: {value!r} is none of {sorted(known)}"]
    return min((_value(part, value, path, sent) for part in parts), key=len, default=[])
