"""Endpoints in Databricks' terms.

A version of an endpoint is a version of a registered model in Unity Catalog, and a description in our folder of the volume. It
is added to the endpoint's configuration without any traffic first, asked with its own input example, and gets traffic
afterwards. An update of a configuration takes effect as a whole when all that it names is ready; until then, and where it
fails, the one before serves on. Which version has which role stands in tags of the endpoint, which are not changed together
with the configuration: what is to be is written down first, and holds as soon as the traffic is what was to be.

API: serving-endpoints 2.0.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooked_dagster.config.databricks import DatabricksEndpoint
from notebooked_dagster.core import tracing
from notebooked_dagster.errors import (
    ConfigError,
    DeploymentError,
    EndpointNotFoundError,
    InvalidInputError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus
from notebooked_dagster.providers.cloud import serving
from notebooked_dagster.providers.cloud.hosting import CloudHosting, EndpointState, Wanted
from notebooked_dagster.providers.cloud.serving import ROLES, conflict
from notebooked_dagster.providers.cloud.waiting import OutOfReachError

from .registry import Registry
from .session import DatabricksSession, code_of, package, translated
from .storage import SCHEME, Storage, volume_path

_OURS, _ROLES, _NEXT = "notebooked_endpoint", "notebooked_roles", "notebooked_next"
_BUSY = re.compile(r"(?i)in progress|being updated|currently updating|pending update|already exists|conflict")
_FAILED = ("UPDATE_FAILED", "UPDATE_CANCELED")
# What of a served model is ours to say again when the configuration around it changes.
_SAID = (
    "name",
    "entity_name",
    "entity_version",
    "workload_size",
    "scale_to_zero_enabled",
    "environment_vars",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State(EndpointState):
    """An endpoint as Databricks and our descriptions have it now.

    Attributes:
        config_version: Databricks' own count of configurations; 0 before the first is ready.
        entities: What is served, by version, as Databricks takes it.
        ready: Whether it answers.
        updating: Whether a change is under way.
        message: What Databricks says of versions that are not well.
    """

    config_version: int
    entities: Mapping[str, Mapping[str, Any]]
    ready: bool
    updating: bool
    message: str


class Hosting(CloudHosting[State, DatabricksEndpoint]):
    """The endpoints of one workspace whose models are in one schema.

    Args:
        session: Credentials.
        storage: Our folder.
        state: Where fetched models are kept.
        poll: Seconds between two looks.
    """

    provider, cloud, scheme = "databricks", "Databricks", SCHEME
    names = re.compile(r"[a-z0-9][a-z0-9_-]{0,48}[a-z0-9]|[a-z0-9]")
    names_are = "lower-case letters, digits, '_' and hyphens, at most 50 of them"
    _storage: Storage

    def __init__(self, session: DatabricksSession, storage: Storage, state: Path, *, poll: float) -> None:
        super().__init__(storage, state, poll=poll)
        self._session = session
        self._registry = Registry(session, storage)

    @property
    def _api(self) -> Any:
        return self._session.client.serving_endpoints

    def _busy(self, error: Exception) -> str:
        busy = code_of(error) == 409 or (code_of(error) == 400 and _BUSY.search(str(error)))
        return str(error) if busy else ""

    # Asking

    def all(self) -> list[Endpoint]:
        """All of ours, by name."""
        with translated("Endpoints cannot be listed"):
            found = self._session.again(lambda: list(self._api.list()))
        views = []
        for item in sorted(found, key=lambda item: str(item.name)):
            if _is_ours(item):
                # Deleted in between.
                with contextlib.suppress(EndpointNotFoundError):
                    views.append(self.get(item.name))
        return views

    def _answer(self, name: str, body: bytes) -> Any:
        with translated(f"Endpoint {name!r} cannot be asked"):
            try:
                return self._ask(f"{_address(name)}/invocations", body)
            except Exception as error:
                code = code_of(error)
                if code == 404:
                    self._input.forget(name)
                    raise self._unknown(name) from error
                if code == 400:
                    raise InvalidInputError(
                        f"Endpoint {name!r} refused the input: {str(error)[:2000]}",
                        details={"status": code, "endpoint": name},
                    ) from error
                raise

    def _ask(self, path: str, body: bytes) -> Any:
        # Not by the SDK's `query`: it knows some fields of a reply, and drops the others.
        headers = {
            **tracing.headers(),
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        return self._session.again(
            lambda: self._session.client.api_client.do("POST", path, data=body, headers=dict(headers)),
            attempts=2,
        )

    def _state(self, name: str) -> State:
        found = self._found(name)
        if not _is_ours(found):
            raise self._unknown(name)
        tags = _tags(found)
        config = found.config
        entities = {
            _version(item.name): _input_of(item)
            for item in (config.served_entities or [] if config else [])
            if _version(item.name)
        }
        weights = dict.fromkeys(entities, 0)
        for route in (config.traffic_config.routes or []) if config and config.traffic_config else []:
            if (version := _version(route.served_entity_name or route.served_model_name)) in weights:
                weights[version] = int(route.traffic_percentage)
        roles = _decoded(tags.get(_ROLES, ""))[0]
        coming, shares = _decoded(tags.get(_NEXT, ""))
        if coming and shares == {version: share for version, share in weights.items() if share}:
            # Whoever moved the traffic has not come to say so.
            roles = coming
        state = found.state
        return State(
            name=name,
            config_version=int(config.config_version or 0) if config else 0,
            entities=entities,
            weights=weights,
            roles=roles,
            ready=_word(state and state.ready) == "READY",
            updating=_word(state and state.config_update) == "IN_PROGRESS",
            message=_complaints(config),
            documents=self._documents(name, roles),
        )

    def _found(self, name: str) -> Any:
        found = self._there(name)
        if found is None:
            raise self._unknown(name)
        return found

    def _there(self, name: str) -> Any:
        """The endpoint of a name, whosever it is; None where there is none."""
        self._check_name(name)
        with translated(f"Endpoint {name!r} cannot be looked at"):
            try:
                return self._session.again(lambda: self._api.get(name))
            except Exception as error:
                if code_of(error) == 404:
                    return None
                raise

    def _id(self, name: str) -> str:
        return name

    def _description(self, name: str, version: str) -> str:
        # The model itself is in the registry.
        return f"{self._place(name)}/v{version}.json"

    def _view(self, state: State) -> Endpoint:
        champion = state.roles.get("champion", "")
        status = EndpointStatus.CREATING
        if state.ready and champion in state.weights:
            status = EndpointStatus.DEGRADED if state.message else EndpointStatus.HEALTHY
        elif not state.updating:
            status = EndpointStatus.FAILED
        deployments = serving.deployments(
            state.roles, state.weights, state.documents, dict.fromkeys(state.weights, status)
        )
        url = f"{self._session.host}{_address(state.name)}"
        return Endpoint(state.name, "databricks", url, status, deployments, state.message)

    def logs(self, name: str, version: str | None) -> Iterator[str]:
        """What a version's build and its container printed, line by line; the champion's where None."""
        state = self._state(name)
        wanted = version if version is not None else state.roles.get("champion", "")
        return iter(self._log(name, wanted).splitlines())

    def _log(self, name: str, version: str) -> str:
        texts = []
        with translated(f"The log of version {version} of endpoint {name!r} cannot be read"):
            for ask in (self._api.build_logs, self._api.logs):
                try:
                    texts.append(
                        str(self._session.again(lambda ask=ask: ask(name, f"v{version}")).logs or "")  # type: ignore[misc]
                    )
                except Exception as error:
                    # There is none (yet) of a build, or none any more of a container.
                    if code_of(error) not in (400, 404):
                        raise
        return "\n".join(text.rstrip("\n") for text in texts if text)

    # Changing

    def _deploy(self, wanted: Wanted[DatabricksEndpoint]) -> Endpoint:
        name, options = wanted.name, wanted.options
        before = self._before(name)
        if before is not None and before.updating:
            raise conflict(name, "an update of its configuration is in progress")
        folder = self._folder(wanted)
        version = self._registry.register(wanted.experiment, folder, name)
        try:
            document = self._described(
                wanted,
                folder,
                version,
                health_timeout=options.health_timeout,
                keep_warm=options.keep_warm,
                entity=self._entity(wanted, version),
            )
            if before is None or not before.entities:
                self._create(name, version, document, options, there=before is not None)
            else:
                self._add(name, version, document, before)
            self._shift(wanted, version, before, document)
        except BaseException:
            self._withdraw(name, version, before)
            raise
        return self._tidied(name, version)

    def rollback(self, name: str) -> Endpoint:
        """Serve the previous version again."""
        state = self._state(name)
        roles = serving.roles_back(name, state.roles)
        back = roles["champion"]
        document = state.documents[back]
        entities = {back: state.entities.get(back) or document["entity"]}
        if document.get("keep_warm") and roles["previous"] in state.entities:
            entities[roles["previous"]] = state.entities[roles["previous"]]
        self._change(name, state, entities, {back: 100}, roles, _patience(document))
        return self.get(name)

    def _share_out(self, state: State, weights: Mapping[str, int]) -> Endpoint:
        self._change(state.name, state, state.entities, weights, state.roles, 900)
        return self.get(state.name)

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it."""
        place, found = self._place(name), self._there(name)
        descriptions = self._storage.names(place)
        # Our folder goes last: while it is there, a deletion that was cut off can be finished.
        if not (_is_ours(found) if found is not None else descriptions or self._registry.versions(name)):
            raise self._unknown(name)
        documents = [self._storage.document(file) or {} for file in descriptions]
        self._delete_endpoint(name)
        self._registry.remove_all(name)
        self._storage.remove_below(place)
        return self._gone(name, documents)

    # The steps of a deployment

    def _before(self, name: str) -> State | None:
        try:
            return self._state(name)
        except EndpointNotFoundError:
            return None

    def _fetch_model(self, uri: str, target: Path) -> None:
        self._storage.fetch_archive(volume_path(uri), target)

    def _entity(self, wanted: Wanted[DatabricksEndpoint], version: str) -> dict[str, Any]:
        """A served entity, as Databricks takes it."""
        options, environment = wanted.options, dict(wanted.experiment.environment)
        return {
            "name": f"v{version}",
            "entity_name": self._registry.full_name(wanted.name),
            "entity_version": version,
            "workload_size": options.workload_size,
            "workload_type": options.workload_type,
            "scale_to_zero_enabled": options.scale_to_zero,
            **({"environment_vars": environment} if environment else {}),
        }

    def _create(
        self,
        name: str,
        version: str,
        document: Mapping[str, Any],
        options: DatabricksEndpoint,
        *,
        there: bool,
    ) -> None:
        """Make the endpoint, with a version that has all its traffic; returns when it is ready and has answered."""
        kinds = package("databricks.sdk.service.serving")
        if there:
            # One whose first version never became ready; nobody is served by it.
            self._delete_endpoint(name)
        config = _config({version: document["entity"]}, {version: 100})
        tags = {**options.tags, _OURS: name, _ROLES: _encoded({"champion": version})}
        with translated(f"Endpoint {name!r} cannot be made"), self._conflicts(name):
            try:
                self._session.again(
                    lambda: self._api.create(
                        name,
                        config=kinds.EndpointCoreConfigInput.from_dict({"name": name, **config}),
                        tags=[kinds.EndpointTag(key, value) for key, value in tags.items()],
                    )
                )
            except Exception as error:
                # The reply to an earlier try may have been lost.
                if code_of(error) not in (400, 409) or not self._is_first(name, version):
                    raise
        self._wait(name, version, _patience(document))
        self._verify(name, version, document.get("input_example"))

    def _is_first(self, name: str, version: str) -> bool:
        try:
            found = self._found(name)
        except NotebookedError:
            return False
        roles = _decoded(_tags(found).get(_ROLES, ""))[0]
        return _is_ours(found) and roles == {"champion": version}

    def _add(self, name: str, version: str, document: Mapping[str, Any], before: State) -> None:
        """Let a version run without traffic; returns when it is ready and has answered its own example."""
        now = self._unchanged(name, before)
        entities = {**now.entities, version: document["entity"]}
        self._change(name, now, entities, now.weights, now.roles, _patience(document), new=version)
        self._verify(name, version, document.get("input_example"))

    def _change(
        self,
        name: str,
        seen: State,
        entities: Mapping[str, Mapping[str, Any]],
        shares: Mapping[str, int],
        roles: Mapping[str, str],
        patience: float,
        new: str | None = None,
    ) -> None:
        """Set what is served, traffic and roles; returns when that holds.

        Args:
            name: The endpoint's.
            seen: The endpoint as it was seen last.
            entities: What is to be served, by version.
            shares: Of the traffic, by version.
            roles: Version by role.
            patience: Seconds it may take.
            new: The version that is to become ready by this; None where all of them are.
        """
        config = _config(entities, shares)
        kinds = package("databricks.sdk.service.serving")
        given = kinds.EndpointCoreConfigInput.from_dict({"name": name, **config})
        with translated(f"The traffic of endpoint {name!r} cannot be changed"), self._conflicts(name):
            if dict(roles) != dict(seen.roles):
                self._tag(name, {_NEXT: _encoded(roles, shares)})
            try:
                self._session.again(
                    lambda: self._api.update_config(
                        name, served_entities=given.served_entities, traffic_config=given.traffic_config
                    )
                )
            except Exception as error:
                # The reply to an earlier try may have been lost.
                if code_of(error) not in (400, 409) or not self._has_taken(name, entities, shares):
                    raise
            self._wait(name, new, patience)
            if dict(roles) != dict(seen.roles):
                self._tag(name, {_ROLES: _encoded(roles)}, gone=_NEXT)
        self._input.forget(name)

    def _has_taken(
        self, name: str, entities: Mapping[str, Mapping[str, Any]], shares: Mapping[str, int]
    ) -> bool:
        """Whether exactly this change is under way, or has been made meanwhile."""
        found = self._found(name)
        config = found.pending_config or found.config
        if config is None:
            return False
        routes = (config.traffic_config.routes or []) if config.traffic_config else []
        routed = {_version(route.served_entity_name or route.served_model_name): route for route in routes}
        served = {_version(item.name) for item in config.served_entities or []}
        return served == set(entities) and all(
            int(route.traffic_percentage) == shares.get(version, 0) for version, route in routed.items()
        )

    def _tag(self, name: str, tags: Mapping[str, str], gone: str | None = None) -> None:
        kinds = package("databricks.sdk.service.serving")
        self._session.again(
            lambda: self._api.patch(
                name,
                add_tags=[kinds.EndpointTag(key, value) for key, value in tags.items()],
                delete_tags=[gone] if gone else None,
            )
        )

    def _wait(self, name: str, version: str | None, patience: float) -> None:
        """Wait until an update has come to its end. Raises DeploymentError where that is no good one."""

        def look() -> tuple[Any, str, bool]:
            found = self._found(name)
            progress = _word(found.state and found.state.config_update)
            return found, progress, _word(found.state and found.state.ready) == "READY"

        found, progress, ready = self._waited(
            look, lambda seen: seen[1] in _FAILED or (seen[1] == "NOT_UPDATING" and seen[2]), patience
        )
        if progress in _FAILED:
            reason = _complaints(found.pending_config) or _complaints(found.config) or progress
            raise self._unhealthy(name, version, reason)
        if progress != "NOT_UPDATING" or not ready:
            raise self._unhealthy(name, version, f"it was not ready within {patience:.0f} s")

    def _unhealthy(self, name: str, version: str | None, reason: str) -> DeploymentError:
        before = self._before(name)
        return serving.unready(
            name,
            reason,
            serves=before is not None and before.ready,
            hint=_where(name, version or "N"),
            traceback="" if version is None else self._traceback(lambda: self._log(name, version)),
        )

    def _verify(self, name: str, version: str, example: Any) -> None:
        """Ask a version, whatever share of the traffic it has, with its own example. Raises DeploymentError where it fails."""
        if example is None:
            return
        path = f"{_address(name)}/served-models/v{version}/invocations"
        try:
            with translated(f"Version {version} of endpoint {name!r} cannot be asked"):
                self._ask(path, json.dumps(_request(example)).encode())
        except OutOfReachError as error:
            if not error.details.get("code") or error.details["code"] == 429:
                raise
            raise self._failed(name, version, error) from error
        except (ConfigError, ProviderError) as error:
            raise self._failed(name, version, error) from error

    def _failed(self, name: str, version: str, error: NotebookedError) -> DeploymentError:
        return DeploymentError(
            f"Version {version} of endpoint {name!r} fails with its own input example: {error.message[:2000]} "
            f"The endpoint serves what it served before.\n{self._traceback(lambda: self._log(name, version))}".rstrip(),
            hint=_where(name, version),
        )

    def _shift(
        self,
        wanted: Wanted[DatabricksEndpoint],
        version: str,
        before: State | None,
        document: Mapping[str, Any],
    ) -> None:
        """Move traffic to a version that runs."""
        name, weight, options = wanted.name, wanted.weight, wanted.options
        if before is None or not before.entities:
            return
        known, patience = before.roles, _patience(document)
        roles = serving.roles_after(known, version, weight)
        champion = known.get("champion", "")
        if champion not in before.entities or weight < 100:
            shares = (
                {champion: 100 - weight, version: weight} if champion in before.entities else {version: 100}
            )
            self._settle(name, self._unchanged(name, before), shares, roles, set(shares), patience)
            return
        for percent in options.canary:
            now = self._unchanged(name, before)
            shares = {champion: 100 - percent, version: percent}
            self._settle(name, now, shares, known, {champion, version}, patience)
            try:
                self._watch(name, version, options.bake, document.get("input_example"))
            except BaseException:
                # What made the version fail may be an outage that this runs into as well.
                self._patiently(
                    lambda: self._settle(
                        name, self._state(name), {champion: 100}, known, {champion}, patience
                    )
                )
                raise
        kept = {version, champion} if options.keep_warm else {version}
        self._settle(name, self._unchanged(name, before), {version: 100}, roles, kept, patience)

    def _settle(
        self,
        name: str,
        now: State,
        shares: Mapping[str, int],
        roles: Mapping[str, str],
        kept: set[str],
        patience: float,
    ) -> None:
        """As ``_change``, with what is served already, less the versions that are not kept."""
        entities = {version: entity for version, entity in now.entities.items() if version in kept}
        self._change(name, now, entities, shares, roles, patience)

    def _unchanged(self, name: str, before: State | None) -> State:
        now = super()._unchanged(name, before)
        if now.updating:
            raise conflict(name, "an update of its configuration is in progress")
        return now

    def _watch(self, name: str, version: str, seconds: float, example: Any) -> None:
        """Ask a version that has a little of the traffic for a while. Raises DeploymentError where it fails."""
        deadline = time.monotonic() + seconds
        while True:
            self._patiently(lambda: self._verify(name, version, example))
            if message := self._patiently(lambda: self._state(name)).message:
                raise DeploymentError(
                    f"Endpoint {name!r} is not well with the new version: {message}",
                    hint=_where(name, version),
                )
            if time.monotonic() >= deadline:
                return
            time.sleep(self._poll)

    def _withdraw(self, name: str, version: str, before: State | None) -> None:
        """Remove what a deployment that failed made; what is served stays."""
        with contextlib.suppress(Exception):
            state = self._before(name)
            if (
                state is not None
                and state.roles.get("champion") == version
                and not (before and before.entities)
            ):
                self._delete_endpoint(name)
            elif state is not None and version in state.weights and not state.weights[version]:
                others = set(state.entities) - {version}
                self._settle(name, state, state.weights, state.roles, others, 900)
        with contextlib.suppress(Exception):
            state = self._before(name)
            if state is None or version not in state.entities:
                self._registry.remove(name, version)
                self._storage.remove(self._description(name, version))

    def _tidied(self, name: str, version: str) -> Endpoint:
        """Remove the registered versions that nobody serves or keeps; what is newer is somebody else's, under way."""
        state = self._state(name)
        kept = {*state.roles.values(), *state.entities}
        with contextlib.suppress(NotebookedError):
            for other in self._registry.versions(name):
                if other not in kept and int(other) <= int(version):
                    self._registry.remove(name, other)
                    self._storage.remove(self._description(name, other))
        return self.get(name)

    def _delete_endpoint(self, name: str) -> None:
        with translated(f"Endpoint {name!r} cannot be deleted"), self._conflicts(name):
            try:
                self._session.again(lambda: self._api.delete(name))
            except Exception as error:
                # It is gone already.
                if code_of(error) != 404:
                    raise


def _address(name: str) -> str:
    return f"/serving-endpoints/{name}"


def _tags(endpoint: Any) -> dict[str, str]:
    return {str(tag.key): str(tag.value or "") for tag in endpoint.tags or []}


def _is_ours(endpoint: Any) -> bool:
    return bool(_tags(endpoint).get(_OURS) == endpoint.name)


def _version(served: str | None) -> str:
    """The version that a served entity of ours is called after; empty where it is none of ours."""
    match = re.fullmatch(r"v(\d+)", served or "")
    return match[1] if match else ""


def _word(enumerated: Any) -> str:
    return str(getattr(enumerated, "value", enumerated or ""))


def _input_of(entity: Any) -> dict[str, Any]:
    """What was said of a served entity, to be said again."""
    found = {key: getattr(entity, key) for key in _SAID if getattr(entity, key) is not None}
    if entity.workload_type is not None:
        found["workload_type"] = _word(entity.workload_type)
    return found


def _config(entities: Mapping[str, Mapping[str, Any]], shares: Mapping[str, int]) -> dict[str, Any]:
    """A configuration, as Databricks takes it."""
    return {
        "served_entities": [dict(entity) for entity in entities.values()],
        "traffic_config": {
            "routes": [
                {"served_entity_name": f"v{version}", "traffic_percentage": shares.get(version, 0)}
                for version in entities
            ]
        },
    }


def _encoded(roles: Mapping[str, str], shares: Mapping[str, int] | None = None) -> str:
    """Roles, and the traffic they go with, as the value of a tag."""
    text = "/".join(f"{role}={version}" for role, version in roles.items())
    if shares is None:
        return text
    return text + "@" + "/".join(f"{version}={share}" for version, share in sorted(shares.items()) if share)


def _decoded(text: str) -> tuple[dict[str, str], dict[str, int]]:
    roles, _, shares = text.partition("@")
    pairs = dict(re.findall(r"(\w+)=(\d+)", roles))
    found = {version: int(share) for version, share in re.findall(r"(\d+)=(\d+)", shares)}
    return {role: pairs[role] for role in ROLES if role in pairs}, found


def _complaints(config: Any) -> str:
    """What Databricks says of versions that are not ready."""
    found = []
    for item in (config.served_entities or []) if config else []:
        state = _word(item.state and item.state.deployment)
        if state and state != "DEPLOYMENT_READY":
            words = (item.state.deployment_state_message or state).rstrip(".")
            found.append(f"{item.name}: {words}.")
    return " ".join(found)


def _patience(document: Mapping[str, Any]) -> float:
    return float(document.get("health_timeout", 3600))


def _request(example: Any) -> Any:
    """An input example as the body of a request."""
    if isinstance(example, dict) and {
        "inputs",
        "instances",
        "dataframe_records",
        "dataframe_split",
    } & set(example):
        return example
    if isinstance(example, list) and example and isinstance(example[0], dict):
        return {"dataframe_records": example}
    return {"dataframe_records": [example]} if isinstance(example, dict) else {"inputs": example}


def _where(name: str, version: str) -> str:
    return f"`notebooked logs {name} --endpoint --version {version}` shows what its build and its container printed."
