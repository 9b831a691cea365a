"""What can be said of SageMaker in ``config.yaml`` (section ``aws``) and in an experiment's ``options``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .experiment import Strict


def _unset(value: object) -> object:
    # `${ROLE:-}` in a file that others share is a variable nobody set.
    return None if value == "" else value


def _arn(value: str | None) -> str | None:
    if value is not None and not re.match(r"arn:aws[a-z0-9-]*:", value):
        raise ValueError(f"{value!r} is no ARN; one looks like arn:aws:iam::123456789012:role/Name")
    return value


def _bucket(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value):
        raise ValueError(
            f"{value!r} is no bucket's name: give the name alone, without s3:// and without a path"
        )
    return value


Arn = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_arn)]
Bucket = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_bucket)]


class SageMakerTraining(Strict):
    """How SageMaker trains.

    Attributes:
        instance_type: The machine, unless the experiment names one.
        volume_size: GB of disk.
        spot: Managed spot training: cheaper, may be interrupted; set `checkpoint` too where training takes long.
        max_wait: Seconds a spot job may wait and run altogether; twice the time limit where left out.
        max_runtime: Seconds, where the experiment sets no `timeout`.
        checkpoint: Keep `/opt/ml/checkpoints` in the bucket, so that an interrupted training goes on from there.
        image: Another container than the one chosen from what the notebook imports.
        kms_key: Encrypts the disks and what is written to the bucket.
        encrypt_traffic: Encrypt what several instances say to each other.
        network_isolation: No network at all inside; requirements cannot be installed then.
        subnets: Of a VPC.
        security_groups: Of that VPC.
        keep_alive: Seconds the machine is kept for the next training (warm pool).
        tags: Of every training job.
    """

    instance_type: str = "ml.m5.large"
    volume_size: int = Field(default=30, ge=1)
    spot: bool = False
    max_wait: int | None = Field(default=None, ge=1)
    max_runtime: int = Field(default=86400, ge=1, le=2419200)
    checkpoint: bool = False
    image: str | None = None
    kms_key: str | None = None
    encrypt_traffic: bool = False
    network_isolation: bool = False
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    keep_alive: int = Field(default=0, ge=0, le=3600)
    tags: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _together(self) -> SageMakerTraining:
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("`subnets` and `security_groups` belong together")
        if self.spot and self.keep_alive:
            raise ValueError("`keep_alive` is not possible with `spot`")
        return self


class Serverless(Strict):
    """Serving without a machine of one's own.

    Attributes:
        memory: MB.
        concurrency: Requests at once.
    """

    memory: Literal[1024, 2048, 3072, 4096, 5120, 6144] = 2048
    concurrency: int = Field(default=5, ge=1, le=200)


class Autoscaling(Strict):
    """More machines when there is more to do.

    Attributes:
        min: Machines at least.
        max: Machines at most.
        invocations: Requests a minute that one machine is to get.
    """

    min: int = Field(default=1, ge=1)
    max: int = Field(ge=1)
    invocations: float = Field(default=1000, gt=0)

    @model_validator(mode="after")
    def _order(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"`min` ({self.min}) is above `max` ({self.max})")
        return self


class SageMakerEndpoint(Strict):
    """How SageMaker serves.

    Attributes:
        instance_type: The machine.
        instance_count: How many of them.
        serverless: Without machines of one's own: `true`, or its settings.
        autoscaling: How many machines there may be.
        image: Another container than the one chosen from what the notebook imports.
        strategy: How traffic moves to a new version: all of it once it is healthy, or a part of it first.
        canary_percent: The part that moves first (`canary`), or with each step (`linear`).
        bake: Seconds to watch the alarms before more traffic moves.
        alarms: CloudWatch alarms that roll a deployment back.
        kms_key: Encrypts the disks.
        startup_timeout: Seconds a container may take to become healthy.
        subnets: Of a VPC.
        security_groups: Of that VPC.
        tags: Of everything made for an endpoint.
    """

    instance_type: str = "ml.m5.large"
    instance_count: int = Field(default=1, ge=1)
    serverless: Serverless | None = None
    autoscaling: Autoscaling | None = None
    image: str | None = None
    strategy: Literal["all_at_once", "canary", "linear"] = "all_at_once"
    canary_percent: int = Field(default=10, ge=1, le=50)
    bake: int = Field(default=300, ge=0, le=3600)
    alarms: tuple[str, ...] = ()
    kms_key: str | None = None
    startup_timeout: int = Field(default=600, ge=60, le=3600)
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    tags: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("serverless"), bool):
            return {**data, "serverless": {} if data["serverless"] else None}
        return data

    @model_validator(mode="after")
    def _one_way(self) -> SageMakerEndpoint:
        if self.serverless is not None and self.autoscaling is not None:
            raise ValueError("`serverless` scales by itself; remove `autoscaling`")
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("`subnets` and `security_groups` belong together")
        return self


class SageMakerOptions(Strict):
    """An experiment's ``options``: what differs from the section ``aws``."""

    training: SageMakerTraining = SageMakerTraining()
    endpoint: SageMakerEndpoint = SageMakerEndpoint()
