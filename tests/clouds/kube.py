"""A Kubernetes of our own: the published API over HTTP, with controllers that run what they are asked to.

Every object that is sent or answered is held against the published schemas. Jobs make pods by the rules of batch/v1, pods run
their container's command as a subprocess, Deployments keep their pods running, Services lead to those that are ready, and
what is owned goes with its owner. Things go wrong as told (``fail``, ``evict``, ``run_out_of_memory``, …) in the words that
kubelets and controllers use. Kubeflow's training operator (as release 1.9 behaves) is there where ``kubeflow`` says so, and KServe
(``kube_kserve``) where ``kserve`` does.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import socket
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.clouds.faulty import Faulty

from .containers import Training
from .kube_kserve import LIGHT, Revisions
from .kube_models import problems
from .vertex_containers import _base

NAMESPACE, ACCOUNT, TOKEN = "ml", "trainer", "a-token-of-the-tests"
# By plural: prefix of the path, apiVersion, kind.
KINDS = {
    "jobs": ("/apis/batch/v1", "batch/v1", "Job"),
    "deployments": ("/apis/apps/v1", "apps/v1", "Deployment"),
    "pytorchjobs": ("/apis/kubeflow.org/v1", "kubeflow.org/v1", "PyTorchJob"),
    "inferenceservices": (
        "/apis/serving.kserve.io/v1beta1",
        "serving.kserve.io/v1beta1",
        "InferenceService",
    ),
    "pods": ("/api/v1", "v1", "Pod"),
    "podtemplates": ("/api/v1", "v1", "PodTemplate"),
    "services": ("/api/v1", "v1", "Service"),
    "events": ("/api/v1", "v1", "Event"),
    "resourcequotas": ("/api/v1", "v1", "ResourceQuota"),
    "serviceaccounts": ("/api/v1", "v1", "ServiceAccount"),
    "horizontalpodautoscalers": ("/apis/autoscaling/v2", "autoscaling/v2", "HorizontalPodAutoscaler"),
    "ingresses": ("/apis/networking.k8s.io/v1", "networking.k8s.io/v1", "Ingress"),
}
_PATH = re.compile(
    r"(?P<prefix>/api/v1|/apis/[^/]+/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<sub>status|log|proxy)(?P<rest>/.*)?)?)?"
)
_VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PATCH": "patch",
    "PUT": "update",
    "DELETE": "delete",
}
# Those that somebody has to install, and what says that he has.
_INSTALLED = {"pytorchjobs": "kubeflow", "inferenceservices": "kserve"}
_REPLICA = "training.kubeflow.org/replica"
_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)")
Thing = dict[str, Any]


class ApiError(Exception):
    """A ``Status`` that the API answers with."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def document(self) -> Thing:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


@dataclass
class Running:
    """What runs of a pod."""

    stopping: threading.Event = field(default_factory=threading.Event)
    how: str = ""
    lines: list[tuple[str, str]] = field(default_factory=list)
    previous: list[tuple[str, str]] = field(default_factory=list)
    process: Training | None = None
    port: int = 0
    grace: float | None = None


def now() -> str:
    """The time as the API has it: whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _nano() -> str:
    ns = time.time_ns()
    whole = datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{ns % 10**9:09d}".rstrip("0").rstrip(".") + "Z"


class Cluster:
    """The objects of one namespace, and the controllers.

    Args:
        folder: For the containers.
        pace: Seconds that a pod takes to be scheduled, and its image to be pulled.
    """

    def __init__(self, folder: Path, pace: float) -> None:
        self.folder, self.pace = folder, pace
        self.lock = threading.RLock()
        self.things: dict[str, dict[str, Thing]] = {kind: {} for kind in KINDS}
        self.running: dict[str, Running] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.quota: dict[str, float] = {}
        self.node: dict[str, Any] = {"cpu": 16.0, "labels": {"node.kubernetes.io/instance-type": "m5.large"}}
        self.violations: list[str] = []
        self.most_grace = 3.0
        self.kubeflow = False
        self.kserve = False
        self.light = False
        self.kserve_mode = "Serverless"
        self.revisions = Revisions(self)
        self._version = 100
        self._closed = threading.Event()
        self.add("serviceaccounts", {"metadata": {"name": ACCOUNT}})
        threading.Thread(target=self._control, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        for item in list(self.running.values()):
            item.grace = 0.0
            item.stopping.set()
            if item.process is not None:
                item.process.stop(0.0)

    # Objects

    def add(self, kind: str, thing: Thing) -> Thing:
        """Make an object, as the API server does."""
        _, version, name = KINDS[kind]
        meta = thing["metadata"]
        with self.lock:
            if meta["name"] in self.things[kind]:
                raise ApiError(409, "AlreadyExists", f'{kind} "{meta["name"]}" already exists')
            self._version += 1
            meta |= {
                "namespace": NAMESPACE,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": now(),
                "resourceVersion": str(self._version),
            }
            if "spec" in thing:
                meta["generation"] = 1
            made = {"apiVersion": version, "kind": name, **thing}
            if kind == "services" and made["spec"].get("clusterIP") != "None":
                made["spec"]["clusterIP"] = f"10.0.0.{len(self.things[kind]) + 1}"
            self.things[kind][meta["name"]] = made
        return made

    def one(self, kind: str, name: str) -> Thing:
        with self.lock:
            if name not in self.things[kind]:
                raise ApiError(404, "NotFound", f'{kind} "{name}" not found')
            return self.things[kind][name]

    def touch(self, thing: Thing) -> None:
        with self.lock:
            self._version += 1
            thing["metadata"]["resourceVersion"] = str(self._version)

    def status(self, thing: Thing, **fields: Any) -> None:
        """Set what is new of a status."""
        with self.lock:
            before = thing.setdefault("status", {})
            if any(before.get(key) != value for key, value in fields.items()):
                before.update({key: value for key, value in fields.items() if value is not None})
                self.touch(thing)

    def remove(self, kind: str, name: str, propagation: str = "Background") -> None:
        """Delete an object: pods with grace, and with it, or before it, what it owns."""
        with self.lock:
            thing = self.one(kind, name)
            uid = thing["metadata"]["uid"]
            if kind == "pods":
                self._end_pod(thing, "deleted")
                return
            owned = [
                (other, item["metadata"]["name"])
                for other, all_of in self.things.items()
                for item in all_of.values()
                if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", ()))
            ]
            if propagation == "Foreground" and owned:
                thing["metadata"].setdefault("deletionTimestamp", now())
                thing["metadata"]["deletionGracePeriodSeconds"] = 0
                thing["metadata"]["finalizers"] = ["foregroundDeletion"]
                self.touch(thing)
            else:
                del self.things[kind][name]
            for other, item_name in owned:
                with contextlib.suppress(ApiError):
                    self.remove(other, item_name, propagation)

    def event(self, about: Thing, reason: str, message: str) -> None:
        """Say something of an object, once."""
        with self.lock:
            name = f"{about['metadata']['name']}.{abs(hash((reason, message))):x}"
            if name in self.things["events"]:
                return
            keys = ("apiVersion", "kind")
            reference = {key: about[key] for key in keys}
            reference |= {key: about["metadata"][key] for key in ("name", "namespace", "uid")}
            event = {"involvedObject": reference, "reason": reason, "message": message, "type": "Warning"}
            self.add("events", {"metadata": {"name": name}, "firstTimestamp": now(), "count": 1, **event})

    def owned(self, owner: Thing) -> list[Thing]:
        """The pods of an owner."""
        uid = owner["metadata"]["uid"]
        with self.lock:
            return [
                pod
                for pod in self.things["pods"].values()
                if any(item["uid"] == uid for item in pod["metadata"].get("ownerReferences", ()))
            ]

    # On purpose

    def evict(self, pod: str, message: str = "The node was low on resource: memory.") -> None:
        """Node pressure takes a pod away; the object stays."""
        with self.lock:
            self.running[pod].how = f"evicted:{message}"
            self.running[pod].grace = 0.0
            self.running[pod].stopping.set()

    def run_out_of_memory(self, pod: str) -> None:
        """The kernel kills all of a container."""
        with self.lock:
            self.running[pod].how = "oom"
            self.running[pod].grace = 0.0
            self.running[pod].stopping.set()

    # Controllers

    def _control(self) -> None:
        while not self._closed.wait(0.02):
            with self.lock:
                for job in list(self.things["jobs"].values()):
                    self._job(job)
                for job in list(self.things["pytorchjobs"].values()):
                    self._pytorch_job(job)
                for service in list(self.things["inferenceservices"].values()):
                    self.revisions.reconcile(service)
                for deployment in list(self.things["deployments"].values()):
                    self._deployment(deployment)
                self._collect()

    def _collect(self) -> None:
        for kind in ("jobs", "pytorchjobs", "deployments"):
            for name, thing in list(self.things[kind].items()):
                if thing["metadata"].get("deletionTimestamp") and not self.owned(thing):
                    del self.things[kind][name]

    def _job(self, job: Thing) -> None:
        spec, status, meta = job["spec"], job.setdefault("status", {}), job["metadata"]
        ended = {item["type"] for item in status.get("conditions", ())} & {"Complete", "Failed"}
        if ended or meta.get("deletionTimestamp"):
            return
        status.setdefault("startTime", now())
        status.setdefault("_counted", set())
        counted = status["_counted"]
        pods = self.owned(job)
        wanted = range(spec.get("completions", 1))
        if (limit := spec.get("activeDeadlineSeconds")) and _age(meta["creationTimestamp"]) > limit:
            self._end_job(job, pods, "DeadlineExceeded", "Job was active longer than specified deadline")
            return
        for pod in pods:
            if pod.get("status", {}).get("phase") != "Failed" or pod["metadata"]["name"] in counted:
                continue
            counted.add(pod["metadata"]["name"])
            rule = _rule(spec, pod)
            if rule.startswith("FailJob"):
                self._end_job(job, pods, "PodFailurePolicy", rule.partition(":")[2])
                return
            if len(counted) > spec.get("backoffLimit", 6):
                self._end_job(
                    job, pods, "BackoffLimitExceeded", "Job has reached the specified backoff limit"
                )
                return
        done = {_index(pod) for pod in pods if pod["status"].get("phase") == "Succeeded"}
        active = {_index(pod) for pod in pods if pod["status"].get("phase") in ("Pending", "Running")}
        if done >= set(wanted):
            self.status(
                job,
                conditions=[_condition("SuccessCriteriaMet"), _condition("Complete")],
                succeeded=len(done),
                active=0,
                ready=0,
                completionTime=now(),
            )
            return
        for index in wanted:
            if index not in done | active:
                self._make_job_pod(job, index)
        running = [pod for pod in pods if pod["status"].get("phase") == "Running"]
        self.status(job, active=len(active), ready=len(running), failed=len(counted), succeeded=len(done))

    def _end_job(self, job: Thing, pods: list[Thing], reason: str, message: str) -> None:
        alive = [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]
        for pod in alive:
            self._end_pod(pod, "deleted")
        if not alive:  # the condition comes when all pods have ended
            condition = {**_condition("Failed"), "reason": reason, "message": message}
            self.status(job, conditions=[condition], active=0, ready=0, failed=len(pods))

    def _make_job_pod(self, job: Thing, index: int) -> None:
        name = job["metadata"]["name"]
        indexed = job["spec"].get("completionMode") == "Indexed"
        annotations = {"batch.kubernetes.io/job-completion-index": str(index)} if indexed else {}
        labels = {"batch.kubernetes.io/job-name": name, "job-name": name}
        base = f"{name}-{index}" if indexed else name
        self._make_pod(job, base, labels, annotations)

    # Kubeflow's training operator

    def _pytorch_job(self, job: Thing) -> None:
        meta, spec, status = job["metadata"], job["spec"], job.setdefault("status", {})
        if meta.get("deletionTimestamp"):
            return
        pods, name = self.owned(job), meta["name"]
        alive = [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]
        if _holds(job, "Succeeded") or _holds(job, "Failed"):
            for pod in alive if spec["runPolicy"].get("cleanPodPolicy") == "Running" else ():
                self._end_pod(pod, "deleted")
            return
        if not status:
            self._tell(job, "Created", f"PyTorchJob {name} is created.")
            self.status(job, startTime=now(), replicaStatuses={})
        limit = spec["runPolicy"].get("activeDeadlineSeconds")
        if limit and _age(status["startTime"]) > limit:
            for pod in pods:
                self._end_pod(pod, "deleted")
            self._tell(
                job,
                "Failed",
                f"Job {name} has failed because it was active longer than specified deadline",
            )
            return
        replicas = spec["pytorchReplicaSpecs"]
        world = sum(item.get("replicas", 1) for item in replicas.values())
        counts = {}
        for role, item in replicas.items():
            mine = [pod for pod in pods if pod["metadata"]["labels"][f"{_REPLICA}-type"] == role.lower()]
            known = {pod["metadata"]["labels"][f"{_REPLICA}-index"] for pod in mine}
            for index in range(item.get("replicas", 1)):
                if str(index) not in known:
                    self._make_replica(job, role, index, world)
            phases = [pod["status"].get("phase") for pod in mine]
            counts[role] = {
                "active": phases.count("Running"),
                "succeeded": phases.count("Succeeded"),
                "failed": phases.count("Failed"),
            }
        self.status(job, replicaStatuses=counts)
        if counts["Master"]["succeeded"]:
            self._tell(job, "Succeeded", f"PyTorchJob {name} is successfully completed.")
        elif failed := next((role for role, found in counts.items() if found["failed"]), None):
            number = counts[failed]["failed"]
            self._tell(
                job, "Failed", f"PyTorchJob {name} is failed because {number} {failed} replica(s) failed."
            )
        elif counts["Master"]["active"] and not _holds(job, "Running"):
            self._tell(job, "Running", f"PyTorchJob {name} is running.")

    def _tell(self, job: Thing, kind: str, message: str) -> None:
        """A condition of a PyTorchJob: what has ended does not run any more."""
        before = job["status"].get("conditions", ())
        told = {
            **_condition(kind),
            "lastUpdateTime": now(),
            "reason": f"PyTorchJob{kind}",
            "message": message,
        }
        if kind in ("Succeeded", "Failed"):
            before = [{**item, "status": "False"} if item["type"] == "Running" else item for item in before]
            self.status(job, completionTime=now())
        self.status(job, conditions=[*before, told])

    def _make_replica(self, job: Thing, role: str, index: int, world: int) -> None:
        """A pod with a name of its own, by which the others find it, and with what torch.distributed begins from."""
        name = job["metadata"]["name"]
        replica = json.loads(json.dumps(job["spec"]["pytorchReplicaSpecs"][role]))
        template = replica["template"]
        template["spec"]["restartPolicy"] = replica.get("restartPolicy", "OnFailure")
        (inner,) = template["spec"]["containers"]
        inner.setdefault("ports", []).append({"name": "pytorchjob-port", "containerPort": 23456})
        rank = index + 1 if role == "Worker" else 0
        told = {
            "PYTHONUNBUFFERED": "1",
            "MASTER_PORT": "23456",
            "PET_MASTER_PORT": "23456",
            "MASTER_ADDR": f"{name}-master-0",
            "PET_MASTER_ADDR": f"{name}-master-0",
            "WORLD_SIZE": str(world),
            "RANK": str(rank),
            "PET_NODE_RANK": str(rank),
            "PET_NPROC_PER_NODE": "auto",
            "PET_NNODES": str(world),
        }
        inner["env"] += [{"name": key, "value": value} for key, value in told.items()]
        labels = {
            "training.kubeflow.org/job-name": name,
            "training.kubeflow.org/operator-name": "pytorchjob-controller",
            f"{_REPLICA}-type": role.lower(),
            f"{_REPLICA}-index": str(index),
            **({"training.kubeflow.org/job-role": "master"} if role == "Master" else {}),
        }
        self._make_pod(job, f"{name}-{role.lower()}-{index}", labels, {}, template)

    # What controllers have in common

    def _make_pod(
        self,
        owner: Thing,
        base: str,
        labels: dict[str, str],
        annotations: dict[str, str],
        template: Thing | None = None,
    ) -> None:
        """A pod of an owner's template, with a name of its own; or of another template, with just that name."""
        name = f"{base}-{uuid.uuid4().hex[:5]}" if template is None else base
        template = owner["spec"]["template"] if template is None else template
        account = template["spec"].get("serviceAccountName", "default")
        refused = self._no_room(template, name)
        if account not in ("default", *self.things["serviceaccounts"]):
            refused = (
                f'pods "{name}" is forbidden: error looking up service account {NAMESPACE}/{account}: '
                f'serviceaccount "{account}" not found'
            )
        if refused:
            reason = "FailedCreatePod" if owner["kind"] == "PyTorchJob" else "FailedCreate"
            self.event(owner, reason, f"Error creating: {refused.replace(name, base)}")
            return
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
        pod = {
            "metadata": {
                "name": name,
                "labels": {**template["metadata"].get("labels", {}), **labels},
                "annotations": {**template["metadata"].get("annotations", {}), **annotations},
                "ownerReferences": [{**reference, "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": json.loads(json.dumps(template["spec"])),
            "status": {"phase": "Pending"},
        }
        self._check({"apiVersion": "v1", "kind": "Pod", **pod})
        made = self.add("pods", pod)
        self.running[name] = Running()
        threading.Thread(target=self._pod, args=(made, self.running[name]), daemon=True).start()

    def _no_room(self, template: Thing, name: str) -> str:
        """What ResourceQuota says to a new pod; nothing where it fits."""
        alive = [p for p in self.things["pods"].values() if p["status"]["phase"] in ("Pending", "Running")]
        if "pods" in self.quota and len(alive) >= self.quota["pods"]:
            most = int(self.quota["pods"])
            return (
                f'pods "{name}" is forbidden: exceeded quota: team, requested: pods=1, used: pods={len(alive)}, '
                f"limited: pods={most}"
            )
        return ""

    def _deployment(self, deployment: Thing) -> None:
        spec, meta = deployment["spec"], deployment["metadata"]
        if meta.get("deletionTimestamp"):
            return
        pods = [p for p in self.owned(deployment) if not p["metadata"].get("deletionTimestamp")]
        wanted = spec.get("replicas", 1)
        mark = f"{zlib.crc32(json.dumps(spec['template'], sort_keys=True).encode()):08x}"
        old = [pod for pod in pods if pod["metadata"]["labels"]["pod-template-hash"] != mark]
        pods = [pod for pod in pods if pod not in old]
        for _ in range(wanted - len(pods)):
            self._make_pod(deployment, f"{meta['name']}-{mark}", {"pod-template-hash": mark}, {})
        # A rollout of another template ends the old pods when the new ones are ready.
        done = sum(_is_ready(pod) for pod in pods[:wanted]) >= wanted
        for pod in pods[wanted:] + (old if done else []):
            self._end_pod(pod, "deleted")
        pods = pods[:wanted]
        ready = sum(_is_ready(pod) for pod in pods)
        conditions = [_condition("Available", "True" if ready >= wanted else "False")]
        self.status(
            deployment,
            observedGeneration=meta["generation"],
            replicas=len(pods),
            updatedReplicas=len(pods),
            readyReplicas=ready,
            availableReplicas=ready,
            conditions=deployment.get("status", {}).get("conditions") or conditions,
        )

    # Pods

    def _end_pod(self, pod: Thing, how: str) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            return
        pod["metadata"]["deletionTimestamp"] = now()
        pod["metadata"]["deletionGracePeriodSeconds"] = pod["spec"].get("terminationGracePeriodSeconds", 30)
        self.touch(pod)
        running = self.running[pod["metadata"]["name"]]
        running.how = running.how or how
        running.stopping.set()

    def _pod(self, pod: Thing, running: Running) -> None:
        try:
            if self._prepared(pod, running):
                self._live(pod, running)
        except Exception as error:  # told by the test's end
            self.violations.append(f"pod: {error!r}")
            raise
        finally:
            with self.lock:
                if "deletionTimestamp" in pod["metadata"]:
                    # A Job's pod stays (by a finalizer) until its end is counted.
                    self._count(pod)
                    self.things["pods"].pop(pod["metadata"]["name"], None)

    def _count(self, pod: Thing) -> None:
        for owner in pod["metadata"]["ownerReferences"]:
            job = self.things["jobs"].get(owner["name"]) if owner["kind"] == "Job" else None
            if job is not None:
                if pod["status"]["phase"] in ("Pending", "Running"):
                    pod["status"]["phase"] = "Failed"
                self._job(job)

    def _prepared(self, pod: Thing, running: Running) -> bool:
        """Schedule, pull, configure; False where it was taken away meanwhile."""
        spec, meta = pod["spec"], pod["metadata"]
        (inner,) = spec["containers"]
        if running.stopping.wait(self.pace):
            return False
        while why := self._unschedulable(spec):
            condition = {**_condition("PodScheduled", "False"), "reason": "Unschedulable", "message": why}
            self.status(pod, conditions=[condition])
            if running.stopping.wait(0.05):
                return False
        with self.lock:
            spec["nodeName"] = "node-1"
            self.status(pod, conditions=[_condition("PodScheduled")], startTime=now())
        self._state(pod, {"waiting": {"reason": "ContainerCreating"}})
        first = True
        while why := self._unconfigured(inner, first):
            self._state(pod, {"waiting": {"reason": why[0], "message": why[1]}})
            if running.stopping.wait(0.1):
                return False
            first = False
        return not running.stopping.wait(self.pace) and bool(meta)

    def _unschedulable(self, spec: Thing) -> str:
        cpu = _number(spec["containers"][0]["resources"]["requests"]["cpu"])
        tail = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        if cpu > self.node["cpu"]:
            return f"0/1 nodes are available: 1 Insufficient cpu. {tail}"
        if any(self.node["labels"].get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
            return f"0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. {tail}"
        return ""

    def _unconfigured(self, inner: Thing, first: bool) -> tuple[str, str] | None:
        image = inner["image"]
        if "missing" in image:
            pulling = (
                f'failed to pull and unpack image "docker.io/{image}": failed to resolve reference: not found'
            )
            if first:
                return "ErrImagePull", pulling
            return "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {pulling}'
        for item in inner.get("envFrom", ()):
            if item["secretRef"]["name"] not in self.secrets:
                return "CreateContainerConfigError", f'secret "{item["secretRef"]["name"]}" not found'
        return None

    def _live(self, pod: Thing, running: Running) -> None:
        always = pod["spec"].get("restartPolicy", "Always") == "Always"
        restarts, last = 0, {}
        while True:
            code, began = self._container(pod, running, restarts, last)
            how = running.how
            reason = "Completed" if code == 0 else "Error"
            if how == "oom":
                code, reason = 137, "OOMKilled"
            end = {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now()}
            end["containerID"] = "containerd://1"
            if not always or (running.stopping.is_set() and how != "oom"):
                break
            restarts, last = restarts + 1, {"terminated": end}
            running.stopping.clear()
            running.how = ""
            waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
            self._state(pod, {"waiting": waiting}, restarts, last)
            running.previous, running.lines = running.lines, []
            if running.stopping.wait(self.pace * 4):
                return
        with self.lock:
            self._state(pod, {"terminated": end}, restarts)
            fields: Thing = {"phase": "Succeeded" if code == 0 else "Failed"}
            if how.startswith("evicted:"):
                message = how.partition(":")[2]
                disrupted = {
                    **_condition("DisruptionTarget"),
                    "reason": "TerminationByKubelet",
                    "message": message,
                }
                conditions = [*pod["status"].get("conditions", ()), disrupted]
                fields = {
                    "phase": "Failed",
                    "reason": "Evicted",
                    "message": message,
                    "conditions": conditions,
                }
            if how == "deadline":
                message = "Pod was active on the node longer than the specified deadline"
                fields = {"phase": "Failed", "reason": "DeadlineExceeded", "message": message}
            self.status(pod, **fields)

    def _container(self, pod: Thing, running: Running, restarts: int, last: Thing) -> tuple[int, str]:
        spec, name = pod["spec"], pod["metadata"]["name"]
        (inner,) = spec["containers"]
        base = self.folder / "pods" / f"{name}-{restarts}"
        (base / "code").mkdir(parents=True)
        environment = self._environment(pod, inner, base)
        if "ports" in inner:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                running.port = probe.getsockname()[1]
            # All pods share this machine's ports.
            environment["NOTEBOOKED_PORT"] = str(running.port)
        command = [_expanded(part, environment) for part in [*inner["command"], *inner.get("args", ())]]
        assert command[0] == "python3"
        process = Training(
            base, command[1:], environment, lambda line: running.lines.append((_nano(), line)), sys.executable
        )
        began, started = now(), time.monotonic()
        with self.lock:
            running.process = process
            self._state(pod, {"running": {"startedAt": began}}, restarts, last)
            self.status(pod, phase="Running")
        while True:
            code = process.wait(0.03)
            if code is not None:
                break
            if (limit := spec.get("activeDeadlineSeconds")) and time.monotonic() - started > limit:
                running.how = "deadline"
                running.stopping.set()
            if running.stopping.is_set():
                grace = spec.get("terminationGracePeriodSeconds", 30)
                process.stop(min(grace, self.most_grace) if running.grace is None else running.grace)
                code = process.wait(1)
                break
            if "readinessProbe" in inner:
                self._probe(pod, inner, running, began, restarts, last)
        # All of a container's processes end with its first.
        process.stop(0.0)
        code = 137 if code is None else code
        return (128 - code if code < 0 else code), began

    def _environment(self, pod: Thing, inner: Thing, base: Path) -> dict[str, str]:
        found = {**_base(base), "TMPDIR": str(base), "HOME": str(base)}
        for name, text in LIGHT.items() if self.light else ():
            file = Path(found["PYTHONPATH"]) / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        for item in inner.get("envFrom", ()):
            found |= self.secrets[item["secretRef"]["name"]]
        for item in inner.get("env", ()):
            if item["name"] not in ("HOME", "TMPDIR"):
                found[item["name"]] = _expanded(item["value"], found)
        if index := pod["metadata"]["annotations"].get("batch.kubernetes.io/job-completion-index"):
            found["JOB_COMPLETION_INDEX"] = index
        return found

    def _probe(
        self, pod: Thing, inner: Thing, running: Running, began: str, restarts: int, last: Thing
    ) -> None:
        if _is_ready(pod):
            return
        path = inner["readinessProbe"]["httpGet"]["path"]
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{running.port}{path}", timeout=5).status_code == 200:
                with self.lock:
                    self._state(pod, {"running": {"startedAt": began}}, restarts, last, ready=True)
                    self.status(pod, conditions=[_condition("PodScheduled"), _condition("Ready")])

    def _state(
        self, pod: Thing, state: Thing, restarts: int = 0, last: Thing | None = None, ready: bool = False
    ) -> None:
        (inner,) = pod["spec"]["containers"]
        status = {
            "name": inner["name"],
            "image": inner["image"],
            "imageID": "",
            "ready": ready,
            "restartCount": restarts,
            "state": state,
            "lastState": last or {},
        }
        with self.lock:
            if not ready and "conditions" in pod["status"]:
                pod["status"]["conditions"] = [
                    item for item in pod["status"]["conditions"] if item["type"] != "Ready"
                ]
            self.status(pod, containerStatuses=[status])

    def _check(self, thing: Thing) -> None:
        self.violations.extend(problems(thing))


def _condition(kind: str, status: str = "True") -> Thing:
    return {"type": kind, "status": status, "lastTransitionTime": now()}


def _is_ready(pod: Thing) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    gone = "deletionTimestamp" in pod["metadata"]
    return not gone and any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _holds(thing: Thing, kind: str) -> bool:
    """Whether a condition is true."""
    conditions = thing.get("status", {}).get("conditions", ())
    return any((item["type"], item["status"]) == (kind, "True") for item in conditions)


def _index(pod: Thing) -> int:
    return int(pod["metadata"]["annotations"].get("batch.kubernetes.io/job-completion-index", 0))


def _age(stamp: str) -> float:
    return time.time() - datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _rule(spec: Thing, pod: Thing) -> str:
    """What a Job's podFailurePolicy says to a pod that failed."""
    status = pod["status"]
    for number, rule in enumerate(spec.get("podFailurePolicy", {}).get("rules", ())):
        for wanted in rule.get("onPodConditions", ()):
            if any(
                item["type"] == wanted["type"] and item["status"] == wanted["status"]
                for item in status.get("conditions", ())
            ):
                return str(rule["action"])
        codes = rule.get("onExitCodes")
        for item in status.get("containerStatuses", ()) if codes else ():
            ended = item["state"].get("terminated")
            if ended and (ended["exitCode"] in codes["values"]) == (codes["operator"] == "In"):
                return (
                    f"{rule['action']}:Container {item['name']} for pod {NAMESPACE}/{pod['metadata']['name']} failed "
                    f"with exit code {ended['exitCode']} matching {rule['action']} rule at index {number}"
                )
    return "Count"


def _expanded(text: str, environment: dict[str, str]) -> str:
    """``$(NAME)`` as the kubelet has it: unknown names stay, ``$$`` is one dollar."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def _selected(thing: Thing, selector: str) -> bool:
    labels = thing["metadata"].get("labels", {})
    for part in filter(None, selector.split(",")):
        key, equals, value = part.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _merge(thing: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    merged = dict(thing) if isinstance(thing, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _shown(thing: Thing) -> Thing:
    """As it is answered, without what the controllers note for themselves."""
    found: Thing = json.loads(json.dumps(thing, default=list))
    if isinstance(found.get("status"), dict):
        found["status"].pop("_counted", None)
    return found


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args: Any) -> None:
        pass


class _Lost(Exception):
    """The connection ends without a reply."""


@dataclass
class Reply:
    """A reply's status, body and type."""

    status: int
    body: bytes
    kind: str = "application/json"


def _json(document: Thing, status: int = 200) -> Reply:
    return Reply(status, json.dumps(document).encode())


class KubeServer(Faulty):
    """An API server on a port of this machine, and an S3 on another."""

    def __init__(self, folder: Path, *, pace: float = 0.03) -> None:
        from moto.moto_api._internal.models import moto_api_backend
        from moto.server import DomainDispatcherApplication, create_backend_app

        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.cluster = Cluster(folder, pace)
        self.denied: set[str] = set()
        self._judged: set[tuple[str, str]] = set()
        # moto keeps its buckets in the process; a new server starts with none.
        moto_api_backend.reset()
        self._servers: list[BaseWSGIServer] = []
        self.url = self._serve(self._answer)
        self.gateway_url = self._serve(self.cluster.revisions.gateway)
        self.s3_url = self._serve(DomainDispatcherApplication(create_backend_app))

    def _serve(self, app: Any) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        """End it and whatever runs in it."""
        self.cluster.close()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes] | list[bytes]:
        raw = environ.get("RAW_URI") or environ["REQUEST_URI"]
        path, _, text = raw.partition("?")
        query = dict(parse_qsl(text, keep_blank_values=True))
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        try:
            reply = self._dispatch(environ, unquote(path), query, body)
        except _Lost:
            # Closed without a word, as a broken line does.
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError from None
        except ApiError as error:
            reply = _json(error.document(), error.code)
        start(f"{reply.status} .", [("Content-Type", reply.kind), ("Content-Length", str(len(reply.body)))])
        return [reply.body]

    def _dispatch(self, environ: dict[str, Any], path: str, query: dict[str, str], body: bytes) -> Reply:
        verb = environ["REQUEST_METHOD"]
        match = _PATH.fullmatch(path)
        name = f"{_VERBS[verb]} {path}"
        if match:
            what = _VERBS[verb] if match["name"] or verb != "GET" else "list"
            sub = f"/{match['sub']}" if match["sub"] else ""
            name = f"{'create' if sub == '/proxy' and verb == 'POST' else what} {match['kind']}{sub}"
        self.calls.append(name)
        fault = self.fault(name)
        if fault == "drop":
            raise _Lost
        _refuse(fault, name)
        if environ.get("HTTP_AUTHORIZATION") != f"Bearer {TOKEN}":
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if name in self.denied:
            raise _forbidden(name)
        reply = self._act(verb, path, match, query, body, environ)
        if fault == "lost":
            raise _Lost
        return reply

    def _act(
        self,
        verb: str,
        path: str,
        match: re.Match[str] | None,
        query: dict[str, str],
        body: bytes,
        environ: dict[str, Any],
    ) -> Reply:
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" and verb == "POST":
            return self._review(json.loads(body))
        if path == f"/api/v1/namespaces/{NAMESPACE}":
            return _json({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        if path == "/version":
            return _json({"major": "1", "minor": "31", "gitVersion": "v1.31.0"})
        for kind, owner in _INSTALLED.items():
            group, version, word = KINDS[kind]
            if path.startswith(group) and not getattr(self.cluster, owner):
                return Reply(404, b"404 page not found\n", "text/plain")
            if path == group:
                verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
                known = {"name": kind, "kind": word, "namespaced": True, "verbs": verbs}
                known |= {"singularName": word.lower()}
                return _json({"kind": "APIResourceList", "groupVersion": version, "resources": [known]})
        if match is None or match["kind"] not in KINDS or KINDS[match["kind"]][0] != match["prefix"]:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if match["namespace"] != NAMESPACE:
            if verb == "POST":
                raise ApiError(404, "NotFound", f'namespaces "{match["namespace"]}" not found')
            if match["name"]:
                raise ApiError(404, "NotFound", f'{match["kind"]} "{match["name"]}" not found')
        if match["sub"] == "log":
            return self._log(match["name"], query)
        if match["sub"] == "proxy":
            kind = environ.get("CONTENT_TYPE") or "application/json"
            return self._proxy(match["kind"], match["name"], match["rest"] or "/", verb, body, kind)
        with self.cluster.lock:
            return self._objects(verb, match["kind"], match["name"], query, body, environ)

    def _objects(
        self,
        verb: str,
        kind: str,
        name: str | None,
        query: dict[str, str],
        body: bytes,
        environ: dict[str, Any],
    ) -> Reply:
        cluster = self.cluster
        if verb == "GET" and name:
            return self._shown(cluster.one(kind, name))
        if verb == "GET":
            return self._list(kind, query)
        document = json.loads(body or b"{}")
        if verb == "POST":
            self._invalid(document)
            _, version, word = KINDS[kind]
            if (document["apiVersion"], document["kind"]) != (version, word):
                raise ApiError(400, "BadRequest", "the object does not match the expected options")
            most = cluster.quota.get(f"count/{kind}.{version.partition('/')[0]}")
            if most is not None and len(cluster.things[kind]) >= most:
                used = len(cluster.things[kind])
                raise ApiError(
                    403,
                    "Forbidden",
                    f'{kind}.batch "{document["metadata"]["name"]}" is forbidden: exceeded quota: team, requested: '
                    f"count/{kind}.batch=1, used: count/{kind}.batch={used}, limited: count/{kind}.batch={int(most)}",
                )
            return self._shown(cluster.add(kind, document), 201)
        assert name is not None
        thing = cluster.one(kind, name)
        if verb == "DELETE":
            uid = document.get("preconditions", {}).get("uid")
            if uid and uid != thing["metadata"]["uid"]:
                raise ApiError(409, "Conflict", f"Precondition failed: UID in precondition: {uid}")
            cluster.remove(kind, name, document.get("propagationPolicy", "Background"))
            return _json({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"})
        if verb in ("PATCH", "PUT"):
            merged = environ["CONTENT_TYPE"] == "application/merge-patch+json"
            assert merged == (verb == "PATCH")
            wanted = document.get("metadata", {}).get("resourceVersion")
            assert wanted or merged
            if wanted and wanted != thing["metadata"]["resourceVersion"]:
                raise ApiError(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {kind} "{name}": the object has been modified; please apply '
                    "your changes to the latest version and try again",
                )
            document.pop("status", None)
            changed = _merge(_shown(thing), document) if merged else {**_shown(thing), **document}
            self._invalid(changed)
            if changed.get("spec") != thing.get("spec"):
                changed["metadata"]["generation"] = thing["metadata"].get("generation", 0) + 1
            if changed != thing:
                thing.update({key: changed[key] for key in changed if key != "status"})
                cluster.touch(thing)
            return self._shown(thing)
        raise ApiError(
            405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
        )

    def _invalid(self, document: Thing) -> None:
        if found := problems(document):
            raise ApiError(422, "Invalid", f"{document['kind']} is invalid: {'; '.join(found)}")

    def _shown(self, thing: Thing, status: int = 200) -> Reply:
        found = _shown(thing)
        meta = found["metadata"]
        if found["kind"] != "Event" and (meta["uid"], meta["resourceVersion"]) not in self._judged:
            self._judged.add((meta["uid"], meta["resourceVersion"]))
            self.cluster.violations.extend(problems(found))
        return _json(found, status)

    def _list(self, kind: str, query: dict[str, str]) -> Reply:
        found = [
            _shown(item)
            for _, item in sorted(self.cluster.things[kind].items())
            if _selected(item, query.get("labelSelector", ""))
        ]
        for part in filter(None, query.get("fieldSelector", "").split(",")):
            key, _, value = part.partition("=")
            first, second = key.split(".")
            found = [item for item in found if item.get(first, {}).get(second) == value]
        start, limit = int(query.get("continue", "0")), int(query.get("limit", "500"))
        page = found[start : start + limit]
        more = {"continue": str(start + limit)} if start + limit < len(found) else {}
        _, version, word = KINDS[kind]
        for item in page:
            # As it is: the objects in a list have neither.
            del item["apiVersion"], item["kind"]
        meta = {"resourceVersion": str(self.cluster._version), **more}
        return _json({"apiVersion": version, "kind": f"{word}List", "metadata": meta, "items": page})

    def _log(self, name: str, query: dict[str, str]) -> Reply:
        with self.cluster.lock:
            pod = self.cluster.one("pods", name)
            running = self.cluster.running[name]
            (status,) = pod["status"].get("containerStatuses") or [{"state": {"waiting": {}}}]
            waiting = status["state"].get("waiting")
            if waiting is not None and not running.lines and not running.previous:
                reason = waiting.get("reason", "ContainerCreating")
                raise ApiError(
                    400,
                    "BadRequest",
                    f'container "{query["container"]}" in pod "{name}" is waiting to start: {reason}',
                )
            lines = list(running.previous if query.get("previous") == "true" else running.lines)
        if query.get("previous") == "true" and not lines:
            raise ApiError(
                400, "BadRequest", f'previous terminated container "notebooked" in pod "{name}" not found'
            )
        since = query.get("sinceTime", "")
        if since:
            # Whole seconds, as metav1.Time has it.
            assert re.fullmatch(r"[\dT:-]+Z", since)
            lines = [line for line in lines if line[0][:19] >= since[:19]]
        stamped = query.get("timestamps") == "true"
        text = "".join(f"{stamp} {line}\n" if stamped else f"{line}\n" for stamp, line in lines)
        return Reply(200, text.encode(), "text/plain")

    def _proxy(self, kind: str, name: str, rest: str, verb: str, body: bytes, content_type: str) -> Reply:
        own, _, _port = name.partition(":")
        with self.cluster.lock:
            thing = self.cluster.one(kind, own)
            pods = [thing]
            if kind == "services":
                selector = ",".join(f"{key}={value}" for key, value in thing["spec"]["selector"].items())
                pods = [
                    p for p in self.cluster.things["pods"].values() if _selected(p, selector) and _is_ready(p)
                ]
        if not pods:
            raise ApiError(503, "ServiceUnavailable", f'no endpoints available for service "{name}"')
        # As the API server picks one.
        port = self.cluster.running[random.choice(pods)["metadata"]["name"]].port
        try:
            reply = httpx.request(
                verb,
                f"http://127.0.0.1:{port}{rest}",
                content=body,
                headers={"Content-Type": content_type},
                timeout=60,
            )
        except httpx.HTTPError as error:
            raise ApiError(503, "ServiceUnavailable", f"error trying to reach service: {error}") from error
        return Reply(reply.status_code, reply.content, reply.headers.get("content-type", ""))

    def _review(self, document: Thing) -> Reply:
        self._invalid(document)
        asked = document["spec"]["resourceAttributes"]
        sub = f"/{asked['subresource']}" if asked.get("subresource") else ""
        allowed = f"{asked['verb']} {asked['resource']}{sub}" not in self.denied
        return _json({**document, "status": {"allowed": allowed}}, 201)


def _forbidden(name: str) -> ApiError:
    verb, _, resource = name.partition(" ")
    group = KINDS.get(resource.partition("/")[0], ("", "v1", ""))[1].rpartition("/")[0]
    return ApiError(
        403,
        "Forbidden",
        f'{resource} is forbidden: User "system:serviceaccount:{NAMESPACE}:dagster" cannot {verb} resource "{resource}" '
        f'in API group "{group}" in the namespace "{NAMESPACE}"',
    )


def _refuse(fault: str | None, name: str) -> None:
    if fault == "throttle":
        raise ApiError(
            429, "TooManyRequests", "The server has received too many requests, please try again later"
        )
    if fault == "error":
        raise ApiError(500, "InternalError", "Internal error occurred: etcdserver: request timed out")
    if fault == "expired":
        raise ApiError(401, "Unauthorized", "Unauthorized")
    if fault == "denied":
        raise _forbidden(name)
    if fault == "quota":
        raise ApiError(
            403,
            "Forbidden",
            'jobs.batch "x" is forbidden: exceeded quota: team, requested: count/jobs.batch=1, used: '
            "count/jobs.batch=5, limited: count/jobs.batch=5",
        )
