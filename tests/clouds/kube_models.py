"""Kubernetes' published OpenAPI schemas, which every object that is sent or answered is held against; nothing unknown may be in one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema
from kubernetes_validate.utils import latest_version, schema_contents
from referencing import Registry, Resource

# The oldest that has all we use for good (podFailurePolicy), and the newest there is.
VERSIONS = ("1.31.0", f"{latest_version()}")


def problems(thing: dict[str, Any]) -> list[str]:
    """What is wrong with an object by the schemas; empty where nothing is."""
    found = []
    for version in VERSIONS:
        for error in _validator(version, thing["apiVersion"], thing["kind"]).iter_errors(thing):
            found.append(
                f"{version} {thing['kind']}: {'.'.join(map(str, error.path))}: {error.message[:300]}"
            )
    return found


@lru_cache
def _definitions(version: str) -> Any:
    return Resource.from_contents(
        schema_contents(f"kubernetes-json-schema/v{version}-local-strict/_definitions.json", version)
    )


@lru_cache
def _validator(version: str, api_version: str, kind: str) -> Any:
    group, _, last = api_version.rpartition("/")
    name = f"{group.partition('.')[0]}-{last}" if group else last
    schema = schema_contents(
        f"kubernetes-json-schema/v{version}-local-strict/{kind.lower()}-{name}.json", version
    )
    registry = _definitions(version) @ Registry()
    return jsonschema.validators.Draft202012Validator(schema, registry=registry)
