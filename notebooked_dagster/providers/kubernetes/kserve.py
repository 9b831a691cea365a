"""Versions as revisions of one InferenceService, which KServe runs.

KServe knows two revisions: the latest, which gets ``canaryTrafficPercent``, and the one that had all traffic last, which gets
the rest. A version is served by making it the latest, with nothing of the traffic, until its pods are ready and one of them
has answered the model's own example; then the share is raised. A rollback is the same with a version that was there before.

The Service (``versions``) says what is to be. It is changed first, and the InferenceService follows; whoever comes next
finishes what was cut off. Every change begins by touching the Service, so that of two at once the earlier sees it.

Without Knative (KServe's raw mode) there are no revisions: a Deployment is rolled over, and all traffic goes with it.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from notebooked_dagster.config.kubernetes import KubernetesEndpoint
from notebooked_dagster.core import tracing
from notebooked_dagster.errors import ConfigError, ProviderError
from notebooked_dagster.providers.base import EndpointStatus
from notebooked_dagster.providers.cloud.serving import conflict

from . import inference, manifests
from .inference import REVISION, ROLLOUT
from .manifests import ENDPOINT, NONCE, OPERATOR, version_name
from .pods import condition
from .session import TIMEOUT, KubeError, translated
from .versions import State, Versions, obstacle, pods_of, removed, without_challenger

_KIND = "inferenceservices"
# The controller writes into the same object while it works.
_TRIES = 20
# Seconds that routes may take to follow.
_ROUTES = 300.0
_GATEWAY = (502, 503, 504)


class InferenceServices:
    """An InferenceService for each endpoint, and a PodTemplate for each version.

    Args:
        versions: The namespace's.
    """

    kind = "podtemplates"

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._session = versions.session
        self._addresses: dict[str, tuple[str, dict[str, str]]] = {}

    def check(self, name: str, options: KubernetesEndpoint, before: State | None, weight: int) -> None:
        """Refuse a cluster without KServe, and shares without Knative."""
        inference.service_name(name)
        with translated("Whether KServe is there cannot be looked at"):
            if not self._session.serves(_KIND):
                raise no_kserve()
        found = self._found(name)
        if found is None or before is None:
            return
        raw = inference.is_raw(found)
        if options.mode is not None and (options.mode == "raw") != raw:
            raise ConfigError(
                f"Endpoint {name!r} does not run in KServe's {options.mode} mode, which cannot be changed.",
                key="options.endpoint.mode",
                hint="Delete the endpoint first, or leave options.endpoint.mode out.",
            )
        if raw and weight < 100:
            raise ConfigError(
                f"Endpoint {name!r} runs in KServe's raw mode, in which the traffic cannot be shared out.",
                key="options.endpoint.mode",
                hint="Deploy with weight 100; or delete the endpoint, and deploy it with `mode: serverless`, which takes "
                "Knative.",
            )

    def manifest(
        self, name: str, version: str, options: KubernetesEndpoint, *, beside: State | None, **more: Any
    ) -> dict[str, Any]:
        """The PodTemplate."""
        return inference.held(name, version, options, **more)

    def facts(self, options: KubernetesEndpoint) -> dict[str, Any]:
        """How it is scaled, and by whom."""
        return {OPERATOR: "kserve", "scaling": inference.scaling(options)}

    # Changing

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
        """Start a version as the latest revision, ask it, and give it its share."""
        if before is None:
            self._latest(name, version, document, None, serves=False, mode=options.mode)
            self._ask_example(name, version, document, serves=False)
            # It leads nowhere: KServe does.
            record = manifests.record(name, version, roles, options, options.gateway, **{OPERATOR: "kserve"})
            self._versions.create(record, name, version)
            return
        now = self._claimed(before, alone="challenger" in before.roles)
        self._latest(name, version, document, 0, serves=True, mode=options.mode)
        self._ask_example(name, version, document, serves=True)
        shares_of = {version: 100}
        if roles.get("challenger") == version:
            shares_of = {roles["champion"]: 100 - weight, version: weight}
        self._versions.change(now, roles, shares_of, marks={manifests.ADDRESS: options.gateway})
        self._share(name, version, weight if roles.get("challenger") == version else 100)

    def rollback(self, state: State, roles: Mapping[str, str]) -> None:
        """Start the version before as a revision of its own; it serves when it is ready."""
        back = roles["champion"]
        now = self._claimed(state)
        with self._undone(now, back):
            self._latest(state.name, back, state.documents[back], 0, serves=True)
            self._versions.change(now, roles, {back: 100})
        self._share(state.name, back, 100)

    def traffic(self, state: State, weights: Mapping[str, int]) -> None:
        """Set the shares: exactly."""
        name = state.name
        now = self._claimed(state)
        newest, base = self._two(now)
        served = {version for version, share in weights.items() if share}
        with self._undone(now, *(served - {newest, base})):
            if not served <= {newest, base}:
                # It was taken from the two that KServe knows when another got all.
                (newest,) = served - {base}
                self._latest(name, newest, self._versions.document(name, newest), 0, serves=True)
            self._versions.change(now, state.roles, weights)
        self._share(name, newest, weights.get(newest, 0))

    def withdraw(self, name: str, version: str, before: State | None, now: State | None) -> None:
        """Make what serves the latest revision again, as it was; a challenger that made room comes back."""
        found = self._found(name)
        served = before or now
        is_latest = found is not None and inference.latest(found) == version
        if served is not None and (is_latest or _made_room(before, now)):
            self._restored(served, served.roles.get("challenger", served.roles["champion"]))
        elif is_latest:
            self._session.delete(_KIND, inference.service_name(name))
            self._versions.waited(
                lambda: self._versions.pods(name, version=version), lambda pods: not pods, 120
            )
        self._session.delete(self.kind, version_name(name, version))

    def retire(self, state: State, version: str) -> None:
        """Nothing: Knative takes a revision down that nothing leads to."""

    def remove(self, name: str) -> None:
        """Delete the InferenceService, with all that KServe made of it, and the PodTemplates."""
        self._addresses.pop(name, None)
        self._session.delete(_KIND, inference.service_name(name))
        for item in self._versions.held(self.kind, name):
            self._session.delete(self.kind, item["metadata"]["name"])

    # Asking

    def left(self, name: str) -> Sequence[Mapping[str, Any]]:
        """What is still there: the InferenceService, or its pods."""
        found = self._session.get(_KIND, inference.service_name(name))
        if found is not None:
            return [found]
        # Also those that are ending: they hold what they were given of the node.
        return self._session.list("pods", f"{ENDPOINT}={manifests.kube_name(name)}")

    def statuses(self, state: State) -> dict[str, EndpointStatus]:
        """Of the revisions that something leads to; the InferenceService tells it of all together."""
        found = self._found(state.name)
        if found is None:
            return {}
        said = {"True": EndpointStatus.HEALTHY, "False": EndpointStatus.DEGRADED}
        status = said.get(inference.holds(found, "Ready"), EndpointStatus.CREATING)
        newest = inference.latest(found)
        return {version: status for version, share in state.weights.items() if share or version == newest}

    def url(self, state: State) -> str:
        """Where KServe's ingress serves it."""
        found = self._found(state.name) or {}
        return str(found.get("status", {}).get("url") or "")

    def ask(self, name: str, body: bytes) -> bytes:
        """Through KServe's ingress, which knows the endpoint by the host's name."""
        try:
            return self._session.again(
                lambda: self._post(name, body),
                attempts=2,
                unless=lambda error: isinstance(error, KubeError) and error.code not in _GATEWAY,
            )
        except (KubeError, httpx.TransportError):
            self._addresses.pop(name, None)
            raise

    def _post(self, name: str, body: bytes) -> bytes:
        address, host = self._address(name)
        headers = {**tracing.headers(), **host, "Content-Type": "application/json"}
        reply = httpx.post(f"{address}/invocations", content=body, headers=headers, timeout=TIMEOUT)
        if reply.status_code >= 400:
            # The server in the pod knows this path: it is the ingress that does not know the host.
            reason = "NotFound" if reply.status_code == 404 else ""
            raise KubeError(reply.status_code, reason, reply.text[:2000] or reply.reason_phrase)
        return reply.content

    def _address(self, name: str) -> tuple[str, dict[str, str]]:
        """Where an endpoint is asked from here, and the host's name that the ingress is to be told."""
        if name not in self._addresses:
            record = self._session.get("services", manifests.kube_name(name))
            found = self._session.get(_KIND, inference.service_name(name))
            if record is None or found is None:
                raise KubeError(404, "NotFound", f"there is no InferenceService of endpoint {name!r}")
            status = found.get("status", {})
            inside = str((status.get("address") or {}).get("url") or "")
            outside = str(status.get("url") or "")
            gateway = manifests.marks(record).get(manifests.ADDRESS)
            if self._session.in_cluster and inside:
                chosen: tuple[str, dict[str, str]] = (inside, {})
            elif gateway:
                chosen = (gateway, {"Host": httpx.URL(outside).host})
            else:
                chosen = (outside, {})
            if not chosen[0]:
                raise KubeError(503, "ServiceUnavailable", "KServe has not given it an address yet")
            self._addresses[name] = (chosen[0].rstrip("/"), chosen[1])
        return self._addresses[name]

    # The steps

    def _found(self, name: str) -> dict[str, Any] | None:
        with translated(f"The InferenceService of endpoint {name!r} cannot be looked at"):
            return self._session.get(_KIND, inference.service_name(name))

    def _claimed(self, state: State, *, alone: bool = False) -> State:
        """Take the endpoint: whoever has it already is told so when he goes on.

        Args:
            state: As it was seen.
            alone: Whether the champion is to have all traffic, and to be what KServe counts shares from.
        """
        now = self._versions.unchanged(self.kind, state)
        self._settled(now)
        roles, shares = dict(now.roles), dict(now.weights)
        if alone:
            champion = roles["champion"]
            newest, base = self._two(now)
            roles.pop("challenger")
            shares = {champion: 100}
            if champion not in (newest, base):
                newest = champion
                self._latest(now.name, champion, now.documents[champion], 0, serves=True)
            self._versions.change(now, roles, shares)
            self._share(now.name, newest, shares.get(newest, 0))
            now = self._versions.find(self.kind, now.name) or now
        self._versions.change(now, roles, shares, marks={NONCE: secrets.token_hex(8)})
        return self._versions.find(self.kind, now.name) or now

    def _two(self, state: State) -> tuple[str, str]:
        """The versions that KServe's latest revision is, and the one that has the rest of the traffic."""
        found = self._found(state.name)
        newest = inference.latest(found) if found is not None else ""
        if state.weights.get(newest) == 100:
            return newest, newest
        served = (version for version, share in state.weights.items() if share and version != newest)
        return newest, next(served, newest)

    def _settled(self, state: State) -> None:
        """Finish what was cut off between the Service and the InferenceService."""
        found = self._found(state.name)
        if found is None or inference.is_raw(found):
            return
        newest = inference.latest(found)
        if newest in state.weights and inference.share(found) != state.weights[newest]:
            self._share(state.name, newest, state.weights[newest])

    @contextlib.contextmanager
    def _undone(self, state: State, *started: str) -> Iterator[None]:
        """Where something fails, what was the latest revision before is so again; not over somebody else's."""
        newest, base = self._two(state)
        # Of a deployment that was cut off there may be a revision that nothing leads to: it is not what served.
        back = newest if newest in state.weights else base
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                found = self._found(state.name)
                if found is not None and inference.latest(found) in started:
                    self._restored(state, back)
            raise

    def _restored(self, before: State, back: str) -> None:
        """Make a version the latest revision again, with the roles and shares of before."""
        now = self._versions.find(self.kind, before.name)
        if now is None or back not in now.running:
            return
        now = self._claimed(now)
        self._latest(now.name, back, self._versions.document(now.name, back), 0, serves=True)
        self._versions.change(now, before.roles, before.weights)
        self._share(now.name, back, before.weights.get(back, 0))

    def _latest(
        self,
        name: str,
        version: str,
        document: Mapping[str, Any],
        canary: int | None,
        *,
        serves: bool,
        mode: str | None = None,
    ) -> None:
        """Make a version the latest revision; returns when its pods are ready."""
        with translated(f"Version {version} of endpoint {name!r} cannot be started"):
            held = self._session.get(self.kind, version_name(name, version))
            if held is None:
                raise removed(name, version)
            rollout = secrets.token_hex(8)

            def change(found: dict[str, Any]) -> dict[str, Any] | None:
                if found["metadata"].get("labels", {}).get(ENDPOINT) != manifests.kube_name(name):
                    raise conflict(name, f"the InferenceService {found['metadata']['name']!r} is not ours")
                if inference.labels(found).get(ROLLOUT) == rollout:
                    return None
                percent = None if inference.is_raw(found) else canary
                return inference.serving(found, held["template"], document, rollout, percent)

            fresh = inference.serving(inference.fresh(name, mode), held["template"], document, rollout, None)
            if self._session.create(_KIND, fresh) is None:
                self._changed(name, change)
        self._ready(name, version, rollout, document, serves=serves)

    def _changed(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Change the InferenceService as it is; the controller may change it at the same moment."""
        own = inference.service_name(name)
        for attempt in range(1, _TRIES + 1):
            found = self._session.get(_KIND, own)
            if found is None:
                raise conflict(name, "its InferenceService was deleted at the same moment")
            wanted = change(found)
            if wanted is None:
                return
            try:
                self._session.replace(_KIND, own, wanted)
            except KubeError as error:
                if error.reason != "Conflict" or attempt == _TRIES:
                    raise
                time.sleep(min(0.05 * attempt, 0.5))
            else:
                return

    def _ready(
        self, name: str, version: str, rollout: str, document: Mapping[str, Any], *, serves: bool
    ) -> None:
        timeout = float(document.get("health_timeout", 600))

        def look() -> tuple[str, bool]:
            with translated(f"Version {version} of endpoint {name!r} cannot be looked at"):
                found = self._session.get(_KIND, inference.service_name(name))
                if found is None or inference.labels(found).get(ROLLOUT) != rollout:
                    raise removed(name, version)
                pods = self._versions.pods(name)
                mine = [pod for pod in pods if pod["metadata"]["labels"].get(ROLLOUT) == rollout]
                if inference.is_raw(found):
                    ready = [pod for pod in mine if condition(pod, "Ready")]
                    if len(mine) == len(pods) and len(ready) >= max(1, pods_of(document)):
                        return "", True
                else:
                    told = inference.component(found)
                    newest = told.get("latestReadyRevision")
                    revisions = {pod["metadata"]["labels"].get(REVISION) for pod in mine}
                    if newest and newest == told.get("latestCreatedRevision") and newest in revisions:
                        return "", True
                why, final = obstacle(mine)
                return (why, final) if why else _refusal(found)

        why, final = self._versions.waited(look, lambda seen: seen[1], timeout)
        if why or not final:
            reason = why or f"it was not ready after {timeout:.0f} s"
            raise self._versions.unhealthy(name, version, reason, serves=serves)

    def _ask_example(self, name: str, version: str, document: Mapping[str, Any], *, serves: bool) -> None:
        self._versions.answers(self, name, version, document.get("input_example"), serves=serves)

    def _share(self, name: str, version: str, percent: int) -> None:
        """Give the latest revision a share; returns when the routes follow."""

        def change(found: dict[str, Any]) -> dict[str, Any] | None:
            # Whoever has made another version the latest has settled this one's share before.
            if inference.latest(found) != version or inference.share(found) == percent:
                return None
            return inference.with_share(found, percent)

        def look() -> bool:
            found = self._found(name)
            if found is None or inference.latest(found) != version:
                raise conflict(name, "another version is rolled out at the same moment")
            if inference.is_raw(found):
                return inference.holds(found, "Ready") == "True"
            return inference.has_share(found, percent)

        with translated(f"The traffic of endpoint {name!r} cannot be changed"):
            self._changed(name, change)
        if not self._versions.waited(look, bool, _ROUTES):
            raise ProviderError(
                f"KServe has not given version {version} of endpoint {name!r} its {percent} % of the traffic in "
                f"{_ROUTES:.0f} s.",
                hint=f"`kubectl describe inferenceservice {inference.service_name(name)}` tells what it waits for.",
            )


def _made_room(before: State | None, now: State | None) -> bool:
    """Whether a challenger lost its role to a deployment, and nobody has changed anything since."""
    if before is None or now is None or "challenger" not in before.roles:
        return False
    return dict(now.roles) == without_challenger(before.roles)


def no_kserve() -> ConfigError:
    """That the cluster does not know InferenceServices."""
    return ConfigError(
        "KServe is not installed in this cluster: no serving.kserve.io/v1beta1 InferenceService.",
        key="options.endpoint.operator",
        hint="Install KServe, or leave options.endpoint.operator out: Deployments need no operator.",
    )


def _refusal(found: Mapping[str, Any]) -> tuple[str, bool]:
    """What KServe says against a version; that Knative does not take such pods is final."""
    said = inference.said(found, "PredictorReady")
    if said.get("status") != "False":
        return "", False
    text = str(said.get("message") or "")
    return text, said.get("reason") == "ReconcileFailed" and "admission webhook" in text
