"""What an endpoint is made of, whoever runs its pods: a Service, and its versions.

The Service says which version has which role and which share (annotations); it is changed only where nobody else has changed
it meanwhile. A version is an object of the cluster that holds its pods' template, with an archive and a description in our
folder of the object store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

from notebooked_dagster.config.kubernetes import KubernetesEndpoint
from notebooked_dagster.errors import DeploymentConflictError, DeploymentError
from notebooked_dagster.providers.base import EndpointStatus
from notebooked_dagster.providers.cloud import serving
from notebooked_dagster.providers.cloud.hosting import EndpointState, Wanted
from notebooked_dagster.providers.cloud.serving import ROLES, conflict
from notebooked_dagster.providers.cloud.waiting import until
from notebooked_dagster.providers.failures import find_traceback, remapped_traceback

from . import manifests
from .logs import read
from .manifests import ENDPOINT, NONCE, ROLE, SHARES, VERSION, kube_name
from .pods import OURS, container_of, oldest_first, status_of, trouble
from .session import KubeError, KubeSession, translated
from .storage import ObjectStore

T = TypeVar("T")
log = logging.getLogger("notebooked.providers.kubernetes")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,48}[a-z0-9]|[a-z0-9]")
# A container that ended this often while it started will not get up.
_CRASHES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class State(EndpointState):
    """An endpoint as the cluster and our descriptions have it now; of ``weights``, a version may be meant to have none for a while.

    Attributes:
        service: The Service.
        running: What holds each version in the cluster.
    """

    service: Mapping[str, Any]
    running: Mapping[str, Mapping[str, Any]]


class Backend(Protocol):
    """What runs the pods of versions and shares the traffic out."""

    #: The kind of object that holds a version.
    kind: str

    def check(self, name: str, options: KubernetesEndpoint, before: State | None, weight: int) -> None:
        """Refuse what cannot be, before anything is changed. Raises ConfigError."""

    def manifest(
        self, name: str, version: str, options: KubernetesEndpoint, *, beside: State | None, **more: Any
    ) -> dict[str, Any]:
        """The object that holds a version, which may be to share the traffic; its pods do not run yet."""

    def facts(self, options: KubernetesEndpoint) -> dict[str, Any]:
        """What a version's description has to tell later, beside what all have."""

    def roll_out(
        self,
        name: str,
        before: State | None,
        version: str,
        weight: int,
        roles: Mapping[str, str],
        options: KubernetesEndpoint,
        document: Mapping[str, Any],
    ) -> None:
        """Start a version, ask it, and give it its share."""

    def withdraw(self, name: str, version: str, before: State | None, now: State | None) -> None:
        """Take back a version that failed, and that serves nothing now; what is served stays."""

    def rollback(self, state: State, roles: Mapping[str, str]) -> None:
        """Serve the version again that is the champion among ``roles``."""

    def traffic(self, state: State, weights: Mapping[str, int]) -> None:
        """Set the shares."""

    def retire(self, state: State, version: str) -> None:
        """Let a version rest that is kept for a rollback."""

    def remove(self, name: str) -> None:
        """Take all of an endpoint's versions down."""

    def left(self, name: str) -> Sequence[Mapping[str, Any]]:
        """What is not gone yet."""

    def statuses(self, state: State) -> dict[str, EndpointStatus]:
        """How each version does."""

    def url(self, state: State) -> str:
        """Where the endpoint is asked."""

    def ask(self, name: str, body: bytes) -> bytes:
        """The endpoint's answer. Raises KubeError; one without a ``reason`` is the model's own."""


class Versions:
    """The Services and versions of one namespace.

    Args:
        session: The cluster.
        store: Our folder of the object store.
        poll: Seconds between two looks.
        image: The container, where the options name none.
        service_account: That pods run under.
        pull_from: Secrets that images are pulled with.
    """

    def __init__(
        self,
        session: KubeSession,
        store: ObjectStore,
        *,
        poll: float,
        image: str,
        service_account: str | None,
        pull_from: Sequence[str],
    ) -> None:
        self.session = session
        self.store = store
        self._poll = poll
        self._image = image
        self._service_account = service_account
        self._pull_from = pull_from

    # Services

    def state(self, service: Mapping[str, Any], held: Sequence[Mapping[str, Any]]) -> State:
        """An endpoint, by its Service and the objects that hold versions."""
        marks = manifests.marks(service)
        name = marks[ENDPOINT]
        own = service["metadata"]["name"]
        running = {
            item["metadata"]["labels"][VERSION]: item
            for item in held
            if item["metadata"]["labels"].get(ENDPOINT) == own
        }
        roles = {role: marks[ROLE + role] for role in ROLES if marks.get(ROLE + role)}
        shares = json.loads(marks.get(SHARES) or "{}")
        return State(
            name=name,
            service=service,
            roles=roles,
            weights={version: int(share) for version, share in shares.items()},
            running=running,
            documents={version: self.document(name, version) for version in roles.values()},
        )

    def find(self, kind: str, name: str) -> State | None:
        """An endpoint whose versions are held by objects of a kind; None where there is none."""
        with translated(f"Endpoint {name!r} cannot be looked at"):
            service = self.session.get("services", kube_name(name))
            if service is None or not is_ours(service, name):
                return None
            return self.state(service, self.held(kind, name))

    def unchanged(self, kind: str, before: State) -> State:
        """The endpoint now, where nobody has changed its roles since."""
        now = self.find(kind, before.name)
        if now is None or dict(now.roles) != dict(before.roles):
            raise conflict(before.name, "its versions are others than when this deployment began")
        return now

    def create(self, manifest: Mapping[str, Any], name: str, version: str) -> dict[str, Any]:
        """Make the Service of an endpoint whose first version this is."""
        with translated(f"Endpoint {name!r} cannot be made"):
            made = self.session.create("services", manifest)
            if made is None:
                # Perhaps only the reply was lost.
                made = self.session.get("services", kube_name(name))
                if made is None or manifests.marks(made).get(ROLE + "champion") != version:
                    raise conflict(name, "another process has made it at the same moment")
        return made

    def change(
        self,
        seen: State,
        roles: Mapping[str, str],
        shares: Mapping[str, int],
        *,
        marks: Mapping[str, str | None] | None = None,
        selector: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Set roles and shares at once, where the Service is still as it was seen.

        Args:
            seen: The endpoint.
            roles: Version by role.
            shares: Percent by version.
            marks: Further annotations.
            selector: What the Service is to lead to, and None for labels that it is not to ask for.
        """
        name = seen.name
        wanted: dict[str, Any] = {
            **{ROLE + role: roles.get(role) for role in ROLES},
            SHARES: json.dumps(dict(shares)),
            **(marks or {}),
        }
        change: dict[str, Any] = {
            "metadata": {
                "resourceVersion": seen.service["metadata"]["resourceVersion"],
                "annotations": wanted,
            }
        }
        if selector is not None:
            change["spec"] = {"selector": dict(selector)}
        with translated(f"The traffic of endpoint {name!r} cannot be changed"):
            try:
                return self.session.patch("services", kube_name(name), change)
            except KubeError as error:
                if error.reason != "Conflict":
                    raise
                # The reply to an earlier try may have been lost.
                now = self.session.get("services", kube_name(name))
                if now is None or not _is_as(now, wanted, selector or {}):
                    raise conflict(name, "its versions were changed at the same moment") from error
                return now

    # What is kept of a version

    def place(self, name: str, *parts: str) -> str:
        """Where something of an endpoint, or of a version of it, lies."""
        head = [f"v{parts[0]}", *parts[1:]] if parts else []
        return self.store.uri("endpoints", kube_name(name), *head)

    def document(self, name: str, version: str) -> dict[str, Any]:
        """The description of a version; empty where there is none."""
        return self.store.document(self.place(name, version, "deployment.json")) or {}

    def held(self, kind: str, name: str) -> list[dict[str, Any]]:
        """The objects that hold the versions of an endpoint."""
        return self.session.list(kind, f"{OURS},{ENDPOINT}={kube_name(name)}")

    def reserve(self, backend: Backend, wanted: Wanted[KubernetesEndpoint], before: State | None) -> str:
        """The next version's number, taken by its object without any pods: nobody else gets it."""
        name, joins = wanted.name, wanted.weight < 100 and before is not None and "champion" in before.roles
        with translated(f"Endpoint {name!r} cannot be deployed"):
            known = [int(item["metadata"]["labels"][VERSION]) for item in self.held(backend.kind, name)]
            known += [int(version) for version in before.roles.values()] if before else []
            version = str(max([0, *known]) + 1)
            nonce = secrets.token_hex(8)
            manifest = backend.manifest(
                name,
                version,
                wanted.options,
                beside=before if joins else None,
                image=self._image,
                store=self.store,
                model=self.place(name, version, "model.tar.gz"),
                environment=wanted.experiment.environment,
                service_account=self._service_account,
                pull_from=self._pull_from,
                nonce=nonce,
            )
            if self.session.create(backend.kind, manifest) is None:
                found = self.session.get(backend.kind, manifest["metadata"]["name"]) or {"metadata": {}}
                # Ours all the same, where only the reply was lost.
                if found["metadata"].get("annotations", {}).get(NONCE) != nonce:
                    raise conflict(name, "another process has begun a deployment at the same moment")
        return version

    def prepare(
        self, backend: Backend, wanted: Wanted[KubernetesEndpoint], folder: Path, version: str
    ) -> dict[str, Any]:
        """Send the archive of a version; what its description has to tell beside what all have."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.tar.gz"
            serving.pack(wanted.experiment, folder, path)
            self.store.upload(path, self.place(wanted.name, version, "model.tar.gz"))
        options, scaling = wanted.options, wanted.options.autoscaling
        return {
            "image": options.image or self._image,
            "replicas": scaling.min if scaling is not None else options.replicas,
            "scaled": scaling is not None,
            "health_timeout": options.health_timeout,
            **backend.facts(options),
        }

    # Pods

    def pods(self, name: str, **labels: str) -> list[Mapping[str, Any]]:
        """The pods of an endpoint with labels of ours (``version``), the oldest first; not those that are ending."""
        wanted = "".join(f",notebooked/{key}={value}" for key, value in labels.items())
        found = self.session.list("pods", f"{ENDPOINT}={kube_name(name)}{wanted}")
        return [pod for pod in oldest_first(found) if not pod["metadata"].get("deletionTimestamp")]

    def lines(self, name: str, version: str) -> Iterator[str]:
        """What the pods of a version printed."""
        with translated(f"The log of endpoint {name!r} cannot be read"):
            pods = self.pods(name, version=version)
            for pod in pods:
                prefix = f"[{pod['metadata']['name']}] " if len(pods) > 1 else ""
                text = read(self.session, pod["metadata"]["name"], {"container": container_of(pod)})
                yield from (prefix + line for line in text.splitlines())

    def waited(self, look: Callable[[], T], done: Callable[[T], bool], timeout: float) -> T:
        """What is seen when it is as wanted, or when the time is up."""
        return until(
            look, done, budget=self.session.budget, poll=self._poll, timeout=timeout, say=log.warning
        )

    def complaint(self, state: State) -> str:
        """What is wrong with a pod that has to serve; empty where nothing is found."""
        with contextlib.suppress(KubeError, httpx.TransportError):
            for version, share in state.weights.items():
                for pod in self.pods(state.name, version=version) if share else ():
                    if found := _why(pod):
                        return f"Version {version}: {found}"
        return ""

    def unhealthy(self, name: str, version: str, reason: str, *, serves: bool) -> DeploymentError:
        """That a version does not become ready, with its traceback."""
        return serving.unready(
            name,
            reason,
            serves=serves,
            hint="See options.endpoint: image, memory, health_timeout; `kubectl describe pod` tells the events.",
            traceback=self._traceback(name, version),
        )

    def _traceback(self, name: str, version: str) -> str:
        """The last traceback of a version's pods; empty where there is none to be had."""
        with contextlib.suppress(Exception):
            for pod in self.pods(name, version=version):
                for previous in ("false", "true"):
                    query = {"container": container_of(pod), "previous": previous}
                    text = read(self.session, pod["metadata"]["name"], query)
                    if found := find_traceback(text):
                        return remapped_traceback(found, Path())
        return ""

    def answers(
        self, backend: Backend, name: str, version: str, example: Any, *, serves: bool, **labels: str
    ) -> None:
        """Ask a pod of a version the model's own example. Raises DeploymentError where it fails."""
        if example is None:
            return
        with translated(f"Version {version} of endpoint {name!r} cannot be asked"):
            pods = self.pods(name, version=version, **labels)
            if not pods:
                raise removed(name, version)
            pod = pods[-1]["metadata"]["name"]
            path = self.session.path("pods", f"{pod}:{manifests.PORT}", "proxy", "invocations")
            try:
                self.session.again(
                    lambda: self.session.send("POST", path, content=json.dumps(example).encode())
                )
            except KubeError as error:
                # Another deployment that was quicker takes away what it does not know.
                if (
                    error.code == 404
                    and self.session.get(backend.kind, manifests.version_name(name, version)) is None
                ):
                    raise removed(name, version) from error
                # A permission that is missing is not the model's fault.
                if error.reason:
                    raise
                raise DeploymentError(
                    f"Version {version} of endpoint {name!r} fails with its own input example: {error.message[:2000]}."
                    f"{' The endpoint serves what it served before.' if serves else ''}",
                    hint="Correct inference.py, or the example that the model was saved with.",
                ) from error


def is_ours(service: Mapping[str, Any], name: str) -> bool:
    """Whether a Service is the endpoint of that name."""
    marked = manifests.marks(service).get(ENDPOINT) == name
    return marked and bool(NAME.fullmatch(name)) and service["metadata"]["name"] == kube_name(name)


def without_challenger(roles: Mapping[str, str]) -> dict[str, str]:
    """The roles once a challenger has made room for another."""
    return {role: version for role, version in roles.items() if role != "challenger"}


def pods_of(document: Mapping[str, Any]) -> int:
    """How many pods a version has that has all traffic."""
    return int(document.get("replicas", 1))


def removed(name: str, version: str) -> DeploymentConflictError:
    """That a version is not there any more."""
    return conflict(name, f"version {version} was removed while it started")


def obstacle(pods: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """What keeps pods from being ready, and whether waiting is of no use; empty where nothing is seen."""
    for pod in pods:
        status = status_of(pod)
        ended = status.get("lastState", {}).get("terminated") or status.get("state", {}).get("terminated")
        if ended and status.get("restartCount", 0) >= _CRASHES:
            return f"its container ended with exit code {ended.get('exitCode')} ({ended.get('reason')})", True
        if why := _why(pod):
            return why, False
    return "", False


def _why(pod: Mapping[str, Any]) -> str:
    """What is wrong with a pod that serves; empty where nothing is."""
    if (found := trouble(pod)) is not None:
        return found.text
    waiting = status_of(pod).get("state", {}).get("waiting") or {}
    if waiting.get("reason") == "CrashLoopBackOff":
        ended = status_of(pod).get("lastState", {}).get("terminated") or {}
        return f"its container ended with exit code {ended.get('exitCode')} ({ended.get('reason')})"
    return ""


def _is_as(service: Mapping[str, Any], marks: Mapping[str, Any], selector: Mapping[str, Any]) -> bool:
    """Whether a Service is as a change wanted it."""
    have, selects = manifests.marks(service), service["spec"].get("selector", {})
    return all(have.get(key) == value for key, value in marks.items()) and all(
        selects.get(key) == value for key, value in selector.items()
    )
