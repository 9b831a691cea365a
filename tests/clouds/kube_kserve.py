"""KServe of our own: InferenceServices as the controller of release 0.20 treats them, and the ingress gateway before them.

Serverless: every change of the pods' template (an annotation or label of the InferenceService is one as well) makes a revision
of a Deployment, Knative refuses what it does not take of a pod, the share of the latest revision that is ready is
``canaryTrafficPercent``, and the rest is the revision's that had all traffic last. Raw: one Deployment that is rolled over.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from .kube import Cluster

Thing = dict[str, Any]
_MODE = "serving.kserve.io/deploymentMode"
REVISION = "serving.knative.dev/revision"
# What of a predictor is no part of a pod.
EXTENSIONS = (
    "minReplicas",
    "maxReplicas",
    "scaleMetric",
    "scaleTarget",
    "canaryTrafficPercent",
    "containerConcurrency",
    "timeout",
    "labels",
    "annotations",
)
# What Knative takes of a pod and of a container, without features that somebody has to turn on.
_POD = {
    "serviceAccountName",
    "containers",
    "volumes",
    "imagePullSecrets",
    "enableServiceLinks",
    "automountServiceAccountToken",
}
_CONTAINER = {
    "args", "command", "env", "workingDir", "envFrom", "image", "imagePullPolicy", "livenessProbe", "name", "ports",
    "readinessProbe", "resources", "securityContext", "startupProbe", "terminationMessagePath", "terminationMessagePolicy",
    "volumeMounts",
}  # fmt: skip


# What pods fetch their model with where it is to be quick: boto3 takes half a second to import, and is what all other pods use.
LIGHT = {
    "boto3.py": """
import os, shutil, urllib.request

class client:
    def __init__(self, kind, config):
        pass

    def download_file(self, bucket, key, local):
        # moto wants to see that it is signed, and does not judge it.
        scope = f"{os.environ['AWS_ACCESS_KEY_ID']}/20250101/us-east-1/s3/aws4_request"
        signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"}
        asked = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL_S3']}/{bucket}/{key}", headers=signed)
        with urllib.request.urlopen(asked) as reply, open(local, "wb") as file:
            shutil.copyfileobj(reply, file)
""",
    "botocore/__init__.py": "",
    "botocore/config.py": "Config = dict",
}


@dataclass
class Revision:
    """A revision of Knative's."""

    name: str
    key: str
    ready: bool = False


class Revisions:
    """The controller, and the gateway.

    Args:
        cluster: The objects.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._of: dict[str, list[Revision]] = {}
        self.hosts: list[str] = []

    def reconcile(self, service: Thing) -> None:
        """Bring what there is nearer to what is wanted; the cluster is locked."""
        marks = service["metadata"].get("annotations") or {}
        mode = marks.get(_MODE, self._cluster.kserve_mode)
        if mode == "Serverless":
            self._serverless(service)
        elif mode == "RawDeployment":
            self._raw(service)

    def _serverless(self, service: Thing) -> None:
        meta, predictor = service["metadata"], service["spec"]["predictor"]
        if refused := _refused(predictor):
            told = f'admission webhook "validation.webhook.serving.knative.dev" denied the request: {refused}'
            self._tell(service, "False", reason="ReconcileFailed", message=told)
            return
        known = self._of.setdefault(meta["uid"], [])
        parts = {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"}
        key = json.dumps([parts, meta.get("annotations"), meta.get("labels")], sort_keys=True)
        if not known or known[-1].key != key:
            known.append(Revision(f"{meta['name']}-predictor-{len(known) + 1:05d}", key))
        told = dict(service.get("status", {}).get("components", {}).get("predictor", {}))
        latest = next((item for item in reversed(known) if item.ready), None)
        traffic = _traffic(predictor, told, latest)
        led = {item["revisionName"] for item in traffic}
        for item in known:
            self._run(service, item, wanted=item is known[-1] or item.name in led)
        told["latestCreatedRevision"] = known[-1].name
        if latest is not None:
            told["latestReadyRevision"] = latest.name
            _rolled_out(told, traffic, latest.name)
            told["traffic"] = traffic
        self._cluster.status(service, components={"predictor": told})
        up = latest is known[-1]
        self._tell(service, "True" if up else "Unknown", routed=latest is not None)

    def _run(self, service: Thing, revision: Revision, *, wanted: bool) -> None:
        things, name = self._cluster.things["deployments"], f"{revision.name}-deployment"
        if name not in things:
            if not wanted:
                return
            marks = {
                REVISION: revision.name,
                "serving.kserve.io/inferenceservice": service["metadata"]["name"],
            }
            self._deploy(service, name, marks)
        found = things[name]
        least = max(1, service["spec"]["predictor"].get("minReplicas", 1))
        found["spec"]["replicas"] = least if wanted else 0
        revision.ready = revision.ready or found.get("status", {}).get("readyReplicas", 0) >= least

    def _deploy(self, service: Thing, name: str, marks: dict[str, str]) -> None:
        template = _template(service, marks)
        owner = {key: service[key] for key in ("apiVersion", "kind")}
        owner |= {key: service["metadata"][key] for key in ("name", "uid")}
        self._cluster.add(
            "deployments",
            {
                "metadata": {
                    "name": name,
                    "labels": template["metadata"]["labels"],
                    "ownerReferences": [owner],
                },
                "spec": {"replicas": 1, "selector": {"matchLabels": marks}, "template": template},
            },
        )

    def _raw(self, service: Thing) -> None:
        name = f"{service['metadata']['name']}-predictor"
        marks = {"app": f"isvc.{name}"}
        things = self._cluster.things["deployments"]
        if name not in things:
            self._deploy(service, name, marks)
        found = things[name]
        template = _template(service, marks)
        if found["spec"]["template"] != template:
            found["spec"]["template"] = template
            found["metadata"]["generation"] += 1
        found["spec"]["replicas"] = max(1, service["spec"]["predictor"].get("minReplicas", 1))
        up = found.get("status", {}).get("readyReplicas", 0) >= found["spec"]["replicas"]
        self._cluster.status(service, components={"predictor": {}})
        self._tell(service, "True" if up else "False", routed=up, mode="RawDeployment")

    def _tell(
        self,
        service: Thing,
        status: str,
        *,
        routed: bool = False,
        mode: str = "Serverless",
        **more: str,
    ) -> None:
        conditions = [
            {"type": "PredictorReady", "status": status, **more},
            {"type": "IngressReady", "status": "True" if routed else "Unknown"},
            {"type": "Ready", "status": status if routed else "Unknown", **more},
        ]
        meta = service["metadata"]
        fields: Thing = {"conditions": conditions, "deploymentMode": mode}
        if routed:
            fields["url"] = f"http://{meta['name']}.{meta['namespace']}.example.com"
            inside = f"http://{meta['name']}.{meta['namespace']}.svc.cluster.local"
            fields["address"] = {"url": inside}
        self._cluster.status(service, **fields)

    def gateway(self, environ: Thing, start: Callable[..., Any]) -> list[bytes]:
        """Istio's ingress gateway: it knows an endpoint by the host's name."""
        host = environ["HTTP_HOST"]
        self.hosts.append(host)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        port = self._port(host)
        if port is None:
            start("404 .", [("Content-Length", "0")])
            return [b""]
        reply = httpx.post(
            f"http://127.0.0.1:{port}{environ['PATH_INFO']}",
            content=body,
            headers={"Content-Type": environ["CONTENT_TYPE"]},
            timeout=60,
        )
        start(f"{reply.status_code} .", [("Content-Length", str(len(reply.content)))])
        return [reply.content]

    def _port(self, host: str) -> int | None:
        from .kube import _is_ready

        cluster = self._cluster
        with cluster.lock:
            name, _, rest = host.partition(".")
            service = cluster.things["inferenceservices"].get(name)
            if service is None or rest != f"{service['metadata']['namespace']}.example.com":
                return None
            traffic = service["status"]["components"]["predictor"].get("traffic")
            pods = [pod for pod in cluster.things["pods"].values() if _is_ready(pod)]
            if traffic:
                shares = [item.get("percent", 0) for item in traffic]
                (chosen,) = random.choices([item["revisionName"] for item in traffic], shares)
                pods = [pod for pod in pods if pod["metadata"]["labels"].get(REVISION) == chosen]
            else:
                app = f"isvc.{name}-predictor"
                pods = [pod for pod in pods if pod["metadata"]["labels"].get("app") == app]
            return cluster.running[random.choice(pods)["metadata"]["name"]].port


def _template(service: Thing, marks: dict[str, str]) -> Thing:
    predictor = json.loads(json.dumps(service["spec"]["predictor"]))
    meta = service["metadata"]
    spec = {key: value for key, value in predictor.items() if key not in EXTENSIONS}
    labels = {**meta.get("labels", {}), **predictor.get("labels", {}), **marks}
    annotations = {**meta.get("annotations", {}), **predictor.get("annotations", {})}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}


def _traffic(predictor: Thing, told: Thing, latest: Revision | None) -> list[Thing]:
    if latest is None:
        return []
    percent, rolled_out = predictor.get("canaryTrafficPercent"), told.get("latestRolledoutRevision")
    if percent is None or not rolled_out or percent == 100:
        return [{"latestRevision": True, "percent": 100, "revisionName": latest.name}]
    return [
        {"latestRevision": True, "percent": percent, "revisionName": latest.name},
        {"latestRevision": False, "percent": 100 - percent, "revisionName": rolled_out, "tag": "prev"},
    ]


def _rolled_out(told: Thing, traffic: list[Thing], latest: str) -> None:
    """KServe's note of the revision that had all traffic last, by which a share of 0 after that is a rollback."""
    percent = traffic[0]["percent"]
    if told.get("latestRolledoutRevision") != latest:
        if percent == 100:
            told["previousRolledoutRevision"] = told.get("latestRolledoutRevision", "")
            told["latestRolledoutRevision"] = latest
    elif latest == told["latestCreatedRevision"] and percent < 100 and told.get("previousRolledoutRevision"):
        told["latestRolledoutRevision"] = told["previousRolledoutRevision"]


def _refused(predictor: Thing) -> str:
    """What Knative does not take."""
    strange = set(predictor) - set(EXTENSIONS) - _POD
    fields = [f"spec.template.spec.{field}" for field in sorted(strange)]
    for inner in predictor["containers"]:
        fields += [f"spec.template.spec.containers[0].{field}" for field in sorted(set(inner) - _CONTAINER)]
        names = {port.get("name", "") for port in inner["ports"]}
        if not names <= {"h2c", "http1", ""}:
            fields.append("spec.template.spec.containers[0].ports[0].name")
        if any(item["name"] in ("PORT", "K_SERVICE", "K_REVISION") for item in inner["env"]):
            fields.append("spec.template.spec.containers[0].env")
    return f"must not set the field(s): {', '.join(fields)}" if fields else ""
