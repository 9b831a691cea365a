"""CloudEndpoints: the half of a cloud's provider that serves, handed on to the cloud's own hosting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from notebooked_dagster.providers import circuits, spans
from notebooked_dagster.providers.base import BaseProvider, Endpoint, Experiment

from .hosting import CloudHosting


class CloudEndpoints(BaseProvider):
    """Serving, by a ``CloudHosting``."""

    state: Path
    _tracking_uri: str | None
    #: How OpenTelemetry names a request to an endpoint of this cloud, and its attributes.
    request_span: ClassVar[tuple[str, Mapping[str, str]]] = (
        "POST /invocations",
        {"http.request.method": "POST"},
    )

    @property
    @abstractmethod
    def _hosting(self) -> CloudHosting[Any, Any]:
        """The cloud's endpoints; made when it is first asked for."""

    @abstractmethod
    def options(self, given: Mapping[str, Any]) -> Any:
        """An experiment's options on top of the section's, with ``training`` and ``endpoint``. Raises ConfigError."""

    def deploy(
        self,
        experiment: Experiment,
        model_uri: str,
        endpoint_name: str,
        *,
        weight: int = 100,
        labels: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """Serve a model of the cloud's storage or of this machine, or what ``models:/`` or ``runs:/`` names."""
        with spans.deployment(self.name, endpoint_name, experiment.name):
            live = self._hosting.deploy(
                experiment,
                self.options(experiment.options).endpoint,
                model_uri,
                endpoint_name,
                weight=weight,
                labels=dict(labels or {}),
                tracking_uri=experiment.tracking_uri or self._tracking_uri,
            )
        return self._changed(endpoint_name, live)

    def predict(self, endpoint_name: str, data: Any) -> Any:
        """Ask an endpoint; the input is checked against the model's signature first."""
        with (
            circuits.guarded(self.state, endpoint_name),
            spans.request(self.name, endpoint_name, *self.request_span),
        ):
            return self._hosting.predict(endpoint_name, data)

    def delete_endpoint(self, endpoint_name: str) -> list[str]:
        """Remove an endpoint with all that was made for it; trained models stay."""
        return self._hosting.delete(endpoint_name)

    def list_endpoints(self) -> list[Endpoint]:
        """All endpoints that we made there."""
        return self._hosting.all()

    def input_example(self, endpoint: Endpoint) -> Any:
        """What the model that gets most of the traffic was saved with."""
        return self._hosting.input_example(endpoint)

    def endpoint(self, endpoint_name: str) -> Endpoint:
        """One endpoint."""
        return self._hosting.get(endpoint_name)

    def traffic(self, endpoint_name: str, weights: Mapping[str, int]) -> Endpoint:
        """Set each version's share of the traffic."""
        return self._changed(endpoint_name, self._hosting.traffic(endpoint_name, weights))

    def rollback(self, endpoint_name: str) -> Endpoint:
        """Serve the previous version again."""
        return self._changed(endpoint_name, self._hosting.rollback(endpoint_name))

    def _changed(self, endpoint_name: str, live: Endpoint) -> Endpoint:
        circuits.forget(self.state, endpoint_name)
        return live


def said(given: Any) -> dict[str, Any]:
    """What was said in a section, and nothing that is only a default: an experiment's options go on top."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else given.model_dump(exclude_unset=True)
