"""Requests and replies held against the models of Microsoft's SDKs: what it publishes of its own API."""

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
MONITOR = "azure.mgmt.monitor.models"
_DURATION = re.compile(r"P(\d+D)?(T(?=\d)(\d+H)?(\d+M)?([\d.]+S)?)?")


def problems(module: str, name: str, value: Any, *, sent: bool) -> list[str]:
    """What is wrong with a value.

    Args:
        module: ``ARM``, ``HISTORY`` or ``MONITOR``.
        name: The model's class.
        value: The JSON.
        sent: Whether it is a request, which must not say what only the service may.
    """
    check = _mapped if module == MONITOR else _model
    return check(getattr(_models(module), name), value, name, sent)


@cache
def _models(module: str) -> Any:
    """The models alone: what the package imports beside them takes seconds, and warns."""
    package = ".".join(module.split(".")[:3])
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


def _mapped(kind: Any, value: Any, path: str, sent: bool) -> list[str]:
    """The same for a model of the older generator, which describes itself in tables; dots lead into what is nested."""
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no {kind.__name__}"]
    places = {told["key"] for told in kind._attribute_map.values()}
    inner = {place.partition(".")[0] for place in places if "." in place}
    given = {key for key in value if key not in inner}
    given |= {f"{key}.{name}" for key in inner for name in value.get(key) or ()}
    found = [f"{path}: unknown field {key!r} of {kind.__name__}" for key in sorted(given - places)]
    for attribute, told in kind._attribute_map.items():
        item: Any = value
        for key in told["key"].split("."):
            item = (item or {}).get(key)
        rule = kind._validation.get(attribute, {})
        if item is None:
            if rule.get("required"):
                found.append(f"{path}: {told['key']!r} is required of {kind.__name__}")
        elif sent and rule.get("readonly"):
            found.append(f"{path}: {told['key']!r} of {kind.__name__} is not for a request")
        else:
            known = _enumerated(kind, attribute)
            if known and item not in known:
                found.append(f"{path}.{attribute}: {item!r} is none of {sorted(known)}")
            found += _typed(told["type"], item, f"{path}.{attribute}", sent)
    return found


def _enumerated(kind: Any, attribute: str) -> set[str]:
    """The values that a field may have; empty where any may be."""
    hint = kind.__init__.__annotations__.get(attribute)
    for part in typing.get_args(hint):
        name = getattr(part, "__forward_arg__", "").removeprefix("_models.")
        if members := getattr(getattr(_models(MONITOR), name, None), "__members__", None):
            return {item.value for item in members.values()}
    return set()


def _typed(text: str, value: Any, path: str, sent: bool) -> list[str]:
    plain = {"str": str, "int": int, "float": float, "bool": bool, "duration": datetime.timedelta}
    if text in plain:
        return _value(plain[text], value, path, sent)
    if text.startswith("["):
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no list"]
        return [said for item in value for said in _typed(text[1:-1], item, path, sent)]
    if text.startswith("{"):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no mapping"]
        return [said for item in value.values() for said in _typed(text[1:-1], item, path, sent)]
    return _mapped(getattr(_models(MONITOR), text), value, path, sent)
