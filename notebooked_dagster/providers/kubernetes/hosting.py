"""Endpoints in Kubernetes' terms: what holds whoever runs the pods, and who that is.

An endpoint is a Service of ours (``versions``). Its versions are Deployments (``deployments``), or the revisions of an
InferenceService (``kserve``) where ``options.endpoint.operator`` says so; the Service is marked with that.
"""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from notebooked_dagster.config.kubernetes import KubernetesEndpoint
from notebooked_dagster.errors import (
    ConfigError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus, Experiment
from notebooked_dagster.providers.cloud import serving
from notebooked_dagster.providers.cloud.serving import InputCheck

from . import manifests
from .deployments import Deployments
from .kserve import InferenceServices
from .manifests import ENDPOINT, OPERATOR, kube_name
from .pods import OURS
from .session import KubeError, KubeSession, translated
from .storage import ObjectStore
from .versions import Backend, State, Versions, check_name, is_ours


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
        self._versions = Versions(
            session,
            store,
            state / "models",
            poll=min(poll, 2.0),
            image=image,
            service_account=service_account,
            pull_from=pull_from,
        )
        self._deployments = Deployments(self._versions)
        self._kserve = InferenceServices(self._versions)
        # Who runs an endpoint, for requests: as it was when it was last looked at.
        self._backends: dict[str, Backend] = {}
        self._input = InputCheck(self._champion_document)

    # Asking

    def get(self, name: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFoundError."""
        return self._view(self._state(name))

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

    def input_example(self, endpoint: Endpoint) -> Any:
        """What the model that gets most of the traffic was saved with as an example of its input."""
        served = max(endpoint.deployments, key=lambda item: item.weight, default=None)
        found = self._versions.document(endpoint.name, served.version) if served else {}
        return found.get("input_example")

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

    def predict(self, name: str, data: Any) -> Any:
        """Ask an endpoint. Raises InvalidInputError, EndpointNotFoundError, ProviderError."""
        body = json.dumps(data).encode()
        self._input.check(name, body)
        with translated(f"Endpoint {name!r} cannot be asked"):
            try:
                text = self._backends.get(name, self._deployments).ask(name, body)
            except KubeError as error:
                if error.reason == "NotFound":
                    self._forget(name)
                    raise self._unknown(name) from error
                if not error.reason:
                    raise _model_error(name, error) from error
                raise
        try:
            return json.loads(text)
        except ValueError as error:
            raise ProviderError(f"Endpoint {name!r} did not answer with JSON: {text[:200]!r}.") from error

    def _champion_document(self, name: str) -> Mapping[str, Any]:
        state = self._state(name)
        return state.documents.get(state.roles.get("champion", ""), {})

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
        check_name(name)
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
        backend = self._backend(options.operator)
        if before is not None and self._of(before) is not backend:
            raise ConfigError(
                f"Endpoint {name!r} is not served by what options.endpoint.operator says.",
                key="options.endpoint.operator",
                hint="Deploy under another name, or delete the endpoint first.",
            )
        backend.check(name, options, before, weight)
        known = before.roles if before is not None else {}
        folder = self._versions.model(model_uri, tracking_uri)
        version = ""
        try:
            joins = weight < 100 and "champion" in known
            version = self._versions.reserve(backend, experiment, options, name, before, joins=joins)
            roles = serving.roles_after(known, version, weight)
            document = self._versions.prepare(
                backend, experiment, options, folder, model_uri, name, version, labels
            )
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

    def traffic(self, name: str, weights: Mapping[str, int]) -> Endpoint:
        """Set each version's share."""
        state = self._state(name)
        serving.check_shares(name, weights, state.weights)
        self._of(state).traffic(state, weights)
        return self._tidied(name, None)

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it."""
        check_name(name)
        stored = self._versions.stored(name)
        with translated(f"Endpoint {name!r} cannot be looked at"):
            service = self._session.get("services", kube_name(name))
        documents = [self._versions.document(name, version) for version in stored]
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
        if self._versions.waited(left, operator.not_, 300):
            raise ProviderError(
                f"Kubernetes has not removed the pods of endpoint {name!r} in 300 s.",
                hint="Delete it again; `kubectl describe` tells what they wait for.",
            )
        self._store.remove_below(self._versions.place(name))
        self._forget(name)
        kept = sorted({str(item.get("model_uri")) for item in documents} - {"None", ""})
        return [f"The model {uri} is kept." for uri in kept]

    def _withdraw(self, backend: Backend, name: str, version: str, before: State | None) -> None:
        """Remove what a deployment that failed made; what is served stays."""
        with contextlib.suppress(Exception):
            now = self._before(name)
            if now is not None and version in now.roles.values():
                return  # it serves: what failed came after that
            backend.withdraw(name, version, before, now)
            self._store.remove_below(self._versions.place(name, version))

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
                    self._store.remove_below(self._versions.place(name, other))
                elif other == state.roles.get("previous"):
                    backend.retire(state, other)
        return self.get(name)


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
