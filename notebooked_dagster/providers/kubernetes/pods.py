"""What a pod of ours is made of, and why one does not run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notebooked_dagster.config.kubernetes import Machine
from notebooked_dagster.errors import ConfigError

from . import container

MANAGED = {"app.kubernetes.io/managed-by": "notebooked-dagster"}
OURS = "app.kubernetes.io/managed-by=notebooked-dagster"
CONTAINER = "notebooked"
# Kubeflow's training operator takes no PyTorchJob whose container has another name.
PYTORCH = "pytorch"
# KServe's name for what serves.
KSERVE = "kserve-container"
_OURS = (CONTAINER, PYTORCH, KSERVE)
_VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
# What a container waits for that does not come by itself; a name in ErrImagePull may still become right.
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_SETUP = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not run.

    Attributes:
        kind: ``image``, ``setup``, ``place`` (no node has room) or ``quota``.
        text: In the cluster's words.
    """

    kind: str
    text: str

    @property
    def error(self) -> str:
        """The class of our error."""
        return "ConfigError" if self.kind in ("image", "setup") else "QuotaError"

    @property
    def hint(self) -> str:
        """What to do about it."""
        return {
            "image": "Name an image that the cluster can pull: options.training.image, kubernetes.image; a private one "
            "needs kubernetes.image_pull_from.",
            "setup": "A Secret or an account that the pod names is not there; see kubernetes.storage.access_from.",
            "place": "No node has room, or none may be used: ask for less in options.training, add nodes, or see "
            "node_selector and tolerations.",
            "quota": "The namespace's ResourceQuota or LimitRange does not let the pod in: `kubectl describe quota`.",
        }[self.kind]


def default_image() -> str:
    """The official image of our Python: the requirements were pinned on it."""
    return f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"


def command(mode: str) -> list[str]:
    """What a container runs: ``train`` or ``serve``."""
    return ["python3", "-u", "-c", Path(container.__file__).read_text(encoding="utf-8"), mode]


def resources(machine: Machine) -> dict[str, Any]:
    """What a container asks for, and the most it gets: memory is no more than was asked for, so that nobody else dies of it."""
    gpu = {machine.gpu_resource: str(machine.gpu)} if machine.gpu else {}
    disk = {"ephemeral-storage": machine.disk} if machine.disk else {}
    requests = {"cpu": machine.cpu, "memory": machine.memory, **disk, **gpu}
    limits = {"memory": machine.memory, **({"cpu": machine.cpu_limit} if machine.cpu_limit else {}), **gpu}
    return {"requests": requests, "limits": limits}


def variables(given: Mapping[str, str]) -> list[dict[str, Any]]:
    """An environment as a container takes it. Raises ConfigError."""
    for name in given:
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{name!r} is no variable that a pod can have.", key=f"environment.{name}")
    # Kubernetes would expand $(NAME) in a value.
    return [{"name": name, "value": value.replace("$(", "$$(")} for name, value in given.items()]


def pod_spec(
    machine: Machine,
    mode: str,
    *,
    image: str,
    environment: list[dict[str, Any]],
    access_from: str | None,
    service_account: str | None,
    pull_from: Iterable[str],
    more: Mapping[str, Any] | None = None,
    **pod: Any,
) -> dict[str, Any]:
    """The ``spec`` of a pod.

    Args:
        machine: What it asks for.
        mode: ``train`` or ``serve``.
        image: The container.
        environment: Its variables.
        access_from: The Secret with the keys of the object store.
        service_account: That it runs under.
        pull_from: Secrets that images are pulled with.
        more: Of the container.
        pod: Further fields of the pod.
    """
    home = [{"name": "HOME", "value": "/tmp"}] if machine.run_as_user else []
    user = {"runAsNonRoot": True, "runAsUser": machine.run_as_user} if machine.run_as_user else {}
    inner: dict[str, Any] = {
        "name": CONTAINER,
        "image": machine.image or image,
        "command": command(mode),
        "env": [*environment, *home],
        "resources": resources(machine),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **(more or {}),
    }
    if access_from:
        inner["envFrom"] = [{"secretRef": {"name": access_from}}]
    spec: dict[str, Any] = {
        "containers": [inner],
        # Training and serving have no business with the API server.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, **user},
        **pod,
    }
    optional: dict[str, Any] = {
        "serviceAccountName": service_account,
        "imagePullSecrets": [{"name": name} for name in pull_from],
        "nodeSelector": machine.node_selector,
        "tolerations": [item.model_dump(exclude_none=True) for item in machine.tolerations],
        "priorityClassName": machine.priority_class,
    }
    for key, value in optional.items():
        if value:
            spec[key] = {**value, **spec.get(key, {})} if key == "nodeSelector" else value
    return spec


def moment(text: str | None) -> datetime | None:
    """A time of the API."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC) if text else None


def oldest_first(pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pods in the order they were made."""
    return sorted(
        pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"])
    )


def status_of(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status of our container in a pod; empty where it has none yet."""
    for item in pod.get("status", {}).get("containerStatuses") or ():
        if item["name"] in _OURS:
            return dict(item)
    return {}


def container_of(pod: Mapping[str, Any]) -> str:
    """The name of our container in a pod; others may have been put beside it."""
    names = (str(item["name"]) for item in pod["spec"]["containers"])
    return next(name for name in names if name in _OURS)


def terminated(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """How our container ended; empty where it has not."""
    return status_of(pod).get("state", {}).get("terminated") or {}


def condition(thing: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """A condition that is true; empty where it is not."""
    for item in thing.get("status", {}).get("conditions") or ():
        if item["type"] == kind and item["status"] == "True":
            return dict(item)
    return {}


def trouble(pod: Mapping[str, Any]) -> Trouble | None:
    """What keeps a pod from running; None where nothing does, or nobody knows yet."""
    waiting = status_of(pod).get("state", {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in _IMAGE:
        return Trouble("image", f"{reason}: {waiting.get('message', '')}".rstrip(": "))
    if reason in _SETUP:
        return Trouble("setup", f"{reason}: {waiting.get('message', '')}".rstrip(": "))
    for item in pod.get("status", {}).get("conditions") or ():
        if (item["type"], item["status"]) == ("PodScheduled", "False") and item.get(
            "reason"
        ) == "Unschedulable":
            return Trouble("place", f"Unschedulable: {item.get('message', '')}".rstrip(": "))
    return None


def refused(events: Iterable[Mapping[str, Any]]) -> Trouble | None:
    """Why pods cannot even be made, by the events of who would make them."""
    for event in events:
        if event.get("reason") in ("FailedCreate", "FailedCreatePod"):
            text = str(event.get("message", ""))
            return Trouble("setup" if "not found" in text or "PodSecurity" in text else "quota", text)
    return None
