"""Endpoints in Kubernetes' terms: what holds whoever runs the pods, and who that is.

An endpoint is a Service of ours (``versions``). Its versions are Deployments (``deployments``), or the revisions of an
InferenceService (``kserve``) where ``options.endpoint.operator`` says so; the Service is marked with that.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from notebooked_dagster.config.kubernetes import KubernetesEndpoint
from notebooked_dagster.errors import (
    ConfigError,
    DeploymentError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus
from notebooked_dagster.providers.cloud import serving
from notebooked_dagster.providers.cloud.hosting import CloudHosting, Wanted

from . import manifests
from .deployments import Deployments
from .kserve import InferenceServices
from .manifests import ENDPOINT, OPERATOR, kube_name
from .pods import OURS
from .session import KubeError, KubeSession, translated
from .storage import ObjectStore
from .versions import NAME, Backend, State, Versions, is_ours


class Hosting(CloudHosting[State, KubernetesEndpoint]):
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

    provider, cloud, scheme = "kubernetes", "Kubernetes", "s3://"
    names = NAME
    names_are = "lower-case letters, digits and hyphens, at most 50 of them"

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
        super().__init__(store, state, poll=min(poll, 2.0))
        self._session = session
        self._versions = Versions(
            session,
            store,
            poll=self._poll,
            image=image,
            service_account=service_account,
            pull_from=pull_from,
        )
        self._deployments = Deployments(self._versions)
        self._kserve = InferenceServices(self._versions)
        # Who runs an endpoint, for requests: as it was when it was last looked at.
        self._backends: dict[str, Backend] = {}

    # Asking

    def all(self) -> list[Endpoint]:
        """All of ours, by name."""
        with translated("Endpoints cannot be listed"):
            found = self._session.list("services", f"{OURS},{ENDPOINT}")
            services = [item for item in found if is_ours(item, manifests.marks(item).get(ENDPOINT, ""))]
            kinds = {self._backend(manifests.marks(item).get(OPERATOR)).kind for item in services}
            held = {kind: self._session.list(kind, f"{OURS},{ENDPOINT}") for kind in kinds}
        states = [
            self._versions.state(item, held[self._backend(manifests.marks(item).get(OPERATOR)).kind])
            for item in services
        ]
        return [self._view(state) for state in sorted(states, key=lambda state: state.name)]

    def logs(self, name: str, version: str | None) -> Iterator[str]:
        """What the pods of a version printed, line by line; of the champion where None."""
        state = self._state(name)
        wanted = version or state.roles.get("champion", "")
        if wanted not in state.running:
            raise DeploymentError(
                f"Endpoint {name!r} does not run version {wanted!r}.",
                hint=f"It runs: {', '.join(sorted(state.running))}.",
            )
        yield from self._versions.lines(name, wanted)

    def _answer(self, name: str, body: bytes) -> Any:
        with translated(f"Endpoint {name!r} cannot be asked"):
            try:
                text = self._backends.get(name, self._deployments).ask(name, body)
            except KubeError as error:
                if error.reason == "NotFound":
                    self._forget(name)
                    raise self._unknown(name) from error
                if not error.reason:
                    where = f"`notebooked logs {name} --endpoint` shows what its pods printed."
                    raise serving.model_error(name, error.code, error.message.strip(), where) from error
                raise
        return serving.parsed(name, text)

    def _id(self, name: str) -> str:
        return kube_name(name)

    def _forget(self, name: str) -> None:
        self._input.forget(name)
        self._backends.pop(name, None)

    def _before(self, name: str) -> State | None:
        with translated(f"Endpoint {name!r} cannot be looked at"):
            service = self._session.get("services", kube_name(name))
            if service is None or not is_ours(service, name):
                return None
            backend = self._backends[name] = self._backend(manifests.marks(service).get(OPERATOR))
            return self._versions.state(service, self._versions.held(backend.kind, name))

    def _state(self, name: str) -> State:
        self._check_name(name)
        found = self._before(name)
        if found is None:
            raise self._unknown(name)
        return found

    def _backend(self, operator: str | None) -> Backend:
        return self._kserve if operator == "kserve" else self._deployments

    def _of(self, state: State) -> Backend:
        return self._backend(manifests.marks(state.service).get(OPERATOR))

    def _view(self, state: State) -> Endpoint:
        backend = self._of(state)
        statuses = backend.statuses(state)
        champion = state.roles.get("champion", "")
        served = [statuses.get(version, EndpointStatus.STOPPED) for version, w in state.weights.items() if w]
        status = statuses.get(champion, EndpointStatus.STOPPED)
        if served:
            status = next(
                (item for item in served if item is not EndpointStatus.HEALTHY), EndpointStatus.HEALTHY
            )
        message = "" if status is EndpointStatus.HEALTHY else self._versions.complaint(state)
        deployments = serving.deployments(state.roles, state.weights, state.documents, statuses)
        return Endpoint(state.name, "kubernetes", backend.url(state), status, deployments, message)

    # Changing

    def _deploy(self, wanted: Wanted[KubernetesEndpoint]) -> Endpoint:
        name, options, weight = wanted.name, wanted.options, wanted.weight
        before = self._before(name)
        backend = self._backend(options.operator)
        if before is not None and self._of(before) is not backend:
            raise ConfigError(
                f"Endpoint {name!r} is not served by what options.endpoint.operator says.",
                key="options.endpoint.operator",
                hint="Deploy under another name, or delete the endpoint first.",
            )
        backend.check(name, options, before, weight)
        known = before.roles if before is not None else {}
        folder = self._folder(wanted)
        version = ""
        try:
            version = self._versions.reserve(backend, wanted, before)
            roles = serving.roles_after(known, version, weight)
            facts = self._versions.prepare(backend, wanted, folder, version)
            document = self._described(wanted, folder, version, **facts)
            backend.roll_out(name, before, version, weight, roles, options, document)
        except BaseException:
            if version:
                self._withdraw(backend, name, version, before)
            raise
        return self._tidied(name, version)

    def rollback(self, name: str) -> Endpoint:
        """Serve the previous version again."""
        state = self._state(name)
        roles = serving.roles_back(name, state.roles)
        if roles["champion"] not in state.running:
            raise DeploymentError(
                f"Version {roles['champion']} of endpoint {name!r} is gone from the cluster.",
                hint="Deploy the model you want: `notebooked deploy EXPERIMENT --model-uri …`.",
            )
        self._of(state).rollback(state, roles)
        return self._tidied(name, None)

    def _share_out(self, state: State, weights: Mapping[str, int]) -> Endpoint:
        self._of(state).traffic(state, weights)
        return self._tidied(state.name, None)

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it."""
        self._check_name(name)
        stored = self._stored(name)
        with translated(f"Endpoint {name!r} cannot be looked at"):
            service = self._session.get("services", kube_name(name))
        documents = [self._document(name, str(version)) for version in stored]
        operators = {manifests.marks(service).get(OPERATOR)} if service is not None else set()
        # Its Service may be gone already, where a deletion was cut off.
        operators = operators or {item.get(OPERATOR) for item in documents}
        backend = self._backend("kserve" if "kserve" in operators else None)

        def left() -> Sequence[Mapping[str, Any]]:
            with translated(f"What is left of endpoint {name!r} cannot be listed"):
                return backend.left(name)

        # Our folder goes last: while it is there, a deletion that was cut off can be finished.
        if not (is_ours(service, name) if service is not None else stored or left()):
            raise self._unknown(name)
        with translated(f"Endpoint {name!r} cannot be deleted"):
            # First what leads to the versions; an Ingress belongs to the Service.
            self._session.delete("services", kube_name(name))
            backend.remove(name)
        if self._waited(left, operator.not_, 300):
            raise ProviderError(
                f"Kubernetes has not removed the pods of endpoint {name!r} in 300 s.",
                hint="Delete it again; `kubectl describe` tells what they wait for.",
            )
        self._storage.remove_below(self._place(name))
        self._forget(name)
        return self._gone(name, documents)

    def _withdraw(self, backend: Backend, name: str, version: str, before: State | None) -> None:
        """Remove what a deployment that failed made; what is served stays."""
        with contextlib.suppress(Exception):
            now = self._before(name)
            if now is not None and version in now.roles.values():
                return  # it serves: what failed came after that
            backend.withdraw(name, version, before, now)
            self._storage.remove_below(self._place(name, version))

    def _tidied(self, name: str, version: str | None) -> Endpoint:
        """Take down what neither serves nor is kept, and say what is left.

        Args:
            name: The endpoint's.
            version: The one just deployed; what is newer is somebody else's deployment under way. None for none.
        """
        self._input.forget(name)
        state = self._state(name)
        backend = self._of(state)
        kept = set(state.roles.values())
        with contextlib.suppress(NotebookedError):
            newest = int(version) if version is not None else max(map(int, kept))
            for other, item in state.running.items():
                if other not in kept and int(other) <= newest:
                    with translated(f"Version {other} of endpoint {name!r} cannot be taken down"):
                        self._session.delete(backend.kind, item["metadata"]["name"])
                    self._storage.remove_below(self._place(name, other))
                elif other == state.roles.get("previous"):
                    backend.retire(state, other)
        return self.get(name)
