"""Endpoints in Kubernetes' terms.

A version of an endpoint is a Deployment, an archive and a description in our folder of the object store. An endpoint is a
Service. Which versions it leads to (its selector) and which version has which role (an annotation) are changed in one call,
and only where nobody else has changed them meanwhile: they never disagree. A new version runs beside the one that serves,
and the Service moves when its pods are ready and one of them has answered the model's own example.

Several versions share the traffic by their numbers of pods: a Service gives every pod that is ready the same part of the
connections. What a share really is, is said as it is.

API: core/v1, apps/v1 Deployment, autoscaling/v2, networking.k8s.io/v1 Ingress.
"""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from notebooked_dagster.config.kubernetes import KubernetesEndpoint
from notebooked_dagster.errors import (
    ConfigError,
    DeploymentConflictError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus, Experiment
from notebooked_dagster.providers.cloud import serving
from notebooked_dagster.providers.cloud.package import unpack
from notebooked_dagster.providers.cloud.serving import ROLES, InputCheck, conflict
from notebooked_dagster.providers.cloud.waiting import until
from notebooked_dagster.providers.failures import find_traceback, remapped_traceback

from . import manifests
from .logs import read
from .manifests import ENDPOINT, GROUP, NONCE, ROLE, SHARES, VERSION, kube_name
from .pods import CONTAINER, OURS, condition, oldest_first, status_of, trouble
from .session import KubeError, KubeSession, translated
from .storage import ObjectStore

T = TypeVar("T")
log = logging.getLogger("notebooked.providers.kubernetes")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,48}[a-z0-9]|[a-z0-9]")
# A container that ended this often while it started will not get up.
_CRASHES = 2


@dataclass(frozen=True, slots=True)
class State:
    """An endpoint as the cluster and our descriptions have it now.

    Attributes:
        name: As the user calls it.
        service: The Service.
        roles: Version by role.
        weights: Share of the traffic in percent, by version that has some, or is meant to have none for a while.
        running: The Deployment of each version.
        documents: Our description of each version that has a role.
    """

    name: str
    service: Mapping[str, Any]
    roles: Mapping[str, str]
    weights: Mapping[str, int]
    running: Mapping[str, Mapping[str, Any]]
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Hosting:
    """The endpoints of one namespace.

    Args:
        session: The cluster.
        store: Our folder of the object store.
        state: Where fetched models are kept.
        poll: Seconds between two looks.
        image: The container, where the options name none.
        service_account: That pods run under.
        pull_from: Secrets that images are pulled with.
    """

    def __init__(
        self,
        session: KubeSession,
        store: ObjectStore,
        state: Path,
        *,
        poll: float,
        image: str,
        service_account: str | None,
        pull_from: Sequence[str],
    ) -> None:
        self._session = session
        self._store = store
        self._models = state / "models"
        self._poll = min(poll, 2.0)
        self._image = image
        self._service_account = service_account
        self._pull_from = pull_from
        self._input = InputCheck(self._champion_document)

    # Asking

    def get(self, name: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFoundError."""
        return self._view(self._state(name))

    def all(self) -> list[Endpoint]:
        """All of ours, by name."""
        with translated("Endpoints cannot be listed"):
            services = self._session.list("services", f"{OURS},{ENDPOINT}")
            deployments = self._session.list("deployments", f"{OURS},{ENDPOINT}")
        states = [
            self._state_of(item, deployments)
            for item in services
            if _is_ours(item, manifests.marks(item).get(ENDPOINT, ""))
        ]
        return [self._view(state) for state in sorted(states, key=lambda state: state.name)]

    def input_example(self, endpoint: Endpoint) -> Any:
        """What the model that gets most of the traffic was saved with as an example of its input."""
        served = max(endpoint.deployments, key=lambda item: item.weight, default=None)
        return self._document(endpoint.name, served.version).get("input_example") if served else None

    def logs(self, name: str, version: str | None) -> Iterator[str]:
        """What the pods of a version printed, line by line; of the champion where None."""
        state = self._state(name)
        wanted = version or state.roles.get("champion", "")
        if wanted not in state.running:
            raise DeploymentError(
                f"Endpoint {name!r} does not run version {wanted!r}.",
                hint=f"It runs: {', '.join(sorted(state.running))}.",
            )
        with translated(f"The log of endpoint {name!r} cannot be read"):
            pods = self._pods(name, wanted)
            for pod in pods:
                prefix = f"[{pod['metadata']['name']}] " if len(pods) > 1 else ""
                text = read(self._session, pod["metadata"]["name"], {"container": CONTAINER})
                yield from (prefix + line for line in text.splitlines())

    def predict(self, name: str, data: Any) -> Any:
        """Ask an endpoint. Raises InvalidInputError, EndpointNotFoundError, ProviderError."""
        body = json.dumps(data).encode()
        self._input.check(name, body)
        with translated(f"Endpoint {name!r} cannot be asked"):
            try:
                text = self._ask(name, body).content
            except KubeError as error:
                if error.reason == "NotFound":
                    self._input.forget(name)
                    raise self._unknown(name) from error
                if not error.reason:
                    raise _model_error(name, error) from error
                raise
        try:
            return json.loads(text)
        except ValueError as error:
            raise ProviderError(f"Endpoint {name!r} did not answer with JSON: {text[:200]!r}.") from error

    def _ask(self, name: str, body: bytes) -> httpx.Response:
        path = f"{self._proxy(name)}/invocations"
        for attempt in (1, 2):
            try:
                return self._session.send("POST", path, content=body)
            except (KubeError, httpx.TransportError) as error:
                # What the model itself answers is no trouble of the cluster's.
                own = isinstance(error, KubeError) and not error.reason
                if attempt == 2 or own or not self._session.is_worth_another(error):
                    raise
            self._session.back_off(attempt)
        raise AssertionError  # the second attempt raises

    def _proxy(self, name: str) -> str:
        return self._session.path("services", f"{kube_name(name)}:http", "proxy")

    def _champion_document(self, name: str) -> Mapping[str, Any]:
        state = self._state(name)
        return state.documents.get(state.roles.get("champion", ""), {})

    def _state(self, name: str) -> State:
        check_name(name)
        with translated(f"Endpoint {name!r} cannot be looked at"):
            service = self._session.get("services", kube_name(name))
            if service is None or not _is_ours(service, name):
                raise self._unknown(name)
            return self._state_of(service, self._deployments(name))

    def _state_of(self, service: Mapping[str, Any], deployments: Sequence[Mapping[str, Any]]) -> State:
        marks = manifests.marks(service)
        name = marks[ENDPOINT]
        own = service["metadata"]["name"]
        running = {
            item["metadata"]["labels"][VERSION]: item
            for item in deployments
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
            documents={version: self._document(name, version) for version in roles.values()},
        )

    def _deployments(self, name: str) -> list[dict[str, Any]]:
        return self._session.list("deployments", f"{OURS},{ENDPOINT}={kube_name(name)}")

    def _left(self, name: str) -> list[dict[str, Any]]:
        with translated(f"The Deployments of endpoint {name!r} cannot be listed"):
            return self._deployments(name)

    def _waited(self, look: Callable[[], T], done: Callable[[T], bool], timeout: float) -> T:
        return until(
            look, done, budget=self._session.budget, poll=self._poll, timeout=timeout, say=log.warning
        )

    def _pods(self, name: str, version: str) -> list[Mapping[str, Any]]:
        found = self._session.list("pods", f"{ENDPOINT}={kube_name(name)},{VERSION}={version}")
        return [pod for pod in oldest_first(found) if not pod["metadata"].get("deletionTimestamp")]

    def _document(self, name: str, version: str) -> dict[str, Any]:
        return self._store.document(self._place(name, version, "deployment.json")) or {}

    def _place(self, name: str, *parts: str) -> str:
        head = [f"v{parts[0]}", *parts[1:]] if parts else []
        return self._store.uri("endpoints", kube_name(name), *head)

    def _view(self, state: State) -> Endpoint:
        statuses = {version: _health(item) for version, item in state.running.items()}
        champion = state.roles.get("champion", "")
        served = [statuses.get(version, EndpointStatus.STOPPED) for version, w in state.weights.items() if w]
        status = statuses.get(champion, EndpointStatus.STOPPED)
        if served:
            status = next(
                (item for item in served if item is not EndpointStatus.HEALTHY), EndpointStatus.HEALTHY
            )
        message = "" if status is EndpointStatus.HEALTHY else self._complaint(state)
        deployments = serving.deployments(state.roles, state.weights, state.documents, statuses)
        return Endpoint(state.name, "kubernetes", self._url(state), status, deployments, message)

    def _complaint(self, state: State) -> str:
        with contextlib.suppress(KubeError, httpx.TransportError):
            for version, share in state.weights.items():
                for pod in self._pods(state.name, version) if share else ():
                    if found := _why(pod):
                        return f"Version {version}: {found}"
        return ""

    def _url(self, state: State) -> str:
        # Where it is reached from outside of the cluster, or through the API server.
        found: str = manifests.marks(state.service).get(manifests.ADDRESS) or ""
        return found or f"{self._session.host}{self._proxy(state.name)}"

    def _unknown(self, name: str) -> EndpointNotFoundError:
        return EndpointNotFoundError(
            f"There is no endpoint {name!r} at provider 'kubernetes'.",
            hint="`notebooked endpoints --provider kubernetes` lists what there is.",
        )

    # Changing

    def deploy(
        self,
        experiment: Experiment,
        options: KubernetesEndpoint,
        model_uri: str,
        name: str,
        *,
        weight: int,
        labels: Mapping[str, str],
        tracking_uri: str | None,
    ) -> Endpoint:
        """Serve a model; see ``BaseProvider.deploy``."""
        check_name(name)
        serving.check_weight(weight)
        before = self._before(name)
        known = before.roles if before is not None else {}
        joins = weight < 100 and "champion" in known
        if joins and options.autoscaling is not None:
            raise ConfigError(
                "A share of the traffic is a number of pods, which autoscaling would change.",
                key="options.endpoint.autoscaling",
                hint="Deploy with weight 100, or without autoscaling.",
            )
        folder = serving.model_folder(model_uri, "s3://", self._models, self._fetch, tracking_uri)
        roles: dict[str, str] = {}
        version = ""
        try:
            group = self._group(before) if joins else None
            version = self._reserve(experiment, options, name, before, group)
            roles = serving.roles_after(known, version, weight)
            document = self._prepare(experiment, options, folder, model_uri, name, version, labels)
            if joins and before is not None and "challenger" in known:
                # Pods of a new challenger would get traffic as soon as they are ready; the one before it makes room.
                before = self._alone(before)
            self._start(name, version, 1 if joins else _pods_of(document), document)
            self._answers(name, version, document.get("input_example"))
            self._move(name, before, version, weight, roles, options)
        except BaseException:
            if version:
                self._withdraw(name, version, known, before)
            raise
        return self._tidied(name, version)

    def rollback(self, name: str) -> Endpoint:
        """Serve the previous version again."""
        state = self._state(name)
        roles = serving.roles_back(name, state.roles)
        back = roles["champion"]
        if back not in state.running:
            raise DeploymentError(
                f"The Deployment of version {back} of endpoint {name!r} is gone.",
                hint="Deploy the model you want: `notebooked deploy EXPERIMENT --model-uri …`.",
            )
        document = state.documents[back]
        self._start(name, back, _pods_of(document), document)
        self._change(name, state, {VERSION: back}, roles, {back: 100})
        return self._tidied(name, None)

    def traffic(self, name: str, weights: Mapping[str, int]) -> Endpoint:
        """Set each version's share, as near as numbers of pods come to it."""
        state = self._state(name)
        serving.check_shares(name, weights, state.weights)
        self._split(name, state, weights, state.roles)
        return self._tidied(name, None)

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it."""
        check_name(name)
        versions = self._versions(name)
        with translated(f"Endpoint {name!r} cannot be looked at"):
            service = self._session.get("services", kube_name(name))
            # Our folder goes last: while it is there, a deletion that was cut off can be finished.
        if not (_is_ours(service, name) if service is not None else versions or self._left(name)):
            raise self._unknown(name)
        documents = [self._document(name, version) for version in versions]
        with translated(f"Endpoint {name!r} cannot be deleted"):
            # First what leads to the versions. An Ingress belongs to the Service, an autoscaler to its Deployment.
            self._session.delete("services", kube_name(name))
            for item in self._deployments(name):
                self._session.delete("deployments", item["metadata"]["name"], propagation="Foreground")
        if self._waited(lambda: self._left(name), operator.not_, 300):
            raise ProviderError(
                f"Kubernetes has not removed the pods of endpoint {name!r} in 300 s.",
                hint="Delete it again; `kubectl describe deployment` tells what they wait for.",
            )
        self._store.remove_below(self._place(name))
        self._input.forget(name)
        kept = sorted({str(item.get("model_uri")) for item in documents} - {"None", ""})
        return [f"The model {uri} is kept." for uri in kept]

    def _versions(self, name: str) -> set[str]:
        """The versions of which something is in our folder."""
        start = self._place(name)
        pattern = re.compile(rf"{re.escape(start)}/v(\d+)/")
        return {match[1] for uri in self._store.names(start) if (match := pattern.match(uri))}

    # The steps of a deployment

    def _before(self, name: str) -> State | None:
        try:
            return self._state(name)
        except EndpointNotFoundError:
            return None

    def _fetch(self, uri: str, target: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            archive = Path(temporary) / "model.tar.gz"
            self._store.fetch(uri, archive)
            unpack(archive, target)

    def _group(self, before: State | None) -> str | None:
        """What the champion's pods and those of its challenger have in common."""
        champion = before.running.get(before.roles.get("champion", "")) if before is not None else None
        return str(champion["metadata"]["labels"][GROUP]) if champion is not None else None

    def _reserve(
        self,
        experiment: Experiment,
        options: KubernetesEndpoint,
        name: str,
        before: State | None,
        group: str | None,
    ) -> str:
        """The next version's number, taken by its Deployment without any pods: nobody else gets it."""
        with translated(f"Endpoint {name!r} cannot be deployed"):
            known = [int(item["metadata"]["labels"][VERSION]) for item in self._deployments(name)]
            known += [int(version) for version in before.roles.values()] if before else []
            version = str(max([0, *known]) + 1)
            nonce = secrets.token_hex(8)
            manifest = manifests.deployment(
                name,
                version,
                group or version,
                options,
                image=self._image,
                store=self._store,
                model=self._place(name, version, "model.tar.gz"),
                environment=experiment.environment,
                service_account=self._service_account,
                pull_from=self._pull_from,
                nonce=nonce,
            )
            if self._session.create("deployments", manifest) is None:
                found = self._session.get("deployments", manifest["metadata"]["name"]) or {"metadata": {}}
                # Ours all the same, where only the reply was lost.
                if found["metadata"].get("annotations", {}).get(NONCE) != nonce:
                    raise conflict(name, "another process has begun a deployment at the same moment")
        return version

    def _prepare(
        self,
        experiment: Experiment,
        options: KubernetesEndpoint,
        folder: Path,
        model_uri: str,
        name: str,
        version: str,
        labels: Mapping[str, str],
    ) -> dict[str, Any]:
        """Archive and description of a version."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.tar.gz"
            serving.pack(experiment, folder, path)
            self._store.upload(path, self._place(name, version, "model.tar.gz"))
        scaling = options.autoscaling
        document = serving.description(
            experiment,
            folder,
            model_uri,
            version,
            labels,
            image=options.image or self._image,
            replicas=scaling.min if scaling is not None else options.replicas,
            scaled=scaling is not None,
            max_pods=options.max_pods,
            health_timeout=options.health_timeout,
            keep_warm=options.keep_warm,
        )
        self._store.write(
            self._place(name, version, "deployment.json"), json.dumps(document, indent=1).encode()
        )
        if scaling is not None:
            with translated(f"Autoscaling of endpoint {name!r} cannot be set up"):
                owner = self._session.get("deployments", f"{kube_name(name)}-v{version}")
                if owner is not None:
                    self._session.create("horizontalpodautoscalers", manifests.autoscaler(owner, scaling))
        return document

    def _scale(self, name: str, version: str, pods: int) -> None:
        with translated(f"Version {version} of endpoint {name!r} cannot be scaled"):
            self._session.patch("deployments", f"{kube_name(name)}-v{version}", {"spec": {"replicas": pods}})

    def _start(self, name: str, version: str, pods: int, document: Mapping[str, Any]) -> None:
        """Let a version run without traffic; returns when its pods are ready."""
        self._scale(name, version, pods)
        self._ready(name, version, pods, float(document.get("health_timeout", 600)))

    def _ready(self, name: str, version: str, pods: int, timeout: float) -> None:
        def look() -> tuple[str, bool]:
            with translated(f"Version {version} of endpoint {name!r} cannot be looked at"):
                found = self._session.get("deployments", f"{kube_name(name)}-v{version}")
                if found is None:
                    raise _removed(name, version)
                return ("", True) if _is_ready(found, pods) else self._obstacle(name, version, found)

        why, final = self._waited(look, lambda seen: seen[1], timeout)
        if why or not final:
            raise self._unhealthy(name, version, why or f"it was not ready after {timeout:.0f} s")

    def _obstacle(self, name: str, version: str, found: Mapping[str, Any]) -> tuple[str, bool]:
        """What keeps a version from being ready, and whether waiting is of no use."""
        for pod in self._pods(name, version):
            status = status_of(pod)
            ended = status.get("lastState", {}).get("terminated") or status.get("state", {}).get("terminated")
            if ended and status.get("restartCount", 0) >= _CRASHES:
                return (
                    f"its container ended with exit code {ended.get('exitCode')} ({ended.get('reason')})",
                    True,
                )
            if why := _why(pod):
                return why, False
        failure = condition(found, "ReplicaFailure")
        return str(failure.get("message", "")), False

    def _unhealthy(self, name: str, version: str, reason: str) -> DeploymentError:
        before = self._before(name)
        said = (
            " It serves what it served before." if before is not None and any(before.weights.values()) else ""
        )
        message = f"Endpoint {name!r} did not become healthy: {reason.rstrip('.')}.{said}"
        return DeploymentError(
            f"{message}\n{self._traceback(name, version)}".rstrip(),
            hint="See options.endpoint: image, memory, health_timeout; `kubectl describe pod` tells the events.",
            details={"reason": reason},
        )

    def _traceback(self, name: str, version: str) -> str:
        """The last traceback of a version's pods; empty where there is none to be had."""
        with contextlib.suppress(Exception):
            for pod in self._pods(name, version):
                for previous in ("false", "true"):
                    query = {"container": CONTAINER, "previous": previous}
                    text = read(self._session, pod["metadata"]["name"], query)
                    if found := find_traceback(text):
                        return remapped_traceback(found, Path())
        return ""

    def _answers(self, name: str, version: str, example: Any) -> None:
        """Ask a pod of a version the model's own example. Raises DeploymentError where it fails."""
        if example is None:
            return
        with translated(f"Version {version} of endpoint {name!r} cannot be asked"):
            pods = self._pods(name, version)
            if not pods:
                raise _removed(name, version)
            pod = pods[-1]["metadata"]["name"]
            path = self._session.path("pods", f"{pod}:{manifests.PORT}", "proxy", "invocations")
            try:
                self._session.again(
                    lambda: self._session.send("POST", path, content=json.dumps(example).encode())
                )
            except KubeError as error:
                # Another deployment that was quicker takes away what it does not know.
                if (
                    error.code == 404
                    and self._session.get("deployments", f"{kube_name(name)}-v{version}") is None
                ):
                    raise _removed(name, version) from error
                # A permission that is missing is not the model's fault.
                if error.reason:
                    raise
                serves = self._before(name) is not None
                raise DeploymentError(
                    f"Version {version} of endpoint {name!r} fails with its own input example: {error.message[:2000]}."
                    f"{' The endpoint serves what it served before.' if serves else ''}",
                    hint="Correct inference.py, or the example that the model was saved with.",
                ) from error

    def _move(
        self,
        name: str,
        before: State | None,
        version: str,
        weight: int,
        roles: Mapping[str, str],
        options: KubernetesEndpoint,
    ) -> None:
        """Let the Service lead to a version that is ready."""
        if before is None:
            service = manifests.service(name, version, roles, options)
            with translated(f"Endpoint {name!r} cannot be made"):
                made = self._session.create("services", service) or self._made_already(name, version)
        else:
            now = self._unchanged(name, before)
            if roles.get("challenger") == version:
                shares = {roles["champion"]: 100 - weight, version: weight}
                made = self._split(name, now, shares, roles, options)
            else:
                made = self._change(name, now, {VERSION: version}, roles, {version: 100}, options)
        exposed = before is not None and manifests.ADDRESS in manifests.marks(before.service)
        self._expose(name, made, options, exposed)

    def _made_already(self, name: str, version: str) -> dict[str, Any]:
        """The Service, where only the reply was lost."""
        made = self._session.get("services", kube_name(name))
        if made is None or manifests.marks(made).get(ROLE + "champion") != version:
            raise conflict(name, "another process has made it at the same moment")
        return made

    def _unchanged(self, name: str, before: State) -> State:
        """The endpoint now, where nobody has changed its roles since."""
        now = self._state(name)
        if dict(now.roles) != dict(before.roles):
            raise conflict(name, "its versions are others than when this deployment began")
        return now

    def _alone(self, state: State) -> State:
        """Lead all traffic to the champion."""
        champion = state.roles["champion"]
        roles = {role: version for role, version in state.roles.items() if role != "challenger"}
        self._change(state.name, state, {VERSION: champion}, roles, {champion: 100})
        return self._state(state.name)

    def _split(
        self,
        name: str,
        state: State,
        weights: Mapping[str, int],
        roles: Mapping[str, str],
        options: KubernetesEndpoint | None = None,
    ) -> dict[str, Any]:
        """Share the traffic by numbers of pods."""
        wanted = {version: share for version, share in weights.items() if share}
        champion = roles["champion"]
        document = state.documents.get(champion, {})
        if len(wanted) == 1:
            (only,) = wanted
            found = self._document(name, only)
            # What gets nothing runs on with one pod, so that it can get some again.
            shares = {**dict.fromkeys(weights, 0), only: 100}
            self._start(name, only, _pods_of(found), found)
            return self._change(name, state, {VERSION: only}, roles, shares, options)
        most = options.max_pods if options is not None else int(document.get("max_pods", 10))
        pods = pods_of_shares(wanted, most, _pods_of(document))
        group = self._group(state)
        previous = roles.get("previous")
        if previous is not None and previous in state.running and previous not in wanted:
            # A version that runs on for a rollback may be of the same group.
            self._scale(name, previous, 0)
        for version, count in pods.items():
            self._start(name, version, count, self._document(name, version))
        total = sum(pods.values())
        shares = {version: round(100 * count / total) for version, count in pods.items()}
        return self._change(name, state, {GROUP: str(group)}, roles, shares, options)

    def _change(
        self,
        name: str,
        seen: State,
        selects: Mapping[str, str],
        roles: Mapping[str, str],
        shares: Mapping[str, int],
        options: KubernetesEndpoint | None = None,
    ) -> dict[str, Any]:
        """Set traffic and roles at once, where the Service is still as it was seen."""
        marks: dict[str, Any] = {ROLE + role: roles.get(role) for role in ROLES}
        marks[SHARES] = json.dumps(dict(shares))
        if options is not None:
            marks[manifests.ADDRESS] = manifests.address(name, options)
        selector: dict[str, Any] = {ENDPOINT: kube_name(name), VERSION: None, GROUP: None, **selects}
        change = {
            "metadata": {
                "resourceVersion": seen.service["metadata"]["resourceVersion"],
                "annotations": marks,
            },
            "spec": {"selector": selector},
        }
        with translated(f"The traffic of endpoint {name!r} cannot be changed"):
            try:
                made = self._session.patch("services", kube_name(name), change)
            except KubeError as error:
                if error.reason != "Conflict":
                    raise
                # The reply to an earlier try may have been lost.
                now = self._session.get("services", kube_name(name))
                if now is None or not _is_as(now, marks, selector):
                    raise conflict(name, "its versions were changed at the same moment") from error
                made = now
        self._input.forget(name)
        return made

    def _expose(
        self, name: str, service: Mapping[str, Any], options: KubernetesEndpoint, exposed: bool
    ) -> None:
        """Make, change or remove the way in from outside of the cluster."""
        with translated(f"The Ingress of endpoint {name!r} cannot be set up"):
            if options.ingress is None:
                if exposed:
                    self._session.delete("ingresses", kube_name(name))
                return
            manifest = manifests.ingress(name, service, options.ingress)
            if self._session.create("ingresses", manifest) is None:
                self._session.patch("ingresses", kube_name(name), manifest)

    def _withdraw(self, name: str, version: str, known: Mapping[str, str], before: State | None) -> None:
        """Remove what a deployment that failed made; what is served stays."""
        with contextlib.suppress(Exception):
            now = self._before(name)
            if now is not None and version in now.roles.values():
                return  # it serves: what failed came after that
            self._session.delete("deployments", f"{kube_name(name)}-v{version}", propagation="Foreground")
            if now is not None and "challenger" in known and dict(now.roles) != dict(known):
                self._until_gone(name, version)
                self._again(name, now, known, before)
            self._store.remove_below(self._place(name, version))

    def _until_gone(self, name: str, version: str) -> None:
        def look() -> Sequence[Mapping[str, Any]]:
            with translated(f"The pods of endpoint {name!r} cannot be listed"):
                return self._pods(name, version)

        self._waited(look, operator.not_, 120)

    def _again(self, name: str, now: State, known: Mapping[str, str], before: State | None) -> None:
        """The challenger that made room comes back."""
        challenger = known["challenger"]
        running = now.running.get(challenger)
        if running is None or before is None or dict(now.roles) != dict(before.roles):
            return
        counts = {
            version: int(now.running[version]["spec"].get("replicas", 0))
            for version in (known["champion"], challenger)
        }
        total = sum(counts.values()) or 1
        shares = {version: round(100 * count / total) for version, count in counts.items()}
        self._change(name, now, {GROUP: str(self._group(now))}, known, shares)

    def _tidied(self, name: str, version: str | None) -> Endpoint:
        """Take down what neither serves nor is kept, and say what is left.

        Args:
            name: The endpoint's.
            version: The one just deployed; what is newer is somebody else's deployment under way. None for none.
        """
        state = self._state(name)
        kept = set(state.roles.values())
        previous = state.roles.get("previous")
        with contextlib.suppress(NotebookedError):
            newest = int(version) if version is not None else max(map(int, kept))
            for other, item in state.running.items():
                if other not in kept and int(other) <= newest:
                    with translated(f"Version {other} of endpoint {name!r} cannot be taken down"):
                        self._session.delete("deployments", item["metadata"]["name"])
                    self._store.remove_below(self._place(name, other))
                elif (
                    other == previous
                    and item["spec"].get("replicas")
                    and not state.documents[other].get("keep_warm")
                ):
                    self._scale(name, other, 0)
        return self.get(name)


def check_name(name: str) -> None:
    """Raise ConfigError where Kubernetes cannot take a name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of an endpoint at Kubernetes.",
            key="endpoint.name",
            hint="Use lower-case letters, digits and hyphens, at most 50 of them.",
        )


def pods_of_shares(weights: Mapping[str, int], most: int, fewest: int = 1) -> dict[str, int]:
    """The numbers of pods that come nearest to shares: the fewest of those that come as near as can be.

    Args:
        weights: Percent by version, none of them 0.
        most: Pods of all versions together.
        fewest: Likewise: what served alone is not to have less to serve with.
    """
    best: dict[str, int] = {}
    least = float("inf")
    for total in range(max(len(weights), fewest), max(most, len(weights), fewest) + 1):
        counts = dict.fromkeys(weights, 1)
        while sum(counts.values()) < total:
            # One more for whoever lacks most.
            counts[max(weights, key=lambda version: weights[version] * total / 100 - counts[version])] += 1
        off = max(abs(100 * count / total - weights[version]) for version, count in counts.items())
        if off < least - 1e-9:
            best, least = counts, off
    return best


def _pods_of(document: Mapping[str, Any]) -> int:
    return int(document.get("replicas", 1))


def _is_ours(service: Mapping[str, Any], name: str) -> bool:
    marked = manifests.marks(service).get(ENDPOINT) == name
    return marked and bool(_NAME.fullmatch(name)) and service["metadata"]["name"] == kube_name(name)


def _is_as(service: Mapping[str, Any], marks: Mapping[str, Any], selector: Mapping[str, Any]) -> bool:
    """Whether a Service is as a change wanted it."""
    have, selects = manifests.marks(service), service["spec"].get("selector", {})
    return all(have.get(key) == value for key, value in marks.items()) and all(
        selects.get(key) == value for key, value in selector.items()
    )


def _is_ready(found: Mapping[str, Any], pods: int) -> bool:
    status = found.get("status", {})
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
        return False
    return bool(status.get("readyReplicas", 0) >= pods and status.get("updatedReplicas", 0) >= pods)


def _removed(name: str, version: str) -> DeploymentConflictError:
    return conflict(name, f"version {version} was removed while it started")


def _health(found: Mapping[str, Any]) -> EndpointStatus:
    wanted = found["spec"].get("replicas", 1)
    ready = found.get("status", {}).get("readyReplicas", 0)
    if wanted == 0:
        return EndpointStatus.STOPPED
    return EndpointStatus.HEALTHY if ready >= wanted else EndpointStatus.DEGRADED


def _why(pod: Mapping[str, Any]) -> str:
    """What is wrong with a pod that serves; empty where nothing is."""
    if (found := trouble(pod)) is not None:
        return found.text
    waiting = status_of(pod).get("state", {}).get("waiting") or {}
    if waiting.get("reason") == "CrashLoopBackOff":
        ended = status_of(pod).get("lastState", {}).get("terminated") or {}
        return f"its container ended with exit code {ended.get('exitCode')} ({ended.get('reason')})"
    return ""


def _model_error(name: str, error: KubeError) -> NotebookedError:
    details = {"status": error.code, "endpoint": name}
    said = error.message.strip()[:2000]
    if 400 <= error.code < 500:
        return InvalidInputError(f"Endpoint {name!r} refused the input: {said}", details=details)
    return ProviderError(
        f"Endpoint {name!r} failed to answer: {said}",
        hint=f"`notebooked logs {name} --endpoint` shows what its pods printed.",
        details=details,
    )
