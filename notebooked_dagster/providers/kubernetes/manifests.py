"""The objects that an endpoint is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from notebooked_dagster.config.kubernetes import Autoscaling, Ingress, KubernetesEndpoint
from notebooked_dagster.providers.cloud.serving import ROLES

from .pods import MANAGED, pod_spec, variables
from .storage import ObjectStore

PORT = 8080
_PREFIX = "nbd-"
# Labels: `ENDPOINT` is the name in Kubernetes; `GROUP` is shared by a champion and its challengers.
ENDPOINT, VERSION, GROUP = "notebooked/endpoint", "notebooked/version", "notebooked/group"
# Annotations; `ENDPOINT` among them is the name as the user calls it.
ROLE, SHARES, ADDRESS, NONCE, OPERATOR = (
    "notebooked/",
    "notebooked/shares",
    "notebooked/address",
    "notebooked/nonce",
    "notebooked/operator",
)
# Seconds that pods which are taken down go on answering: proxies learn of it a little later.
_DRAIN = 5


def kube_name(name: str) -> str:
    """An endpoint's name in Kubernetes, which takes no underscores."""
    return _PREFIX + name.replace("_", "-")


def version_name(name: str, version: str) -> str:
    """What holds a version of an endpoint."""
    return f"{kube_name(name)}-v{version}"


def marks(thing: Mapping[str, Any]) -> dict[str, str]:
    """The annotations of an object."""
    return dict(thing["metadata"].get("annotations") or {})


def address(name: str, options: KubernetesEndpoint) -> str | None:
    """Where an endpoint is reached from outside of the cluster; None where it is not."""
    if options.ingress is None:
        return None
    scheme = "https" if options.ingress.tls_from else "http"
    return f"{scheme}://{_host(name, options.ingress)}"


def template(
    name: str,
    version: str,
    options: KubernetesEndpoint,
    *,
    image: str,
    store: ObjectStore,
    model: str,
    environment: Mapping[str, str],
    service_account: str | None,
    pull_from: Sequence[str],
    labels: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
    **pod: Any,
) -> dict[str, Any]:
    """The template of a version's pods.

    Args:
        name: The endpoint's.
        version: Its number.
        options: How it is served.
        image: The container, where the options name none.
        store: Where the archive lies.
        model: The archive.
        environment: Of the experiment.
        service_account: That pods run under.
        pull_from: Secrets that images are pulled with.
        labels: Further ones of ours.
        more: Of the container.
        pod: Further fields of the pod.
    """
    own = {ENDPOINT: kube_name(name), VERSION: version, **(labels or {})}
    container: dict[str, Any] = {"ports": [{"name": "http", "containerPort": PORT}], **(more or {})}
    ping = {
        "httpGet": {"path": "/ping", "port": container["ports"][0]["name"]},
        "timeoutSeconds": 5,
    }
    spec = pod_spec(
        options,
        "serve",
        image=image,
        environment=[
            *variables({**environment, "NOTEBOOKED_MODEL": model, "NOTEBOOKED_PORT": str(PORT)}),
            *store.variables(),
        ],
        access_from=store.options.access_from,
        service_account=service_account,
        pull_from=pull_from,
        more={
            **container,
            # Installing and loading may take as long as the version may take to become ready, and no longer.
            "startupProbe": {
                **ping,
                "periodSeconds": 5,
                "failureThreshold": max(1, math.ceil(options.health_timeout / 5)),
            },
            "readinessProbe": {**ping, "periodSeconds": 5},
            "livenessProbe": {**ping, "periodSeconds": 20, "failureThreshold": 6},
        },
        **pod,
    )
    annotations = dict(options.annotations)
    return {
        "metadata": {
            "labels": {**options.labels, **MANAGED, **own},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": spec,
    }


def deployment(
    name: str, version: str, group: str, options: KubernetesEndpoint, *, nonce: str, **more: Any
) -> dict[str, Any]:
    """A version, without any pods yet."""
    pods = template(
        name,
        version,
        options,
        **more,
        labels={GROUP: group},
        more={"lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_DRAIN)]}}}},
        terminationGracePeriodSeconds=30,
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": version_name(name, version),
            "labels": pods["metadata"]["labels"],
            "annotations": {ENDPOINT: name, NONCE: nonce},
        },
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {ENDPOINT: kube_name(name), VERSION: version, GROUP: group}},
            "progressDeadlineSeconds": max(options.health_timeout, 600),
            "template": pods,
        },
    }


def service(name: str, version: str, roles: Mapping[str, str], options: KubernetesEndpoint) -> dict[str, Any]:
    """An endpoint whose first version this is."""
    made = record(name, version, roles, options, address(name, options))
    made["spec"] = {
        "selector": {ENDPOINT: kube_name(name), VERSION: version},
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}],
    }
    return made


def record(
    name: str,
    version: str,
    roles: Mapping[str, str],
    options: KubernetesEndpoint,
    found_at: str | None,
    **more: str,
) -> dict[str, Any]:
    """The Service of an endpoint whose first version this is: it says which version has which role, and leads nowhere.

    Args:
        name: The endpoint's.
        version: The version's; it has all traffic.
        roles: Version by role.
        options: For labels.
        found_at: Where it is asked from outside of the cluster, where that is known.
        more: Annotations.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": kube_name(name),
            "labels": {**options.labels, **MANAGED, ENDPOINT: kube_name(name)},
            "annotations": {
                ENDPOINT: name,
                **more,
                **{ROLE + role: roles[role] for role in ROLES if role in roles},
                SHARES: json.dumps({version: 100}),
                **({ADDRESS: found_at} if found_at else {}),
            },
        },
        "spec": {"clusterIP": "None"},
    }


def autoscaler(owner: Mapping[str, Any], options: Autoscaling) -> dict[str, Any]:
    """More pods of a version under load; it rests while the Deployment has none, and goes with it."""
    name = owner["metadata"]["name"]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {
            "name": name,
            "labels": dict(owner["metadata"]["labels"]),
            "ownerReferences": [_owner(owner, "apps/v1", "Deployment")],
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": options.min,
            "maxReplicas": options.max,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": options.cpu_target},
                    },
                }
            ],
        },
    }


def ingress(name: str, owner: Mapping[str, Any], options: Ingress) -> dict[str, Any]:
    """The way in from outside of the cluster; it goes with the Service."""
    host = _host(name, options)
    backend = {"service": {"name": kube_name(name), "port": {"name": "http"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": kube_name(name),
            "labels": {**MANAGED, ENDPOINT: kube_name(name)},
            "annotations": dict(options.annotations),
            "ownerReferences": [_owner(owner, "v1", "Service")],
        },
        "spec": {
            **({"ingressClassName": options.class_name} if options.class_name else {}),
            **({"tls": [{"hosts": [host], "secretName": options.tls_from}]} if options.tls_from else {}),
            "rules": [
                {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
            ],
        },
    }


def _host(name: str, options: Ingress) -> str:
    return options.host.replace("{endpoint}", name.replace("_", "-"))


def _owner(thing: Mapping[str, Any], version: str, kind: str) -> dict[str, str]:
    return {
        "apiVersion": version,
        "kind": kind,
        "name": thing["metadata"]["name"],
        "uid": thing["metadata"]["uid"],
    }
