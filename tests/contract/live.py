"""A provider in a real account, fenced in: a test sees and removes only what it made itself.

The contract was written for accounts that are empty. A real one may hold what somebody depends on.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import EndpointNotFoundError
from notebooked_dagster.providers.base import BaseProvider, Endpoint, Experiment, TrainingJob
from notebooked_dagster.providers.registry import get_provider

PREFIX = "NOTEBOOKED_LIVE_"


@dataclass(frozen=True, slots=True)
class Account:
    """What a provider needs to be told of an account, each by a variable. Credentials are the SDK's own business.

    Attributes:
        provider: The provider.
        needed: Its settings, each with the end of the variable's name.
        optional: Likewise, of those that may be missing.
    """

    provider: str
    needed: Mapping[str, str]
    optional: Mapping[str, str]

    def missing(self) -> list[str]:
        """The variables that are not set."""
        return [PREFIX + name for name in self.needed.values() if not os.environ.get(PREFIX + name)]

    def settings(self) -> dict[str, Any]:
        """What is set."""
        pairs = {**self.needed, **self.optional}
        found = {key: os.environ.get(PREFIX + name) for key, name in pairs.items()}
        return {key: value for key, value in found.items() if value}


ACCOUNTS = {
    "sagemaker": Account(
        "sagemaker",
        {"role_arn": "AWS_ROLE_ARN", "bucket": "AWS_BUCKET"},
        {"region": "AWS_REGION", "profile": "AWS_PROFILE"},
    ),
    "azure": Account(
        "azure",
        {
            "subscription_id": "AZURE_SUBSCRIPTION_ID",
            "resource_group": "AZURE_RESOURCE_GROUP",
            "workspace": "AZURE_WORKSPACE",
        },
        {"compute": "AZURE_COMPUTE"},
    ),
    "vertex": Account(
        "vertex",
        {"project": "GCP_PROJECT", "region": "GCP_REGION", "bucket": "GCP_BUCKET"},
        {"service_account": "GCP_SERVICE_ACCOUNT"},
    ),
}


class Fenced:
    """A provider whose endpoints have names of their own there, and whose earlier jobs are not seen.

    Args:
        inner: The provider.
    """

    def __init__(self, inner: BaseProvider) -> None:
        self._inner = inner
        self._mark = f"nbt{secrets.token_hex(3)}-"
        self._before = {job.id for job in inner.list_jobs()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def list_jobs(self, experiment: str | None = None) -> list[TrainingJob]:
        return [job for job in self._inner.list_jobs(experiment) if job.id not in self._before]

    def deploy(self, experiment: Experiment, model_uri: str, endpoint_name: str, **more: Any) -> Endpoint:
        return self._own(self._inner.deploy(experiment, model_uri, self._mark + endpoint_name, **more))

    def predict(self, endpoint_name: str, data: Any) -> Any:
        return self._inner.predict(self._mark + endpoint_name, data)

    def delete_endpoint(self, endpoint_name: str) -> list[str]:
        return self._inner.delete_endpoint(self._mark + endpoint_name)

    def endpoint(self, endpoint_name: str) -> Endpoint:
        return self._own(self._inner.endpoint(self._mark + endpoint_name))

    def rollback(self, endpoint_name: str) -> Endpoint:
        return self._own(self._inner.rollback(self._mark + endpoint_name))

    def traffic(self, endpoint_name: str, weights: Mapping[str, int]) -> Endpoint:
        return self._own(self._inner.traffic(self._mark + endpoint_name, weights))

    def list_endpoints(self) -> list[Endpoint]:
        found = self._inner.list_endpoints()
        return [self._own(endpoint) for endpoint in found if endpoint.name.startswith(self._mark)]

    def _own(self, endpoint: Endpoint) -> Endpoint:
        return dataclasses.replace(endpoint, name=endpoint.name.removeprefix(self._mark))

    def close(self) -> None:
        """Leave no machine running, whatever the test did."""
        for endpoint in self.list_endpoints():
            try:
                self.delete_endpoint(endpoint.name)
            except EndpointNotFoundError:
                continue
        for job in self.list_jobs():
            if not job.status.finished:
                self._inner.cancel(job.id)


def live_provider(name: str, state: Path) -> Iterator[Fenced]:
    """The provider of the account that the environment names, and what it made removed afterwards."""
    settings = ACCOUNTS[name].settings()
    poll = float(os.environ.get(f"{PREFIX}POLL", "10"))
    made = Fenced(get_provider(name, state_dir=state, prefix="notebooked-live", poll=poll, **settings))
    try:
        yield made
    finally:
        made.close()
