"""Endpoints in Vertex AI's terms.

A version of an endpoint is a Model, an archive and a description in our folder of the bucket. It is deployed without any
traffic first; Vertex AI reports that as done when its container is healthy. Traffic and roles move in one call afterwards
(roles are labels of the endpoint), so that they never disagree, and only where nobody else has changed them meanwhile.

API: Vertex AI v1, ``projects.locations.models`` and ``projects.locations.endpoints``.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notebooked_dagster.config.vertex import VertexEndpoint
from notebooked_dagster.errors import (
    DeploymentError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus
from notebooked_dagster.providers.cloud import serving
from notebooked_dagster.providers.cloud.hosting import CloudHosting, EndpointState, Wanted
from notebooked_dagster.providers.cloud.serving import ROLES, conflict
from notebooked_dagster.providers.cloud.waiting import OutOfReachError

from . import images
from .logs import endpoint_filter, entries_since, text_of
from .session import (
    TIMEOUT,
    GcpSession,
    api_message,
    code_of,
    message_of,
    package,
    transient,
    translated,
    unclear,
)
from .storage import Storage
from .training import command, label, machine_spec

_PREFIX = "nbd-"
_OURS = "notebooked_endpoint"
_SERVED_BY = "X-Vertex-AI-Deployed-Model-Id"
# Of a version that is watched: the answers it has to give, how long one may take, and requests in a row that nobody answers.
_ANSWERS, _ANSWER_TIMEOUT, _SILENT = 3, 20.0, 5
_BUSY = re.compile(
    r"(?i)other operations? running|being (updated|deployed|deleted)|etag|already exist|concurrent"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State(EndpointState):
    """An endpoint as Vertex AI and our descriptions have it now.

    Attributes:
        etag: Of the endpoint; another one after any change.
        labels: The endpoint's.
        message: What Vertex AI says of versions that are not well.
    """

    etag: str
    labels: Mapping[str, str]
    message: str


@dataclass(slots=True)
class _Trial:
    """How a version answers that has a share of the traffic.

    Attributes:
        name: The endpoint's.
        version: The version.
        percent: Its share.
        asked: How often the endpoint was asked.
        answers: How often it was this version that answered.
        silent: How often nobody did since it answered last.
    """

    name: str
    version: str
    percent: int
    asked: int = 0
    answers: int = 0
    silent: int = 0

    def note(self, by: str, trouble: str) -> None:
        """Count one request: the version that answered, or what came instead. Raises DeploymentError where that is enough."""
        self.asked += 1
        if trouble:
            # Nothing says whose turn it was. That the others answer in between is no answer of this one.
            self.silent += 1
            if self.silent >= _SILENT:
                raise self.failed(f"has stopped answering: {trouble[:2000]}")
        elif by == self.version:
            self.answers += 1
            self.silent = 0
        if self.answers < _ANSWERS and self.asked >= 10 * _ANSWERS * 100 / self.percent:
            raise self.failed(f"answered {self.answers} of {self.asked} requests")

    def failed(self, why: str) -> DeploymentError:
        """The error that gives its traffic back."""
        return DeploymentError(
            f"Version {self.version} of endpoint {self.name!r} {why.rstrip('.')}. The endpoint serves what it served before.",
            hint=_where(self.name, self.version),
        )


class Hosting(CloudHosting[State, VertexEndpoint]):
    """The endpoints of one folder of one bucket.

    Args:
        session: Credentials.
        storage: Our folder.
        state: Where fetched models are kept.
        poll: Seconds between two looks.
        service_account: That containers run under; one without rights in the project where None.
        kms_key: Encrypts models and endpoints.
    """

    provider, cloud, scheme = "vertex", "Vertex AI", "gs://"
    names = re.compile(r"[a-z0-9][a-z0-9_-]{0,48}[a-z0-9]|[a-z0-9]")
    names_are = "lower-case letters, digits and hyphens, at most 50 of them"
    _storage: Storage

    def __init__(
        self,
        session: GcpSession,
        storage: Storage,
        state: Path,
        *,
        poll: float,
        service_account: str | None,
        kms_key: str | None,
    ) -> None:
        super().__init__(storage, state, poll=poll)
        self._session = session
        self._service_account = service_account
        self._kms_key = kms_key

    @property
    def _endpoints(self) -> Any:
        return self._session.client("endpoints")

    @property
    def _registry(self) -> Any:
        return self._session.client("models")

    def _busy(self, error: Exception) -> str:
        refused = isinstance(error, package("google.api_core.exceptions").GoogleAPICallError)
        busy = refused and code_of(error) in (400, 409, 412) and _BUSY.search(message_of(error))
        return message_of(error) if busy else ""

    # Asking

    def all(self) -> list[Endpoint]:
        """All of ours, by name."""
        query = {"parent": self._session.parent, "filter": f"labels.{_OURS}:*", "page_size": 100}
        with translated("Endpoints cannot be listed"):
            found = self._session.again(
                lambda: list(self._endpoints.list_endpoints(request=query, timeout=TIMEOUT))
            )
        states = [self._state_of(item) for item in found if _is_ours(item, item.display_name)]
        return [self._view(state) for state in sorted(states, key=lambda state: state.name)]

    def _answer(self, name: str, body: bytes) -> Any:
        with translated(f"Endpoint {name!r} cannot be asked"):
            try:
                text = self._ask(name, body).content
            except Exception as error:
                if code_of(error) == 404:
                    self._input.forget(name)
                    raise self._unknown(name) from error
                if said := _said_by_container(error):
                    where = _where(name, _served_by(error))
                    raise serving.model_error(name, code_of(error), said, where) from error
                raise
        return serving.parsed(name, text)

    def _ask(self, name: str, body: bytes) -> Any:
        # Not by the SDK's PredictionServiceClient: over REST it wraps the body in JSON (`httpBody`), and the container is
        # to get it as it is.
        url = f"{self._url(name)}:rawPredict"
        return self._session.again(
            lambda: self._session.send("POST", url, content=body), attempts=2, unless=_said_by_container
        )

    def _state(self, name: str) -> State:
        found = self._found(name)
        if found is None or not _is_ours(found, name):
            raise self._unknown(name)
        return self._state_of(found)

    def _found(self, name: str) -> Any:
        """The endpoint that has the id of a name, whosever it is; None where there is none."""
        self._check_name(name)
        with translated(f"Endpoint {name!r} cannot be looked at"):
            try:
                return self._session.again(
                    lambda: self._endpoints.get_endpoint(name=self._resource(name), timeout=TIMEOUT)
                )
            except Exception as error:
                if code_of(error) == 404:
                    return None
                raise

    def _state_of(self, found: Any) -> State:
        name, labels = found.display_name, dict(found.labels)
        roles = {role: labels[f"notebooked_{role}"] for role in ROLES if labels.get(f"notebooked_{role}")}
        messages = [
            f"Version {item.id}: {item.status.message}"
            for item in found.deployed_models
            if item.status.message
        ]
        return State(
            name=name,
            etag=found.etag,
            weights={item.id: int(found.traffic_split.get(item.id, 0)) for item in found.deployed_models},
            roles=roles,
            labels=labels,
            message=" ".join(messages),
            documents=self._documents(name, roles),
        )

    def _id(self, name: str) -> str:
        return google_name(name)

    def _resource(self, name: str) -> str:
        return f"{self._session.parent}/endpoints/{google_name(name)}"

    def _model(self, name: str, version: str) -> str:
        return f"{self._session.parent}/models/{google_name(name)}-v{version}"

    def _url(self, name: str) -> str:
        return f"{self._session.vertex_url}/v1/{self._resource(name)}"

    def _view(self, state: State) -> Endpoint:
        champion = state.roles.get("champion", "")
        status = EndpointStatus.CREATING
        if champion in state.weights:
            status = EndpointStatus.DEGRADED if state.message else EndpointStatus.HEALTHY
        elif champion:
            status = EndpointStatus.STOPPED
        deployments = serving.deployments(
            state.roles, state.weights, state.documents, dict.fromkeys(state.weights, status)
        )
        return Endpoint(state.name, "vertex", self._url(state.name), status, deployments, state.message)

    def logs(self, name: str, version: str | None) -> Iterator[str]:
        """What a version printed, line by line; the champion where None."""
        state = self._state(name)
        wanted = version if version is not None else state.roles.get("champion", "")
        document = state.documents.get(wanted) or self._document(name, wanted)
        # Of a version that is gone, the log is still there for as long as Cloud Logging keeps it.
        since = datetime.fromisoformat(document.get("created_at", "2024-01-01T00:00:00+00:00"))
        entries, _ = entries_since(self._session, endpoint_filter(google_name(name), wanted), since)
        return (line for entry in entries for line in text_of(entry).split("\n"))

    # Changing

    def _deploy(self, wanted: Wanted[VertexEndpoint]) -> Endpoint:
        name = wanted.name
        before = self._before(name)
        folder = self._folder(wanted)
        version = self._reserve(name, before)
        began = datetime.now(UTC)
        try:
            document = self._prepare(wanted, folder, version)
            if before is None:
                self._create_endpoint(name, wanted.options)
            self._start(name, version, document, began)
            self._shift(wanted, version, before, document)
        except BaseException:
            self._withdraw(name, version, before)
            raise
        return self._tidied(name, version, keep_warm=wanted.options.keep_warm)

    def rollback(self, name: str) -> Endpoint:
        """Serve the previous version again."""
        state = self._state(name)
        roles = serving.roles_back(name, state.roles)
        back = roles["champion"]
        document = state.documents[back]
        if back not in state.weights:
            self._start(name, back, document, datetime.now(UTC))
        self._change(name, self._unchanged(name, state), {back: 100}, roles)
        return self._tidied(name, None, keep_warm=bool(document.get("keep_warm")))

    def _share_out(self, state: State, weights: Mapping[str, int]) -> Endpoint:
        self._change(state.name, state, weights, state.roles)
        return self.get(state.name)

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it."""
        found, versions = self._found(name), self._stored(name)
        # Our folder goes last: while it is there, a deletion that was cut off can be finished.
        if not (_is_ours(found, name) if found is not None else versions):
            raise self._unknown(name)
        documents = [self._document(name, str(version)) for version in versions]
        if found is not None:
            state = self._state_of(found)
            with translated(f"Endpoint {name!r} cannot be deleted"), self._conflicts(name):
                if any(state.weights.values()):
                    # A version that has traffic cannot be taken down.
                    self._change(name, state, {}, state.roles)
                for version in state.weights:
                    self._stop(name, version)
                self._delete_endpoint(name)
        for model in self._model_names(name):
            self._remove_model(model)
        self._storage.remove_below(self._place(name))
        return self._gone(
            name, documents, f"The log of endpoint {google_name(name)} in Cloud Logging is kept."
        )

    # The steps of a deployment

    def _before(self, name: str) -> State | None:
        found = self._found(name)
        if found is None:
            return None
        if not _is_ours(found, name):
            raise DeploymentError(
                f"Vertex AI has an endpoint {google_name(name)!r} that is not {name!r} of this project.",
                hint="Choose another name for the endpoint; `-` and `_` are the same to Vertex AI.",
            )
        return self._state_of(found)

    def _reserve(self, name: str, before: State | None) -> str:
        """The next version's number, which nobody else gets."""
        known = [*before.roles.values(), *before.weights] if before else []
        version = str(max([0, *self._stored(name), *map(int, known)]) + 1)
        mark = json.dumps({"at": datetime.now(UTC).isoformat(), "by": id(self)}).encode()
        if self._storage.write(self._place(name, version, "reserved"), mark, generation=0) is None:
            raise conflict(name, "another process has begun a deployment at the same moment")
        return version

    def _prepare(self, wanted: Wanted[VertexEndpoint], folder: Path, version: str) -> dict[str, Any]:
        """Archive, description and Model of a version."""
        name, options = wanted.name, wanted.options
        resources = _resources(options)
        api_message("DedicatedResources", resources, "options.endpoint")
        artifacts = self._place(name, version, "model")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.tar.gz"
            serving.pack(wanted.experiment, folder, path)
            self._storage.upload(path, f"{artifacts}/model.tar.gz")
        image = images.choose(self._session.region, options.accelerator, options.image)
        document = self._described(
            wanted,
            folder,
            version,
            image=image.uri,
            resources=resources,
            health_timeout=options.health_timeout,
            keep_warm=options.keep_warm,
        )
        model = {
            "display_name": f"{google_name(name)}-v{version}",
            "artifact_uri": artifacts,
            "container_spec": {
                "image_uri": image.uri,
                "command": command("serve"),
                "env": [
                    {"name": key, "value": value} for key, value in wanted.experiment.environment.items()
                ],
                "ports": [{"container_port": 8080}],
                "predict_route": "/invocations",
                "health_route": "/ping",
                "deployment_timeout": {"seconds": options.health_timeout},
            },
            "labels": {**options.labels, _OURS: label(name)},
            **self._encryption(),
        }
        query = {
            "parent": self._session.parent,
            "model_id": f"{google_name(name)}-v{version}",
            "model": model,
        }
        with translated(f"Version {version} of endpoint {name!r} cannot be made"):
            self._finished(
                lambda: self._registry.upload_model(request=query, timeout=TIMEOUT),
                lambda: self._has_model(self._model(name, version)),
                900,
            )
        return document

    def _encryption(self) -> dict[str, Any]:
        return {"encryption_spec": {"kms_key_name": self._kms_key}} if self._kms_key else {}

    def _create_endpoint(self, name: str, options: VertexEndpoint) -> None:
        query = {
            "parent": self._session.parent,
            "endpoint_id": google_name(name),
            "endpoint": {
                "display_name": name,
                "labels": {**options.labels, _OURS: label(name)},
                **self._encryption(),
            },
        }
        with translated(f"Endpoint {name!r} cannot be made"), self._conflicts(name):
            self._finished(
                lambda: self._endpoints.create_endpoint(request=query, timeout=TIMEOUT),
                lambda: self._found(name) is not None,
                900,
            )

    def _delete_endpoint(self, name: str) -> None:
        self._finished(
            lambda: self._endpoints.delete_endpoint(name=self._resource(name), timeout=TIMEOUT),
            lambda: self._found(name) is None,
            900,
        )

    def _finished(self, begin: Callable[[], Any], done: Callable[[], bool], timeout: float) -> None:
        """Begin an operation and wait for its end.

        Args:
            begin: The call that gives the operation; short trouble is waited out.
            done: Whether what was wanted is there; asked where the reply that names the operation was lost.
            timeout: Seconds it may take.
        """
        operation = self._begun(begin)
        if operation is None:
            self._until(done, timeout)
        else:
            self._operation(operation, timeout)

    def _begun(self, begin: Callable[[], Any]) -> Any:
        """The operation; None where a reply was lost and Vertex AI says now that it is under way, or done."""
        lost = False
        for attempt in range(1, 5):
            try:
                return begin().operation
            except Exception as error:
                if lost and code_of(error) in (400, 404, 409) and not _is_health(error):
                    return None
                if attempt == 4 or not self._session.is_worth_another(error):
                    raise
                lost = lost or unclear(error)
            self._session.back_off(attempt)
        raise AssertionError  # the last attempt raises

    def _until(self, done: Callable[[], bool], timeout: float) -> None:
        if not self._waited(done, bool, timeout):
            raise ProviderError(f"Vertex AI has not done in {timeout:.0f} s what it was asked, nor said why.")

    def _has_model(self, resource: str) -> bool:
        with translated(f"{resource} cannot be looked at"):
            try:
                self._session.again(lambda: self._registry.get_model(name=resource, timeout=TIMEOUT))
            except Exception as error:
                if code_of(error) == 404:
                    return False
                raise
        return True

    def _operation(self, operation: Any, timeout: float) -> None:
        # Not by the client's own polling: over REST it asks an address that the API's reference does not have.
        url = f"{self._session.vertex_url}/v1/{operation.name}"

        def look() -> dict[str, Any]:
            with translated("An operation of Vertex AI cannot be looked at"):
                found: dict[str, Any] = self._session.send("GET", url).json()
                return found

        found = self._waited(look, lambda seen: bool(seen.get("done")), timeout)
        if not found.get("done"):
            raise ProviderError(
                f"Vertex AI has not finished an operation in {timeout:.0f} s.",
                hint="It may go on there; look again later.",
                details={"operation": operation.name},
            )
        if "error" in found:
            failure = found["error"]
            raise package("google.api_core.exceptions").from_grpc_status(
                int(failure.get("code", 2)), str(failure.get("message", ""))
            )

    def _start(self, name: str, version: str, document: Mapping[str, Any], began: datetime) -> None:
        """Let a version run without traffic; returns when it is healthy."""
        deployed = {
            "id": version,
            "model": self._model(name, version),
            "display_name": f"{google_name(name)}-v{version}",
            "dedicated_resources": document["resources"],
            **({"service_account": self._service_account} if self._service_account else {}),
        }
        # Vertex AI gives up by itself; a little later so do we.
        patience = float(document["health_timeout"]) + 900
        with translated(f"Version {version} of endpoint {name!r} cannot be deployed"), self._conflicts(name):
            try:
                self._finished(
                    lambda: self._endpoints.deploy_model(
                        endpoint=self._resource(name), deployed_model=deployed, timeout=TIMEOUT
                    ),
                    lambda: version in self._state(name).weights,
                    patience,
                )
            except Exception as error:
                if isinstance(error, ProviderError) or not _is_health(error):
                    raise
                raise self._unhealthy(name, version, message_of(error), began) from error

    def _unhealthy(self, name: str, version: str, reason: str, began: datetime) -> DeploymentError:
        before = self._before(name)

        def log_text() -> str:
            entries, _ = entries_since(self._session, endpoint_filter(google_name(name), version), began)
            return "\n".join(map(text_of, entries))

        return serving.unready(
            name,
            reason,
            serves=before is not None and any(before.weights.values()),
            hint=_where(name, version),
            traceback=self._traceback(log_text),
        )

    def _shift(
        self, wanted: Wanted[VertexEndpoint], version: str, before: State | None, document: Mapping[str, Any]
    ) -> None:
        """Move traffic to a version that runs."""
        name, weight, options = wanted.name, wanted.weight, wanted.options
        known = before.roles if before is not None else {}
        roles = serving.roles_after(known, version, weight)
        champion = known.get("champion")
        if champion is None or champion not in (before.weights if before is not None else {}):
            self._change(name, self._unchanged(name, before), {version: 100}, roles)
            return
        if weight < 100:
            shares = {champion: 100 - weight, version: weight}
            self._change(name, self._unchanged(name, before), shares, roles)
            return
        seen = before
        for percent in options.canary:
            while_watched = {**known, "challenger": version}
            shares = {champion: 100 - percent, version: percent}
            self._change(name, self._unchanged(name, seen), shares, while_watched)
            seen = self._state(name)
            try:
                self._watch(name, version, percent, options.bake, document.get("input_example"))
            except BaseException:
                # What made the version fail may be an outage that this runs into as well.
                self._session.patiently(lambda: self._change(name, self._state(name), {champion: 100}, known))
                raise
        self._change(name, self._unchanged(name, seen), {version: 100}, roles)

    def _watch(self, name: str, version: str, percent: int, seconds: float, example: Any) -> None:
        """Ask a version that has a share of the traffic for a while. Raises DeploymentError where it is not well."""
        deadline = time.monotonic() + seconds
        body = None if example is None else json.dumps(example).encode()
        trial, looked = _Trial(name, version, percent), -math.inf
        while True:
            if body is not None:
                self._try(trial, body)
            if time.monotonic() - looked >= self._poll:
                looked = time.monotonic()
                if message := self._session.patiently(lambda: self._state(name)).message:
                    raise DeploymentError(
                        f"Endpoint {name!r} is not well with the new version: {message}",
                        hint=_where(name, version),
                    )
            if time.monotonic() >= deadline and (body is None or trial.answers >= _ANSWERS):
                return
            # Which version a request goes to is Vertex AI's choice: this one's turn is to come about once a poll.
            time.sleep(self._poll * (1.0 if body is None else percent / 100))

    def _try(self, trial: _Trial, body: bytes) -> None:
        """Ask the endpoint once, whichever version it is that answers."""
        from requests.exceptions import Timeout

        said, by = "", ""
        try:
            reply = self._session.send(
                "POST", f"{self._url(trial.name)}:rawPredict", content=body, timeout=_ANSWER_TIMEOUT
            )
            by = str(reply.headers.get(_SERVED_BY, ""))
        except Exception as error:
            by = _served_by(error)
            if container := _said_by_container(error):
                if by in (trial.version, ""):
                    raise trial.failed(f"fails with its own input example: {container[:2000]}") from error
            elif not transient(error):
                with translated(f"Endpoint {trial.name!r} cannot be asked"):
                    raise
            elif not code_of(error) and not isinstance(error, Timeout):
                # There is no way to the endpoint, whoever would answer.
                return
            elif code_of(error) != 429:
                said = message_of(error)
        trial.note(by, said)

    def _change(self, name: str, seen: State, shares: Mapping[str, int], roles: Mapping[str, str]) -> None:
        """Set traffic and roles at once, where the endpoint is still as it was seen."""
        labels = {key: value for key, value in seen.labels.items() if key not in _ROLE_LABELS}
        labels.update({f"notebooked_{role}": version for role, version in roles.items()})
        shares = {version: share for version, share in shares.items() if share}
        query = {
            "endpoint": {
                "name": self._resource(name),
                "traffic_split": shares,
                "labels": labels,
                "etag": seen.etag,
            },
            "update_mask": {"paths": ["traffic_split", "labels"]},
        }
        with translated(f"The traffic of endpoint {name!r} cannot be changed"), self._conflicts(name):
            try:
                self._session.again(lambda: self._endpoints.update_endpoint(request=query, timeout=TIMEOUT))
            except Exception:
                # The reply to an earlier try may have been lost.
                now = self._state(name)
                if dict(now.labels) != labels or {v: w for v, w in now.weights.items() if w} != shares:
                    raise
        self._input.forget(name)

    def _withdraw(self, name: str, version: str, before: State | None) -> None:
        """Remove what a deployment that failed made; what is served stays."""
        with contextlib.suppress(Exception):
            state = self._before(name)
            if state is not None and version in state.weights and not state.weights[version]:
                self._stop(name, version)
            if before is None and state is not None and not any(state.weights.values()):
                self._delete_endpoint(name)
        with contextlib.suppress(Exception):
            self._remove_model(self._model(name, version))
            self._storage.remove_below(self._place(name, version))

    def _tidied(self, name: str, version: str | None, *, keep_warm: bool) -> Endpoint:
        """Take down what neither serves nor is kept, and say what is left.

        Args:
            name: The endpoint's.
            version: The one just deployed; what is newer is somebody else's deployment under way. None after a rollback.
            keep_warm: Whether the version that is kept for a rollback goes on running.
        """
        state = self._state(name)
        kept = set(state.roles.values())
        running = kept if keep_warm else kept - {state.roles.get("previous", "")}
        with contextlib.suppress(NotebookedError):
            newest = int(version) if version is not None else max(map(int, kept))
            for other in state.weights:
                if other not in running and not state.weights[other] and int(other) <= newest:
                    self._stop(name, other)
            for model in self._model_names(name):
                found = model.rpartition("-v")[2]
                if found not in kept and int(found) <= newest:
                    self._remove_model(model)
                    self._storage.remove_below(self._place(name, found))
        return self.get(name)

    def _stop(self, name: str, version: str) -> None:
        with (
            translated(f"Version {version} of endpoint {name!r} cannot be taken down"),
            self._conflicts(name),
        ):
            self._finished(
                lambda: self._endpoints.undeploy_model(
                    endpoint=self._resource(name), deployed_model_id=version, timeout=TIMEOUT
                ),
                lambda: version not in self._state(name).weights,
                900,
            )

    def _model_names(self, name: str) -> list[str]:
        query = {
            "parent": self._session.parent,
            "filter": f'labels.{_OURS}="{label(name)}"',
            "page_size": 100,
        }
        pattern = re.compile(rf".*/models/{re.escape(google_name(name))}-v\d+")
        with translated(f"What belongs to endpoint {name!r} cannot be listed"):
            found = self._session.again(
                lambda: list(self._registry.list_models(request=query, timeout=TIMEOUT))
            )
        # The API gives them with the project's number where we say its id.
        return [str(item.name).partition("@")[0] for item in found if pattern.match(item.name)]

    def _remove_model(self, resource: str) -> None:
        with translated(f"{resource} cannot be removed"):
            try:
                self._finished(
                    lambda: self._registry.delete_model(name=resource, timeout=TIMEOUT),
                    lambda: not self._has_model(resource),
                    300,
                )
            except Exception as error:
                # It is gone already.
                if code_of(error) != 404:
                    raise


_ROLE_LABELS = frozenset(f"notebooked_{role}" for role in ROLES)


def google_name(name: str) -> str:
    """An endpoint's id at Vertex AI, which takes no underscores and starts with a letter."""
    return _PREFIX + name.replace("_", "-")


def _is_ours(endpoint: Any, name: str) -> bool:
    """Whether an endpoint is the one of a name; `a_b` has the id of `a-b`."""
    return bool(
        endpoint.display_name == name
        and Hosting.names.fullmatch(name)
        and endpoint.labels.get(_OURS) == label(name)
        and endpoint.name.rpartition("/")[2] == google_name(name)
    )


def _resources(options: VertexEndpoint) -> dict[str, Any]:
    """What a version runs on, as DedicatedResources."""
    found: dict[str, Any] = {
        "machine_spec": machine_spec(options.machine_type, options.accelerator, options.accelerator_count),
        "min_replica_count": options.min_replicas,
        "max_replica_count": options.max_replicas,
    }
    if options.max_replicas > options.min_replicas:
        found["autoscaling_metric_specs"] = [
            {
                "metric_name": "aiplatform.googleapis.com/prediction/online/cpu/utilization",
                "target": options.cpu_target,
            }
        ]
    return found


def _is_health(error: Exception) -> bool:
    """Whether an operation failed because the container did not become healthy."""
    return not isinstance(error, OutOfReachError) and bool(
        re.search(
            r"(?i)model server|never became ready|health|container|deployment timeout", message_of(error)
        )
    )


def _said_by_container(error: Exception) -> str:
    """What the container answered with an error; empty where the answer is Google's own, or there is none."""
    reply = getattr(error, "response", None)
    if reply is None or code_of(error) in (401, 403, 404, 429):
        return ""
    try:
        document = reply.json()
    except ValueError:
        return str(reply.text)
    said = document.get("error") if isinstance(document, dict) else None
    return "" if isinstance(said, dict) and "code" in said else str(said or reply.text)


def _served_by(error: Exception) -> str:
    """The version that answered with an error; empty where nothing says so."""
    reply = getattr(error, "response", None)
    return str(reply.headers.get(_SERVED_BY, "")) if reply is not None else ""


def _where(name: str, version: str) -> str:
    return f"`notebooked logs {name} --endpoint --version {version}` shows what its container printed."
