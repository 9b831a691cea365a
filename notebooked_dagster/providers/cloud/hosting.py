"""CloudHosting: what is alike about the endpoints of every cloud. A cloud's own ``hosting`` says what differs.

A version of an endpoint is whatever serves it in the cloud, and a description (``deployment.json``) in our folder of the
cloud's storage. Which version has which role is kept where the cloud changes it together with the traffic.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from notebooked_dagster.core.retrying import budget_of
from notebooked_dagster.errors import ConfigError, EndpointNotFoundError
from notebooked_dagster.providers.base import Endpoint, Experiment
from notebooked_dagster.providers.failures import find_traceback, remapped_traceback

from . import serving
from .serving import InputCheck, conflict
from .storage import CloudStorage
from .waiting import until

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointState:
    """An endpoint as its cloud and our descriptions have it now.

    Attributes:
        name: As the user calls it.
        roles: Version by role.
        weights: Share of the traffic in percent, by version that is there.
        documents: Our description of each version that has a role.
    """

    name: str
    roles: Mapping[str, str]
    weights: Mapping[str, int]
    documents: Mapping[str, Mapping[str, Any]]


StateT = TypeVar("StateT", bound=EndpointState)
OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, slots=True)
class Wanted(Generic[OptionsT]):
    """A model that is to be served.

    Attributes:
        experiment: For its name, scripts and environment.
        options: ``options.endpoint``, as the cloud's section of the configuration has them.
        model_uri: A folder, an archive of the cloud's storage, ``models:/…`` or ``runs:/…``.
        name: The endpoint's.
        weight: Its share of the traffic.
        labels: Lineage to keep with it.
        tracking_uri: The MLflow server.
    """

    experiment: Experiment
    options: OptionsT
    model_uri: str
    name: str
    weight: int
    labels: Mapping[str, str]
    tracking_uri: str | None


class CloudHosting(ABC, Generic[StateT, OptionsT]):
    """The endpoints of one account, region or workspace.

    Args:
        storage: Our folder.
        state: Where fetched models are kept.
        poll: Seconds between two looks.
    """

    #: The provider's name.
    provider: ClassVar[str]
    #: The cloud's, in sentences.
    cloud: ClassVar[str]
    #: How the addresses begin that ``storage`` knows.
    scheme: ClassVar[str]
    #: The names of endpoints that can be had there, and how that is said.
    names: ClassVar[re.Pattern[str]]
    names_are: ClassVar[str]

    def __init__(self, storage: CloudStorage, state: Path, *, poll: float) -> None:
        self._storage = storage
        self._models = state / "models"
        self._poll = poll
        self._input = InputCheck(self._champion_document)

    # What a cloud has to say

    @abstractmethod
    def _id(self, name: str) -> str:
        """What an endpoint is called in the cloud."""

    @abstractmethod
    def _state(self, name: str) -> StateT:
        """An endpoint as it is now. Raises EndpointNotFoundError."""

    @abstractmethod
    def _view(self, state: StateT) -> Endpoint:
        """The same, as every provider says it."""

    @abstractmethod
    def all(self) -> list[Endpoint]:
        """All of ours, by name."""

    @abstractmethod
    def _answer(self, name: str, body: bytes) -> Any:
        """Ask an endpoint; its reply, parsed."""

    @abstractmethod
    def _deploy(self, wanted: Wanted[OptionsT]) -> Endpoint:
        """Serve a model; see ``BaseProvider.deploy``."""

    @abstractmethod
    def rollback(self, name: str) -> Endpoint:
        """Serve the previous version again."""

    @abstractmethod
    def _share_out(self, state: StateT, weights: Mapping[str, int]) -> Endpoint:
        """Give each version that is there its share of the traffic; the shares are known to be such."""

    @abstractmethod
    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it; what is left on purpose, as sentences."""

    def _fetch_model(self, uri: str, target: Path) -> None:
        """Fetch a model of our storage into a folder."""
        self._storage.fetch_archive(uri, target)

    def _busy(self, error: Exception) -> str:
        """What the cloud says where somebody else is changing the endpoint; empty where it is another trouble."""
        return ""

    # Asking

    def get(self, name: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFoundError."""
        return self._view(self._state(name))

    def input_example(self, endpoint: Endpoint) -> Any:
        """What the model that gets most of the traffic was saved with as an example of its input."""
        served = max(endpoint.deployments, key=lambda item: item.weight, default=None)
        return self._document(endpoint.name, served.version).get("input_example") if served else None

    def predict(self, name: str, data: Any) -> Any:
        """Ask an endpoint. Raises InvalidInputError, EndpointNotFoundError, ProviderError."""
        body = json.dumps(data).encode()
        # What a container answers to bad input differs from cloud to cloud; what we say does not.
        self._input.check(name, body)
        return self._answer(name, body)

    def _champion_document(self, name: str) -> Mapping[str, Any]:
        state = self._state(name)
        return state.documents.get(state.roles.get("champion", ""), {})

    def _place(self, name: str, *parts: str) -> str:
        """Where our files of an endpoint are, or those of one of its versions, or one of these."""
        head = [f"v{parts[0]}", *parts[1:]] if parts else []
        return self._storage.path("endpoints", self._id(name), *head)

    def _description(self, name: str, version: str) -> str:
        """Where the description of a version is."""
        return self._place(name, version, "deployment.json")

    def _document(self, name: str, version: str) -> dict[str, Any]:
        """The description of a version; empty where there is none."""
        return self._storage.document(self._description(name, version)) or {}

    def _documents(self, name: str, roles: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        return {version: self._document(name, version) for version in roles.values()}

    def _stored(self, name: str) -> set[int]:
        """The numbers of the versions of which something is in our folder."""
        start = self._place(name)
        pattern = re.compile(rf"{re.escape(start)}/v(\d+)/")
        return {int(match[1]) for file in self._storage.names(start) if (match := pattern.match(file))}

    def _unknown(self, name: str) -> EndpointNotFoundError:
        return EndpointNotFoundError(
            f"There is no endpoint {name!r} at provider {self.provider!r}.",
            hint=f"`notebooked endpoints --provider {self.provider}` lists what there is.",
        )

    def _traceback(self, read: Callable[[], str]) -> str:
        """The last traceback of a container's log; empty where there is none to be had."""
        with contextlib.suppress(Exception):
            return remapped_traceback(find_traceback(read()), Path())
        return ""

    # Changing

    def deploy(
        self,
        experiment: Experiment,
        options: OptionsT,
        model_uri: str,
        name: str,
        *,
        weight: int,
        labels: Mapping[str, str],
        tracking_uri: str | None,
    ) -> Endpoint:
        """Serve a model with an experiment's ``options.endpoint``; see ``BaseProvider.deploy``."""
        self._check_name(name)
        serving.check_weight(weight)
        return self._deploy(Wanted(experiment, options, model_uri, name, weight, labels, tracking_uri))

    def traffic(self, name: str, weights: Mapping[str, int]) -> Endpoint:
        """Set each version's share."""
        state = self._state(name)
        serving.check_shares(name, weights, state.weights)
        # A version that is not named is to have none, and can get some again.
        return self._share_out(state, {version: weights.get(version, 0) for version in state.weights})

    def _check_name(self, name: str) -> None:
        """Raise ConfigError where the cloud cannot take a name."""
        if not self.names.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be the name of an endpoint at {self.cloud}.",
                key="endpoint.name",
                hint=f"Use {self.names_are}.",
            )

    def _folder(self, wanted: Wanted[OptionsT]) -> Path:
        """The model's folder on this machine. Raises DeploymentError where there is no model."""
        return serving.model_folder(
            wanted.model_uri, self.scheme, self._models, self._fetch_model, wanted.tracking_uri
        )

    def _described(self, wanted: Wanted[OptionsT], folder: Path, version: str, **more: Any) -> dict[str, Any]:
        """Write the description of a version; ``more`` is the cloud's own."""
        document = serving.description(
            wanted.experiment, folder, wanted.model_uri, version, wanted.labels, **more
        )
        self._storage.write(self._description(wanted.name, version), json.dumps(document, indent=1).encode())
        return document

    def _unchanged(self, name: str, before: StateT | None) -> StateT:
        """The endpoint now, where nobody has changed its roles since. Raises DeploymentConflictError."""
        now = self._state(name)
        if dict(now.roles) != dict(before.roles if before is not None else {}):
            raise conflict(name, "its versions are others than when this deployment began")
        return now

    @contextlib.contextmanager
    def _conflicts(self, name: str) -> Iterator[None]:
        """What the cloud says when two change an endpoint at once, as ours."""
        try:
            yield
        except Exception as error:
            if said := self._busy(error):
                raise conflict(name, said) from error
            raise

    def _waited(self, look: Callable[[], T], done: Callable[[T], bool], timeout: float | None = None) -> T:
        """Look until that is the end of it, or for ``timeout`` seconds; an outage of the cloud is waited out."""
        say = logging.getLogger(f"notebooked.providers.{self.provider}").warning
        return until(look, done, budget=budget_of(self.provider), poll=self._poll, timeout=timeout, say=say)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Make a call that may be made twice; an outage of the cloud is waited out."""
        return self._waited(call, lambda _: True)

    def _gone(self, name: str, documents: Iterable[Mapping[str, Any]], *more: str) -> list[str]:
        """An endpoint is deleted; what is left, as sentences: the models of its versions, and ``more``."""
        self._input.forget(name)
        kept = sorted({str(item.get("model_uri")) for item in documents} - {"None", ""})
        return [*(f"The model {uri} is kept." for uri in kept), *more]
