"""Endpoints of one workspace: the steps of a deployment, and what an endpoint is now.

A new version is a deployment beside the one that serves. It gets no traffic before it has answered a request that was sent
to it alone (the header ``azureml-model-deployment``); then the traffic moves, in steps where that is wanted. What fails is
removed, and what was served is served on. One deployment at a time: who deploys holds the lease of a blob.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooked_dagster.config.azure import AzureEndpoint
from notebooked_dagster.core import retrying, tracing
from notebooked_dagster.core.retrying import budget_of
from notebooked_dagster.errors import (
    DeploymentError,
    EndpointNotFoundError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus
from notebooked_dagster.providers.cloud.hosting import CloudHosting, EndpointState, Wanted
from notebooked_dagster.providers.cloud.package import requirements
from notebooked_dagster.providers.cloud.serving import (
    ROLES,
    conflict,
    deployments,
    model_error,
    parsed,
    roles_after,
    roles_back,
    serving_code,
    unready,
)
from notebooked_dagster.providers.cloud.waiting import OutOfReachError

from . import images
from .serving import (
    ENDPOINT_TAG,
    SCRIPT,
    autoscale_request,
    azure_name,
    deployment_name,
    deployment_request,
    endpoint_request,
    role_tag,
    setting_name,
    steps,
    version_of,
    with_traffic,
)
from .session import MONITOR_VERSION, AzureSession
from .storage import Storage

log = logging.getLogger("notebooked.providers.azure")
_STATUS = {
    "Creating": EndpointStatus.CREATING,
    "Succeeded": EndpointStatus.HEALTHY,
    "Updating": EndpointStatus.HEALTHY,
    "Scaling": EndpointStatus.HEALTHY,
    "Failed": EndpointStatus.FAILED,
    "Canceled": EndpointStatus.FAILED,
}
_MOVING = ("Creating", "Updating", "Scaling", "Deleting")
_BUSY = (408, 429, 502, 503, 504)
_TRIES = 5
_WRAPPED = "\nThe above exception was the direct cause of the following exception:"


@dataclass(frozen=True, slots=True, kw_only=True)
class State(EndpointState):
    """An endpoint as Azure and our descriptions have it now.

    Attributes:
        resource: As Azure describes it.
        live: How each version's deployment stands.
    """

    resource: Mapping[str, Any]
    live: Mapping[str, str]

    @property
    def status(self) -> str:
        """Azure's word."""
        return str(self.resource["properties"].get("provisioningState", ""))


class Hosting(CloudHosting[State, AzureEndpoint]):
    """The endpoints of one workspace.

    Args:
        session: The workspace.
        storage: Our folder.
        identity: The user-assigned identity; None for one of each endpoint's own.
        state: Where fetched models are kept.
        poll: Seconds between two looks.
    """

    provider, cloud, scheme = "azure", "Azure", "azureml://"
    names = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,49}[A-Za-z0-9])?")
    names_are = "letters, digits and hyphens, at most 50 of them"
    _storage: Storage

    def __init__(
        self, session: AzureSession, storage: Storage, identity: str | None, state: Path, *, poll: float
    ) -> None:
        super().__init__(storage, state, poll=poll)
        self._session = session
        self._identity = identity
        self._doors: dict[str, tuple[str, str]] = {}
        # By endpoint: whether it is still we who may change it.
        self._holds: dict[str, Callable[[], None]] = {}

    # Asking

    def all(self) -> list[Endpoint]:
        """All of ours, by name."""
        found = []
        for resource in self._session.pages("/onlineEndpoints", what="Endpoints cannot be listed"):
            name = (resource.get("tags") or {}).get(ENDPOINT_TAG)
            if name and resource["name"] == self._id(name):
                # Between the two calls somebody may have deleted it.
                with contextlib.suppress(EndpointNotFoundError):
                    found.append(self._view(self._state(name, resource)))
        return sorted(found, key=lambda endpoint: endpoint.name)

    def _answer(self, name: str, body: bytes) -> Any:
        try:
            reply = self._score(name, body, tracing.headers())
        except OutOfReachError:
            # An endpoint that is gone takes its address with it.
            self._state(name)
            raise
        if reply.status_code == 404:
            self._doors.pop(name, None)
            self._state(name)
        if reply.status_code != 200:
            raise _model_error(name, reply)
        return parsed(name, reply.content)

    def _score(self, name: str, body: bytes, headers: Mapping[str, str]) -> Any:
        what = f"Endpoint {name!r} cannot be asked"
        address, key = self._door(name)
        reply = self._session.score(address, body, headers, key, what)
        if key and reply.status_code == 401:
            # Its keys were changed since.
            self._doors.pop(name, None)
            address, key = self._door(name)
            reply = self._session.score(address, body, headers, key, what)
        return reply

    def _door(self, name: str) -> tuple[str, str]:
        """Where an endpoint answers, and its key where it has any."""
        if name not in self._doors:
            properties = self._resource(name)["properties"]
            key = ""
            if properties["authMode"] == "Key":
                found = self._session.call(
                    "POST",
                    f"{self._path(name)}/listKeys",
                    what=f"The key of endpoint {name!r} cannot be read",
                )
                key = str((found or {}).get("primaryKey") or "")
            self._doors[name] = (str(properties["scoringUri"]), key)
        return self._doors[name]

    def _champion_document(self, name: str) -> Mapping[str, Any]:
        # Without asking for the deployments.
        version = (self._resource(name).get("tags") or {}).get(role_tag("champion"), "")
        return self._document(name, version) if version else {}

    def _found(self, name: str) -> dict[str, Any] | None:
        what = f"Endpoint {name!r} cannot be looked at"
        return self._session.call("GET", self._path(name), what=what, missing=True)

    def _resource(self, name: str) -> dict[str, Any]:
        found = self._found(name)
        if found is None or not _is_ours(found, name):
            raise self._unknown(name)
        return found

    def _state(self, name: str, resource: Mapping[str, Any] | None = None) -> State:
        found = resource if resource is not None else self._resource(name)
        tags = found.get("tags") or {}
        roles = {role: tags[role_tag(role)] for role in ROLES if tags.get(role_tag(role))}
        live = {}
        for item in self._deployments(name):
            if version := version_of(item["name"]):
                live[version] = str(item["properties"].get("provisioningState", ""))
        traffic = found["properties"].get("traffic") or {}
        return State(
            name=name,
            resource=found,
            live=live,
            roles=roles,
            weights={version: int(traffic.get(deployment_name(version), 0)) for version in live},
            documents=self._documents(name, roles),
        )

    def _deployments(self, name: str) -> Iterator[dict[str, Any]]:
        what = f"The deployments of endpoint {name!r} cannot be listed"
        found = self._session.call("GET", f"{self._path(name)}/deployments", what=what, missing=True)
        yield from (found or {}).get("value", ())

    def _id(self, name: str) -> str:
        return azure_name(self._session.workspace_id, name)

    def _path(self, name: str) -> str:
        self._check_name(name)
        return f"/onlineEndpoints/{self._id(name)}"

    def _view(self, state: State) -> Endpoint:
        found = deployments(
            state.roles,
            state.weights,
            state.documents,
            {version: _STATUS.get(word, EndpointStatus.STOPPED) for version, word in state.live.items()},
        )
        status = _STATUS.get(state.status, EndpointStatus.STOPPED)
        if status is EndpointStatus.HEALTHY and not any(state.weights.values()):
            # It is there, and nothing of it gets a request.
            status = EndpointStatus.CREATING
        message = "" if state.status == "Succeeded" else f"Azure says: {state.status}."
        url = str(state.resource["properties"].get("scoringUri") or "")
        return Endpoint(state.name, "azure", url, status, found, message)

    # Changing

    def _fetch_model(self, uri: str, target: Path) -> None:
        self._storage.fetch_folder(uri, target)

    def _deploy(self, wanted: Wanted[AzureEndpoint]) -> Endpoint:
        name, options = wanted.name, wanted.options
        folder = self._folder(wanted)
        with self._alone(name):
            before = self._before(name)
            version = self._next(name, before)
            roles = roles_after(before.roles if before else {}, version, wanted.weight)
            try:
                body, document = self._prepare(wanted, folder, version)
                if before is None:
                    self._make_endpoint(name, options)
                self._make_deployment(name, version, body)
                self._scale(name, version, options)
                self._try(name, version, document)
                self._move(wanted, before, version, roles, document)
            except BaseException:
                self._withdraw(name, version, before)
                raise
            self._tidy(name, options)
            return self.get(name)

    def rollback(self, name: str) -> Endpoint:
        """Serve the previous version again."""
        roles_back(name, self._state(name).roles)
        with self._alone(name):
            state = self._state(name)
            # A version that is there and does not run is none to go back to.
            running = {role: version for role, version in state.roles.items() if self._runs(state, version)}
            roles = {**roles_back(name, running), "previous": state.roles["champion"]}
            self._share(name, {roles["champion"]: 100}, roles)
            self._tidy(name, None)
            return self.get(name)

    def _share_out(self, state: State, weights: Mapping[str, int]) -> Endpoint:
        with self._alone(state.name):
            self._share(state.name, weights, state.roles)
            return self.get(state.name)

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it."""
        found, versions = self._found(name), self._stored(name)
        # Our folder goes last: while it is there, a deletion that was cut off can be finished.
        if not (_is_ours(found, name) if found is not None else versions):
            raise self._unknown(name)
        documents = [self._document(name, str(version)) for version in versions]
        with self._alone(name):
            self._remove_endpoint(name)
        environments = sorted({str(item["environment"]) for item in documents if item.get("environment")})
        kept = (f"The environment {found} is kept: others may use it." for found in environments)
        return self._gone(name, documents, *kept)

    def _remove_endpoint(self, name: str) -> None:
        self._remove(self._path(name), f"Endpoint {name!r} cannot be deleted")
        for kind in ("models", "codes"):
            where = f"/{kind}/{self._id(name)}"
            what = f"What belongs to endpoint {name!r} cannot be removed"
            listed = self._session.call("GET", f"{where}/versions", what=what, missing=True)
            for item in (listed or {}).get("value", ()):
                self._session.call("DELETE", f"{where}/versions/{item['name']}", what=what, missing=True)
            self._session.call("DELETE", where, what=what, missing=True)
        for version in self._stored(name):
            self._unscale(name, str(version))
        self._storage.remove_below(self._place(name))
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._input.forget(name)
        self._doors.pop(name, None)

    @staticmethod
    def _runs(state: State, version: str) -> bool:
        running = _STATUS.get(state.live.get(version, "")) is EndpointStatus.HEALTHY
        return running or version == state.roles.get("champion")

    # The steps of a deployment

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One at a time, from whichever machine; and what Azure says when somebody else changes it all the same."""
        said = conflict(name, "another deployment is under way")
        try:
            with self._storage.lock(self._storage.uri("locks", self._id(name)), said.message) as hold:
                self._holds[name] = hold
                yield
        except ProviderError as error:
            if type(error) is ProviderError and error.details.get("status") == 409:
                raise conflict(name, error.message) from error
            raise
        finally:
            self._forget(name)

    def _before(self, name: str) -> State | None:
        found = self._found(name)
        if found is None:
            return None
        if not _is_ours(found, name):
            raise DeploymentError(
                f"The workspace has an endpoint {self._id(name)!r} that is not of this project.",
                hint="Choose another name for the endpoint.",
            )
        state = self._state(name, found)
        if state.status in _MOVING:
            raise conflict(name, state.status)
        if not state.roles:
            # A first deployment that did not come to its end; it never served anything.
            self._remove_endpoint(name)
            return None
        return state

    def _next(self, name: str, before: State | None) -> str:
        """The next version's number; never one that was used, so that nothing of another is taken for it."""
        served = [int(version) for version in (before.live if before else ())]
        version = str(max([0, *self._stored(name), *served]) + 1)
        self._storage.write(self._place(name, version, "reserved"), b"")
        return version

    def _prepare(
        self, wanted: Wanted[AzureEndpoint], folder: Path, version: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Model, code and environment of a version; the deployment's body and our description."""
        name, options, experiment = wanted.name, wanted.options, wanted.experiment
        code = serving_code(experiment, folder)
        environment = images.choose(
            "inference",
            self._session.workspace_id,
            options.instance_type,
            requirements("inference", code, experiment.scripts).decode("utf-8", "replace"),
            options.image,
            options.environment,
        )
        images.ensure(self._session, environment)
        place = wanted.model_uri
        if not place.startswith(self.scheme):
            place = self._place(name, version, "model")
            self._storage.upload_folder(folder, place)
        model = self._asset(
            "models", name, version, {"modelType": "custom_model", "modelUri": self._storage.long(place)}
        )
        script = self._asset("codes", name, version, {"codeUri": self._send_code(name, version, code)})
        environment_id = environment.id(self._session.workspace_id)
        body = deployment_request(
            options,
            self._session.location,
            model=model,
            code=script,
            environment=environment_id,
            variables=experiment.environment,
        )
        document = self._described(
            wanted,
            folder,
            version,
            environment=environment_id.rpartition("/environments/")[2] if not environment.given else "",
            scales=options.autoscaling is not None,
        )
        return body, document

    def _send_code(self, name: str, version: str, code: Path) -> str:
        target = self._place(name, version, "code")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for file in code.iterdir():
                if file.suffix == ".py" or file.name == "source_map.json":
                    (folder / file.name).write_bytes(file.read_bytes())
            (folder / SCRIPT).write_bytes(Path(__file__).with_name("score.py").read_bytes())
            self._storage.upload_folder(folder, target)
        return self._storage.url(target)

    def _asset(self, kind: str, name: str, version: str, properties: Mapping[str, Any]) -> str:
        path = f"/{kind}/{self._id(name)}/versions/{version}"
        self._session.call(
            "PUT",
            path,
            {"properties": {**properties, "tags": {ENDPOINT_TAG: name}}},
            what=f"Version {version} of endpoint {name!r} cannot be made",
        )
        return f"{self._session.workspace_id}{path}"

    def _make_endpoint(self, name: str, options: AzureEndpoint) -> None:
        body = endpoint_request(name, options, self._session.location, self._identity)
        self._change(self._path(name), body, f"Endpoint {name!r} cannot be made", name)

    def _make_deployment(self, name: str, version: str, body: Mapping[str, Any]) -> None:
        path = f"{self._path(name)}/deployments/{deployment_name(version)}"
        self._change(path, body, f"Version {version} of endpoint {name!r} cannot be made", name, version)

    def _scale(self, name: str, version: str, options: AzureEndpoint) -> None:
        """Let a version have more machines under load, where that is wanted."""
        if options.autoscaling is None:
            return
        setting = setting_name(self._id(name), version)
        deployment = f"{self._session.workspace_id}{self._path(name)}/deployments/{deployment_name(version)}"
        body = autoscale_request(
            name, options, options.autoscaling, setting, deployment, self._session.location
        )
        self._setting("PUT", setting, body, f"Autoscaling of endpoint {name!r} cannot be set up")

    def _unscale(self, name: str, version: str) -> None:
        """Remove the setting of a version; Azure does not when the deployment goes."""
        if self._document(name, version).get("scales"):
            what = f"Autoscaling of endpoint {name!r} cannot be ended"
            self._setting("DELETE", setting_name(self._id(name), version), None, what)

    def _setting(self, method: str, setting: str, body: Mapping[str, Any] | None, what: str) -> None:
        self._session.call(
            method,
            f"{self._session.scope}/providers/Microsoft.Insights/autoscaleSettings/{setting}",
            body,
            what=what,
            query={"api-version": MONITOR_VERSION},
            missing=method == "DELETE",
        )

    def _change(
        self, path: str, body: Mapping[str, Any], what: str, name: str, version: str | None = None
    ) -> None:
        """Make or change something, and wait until Azure is done with it."""
        operation = self._session.begin("PUT", path, body, what=what)
        state = self._settled(lambda: self._session.call("GET", path, what=what, missing=True))
        if state == "Succeeded":
            return
        reason = self._session.outcome(operation, what=what) or state or "it is gone"
        raise unready(
            name,
            reason,
            serves=False,
            hint=f"`az ml online-deployment get-logs --endpoint-name {self._id(name)}` has the container's log.",
            traceback="" if version is None else self._traceback(lambda: self._last_log(name, version)),
        )

    def _settled(self, look: Callable[[], dict[str, Any] | None]) -> str:
        """Azure's last word on something; empty where it is gone."""

        def state() -> str:
            found = look()
            return str(found["properties"].get("provisioningState", "")) if found is not None else ""

        return self._waited(state, lambda seen: seen not in _MOVING)

    def _try(self, name: str, version: str, document: Mapping[str, Any]) -> None:
        """Send the model's own example to the new version alone. Raises DeploymentError where it does not answer."""
        example = document.get("input_example")
        if example is None:
            return
        reply = None
        for attempt in range(1, _TRIES + 1):
            with contextlib.suppress(OutOfReachError):
                reply = self._score(
                    name, json.dumps(example).encode(), {"azureml-model-deployment": deployment_name(version)}
                )
                if reply.status_code not in _BUSY:
                    break
            # A new endpoint's name takes a while to be known.
            if attempt == _TRIES or not budget_of("azure").take():
                break
            time.sleep(retrying.wait(attempt, 2 * self._poll))
        if reply is not None and reply.status_code == 200:
            return
        if reply is not None and reply.status_code in (401, 403):
            log.warning(
                "Version %s of endpoint %s could not be tried: we may not ask it. It is healthy.",
                version,
                name,
            )
            return
        said = "nothing" if reply is None else f"{reply.status_code}: {reply.content[:500]!r}"
        raise DeploymentError(
            f"Version {version} of endpoint {name!r} started, and answered the model's example with {said}.\n"
            f"{self._traceback(lambda: self._last_log(name, version))}".rstrip(),
            hint="Correct the inference code; the version was removed.",
        )

    def _move(
        self,
        wanted: Wanted[AzureEndpoint],
        before: State | None,
        version: str,
        roles: Mapping[str, str],
        document: Mapping[str, Any],
    ) -> None:
        name, weight, options = wanted.name, wanted.weight, wanted.options
        champion = before.roles.get("champion") if before is not None else None
        if champion is None or champion not in (before.live if before else {}):
            self._share(name, {version: 100}, roles)
            return
        if weight < 100:
            self._share(name, {champion: 100 - weight, version: weight}, roles)
            return
        try:
            for share in steps(options):
                if share == 100:
                    self._share(name, {version: 100}, roles)
                    return
                self._share(
                    name,
                    {champion: 100 - share, version: share},
                    {"champion": champion, "challenger": version},
                )
                self._watch(name, version, document, options.bake)
        except BaseException:
            assert before is not None
            with contextlib.suppress(NotebookedError):
                # Azure refuses a change while it is busy with the one that we gave up.
                self._settled(lambda: self._resource(name))
                shares = {v: share for v, share in before.weights.items() if share}
                # What made the version fail may be an outage that this runs into as well.
                self._patiently(lambda: self._share(name, shares, before.roles))
            raise

    def _watch(self, name: str, version: str, document: Mapping[str, Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(self._poll, max(0.0, deadline - time.monotonic())))
            self._try(name, version, document)

    def _share(self, name: str, weights: Mapping[str, int], roles: Mapping[str, str]) -> None:
        self._holds[name]()
        body = with_traffic(self._resource(name), weights, roles)
        self._change(self._path(name), body, f"The traffic of endpoint {name!r} cannot be changed", name)

    def _last_log(self, name: str, version: str) -> str:
        """The end of the container's log, as far as it is about the user's code."""
        path = f"{self._path(name)}/deployments/{deployment_name(version)}/getLogs"
        body = {"containerType": "InferenceServer", "tail": 500}
        found = self._session.call("POST", path, body, what="The container's log cannot be read")
        return _own_part(str((found or {}).get("content") or ""))

    def _withdraw(self, name: str, version: str, before: State | None) -> None:
        """Remove what a deployment that failed made; what is served stays."""
        with contextlib.suppress(NotebookedError):
            self._holds[name]()
            if before is None:
                self._remove_endpoint(name)
                return
            self._remove_version(name, version)

    def _tidy(self, name: str, options: AzureEndpoint | None) -> None:
        """Remove versions that nothing serves or keeps for a rollback."""
        with contextlib.suppress(NotebookedError):
            self._holds[name]()
            state = self._state(name)
            roles = dict(state.roles)
            if options is not None and not options.standby and "previous" in roles:
                del roles["previous"]
                self._share(name, {v: share for v, share in state.weights.items() if share}, roles)
            for version in set(state.live) - set(roles.values()):
                self._remove_version(name, version)

    def _remove_version(self, name: str, version: str) -> None:
        what = f"Version {version} of endpoint {name!r} cannot be removed"
        self._remove(f"{self._path(name)}/deployments/{deployment_name(version)}", what)
        for kind in ("models", "codes"):
            self._session.call(
                "DELETE", f"/{kind}/{self._id(name)}/versions/{version}", what=what, missing=True
            )
        self._unscale(name, version)
        # The number stays taken: Azure may remember what it was given under it.
        place = self._place(name, version)
        self._storage.remove_below(place, but=f"{place}/reserved")

    def _remove(self, path: str, what: str) -> None:
        """Delete something, and wait until it is gone."""

        def look() -> dict[str, Any] | None:
            return self._session.call("GET", path, what=what, missing=True)

        # What is still being made cannot be deleted.
        if not self._settled(look):
            return
        operation = self._session.begin("DELETE", path, None, what=what)
        if state := self._settled(look):
            reason = self._session.outcome(operation, what=what) or state
            raise ProviderError(f"{what}: {reason.rstrip('.')}.", details={"status": state})


def _is_ours(resource: Mapping[str, Any], name: str) -> bool:
    return (resource.get("tags") or {}).get(ENDPOINT_TAG) == name


def _own_part(log_text: str) -> str:
    """The log of Azure's inference server from the last failure of the user's code on.

    The server writes its first line behind words of its own, and an exception of its own after it; where the code failed at
    the start, a second traceback follows that has only the server's.
    """
    last = re.split(r"(?m)^.*\bEncountered Exception:? (?=Traceback )", log_text)[-1]
    return last.split(_WRAPPED)[0]


def _model_error(name: str, reply: Any) -> NotebookedError:
    """What an endpoint answered that is no prediction, as ours."""
    own = reply.headers.get("ms-azureml-model-error-statuscode")
    status = int(own) if own and own.isdigit() else int(reply.status_code)
    said = reply.content.decode("utf-8", "replace").strip()[:2000]
    details = {"status": status, "endpoint": name}
    if status in (401, 403) and own is None:
        from notebooked_dagster.errors import CredentialsError

        return CredentialsError(
            f"Endpoint {name!r} does not let us ask it: {said or status}.",
            hint="`notebooked plan --policy` prints the role that it takes.",
            details=details,
        )
    if status in _BUSY:
        return OutOfReachError(
            f"Endpoint {name!r} is busy: {said or status}.", hint="Try again in a minute.", details=details
        )
    return model_error(name, status, said, "`az ml online-deployment get-logs` has its log.")
