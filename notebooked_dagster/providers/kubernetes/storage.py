"""The object store: what is sent to the cluster and what comes back. Any that speaks S3 will do.

The files are kept as the provider ``sagemaker`` keeps them, and by the same code (docs/decisions/0010 says why that sibling is
imported).
"""

from __future__ import annotations

from typing import Any

from notebooked_dagster.config.kubernetes import KubernetesStorage
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.providers.sagemaker.session import AwsSession
from notebooked_dagster.providers.sagemaker.storage import Storage, split

# Stores of one's own have no regions, and the SDK signs with one all the same.
_ANY_REGION = "us-east-1"


class ObjectStore(Storage):
    """Our folder in the object store.

    Args:
        options: Where it is.
    """

    def __init__(self, options: KubernetesStorage) -> None:
        if not options.url:
            raise ConfigError(
                "No object store is named.",
                key="kubernetes.storage.url",
                hint="Set kubernetes.storage.url to s3://bucket/folder; endpoint_url names another store than Amazon's.",
            )
        bucket, folder = split(options.url)
        region = options.region or (_ANY_REGION if options.endpoint_url else None)
        self.session = AwsSession(
            region, options.profile, options.endpoint_url, needed_by="kubernetes", extra="kubernetes"
        )
        self.options = options
        super().__init__(self.session, bucket, folder or "notebooked")

    def variables(self) -> list[dict[str, Any]]:
        """The environment by which pods find the store."""
        address = self.options.cluster_endpoint_url or self.options.endpoint_url
        found = {"AWS_DEFAULT_REGION": self.session.region}
        if address:
            found["AWS_ENDPOINT_URL_S3"] = address
        return [{"name": name, "value": value} for name, value in found.items()]

    def place(self, *parts: str) -> dict[str, str]:
        """Where a pod writes messages of Dagster Pipes; the rest of what it takes is in its environment."""
        bucket, key = split(self.uri(*parts))
        return {"bucket": bucket, "key_prefix": key}
