"""The least that the caller has to be granted, as Unity Catalog's grants and as permissions of the workspace.

The privileges are those that Databricks' documentation names for the methods that the provider calls. No metastore has judged
them here; `notebooked plan` asks which of them the caller has.
"""

from __future__ import annotations

from typing import Any

# By kind of securable; `CREATE_MODEL` is for endpoints alone, of which the caller owns the models.
PRIVILEGES = {
    "CATALOG": ("USE_CATALOG",),
    "SCHEMA": ("USE_SCHEMA", "CREATE_MODEL"),
    "VOLUME": ("READ_VOLUME", "WRITE_VOLUME"),
}


def securables(catalog: str, schema: str, volume: str) -> dict[str, str]:
    """What the privileges are granted on, by its kind."""
    return {
        "CATALOG": catalog,
        "SCHEMA": f"{catalog}.{schema}",
        "VOLUME": f"{catalog}.{schema}.{volume}",
    }


def caller_policy(
    catalog: str, schema: str, volume: str, principal: str, *, serverless: bool, policy_id: str | None
) -> dict[str, Any]:
    """What the identity needs that runs Dagster; a run of ours runs as the same."""
    names = securables(catalog, schema, volume)
    return {
        "grants": [
            f"GRANT {privilege.replace('_', ' ')} ON {kind} {_quoted(names[kind])} TO `{principal}`"
            for kind, privileges in PRIVILEGES.items()
            for privilege in privileges
        ],
        "workspace": [
            "entitlement: workspace-access",
            *_compute(serverless=serverless, policy_id=policy_id),
            "endpoints that it makes are its own; those that somebody else made take CAN_MANAGE",
        ],
    }


def data_policy(path: str, principal: str) -> dict[str, Any]:
    """What training needs to read data from another volume."""
    catalog, schema, volume = path.split("/")[2:5]
    return {
        "grants": [
            f"GRANT USE CATALOG ON CATALOG {_quoted(catalog)} TO `{principal}`",
            f"GRANT USE SCHEMA ON SCHEMA {_quoted(f'{catalog}.{schema}')} TO `{principal}`",
            f"GRANT READ VOLUME ON VOLUME {_quoted(f'{catalog}.{schema}.{volume}')} TO `{principal}`",
        ]
    }


def _compute(*, serverless: bool, policy_id: str | None) -> list[str]:
    if serverless:
        return ["serverless compute for jobs has to be enabled"]
    if policy_id is not None:
        return [f"CAN_USE on the compute policy {policy_id}"]
    return [
        "entitlement: allow-cluster-create (or name a policy, options.training.policy_id, with CAN_USE on it)"
    ]


def _quoted(name: str) -> str:
    return ".".join(f"`{part}`" for part in name.split("."))
