"""Kubernetes' published OpenAPI schemas, which every object that is sent or answered is held against; nothing unknown may be in one.

PyTorchJobs are held against the fields of their CustomResourceDefinition (training operator 1.9) and what its webhook asks
for, InferenceServices likewise (KServe 0.20), and the pods' templates of both against Kubernetes' own schemas.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema
from kubernetes_validate.utils import latest_version, schema_contents
from referencing import Registry, Resource

# The oldest that has all we use for good (podFailurePolicy), and the newest there is.
VERSIONS = ("1.31.0", f"{latest_version()}")


_TEXT, _WHOLE, _TIME = {"type": "string"}, {"type": "integer"}, {"type": "string", "format": "date-time"}


def _object(required: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _conditions(**more: Any) -> dict[str, Any]:
    known = {"lastTransitionTime": _TIME, "message": _TEXT, "reason": _TEXT, "status": _TEXT, "type": _TEXT}
    return {"type": "array", "items": _object(("status", "type"), **known, **more)}


PYTORCH_JOB = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "kubeflow.org/v1"},
    kind={"const": "PyTorchJob"},
    metadata={
        "type": "object",
        "properties": {"name": {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}},
    },
    spec=_object(
        ("pytorchReplicaSpecs",),
        elasticPolicy={"type": "object"},
        nprocPerNode=_TEXT,
        pytorchReplicaSpecs=_object(
            Master=_object(
                ("template",), replicas={"const": 1}, restartPolicy=_TEXT, template={"type": "object"}
            ),
            Worker=_object(("template",), replicas=_WHOLE, restartPolicy=_TEXT, template={"type": "object"}),
        ),
        runPolicy=_object(
            activeDeadlineSeconds=_WHOLE,
            backoffLimit=_WHOLE,
            cleanPodPolicy={"enum": ["", "All", "Running", "None"]},
            managedBy=_TEXT,
            schedulingPolicy={"type": "object"},
            suspend={"type": "boolean"},
            ttlSecondsAfterFinished=_WHOLE,
        ),
    ),
    status=_object(
        completionTime=_TIME,
        conditions=_conditions(lastUpdateTime=_TIME),
        lastReconcileTime=_TIME,
        replicaStatuses={
            "type": "object",
            "additionalProperties": _object(
                active=_WHOLE,
                failed=_WHOLE,
                labelSelector={"type": "object"},
                selector=_TEXT,
                succeeded=_WHOLE,
            ),
        },
        startTime=_TIME,
    ),
)


INFERENCE_SERVICE = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "serving.kserve.io/v1beta1"},
    kind={"const": "InferenceService"},
    metadata={
        "type": "object",
        "properties": {"name": {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 53}},
    },
    spec=_object(("predictor",), predictor={"type": "object"}),
    status=_object(
        address={"type": "object"},
        components={
            "type": "object",
            "additionalProperties": _object(
                address={"type": "object"},
                latestCreatedRevision=_TEXT,
                latestReadyRevision=_TEXT,
                latestRolledoutRevision=_TEXT,
                previousRolledoutRevision=_TEXT,
                traffic={
                    "type": "array",
                    "items": _object(
                        latestRevision={"type": "boolean"},
                        percent=_WHOLE,
                        revisionName=_TEXT,
                        tag=_TEXT,
                    ),
                },
                url=_TEXT,
            ),
        },
        conditions=_conditions(severity=_TEXT),
        deploymentMode=_TEXT,
        observedGeneration=_WHOLE,
        url=_TEXT,
    ),
)
_PREDICTOR = _object(
    ("containers",),
    annotations={"type": "object", "additionalProperties": _TEXT},
    canaryTrafficPercent={"type": "integer", "minimum": 0, "maximum": 100},
    containers={"type": "array"},
    labels={"type": "object", "additionalProperties": _TEXT},
    maxReplicas=_WHOLE,
    minReplicas=_WHOLE,
    scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
    scaleTarget=_WHOLE,
)
_BY_CPU = "hpa.autoscaling.knative.dev"


def _inference_problems(thing: dict[str, Any]) -> list[str]:
    """What KServe's CustomResourceDefinition and its webhook have against an object."""
    found = [
        f"InferenceService: {'.'.join(map(str, error.path))}: {error.message[:300]}"
        for error in jsonschema.validators.Draft202012Validator(INFERENCE_SERVICE).iter_errors(thing)
    ]
    predictor = thing["spec"]["predictor"]
    ours = set(_PREDICTOR["properties"]) - {"containers"}
    own = {key: value for key, value in predictor.items() if key in ours or key == "containers"}
    for error in jsonschema.validators.Draft202012Validator(_PREDICTOR).iter_errors(own):
        found.append(f"predictor: {'.'.join(map(str, error.path))}: {error.message[:300]}")
    meta = {key: predictor.get(key, {}) for key in ("labels", "annotations")}
    spec = {key: value for key, value in predictor.items() if key not in ours}
    found += problems({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    if [inner["name"] for inner in predictor["containers"]] != ["kserve-container"]:
        found.append("predictor: the container has to be named kserve-container")
    marks = thing["metadata"].get("annotations") or {}
    metric = predictor.get("scaleMetric")
    by_cpu = marks.get("autoscaling.knative.dev/class") == _BY_CPU
    if metric is not None and by_cpu != (metric in ("cpu", "memory")):
        found.append(f"[{metric}] is not a supported metric")
    return found


def problems(thing: dict[str, Any]) -> list[str]:
    """What is wrong with an object by the schemas; empty where nothing is."""
    found = []
    if thing["kind"] == "PyTorchJob":
        for error in jsonschema.validators.Draft202012Validator(PYTORCH_JOB).iter_errors(thing):
            found.append(f"PyTorchJob: {'.'.join(map(str, error.path))}: {error.message[:300]}")
        for role, item in thing["spec"]["pytorchReplicaSpecs"].items():
            pod = {"apiVersion": "v1", "kind": "Pod", **item["template"]}
            found += [f"{role}: {said}" for said in problems(pod)]
            if "pytorch" not in [inner["name"] for inner in item["template"]["spec"]["containers"]]:
                found.append(f"{role}: must have at least one container with name pytorch")
        return found
    if thing["kind"] == "InferenceService":
        return _inference_problems(thing)
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
