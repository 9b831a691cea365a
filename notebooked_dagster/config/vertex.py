"""What can be said of Vertex AI in ``config.yaml`` (section ``gcp``) and in an experiment's ``options``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .experiment import Strict

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")


def _unset(value: object) -> object:
    # `${PROJECT:-}` in a file that others share is a variable nobody set.
    return None if value == "" else value


def _bucket(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", value):
        raise ValueError(
            f"{value!r} is no bucket's name: give the name alone, without gs:// and without a path"
        )
    return value


def _account(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com", value):
        raise ValueError(
            f"{value!r} is no service account; one looks like name@project.iam.gserviceaccount.com"
        )
    return value


def _key(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(
        r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+", value
    ):
        raise ValueError(
            f"{value!r} is no key; one looks like projects/p/locations/l/keyRings/r/cryptoKeys/k"
        )
    return value


def _network(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"projects/[^/]+/global/networks/[^/]+", value):
        raise ValueError(
            f"{value!r} is no network; one looks like projects/123456789/global/networks/name, with the project's number"
        )
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _LABEL.fullmatch(name) or not _LABEL_VALUE.fullmatch(text):
            raise ValueError(
                f"the label {name!r}: {text!r} is none; use lower-case letters, digits, '_' and '-', at most 63 of them"
            )
    return value


GcsBucket = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_bucket)]
ServiceAccount = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_account)]
KmsKey = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_key)]
Network = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_network)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]


class VertexTraining(Strict):
    """How Vertex AI trains.

    Attributes:
        machine_type: The machine, unless the experiment names one as `instance_type`.
        accelerator: GPU, by its name in the API: `NVIDIA_TESLA_T4`, `NVIDIA_L4`.
        accelerator_count: GPUs of each machine.
        disk_type: Of the boot disk: `pd-ssd`, `pd-standard`; what the machine has by itself where left out.
        disk_size: GB of the boot disk.
        spot: Spot machines: cheaper, may be taken away at any time; the job is then begun again from the start.
        max_runtime: Seconds, where the experiment sets no `timeout`.
        image: Another container than the one that has our Python.
        labels: Of every training job.
    """

    machine_type: str = "n1-standard-4"
    accelerator: str | None = None
    accelerator_count: int = Field(default=1, ge=1)
    disk_type: str | None = None
    disk_size: int = Field(default=100, ge=100)
    spot: bool = False
    max_runtime: int = Field(default=86400, ge=1, le=2592000)
    image: str | None = None
    labels: Labels = Field(default_factory=dict)


class VertexEndpoint(Strict):
    """How Vertex AI serves.

    Attributes:
        machine_type: The machine.
        accelerator: GPU, by its name in the API.
        accelerator_count: GPUs of each machine.
        min_replicas: Machines at least; Vertex AI keeps one always.
        max_replicas: Machines at most; more than `min_replicas` scales by itself.
        cpu_target: Percent of the CPU that more machines are added at.
        image: Another container than the one that has our Python.
        health_timeout: Seconds a container may take to become healthy.
        canary: Percent of the traffic that moves first, step by step; `[10, 50]` is 10, then 50, then all. Empty moves all at once.
        bake: Seconds to watch a new version after each step; where it stops answering, or never does, all traffic goes back.
        keep_warm: Keep the version before running, so that a rollback takes seconds; its machines cost what they cost.
        labels: Of everything made for an endpoint.
    """

    machine_type: str = "n1-standard-2"
    accelerator: str | None = None
    accelerator_count: int = Field(default=1, ge=1)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    cpu_target: int = Field(default=60, ge=1, le=100)
    image: str | None = None
    health_timeout: int = Field(default=1800, ge=60, le=7200)
    canary: tuple[Annotated[int, Field(ge=1, le=99)], ...] = ()
    bake: int = Field(default=300, ge=0, le=86400)
    keep_warm: bool = False
    labels: Labels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _order(self) -> VertexEndpoint:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"`min_replicas` ({self.min_replicas}) is above `max_replicas` ({self.max_replicas})"
            )
        if list(self.canary) != sorted(set(self.canary)):
            raise ValueError("the steps of `canary` have to grow")
        return self


class VertexOptions(Strict):
    """An experiment's ``options``: what differs from the section ``gcp``."""

    training: VertexTraining = VertexTraining()
    endpoint: VertexEndpoint = VertexEndpoint()
