"""What can be said of Databricks in ``config.yaml`` (section ``databricks``) and in an experiment's ``options``."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .experiment import Strict

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,254}")
_TAG = re.compile(r"[\w .:/=+@-]{1,127}")


def _unset(value: object) -> object:
    # `${DATABRICKS_HOST:-}` in a file that others share is a variable nobody set.
    return None if value == "" else value


def _host(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value if "://" in value else f"https://{value}")
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.path.strip("/") or parts.username:
        raise ValueError(
            f"{value!r} is no workspace; one looks like https://dbc-a1b2345c-d6e7.cloud.databricks.com"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _part(value: str | None) -> str | None:
    if value is not None and not _PART.fullmatch(value):
        raise ValueError(f"{value!r} is no name in Unity Catalog here: use letters, digits, '_' and '-'")
    return value


def _tags(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _TAG.fullmatch(name) or len(text) > 255:
            raise ValueError(
                f"the tag {name!r} is none: letters, digits, spaces and + - = . _ : / @, at most 127"
            )
    return value


Host = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_host)]
CatalogName = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_part)]
DatabricksTags = Annotated[dict[str, str], AfterValidator(_tags)]


class DatabricksTraining(Strict):
    """How Databricks trains.

    Attributes:
        node_type_id: The machine, unless the experiment names one as `instance_type`; not for serverless compute.
        spark_version: The runtime; the long-term one that has our Python where left out.
        serverless: On serverless compute for jobs, which needs no machine named and has no GPU here.
        environment_version: Of serverless compute; the one that has our Python where left out.
        policy_id: The compute policy a cluster is made by.
        spot: Spot machines where there are any, else on demand: cheaper, may be taken away, and the run then fails.
        max_runtime: Seconds, where the experiment sets no `timeout`; the start of the machines counts.
        tags: Of every cluster.
    """

    node_type_id: str | None = None
    spark_version: str | None = None
    serverless: bool = False
    environment_version: str | None = None
    policy_id: str | None = None
    spot: bool = False
    max_runtime: int = Field(default=86400, ge=60, le=2592000)
    tags: DatabricksTags = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_compute(self) -> DatabricksTraining:
        if self.serverless and (self.spot or self.policy_id or self.spark_version):
            raise ValueError("`serverless` has no cluster: leave `spot`, `policy_id` and `spark_version` out")
        return self


class DatabricksEndpoint(Strict):
    """How Databricks serves.

    Attributes:
        workload_size: `Small` (up to 4 requests at a time), `Medium` (up to 16), `Large` (up to 64).
        workload_type: `CPU`, or a GPU by its name in the API: `GPU_SMALL`, `GPU_MEDIUM`.
        scale_to_zero: Stop the machines while nobody asks; the first request afterwards waits for them.
        health_timeout: Seconds a version may take to be built and to become ready.
        canary: Percent of the traffic that moves first, step by step; `[10, 50]` is 10, then 50, then all. Empty moves all at once.
        bake: Seconds to watch a new version after each step; where it stops answering, all traffic goes back.
        keep_warm: Keep the version before running, so that a rollback takes seconds; its machines cost what they cost.
        tags: Of the endpoint, once it is made.
    """

    workload_size: Literal["Small", "Medium", "Large"] = "Small"
    workload_type: Literal["CPU", "GPU_SMALL", "GPU_MEDIUM", "GPU_LARGE", "MULTIGPU_MEDIUM"] = "CPU"
    scale_to_zero: bool = False
    health_timeout: int = Field(default=3600, ge=60, le=14400)
    canary: tuple[Annotated[int, Field(ge=1, le=99)], ...] = ()
    bake: int = Field(default=300, ge=0, le=86400)
    keep_warm: bool = False
    tags: DatabricksTags = Field(default_factory=dict)

    @model_validator(mode="after")
    def _order(self) -> DatabricksEndpoint:
        if list(self.canary) != sorted(set(self.canary)):
            raise ValueError("the steps of `canary` have to grow")
        return self


class DatabricksOptions(Strict):
    """An experiment's ``options``: what differs from the section ``databricks``."""

    training: DatabricksTraining = DatabricksTraining()
    endpoint: DatabricksEndpoint = DatabricksEndpoint()
