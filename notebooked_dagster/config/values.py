"""Values from the environment: ``${VAR}`` and ``{{ env.VAR }}`` in a file, and variables that override a key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from notebooked_dagster.core.redaction import REDACTOR, SECRET_NAME, is_secret_name
from notebooked_dagster.core.secrets import fetch
from notebooked_dagster.errors import ConfigError, NotebookedError

from .document import KeyPath, key_text

PREFIX = "NOTEBOOKED_"
# `${aws-secret:name#key}` and its like are fetched; `${VAR}`, `${VAR:-default}`, `{{ env.VAR }}`, `{{ env('VAR') }}` and `{{ env('VAR', 'default') }}`;
# the last three are how Dagster's components write it.
_REFERENCE = re.compile(
    r"\$\{(?P<scheme>file|keyring|aws-secret|gcp-secret|azure-secret):(?P<secret>[^}]+)\}"
    r"|\$\{(?P<shell>[A-Za-z_]\w*)(?::-(?P<shell_default>[^}]*))?\}"
    r"|\{\{\s*env(?:\.(?P<dotted>[A-Za-z_]\w*)"
    r"|\(\s*['\"](?P<called>[A-Za-z_]\w*)['\"]\s*(?:,\s*['\"](?P<called_default>[^'\"]*)['\"]\s*)?\))\s*\}\}"
)


def interpolate(value: Any, environment: Mapping[str, str], key: KeyPath = ()) -> Any:
    """Replace references to environment variables in every string of a value.

    A string that is nothing but one reference takes the type the variable's text has in YAML (``8`` is a number).

    Raises:
        ConfigError: A variable is not set and no default is given; ``key`` names the place.
    """
    if isinstance(value, dict):
        return {name: interpolate(item, environment, (*key, name)) for name, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environment, (*key, index)) for index, item in enumerate(value)]
    if not isinstance(value, str) or ("${" not in value and "{{" not in value):
        return value
    whole = _REFERENCE.fullmatch(value.strip())
    if whole is not None:
        text = _lookup(whole, environment, key)
        # A secret is text even where it looks like a number.
        return text if is_secret(key) or whole["scheme"] else typed(text)
    return _REFERENCE.sub(lambda match: _lookup(match, environment, key), value)


def references(value: Any) -> bool:
    """Whether a value takes anything from the environment."""
    return isinstance(value, str) and _REFERENCE.search(value) is not None


def typed(text: str) -> Any:
    """The text of a variable as YAML would read it; the text itself where that fails."""
    try:
        return yaml.safe_load(text) if text.strip() else text
    except yaml.YAMLError:
        return text


def overrides(environment: Mapping[str, str], section: str) -> dict[tuple[str, ...], str]:
    """What ``NOTEBOOKED_<SECTION>__<KEY>[__<KEY>…]`` sets: by lower-case key path, the text."""
    start = f"{PREFIX}{section.upper()}__"
    return {
        tuple(part.lower() for part in name.removeprefix(start).split("__")): text
        for name, text in environment.items()
        if name.startswith(start) and len(name) > len(start)
    }


def apply_override(data: dict[str, Any], path: tuple[str, ...], text: str) -> None:
    """Put an override into its place. A key that is there in another case (``C``) is the one that is meant."""
    for part in path[:-1]:
        found = data.get(_spelling(data, part))
        if not isinstance(found, dict):
            found = {}
        data[_spelling(data, part)] = found = dict(found)
        data = found
    data[_spelling(data, path[-1])] = text if is_secret(path) else typed(text)


def is_secret(key: KeyPath) -> bool:
    """Whether a key's name says that its value is to be kept secret."""
    return bool(key) and isinstance(key[-1], str) and SECRET_NAME.search(key[-1]) is not None


def literal_secrets(value: Any, key: KeyPath = ()) -> list[KeyPath]:
    """The keys that hold a secret in plain text instead of a reference to the environment."""
    found: list[KeyPath] = []
    if isinstance(value, dict):
        for name, item in value.items():
            place = (*key, name)
            if is_secret(place) and _is_literal(item):
                found.append(place)
            else:
                found.extend(literal_secrets(item, place))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found.extend(literal_secrets(item, (*key, index)))
    return found


def _is_literal(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip()) and not references(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spelling(data: Mapping[str, Any], name: str) -> str:
    return next((known for known in data if isinstance(known, str) and known.lower() == name), name)


def _lookup(match: re.Match[str], environment: Mapping[str, str], key: KeyPath) -> str:
    if match["scheme"]:
        try:
            return fetch(match["scheme"], match["secret"])
        except NotebookedError as error:
            error.details.setdefault("key_path", list(key))
            error.key = error.key or key_text(key) or None
            raise
    name = match["shell"] or match["dotted"] or match["called"]
    default = match["shell_default"] if match["shell"] else match["called_default"]
    value = environment.get(name)
    if value is not None and (is_secret(key) or is_secret_name(name)):
        REDACTOR.add(value)
    if value is not None and (value or default is None):
        return value
    if default is not None:
        return default
    raise ConfigError(
        f"The environment variable {name} is not set.",
        key=key_text(key) or None,
        hint=f"Set it (a `.env` file beside workspace.yaml will do), or give a default: ${{{name}:-value}}.",
        details={"variable": name, "key_path": list(key)},
    )
