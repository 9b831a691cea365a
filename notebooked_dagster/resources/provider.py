"""Dagster resources over the providers and the tracking server of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from .workplace import Workplace

if TYPE_CHECKING:
    from notebooked_dagster.providers.base import BaseProvider
    from notebooked_dagster.tracking import Tracking


# The keys of the resources in a code location.
PROVIDER = "notebooked_provider"
TRACKING = "notebooked_tracking"


class ProviderResource(dg.ConfigurableResource[Any]):
    """Gives the provider of an experiment, with the settings of its section in ``config.yaml``.

    Credentials are read when a provider is made, never kept in the resource: Dagster shows a resource's
    configuration to everybody who can open the UI.

    Attributes:
        only: The one provider that is used whatever a declaration says; for tests and for a machine without a cloud.
    """

    only: str | None = None

    def get(self, name: str) -> BaseProvider:
        """The provider of a name. Raises ConfigError or MissingPackageError."""
        return Workplace.here().provider(self.only or name)


class TrackingResource(dg.ConfigurableResource[Any]):
    """The MLflow server of the project.

    Attributes:
        uri: Another server than the project's.
    """

    uri: str | None = None

    @property
    def address(self) -> str:
        """The tracking URI."""
        return self.uri or Workplace.here().tracking_uri

    def of(self, experiment: str) -> Tracking:
        """Tracking of one experiment. Connects when first used."""
        from notebooked_dagster.tracking import Tracking

        return Tracking(self.address, experiment)

    def run_page(self, run_id: str) -> str:
        """Where a browser finds a run; without asking the server. A local database is shown by ``mlflow ui``."""
        from notebooked_dagster.tracking.access import shown

        address = self.address
        base = shown(address).rstrip("/") if address.startswith("http") else "http://127.0.0.1:5000"
        return f"{base}/#/runs/{run_id}"
