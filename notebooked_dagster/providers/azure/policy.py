"""The least that the caller and the identity of jobs and endpoints have to be allowed, as custom roles of Azure.

The actions are those of the resource types that the provider reads and writes, by the names of Azure's list of resource
provider operations; ``score`` is no data action, whatever it looks like. No Azure has judged these roles here;
`notebooked plan` holds the caller's against them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

_ML = "Microsoft.MachineLearningServices"
_BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"
CALLER_ACTIONS = (
    "Microsoft.Authorization/permissions/read",
    f"{_ML}/locations/mfeOperationsStatus/read",
    f"{_ML}/locations/usages/read",
    f"{_ML}/locations/vmsizes/read",
    f"{_ML}/workspaces/read",
    f"{_ML}/workspaces/computes/read",
    f"{_ML}/workspaces/datastores/read",
    f"{_ML}/workspaces/jobs/read",
    f"{_ML}/workspaces/jobs/write",
    f"{_ML}/workspaces/jobs/cancel/action",
    # The run history, where a job's times, failure and log are, asks for these.
    f"{_ML}/workspaces/experiments/runs/read",
    f"{_ML}/workspaces/experiments/runs/write",
    f"{_ML}/workspaces/experiments/runs/submit/action",
    f"{_ML}/workspaces/environments/read",
    f"{_ML}/workspaces/environments/write",
    f"{_ML}/workspaces/environments/build/action",
    f"{_ML}/workspaces/models/versions/read",
    f"{_ML}/workspaces/models/versions/write",
    f"{_ML}/workspaces/models/versions/delete",
    f"{_ML}/workspaces/models/delete",
    f"{_ML}/workspaces/codes/versions/read",
    f"{_ML}/workspaces/codes/versions/write",
    f"{_ML}/workspaces/codes/versions/delete",
    f"{_ML}/workspaces/codes/delete",
    f"{_ML}/workspaces/onlineEndpoints/read",
    f"{_ML}/workspaces/onlineEndpoints/write",
    f"{_ML}/workspaces/onlineEndpoints/delete",
    f"{_ML}/workspaces/onlineEndpoints/score/action",
    f"{_ML}/workspaces/onlineEndpoints/deployments/read",
    f"{_ML}/workspaces/onlineEndpoints/deployments/write",
    f"{_ML}/workspaces/onlineEndpoints/deployments/delete",
    f"{_ML}/workspaces/onlineEndpoints/deployments/getLogs/action",
)
# Settings of Azure Monitor lie beside the workspace, in its resource group.
SCALING_ACTIONS = (
    "Microsoft.Insights/autoscaleSettings/write",
    "Microsoft.Insights/autoscaleSettings/delete",
)
KEYS_ACTION = f"{_ML}/workspaces/onlineEndpoints/listKeys/action"
CALLER_DATA_ACTIONS = (f"{_BLOBS}/read", f"{_BLOBS}/write", f"{_BLOBS}/delete")


def caller_role(scope: str, *, keys: bool, autoscaling: bool, identity: str | None) -> dict[str, Any]:
    """What the identity needs that runs Dagster.

    Args:
        scope: The resource group's id.
        keys: Whether endpoints are asked with their keys.
        autoscaling: Whether versions scale.
        identity: The user-assigned identity that is handed over; None for none.
    """
    more = [*([KEYS_ACTION] if keys else ()), *(SCALING_ACTIONS if autoscaling else ())]
    if identity is not None:
        more.append("Microsoft.ManagedIdentity/userAssignedIdentities/assign/action")
    return _role(
        "notebooked-dagster caller",
        "Submits training jobs and deploys endpoints.",
        scope,
        [*CALLER_ACTIONS, *more],
        list(CALLER_DATA_ACTIONS),
    )


def identity_role(scope: str) -> dict[str, Any]:
    """What a user-assigned identity of jobs and endpoints needs: data in, model and metrics out, and the image."""
    return _role(
        "notebooked-dagster jobs and endpoints",
        "Reads scripts and data, writes models, and pulls images.",
        scope,
        [
            "Microsoft.ContainerRegistry/registries/pull/read",
            f"{_ML}/workspaces/read",
            f"{_ML}/workspaces/datastores/read",
            f"{_ML}/workspaces/metrics/*/write",
        ],
        [f"{_BLOBS}/read", f"{_BLOBS}/write"],
    )


def denied(
    permissions: Iterable[Mapping[str, Any]], actions: Iterable[str], data_actions: Iterable[str]
) -> list[str]:
    """Which actions none of the caller's roles allows."""
    roles = list(permissions)
    return [
        *(
            name
            for name in actions
            if not any(_allows(role, name, "actions", "notActions") for role in roles)
        ),
        *(
            name
            for name in data_actions
            if not any(_allows(role, name, "dataActions", "notDataActions") for role in roles)
        ),
    ]


def _allows(role: Mapping[str, Any], action: str, given: str, taken: str) -> bool:
    def among(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)

    return among(role.get(given) or ()) and not among(role.get(taken) or ())


def _role(name: str, text: str, scope: str, actions: list[str], data_actions: list[str]) -> dict[str, Any]:
    return {
        "Name": name,
        "IsCustom": True,
        "Description": text,
        "Actions": actions,
        "NotActions": [],
        "DataActions": data_actions,
        "NotDataActions": [],
        "AssignableScopes": [scope],
    }
