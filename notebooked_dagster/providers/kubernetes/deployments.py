"""Versions as Deployments.

The Service leads to them: its selector is changed in one call with the roles, so that they never disagree. A new version runs
beside the one that serves, and the Service moves when its pods are ready and one of them has answered the model's own example.

Several versions share the traffic by their numbers of pods: a Service gives every pod that is ready the same part of the
connections. What a share really is, is said as it is.

API: core/v1, apps/v1 Deployment, autoscaling/v2, networking.k8s.io/v1 Ingress.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from notebooked_dagster.config.kubernetes import KubernetesEndpoint
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.base import EndpointStatus

from . import manifests
from .manifests import ENDPOINT, GROUP, VERSION, kube_name, version_name
from .pods import condition
from .session import KubeError, translated
from .versions import State, Versions, obstacle, pods_of, removed, without_challenger


class Deployments:
    """A Deployment for each version.

    Args:
        versions: The namespace's.
    """

    kind = "deployments"

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._session = versions.session

    def check(self, name: str, options: KubernetesEndpoint, before: State | None, weight: int) -> None:
        """Refuse shares of what scales."""
        if before is not None and weight < 100 and options.autoscaling is not None:
            raise ConfigError(
                "A share of the traffic is a number of pods, which autoscaling would change.",
                key="options.endpoint.autoscaling",
                hint="Deploy with weight 100, or without autoscaling.",
            )

    def manifest(
        self, name: str, version: str, options: KubernetesEndpoint, *, beside: State | None, **more: Any
    ) -> dict[str, Any]:
        """The Deployment."""
        group = _group(beside) if beside is not None else None
        return manifests.deployment(name, version, group or version, options, **more)

    def facts(self, options: KubernetesEndpoint) -> dict[str, Any]:
        """How many pods a split may take, and whether a version stays warm."""
        return {"max_pods": options.max_pods, "keep_warm": options.keep_warm}

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
        """Start a version beside the one that serves, ask it, and lead the Service to it."""
        if options.autoscaling is not None:
            with translated(f"Autoscaling of endpoint {name!r} cannot be set up"):
                owner = self._session.get("deployments", version_name(name, version))
                if owner is not None:
                    scaler = manifests.autoscaler(owner, options.autoscaling)
                    self._session.create("horizontalpodautoscalers", scaler)
        joins = roles.get("challenger") == version
        if joins and before is not None and "challenger" in before.roles:
            # Pods of a new challenger would get traffic as soon as they are ready; the one before it makes room.
            before = self._alone(before)
        self._start(name, version, 1 if joins else pods_of(document), document)
        example = document.get("input_example")
        self._versions.answers(self, name, version, example, serves=before is not None)
        exposed = before is not None and manifests.ADDRESS in manifests.marks(before.service)
        if before is None:
            made = self._versions.create(manifests.service(name, version, roles, options), name, version)
        else:
            now = self._versions.unchanged(self.kind, before)
            if joins:
                shares = {roles["champion"]: 100 - weight, version: weight}
                made = self._split(now, shares, roles, options)
            else:
                made = self._lead(now, {VERSION: version}, roles, {version: 100}, options)
        self._expose(name, made, options, exposed)

    def rollback(self, state: State, roles: Mapping[str, str]) -> None:
        """Start the version before again, and lead the Service back to it."""
        back = roles["champion"]
        document = state.documents[back]
        self._start(state.name, back, pods_of(document), document)
        self._lead(state, {VERSION: back}, roles, {back: 100})

    def traffic(self, state: State, weights: Mapping[str, int]) -> None:
        """Set each version's share, as near as numbers of pods come to it."""
        self._split(state, weights, state.roles)

    def withdraw(self, name: str, version: str, before: State | None, now: State | None) -> None:
        """Remove its Deployment; a challenger that made room comes back."""
        self._session.delete("deployments", version_name(name, version), propagation="Foreground")
        if now is None or before is None or "challenger" not in before.roles:
            return
        challenger = before.roles["challenger"]
        if dict(now.roles) != without_challenger(before.roles) or challenger not in now.running:
            return
        self._until_gone(name, version)
        counts = {
            held: int(now.running[held]["spec"].get("replicas", 0))
            for held in (before.roles["champion"], challenger)
        }
        total = sum(counts.values()) or 1
        shares = {held: round(100 * count / total) for held, count in counts.items()}
        self._lead(now, {GROUP: str(_group(now))}, before.roles, shares)

    def retire(self, state: State, version: str) -> None:
        """Leave a version without pods, where it is not to stay warm."""
        if state.running[version]["spec"].get("replicas") and not state.documents[version].get("keep_warm"):
            self._scale(state.name, version, 0)

    def remove(self, name: str) -> None:
        """Delete the Deployments; autoscalers go with them."""
        for item in self._versions.held(self.kind, name):
            self._session.delete(self.kind, item["metadata"]["name"], propagation="Foreground")

    # Asking

    def left(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The Deployments that are still there."""
        return self._versions.held(self.kind, name)

    def statuses(self, state: State) -> dict[str, EndpointStatus]:
        """By their pods that are ready."""
        return {version: _health(item) for version, item in state.running.items()}

    def url(self, state: State) -> str:
        """Where it is reached from outside of the cluster, or through the API server."""
        found: str = manifests.marks(state.service).get(manifests.ADDRESS) or ""
        return found or f"{self._session.host}{self._proxy(state.name)}"

    def ask(self, name: str, body: bytes) -> bytes:
        """Through the API server's proxy, which needs no way into the cluster."""
        path = f"{self._proxy(name)}/invocations"
        # What the model itself answers is no trouble of the cluster's.
        return self._session.again(
            lambda: self._session.send("POST", path, content=body),
            attempts=2,
            unless=lambda error: isinstance(error, KubeError) and not error.reason,
        ).content

    def _proxy(self, name: str) -> str:
        return self._session.path("services", f"{kube_name(name)}:http", "proxy")

    # The steps

    def _scale(self, name: str, version: str, pods: int) -> None:
        with translated(f"Version {version} of endpoint {name!r} cannot be scaled"):
            self._session.patch("deployments", version_name(name, version), {"spec": {"replicas": pods}})

    def _start(self, name: str, version: str, pods: int, document: Mapping[str, Any]) -> None:
        """Let a version run without traffic; returns when its pods are ready."""
        self._scale(name, version, pods)
        timeout = float(document.get("health_timeout", 600))

        def look() -> tuple[str, bool]:
            with translated(f"Version {version} of endpoint {name!r} cannot be looked at"):
                found = self._session.get("deployments", version_name(name, version))
                if found is None:
                    raise removed(name, version)
                if _is_ready(found, pods):
                    return "", True
                why, final = obstacle(self._versions.pods(name, version=version))
                return why or str(condition(found, "ReplicaFailure").get("message", "")), final

        why, final = self._versions.waited(look, lambda seen: seen[1], timeout)
        if why or not final:
            before = self._versions.find(self.kind, name)
            serves = before is not None and any(before.weights.values())
            reason = why or f"it was not ready after {timeout:.0f} s"
            raise self._versions.unhealthy(name, version, reason, serves=serves)

    def _alone(self, state: State) -> State:
        """Lead all traffic to the champion."""
        champion = state.roles["champion"]
        self._lead(state, {VERSION: champion}, without_challenger(state.roles), {champion: 100})
        return self._versions.find(self.kind, state.name) or state

    def _split(
        self,
        state: State,
        weights: Mapping[str, int],
        roles: Mapping[str, str],
        options: KubernetesEndpoint | None = None,
    ) -> dict[str, Any]:
        """Share the traffic by numbers of pods."""
        name = state.name
        wanted = {version: share for version, share in weights.items() if share}
        document = state.documents.get(roles["champion"], {})
        if len(wanted) == 1:
            (only,) = wanted
            found = self._versions.document(name, only)
            # What gets nothing runs on with one pod, so that it can get some again.
            shares = {**dict.fromkeys(weights, 0), only: 100}
            self._start(name, only, pods_of(found), found)
            return self._lead(state, {VERSION: only}, roles, shares, options)
        most = options.max_pods if options is not None else int(document.get("max_pods", 10))
        pods = pods_of_shares(wanted, most, pods_of(document))
        group = _group(state)
        previous = roles.get("previous")
        if previous is not None and previous in state.running and previous not in wanted:
            # A version that runs on for a rollback may be of the same group.
            self._scale(name, previous, 0)
        for version, count in pods.items():
            self._start(name, version, count, self._versions.document(name, version))
        total = sum(pods.values())
        shares = {version: round(100 * count / total) for version, count in pods.items()}
        return self._lead(state, {GROUP: str(group)}, roles, shares, options)

    def _lead(
        self,
        seen: State,
        selects: Mapping[str, str],
        roles: Mapping[str, str],
        shares: Mapping[str, int],
        options: KubernetesEndpoint | None = None,
    ) -> dict[str, Any]:
        """Set traffic and roles at once."""
        marks = {manifests.ADDRESS: manifests.address(seen.name, options)} if options is not None else {}
        selector = {ENDPOINT: kube_name(seen.name), VERSION: None, GROUP: None, **selects}
        return self._versions.change(seen, roles, shares, marks=marks, selector=selector)

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

    def _until_gone(self, name: str, version: str) -> None:
        def look() -> Sequence[Mapping[str, Any]]:
            with translated(f"The pods of endpoint {name!r} cannot be listed"):
                return self._versions.pods(name, version=version)

        self._versions.waited(look, operator.not_, 120)


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


def _group(state: State) -> str | None:
    """What the champion's pods and those of its challenger have in common."""
    champion = state.running.get(state.roles.get("champion", ""))
    return str(champion["metadata"]["labels"][GROUP]) if champion is not None else None


def _is_ready(found: Mapping[str, Any], pods: int) -> bool:
    status = found.get("status", {})
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
        return False
    return bool(status.get("readyReplicas", 0) >= pods and status.get("updatedReplicas", 0) >= pods)


def _health(found: Mapping[str, Any]) -> EndpointStatus:
    wanted = found["spec"].get("replicas", 1)
    ready = found.get("status", {}).get("readyReplicas", 0)
    if wanted == 0:
        return EndpointStatus.STOPPED
    return EndpointStatus.HEALTHY if ready >= wanted else EndpointStatus.DEGRADED
