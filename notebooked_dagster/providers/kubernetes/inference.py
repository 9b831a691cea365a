"""KServe's InferenceService: what one is made of, and what its status means.

API: serving.kserve.io/v1beta1, as of KServe 0.11 to 0.20. Knative takes less of a pod than Kubernetes does: no `lifecycle`, no
grace, no security context of the whole pod, and `http1` for the name of the port. Every annotation and label of an
InferenceService is handed to its pods, so that each change of one would be a new revision: what changes with the traffic
(roles, shares) is kept elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from notebooked_dagster.config.kubernetes import KubernetesEndpoint
from notebooked_dagster.errors import ConfigError

from . import manifests
from .manifests import ENDPOINT, NONCE, VERSION, kube_name
from .pods import KSERVE, MANAGED

# The label that tells one start of a version from another.
ROLLOUT = "notebooked/rollout"
REVISION = "serving.knative.dev/revision"
_MODE = "serving.kserve.io/deploymentMode"
_SCALER = "autoscaling.knative.dev/class"
_BY_CPU = "hpa.autoscaling.knative.dev"
_SUFFIX = "-kserve"
# `<name>-predictor` has to be the name of a Service, and with the namespace a part of a host's name.
_LONGEST = 63 - len("-predictor")


def service_name(name: str) -> str:
    """An endpoint's InferenceService. Raises ConfigError where KServe cannot take the name."""
    found = kube_name(name) + _SUFFIX
    if len(found) > _LONGEST:
        raise ConfigError(
            f"{name!r} is too long for KServe, whose Services are called like their endpoint and a little more.",
            key="endpoint.name",
            hint=f"Use at most {_LONGEST - len(kube_name('')) - len(_SUFFIX)} characters.",
        )
    return found


def held(name: str, version: str, options: KubernetesEndpoint, *, nonce: str, **more: Any) -> dict[str, Any]:
    """A version: a PodTemplate, which does nothing by itself."""
    pods = manifests.template(
        name,
        version,
        options,
        **more,
        more={"name": KSERVE, "ports": [{"name": "http1", "containerPort": manifests.PORT}]},
    )
    (inner,) = pods["spec"]["containers"]
    inner["securityContext"] |= pods["spec"].pop("securityContext")
    pods["metadata"].setdefault("annotations", {}).update(
        {
            "serving.knative.dev/progress-deadline": f"{max(options.health_timeout, 600)}s",
            # So that there is a pod to ask, also where pods are started when somebody asks.
            **({"autoscaling.knative.dev/initial-scale": "1"} if _least(options) == 0 else {}),
        }
    )
    return {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {
            "name": manifests.version_name(name, version),
            "labels": pods["metadata"]["labels"],
            "annotations": {ENDPOINT: name, NONCE: nonce},
        },
        "template": pods,
    }


def scaling(options: KubernetesEndpoint) -> dict[str, Any]:
    """How many pods a version has, in KServe's words."""
    wanted = options.autoscaling
    if wanted is None:
        return {"minReplicas": options.replicas, "maxReplicas": options.replicas}
    metric, target = "cpu", wanted.cpu_target
    if wanted.concurrency is not None:
        metric, target = "concurrency", wanted.concurrency
    return {
        "minReplicas": wanted.min,
        "maxReplicas": wanted.max,
        "scaleMetric": metric,
        "scaleTarget": target,
    }


def _least(options: KubernetesEndpoint) -> int:
    return options.autoscaling.min if options.autoscaling is not None else options.replicas


def fresh(name: str, mode: str | None) -> dict[str, Any]:
    """An InferenceService that serves nothing yet."""
    modes = {"serverless": "Serverless", "raw": "RawDeployment"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service_name(name),
            "labels": {**MANAGED, ENDPOINT: kube_name(name)},
            "annotations": {_MODE: modes[mode]} if mode is not None else {},
        },
        "spec": {"predictor": {}},
    }


def serving(
    found: Mapping[str, Any],
    template: Mapping[str, Any],
    document: Mapping[str, Any],
    rollout: str,
    canary: int | None,
) -> dict[str, Any]:
    """An InferenceService whose latest revision is a version.

    Args:
        found: As it is.
        template: The pods of the version.
        document: The version's description.
        rollout: What tells this start of it from another.
        canary: Percent of the traffic that it is to get; all where None.
    """
    made = copy.deepcopy(dict(found))
    made.pop("status", None)
    counted = dict(document.get("scaling") or {})
    predictor = {
        **copy.deepcopy(template["spec"]),
        **counted,
        "labels": {**template["metadata"]["labels"], ROLLOUT: rollout},
        "annotations": dict(template["metadata"]["annotations"]),
    }
    marks = made["metadata"].setdefault("annotations", {})
    marks.pop(_SCALER, None)
    if counted.get("scaleMetric") == "cpu":
        marks[_SCALER] = _BY_CPU
    made["spec"]["predictor"] = predictor
    return with_share(made, canary)


def with_share(found: Mapping[str, Any], canary: int | None) -> dict[str, Any]:
    """An InferenceService whose latest revision has a share; all where None."""
    made = copy.deepcopy(dict(found))
    made.pop("status", None)
    if canary is None or canary == 100:
        made["spec"]["predictor"].pop("canaryTrafficPercent", None)
    else:
        made["spec"]["predictor"]["canaryTrafficPercent"] = canary
    return made


# What it says


def latest(found: Mapping[str, Any]) -> str:
    """The version that the latest revision is, or is to become."""
    return str(labels(found).get(VERSION, ""))


def labels(found: Mapping[str, Any]) -> Mapping[str, str]:
    """The labels of its pods."""
    return dict(found["spec"]["predictor"].get("labels") or {})


def share(found: Mapping[str, Any]) -> int:
    """Percent of the traffic that the latest revision is to have."""
    return int(found["spec"]["predictor"].get("canaryTrafficPercent", 100))


def is_raw(found: Mapping[str, Any]) -> bool:
    """Whether KServe runs a plain Deployment, which has no revisions."""
    mode = found.get("status", {}).get("deploymentMode") or manifests.marks(found).get(_MODE)
    return mode in ("RawDeployment", "Standard")


def component(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What it says of the revisions."""
    return dict(found.get("status", {}).get("components", {}).get("predictor") or {})


def holds(found: Mapping[str, Any], kind: str) -> str:
    """Whether a condition is: ``True``, ``False`` or ``Unknown``."""
    return str(said(found, kind).get("status", "Unknown"))


def said(found: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """A condition, whether it is true or not; empty where there is none."""
    for item in found.get("status", {}).get("conditions") or ():
        if item["type"] == kind:
            return dict(item)
    return {}


def has_share(found: Mapping[str, Any], percent: int) -> bool:
    """Whether the traffic is shared out so, and everything is ready."""
    if holds(found, "Ready") != "True":
        return False
    told = component(found)
    newest = [item for item in told.get("traffic") or () if item.get("latestRevision")]
    if sum(item.get("percent") or 0 for item in newest) != percent:
        return False
    # KServe's own note of what serves: the next share is counted from that one.
    return percent < 100 or told.get("latestRolledoutRevision") == told.get("latestReadyRevision")
