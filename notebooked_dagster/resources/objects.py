"""Object storage as Dagster resources: ``s3``, ``gcs``, ``adls2`` and an ``io_manager`` on one of them, as configured.

They are for users' own assets in the same code location. Ours need none: what a training makes lies where its provider put it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from notebooked_dagster.config import ProjectConfig
from notebooked_dagster.config.storage import GcsStorage, S3Storage
from notebooked_dagster.errors import ConfigError, MissingPackageError


def storage_resources(project: ProjectConfig) -> dict[str, Any]:
    """The resources that ``storage`` in ``config.yaml`` asks for; none, and nothing imported, where it asks for none.

    Raises:
        ConfigError: A bucket is named nowhere.
        MissingPackageError: Dagster's package for that storage is not installed.
    """
    section = project.storage
    makers: dict[str, Callable[[ProjectConfig], tuple[Any, Any]]] = {"s3": _s3, "gcs": _gcs, "adls2": _adls2}
    found: dict[str, Any] = {}
    for key, make in makers.items():
        if getattr(section, key) is None and section.io_manager != key:
            continue
        resource, manager = make(project)
        found[key] = resource
        if section.io_manager == key:
            found["io_manager"] = manager
    return found


def _s3(project: ProjectConfig) -> tuple[Any, Any]:
    s3, section = _package("dagster_aws.s3", "aws"), project.storage.s3 or S3Storage()
    resource = s3.S3Resource(
        region_name=section.region or project.aws.region,
        profile_name=section.profile or project.aws.profile,
        endpoint_url=section.endpoint_url or project.aws.endpoint_url,
    )
    bucket = _named(section.bucket or project.aws.bucket, "s3", "aws")
    return resource, s3.S3PickleIOManager(s3_resource=resource, s3_bucket=bucket, s3_prefix=section.prefix)


def _gcs(project: ProjectConfig) -> tuple[Any, Any]:
    gcs, section = _package("dagster_gcp.gcs", "gcp"), project.storage.gcs or GcsStorage()
    resource = gcs.GCSResource(project=section.project or project.gcp.project)
    bucket = _named(section.bucket or project.gcp.bucket, "gcs", "gcp")
    return resource, gcs.GCSPickleIOManager(gcs=resource, gcs_bucket=bucket, gcs_prefix=section.prefix)


def _adls2(project: ProjectConfig) -> tuple[Any, Any]:
    adls2, section = _package("dagster_azure.adls2", "azure"), project.storage.adls2
    assert section is not None
    resource = adls2.ADLS2Resource(
        storage_account=section.account, credential=adls2.ADLS2DefaultAzureCredential(kwargs={})
    )
    return resource, adls2.ADLS2PickleIOManager(
        adls2=resource, adls2_file_system=section.container, adls2_prefix=section.prefix
    )


def _named(bucket: str | None, key: str, section: str) -> str:
    if bucket:
        return bucket
    raise ConfigError(
        "No bucket is named.",
        key=f"storage.{key}.bucket",
        hint=f"Name one there, or as {section}.bucket.",
    )


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"`storage` in config.yaml needs the package {error.name!r}.",
            hint=f"`pip install 'notebooked-dagster[{extra}]'`, or remove the section.",
        ) from error
