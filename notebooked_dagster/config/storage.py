"""``storage`` in ``config.yaml``: object storage for the assets that stand beside the experiments."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from .experiment import Strict, Text


class S3Storage(Strict):
    """Amazon S3, or what speaks as it does.

    Attributes:
        bucket: `aws.bucket` where left out.
        prefix: The folder in it for what the IO manager stores.
        region: `aws.region` where left out.
        profile: A profile of the AWS configuration; `aws.profile` where left out.
        endpoint_url: Another address, for MinIO or an emulator; `aws.endpoint_url` where left out.
    """

    bucket: Text | None = None
    prefix: Text = "dagster"
    region: Text | None = None
    profile: Text | None = None
    endpoint_url: Text | None = None


class GcsStorage(Strict):
    """Google Cloud Storage.

    Attributes:
        bucket: `gcp.bucket` where left out.
        prefix: The folder in it for what the IO manager stores.
        project: `gcp.project` where left out.
    """

    bucket: Text | None = None
    prefix: Text = "dagster"
    project: Text | None = None


class Adls2Storage(Strict):
    """Azure Data Lake Storage, second generation.

    Attributes:
        account: The storage account.
        container: The container, or file system.
        prefix: The folder in it for what the IO manager stores.
    """

    account: Text
    container: Text
    prefix: Text = "dagster"


class StorageSection(Strict):
    """Object storage for users' own assets in the same code location. Credentials are found as each SDK finds them.

    Attributes:
        io_manager: Where values are stored that assets return: ``s3``, ``gcs`` or ``adls2``; Dagster's own files where left out.
        s3: The resource `s3`.
        gcs: The resource `gcs`.
        adls2: The resource `adls2`.
    """

    io_manager: Literal["s3", "gcs", "adls2"] | None = None
    s3: S3Storage | None = None
    gcs: GcsStorage | None = None
    adls2: Adls2Storage | None = None

    @model_validator(mode="after")
    def _account_is_named(self) -> StorageSection:
        if self.io_manager == "adls2" and self.adls2 is None:
            raise ValueError("`io_manager: adls2` needs `adls2: {account, container}`")
        return self
