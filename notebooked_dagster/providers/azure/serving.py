"""Endpoints and deployments as Resource Manager takes them.

API: Online Endpoints, Online Deployments, Model Versions and Code Versions of ``Microsoft.MachineLearningServices``, version
2025-12-01. A version of an endpoint is a deployment ``version-<n>``; which one plays which role is said by tags of the
endpoint, which are sent together with the shares of the traffic, so that the two never disagree.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from notebooked_dagster.config.azure import Autoscaling, AzureEndpoint
from notebooked_dagster.providers.cloud.serving import ROLES

SCRIPT = "notebooked_score.py"
ENDPOINT_TAG = "notebooked-endpoint"
_DEPLOYMENT = "version-"
_LONGEST = 32
_PROBE = 10
_READ_ONLY = ("id", "name", "type", "systemData", "kind")
_READ_ONLY_PROPERTIES = ("provisioningState", "scoringUri", "swaggerUri", "compute")


def azure_name(workspace: str, name: str) -> str:
    """An endpoint's name at Azure, where it has to be the only one of its region, whoever's it is."""
    digest = hashlib.sha256(f"{workspace.lower()}/{name}".encode()).hexdigest()[:6]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"nbd-{slug[: _LONGEST - len(digest) - 5].strip('-')}-{digest}"


def deployment_name(version: str) -> str:
    """A version's name; Azure takes none of less than three letters."""
    return f"{_DEPLOYMENT}{version}"


def version_of(deployment: str) -> str:
    """The version of a deployment; empty where it is none of ours."""
    return deployment.removeprefix(_DEPLOYMENT) if re.fullmatch(rf"{_DEPLOYMENT}\d+", deployment) else ""


def endpoint_request(
    name: str, options: AzureEndpoint, location: str, identity: str | None
) -> dict[str, Any]:
    """The body that makes an endpoint, without any traffic."""
    own: dict[str, Any] = {"type": "SystemAssigned"}
    if identity is not None:
        own = {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
    return {
        "location": location,
        "identity": own,
        "tags": {ENDPOINT_TAG: name, **options.tags},
        "properties": {
            "authMode": "AADToken" if options.auth == "entra" else "Key",
            "publicNetworkAccess": "Enabled" if options.public_access else "Disabled",
            "traffic": {},
        },
    }


def with_traffic(
    endpoint: Mapping[str, Any], weights: Mapping[str, int], roles: Mapping[str, str]
) -> dict[str, Any]:
    """The body that gives an endpoint other shares and roles; traffic can only be set with the whole endpoint."""
    body = {key: copy.deepcopy(value) for key, value in endpoint.items() if key not in _READ_ONLY}
    for key in _READ_ONLY_PROPERTIES:
        body["properties"].pop(key, None)
    identity = body.get("identity") or {}
    body["identity"] = {
        key: value for key, value in identity.items() if key not in ("principalId", "tenantId")
    }
    if identity.get("userAssignedIdentities"):
        body["identity"]["userAssignedIdentities"] = {key: {} for key in identity["userAssignedIdentities"]}
    body["properties"]["traffic"] = {deployment_name(version): share for version, share in weights.items()}
    tags = {key: value for key, value in (body.get("tags") or {}).items() if key not in map(role_tag, ROLES)}
    body["tags"] = {**tags, **{role_tag(role): version for role, version in roles.items()}}
    return body


def role_tag(role: str) -> str:
    """The tag that says which version plays a role."""
    return f"notebooked-{role}"


def setting_name(endpoint: str, version: str) -> str:
    """The name of a version's autoscale setting, which is the only one of its resource group.

    Args:
        endpoint: The endpoint's name at Azure.
        version: The version.
    """
    return f"{endpoint}-{deployment_name(version)}"


def machines(options: AzureEndpoint) -> int:
    """How many machines a version begins with."""
    scaling = options.autoscaling
    if scaling is None:
        return options.instance_count
    return min(max(options.instance_count, scaling.min), scaling.max)


def autoscale_request(
    endpoint: str, options: AzureEndpoint, scaling: Autoscaling, name: str, deployment: str, location: str
) -> dict[str, Any]:
    """The body of the autoscale setting of a deployment (``Microsoft.Insights/autoscaleSettings``, version 2022-10-01).

    Args:
        endpoint: As the user calls it.
        options: How it serves.
        scaling: How many machines there may be.
        name: Of the setting.
        deployment: The deployment's id.
        location: The workspace's region.
    """

    def rule(operator: str, threshold: float, direction: str) -> dict[str, Any]:
        return {
            "metricTrigger": {
                "metricName": "CpuUtilizationPercentage",
                "metricResourceUri": deployment,
                "timeGrain": "PT1M",
                "statistic": "Average",
                "timeWindow": "PT5M",
                "timeAggregation": "Average",
                "operator": operator,
                "threshold": threshold,
            },
            "scaleAction": {"direction": direction, "type": "ChangeCount", "value": "1", "cooldown": "PT5M"},
        }

    return {
        "location": location,
        "tags": {ENDPOINT_TAG: endpoint, **options.tags},
        "properties": {
            "name": name,
            "enabled": True,
            "targetResourceUri": deployment,
            "profiles": [
                {
                    "name": "cpu",
                    "capacity": {
                        "minimum": str(scaling.min),
                        "maximum": str(scaling.max),
                        "default": str(machines(options)),
                    },
                    "rules": [
                        rule("GreaterThan", scaling.cpu_target, "Increase"),
                        rule("LessThan", scaling.cpu_target / 2, "Decrease"),
                    ],
                }
            ],
        },
    }


def deployment_request(
    options: AzureEndpoint,
    location: str,
    *,
    model: str,
    code: str,
    environment: str,
    variables: Mapping[str, str],
) -> dict[str, Any]:
    """The body that makes a deployment.

    Args:
        options: How it serves.
        location: The workspace's region.
        model: The id of the model's version.
        code: The id of the code's version.
        environment: The id of the environment.
        variables: Of the container.
    """
    probe = {
        "initialDelay": f"PT{_PROBE}S",
        "period": f"PT{_PROBE}S",
        "timeout": "PT2S",
        "successThreshold": 1,
        "failureThreshold": math.ceil(options.startup_timeout / _PROBE),
    }
    return {
        "location": location,
        "sku": {"name": "Default", "capacity": machines(options)},
        "tags": dict(options.tags),
        "properties": {
            "endpointComputeType": "Managed",
            "instanceType": options.instance_type,
            "model": model,
            "environmentId": environment,
            "codeConfiguration": {"codeId": code, "scoringScript": SCRIPT},
            "environmentVariables": dict(variables),
            "livenessProbe": dict(probe),
            "readinessProbe": dict(probe),
            "requestSettings": {
                "requestTimeout": f"PT{options.request_timeout}S",
                "maxConcurrentRequestsPerInstance": options.concurrency,
            },
            "egressPublicNetworkAccess": "Enabled" if options.egress else "Disabled",
            "scaleSettings": {"scaleType": "Default"},
        },
    }


def steps(options: AzureEndpoint) -> list[int]:
    """The shares that a new version gets one after the other."""
    if options.strategy == "canary":
        return [options.canary_percent, 100]
    if options.strategy == "linear":
        return [*range(options.canary_percent, 100, options.canary_percent), 100]
    return [100]
