"""What can be said of Azure Machine Learning in ``config.yaml`` (section ``azure``) and in an experiment's ``options``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .experiment import Strict

_IDENTITY = re.compile(
    r"(?i)/subscriptions/[^/]+/resourcegroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+"
)
_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _unset(value: object) -> object:
    # `${SUBSCRIPTION:-}` in a file that others share is a variable nobody set.
    return None if value == "" else value


def _identity(value: str | None) -> str | None:
    if value is not None and not _IDENTITY.fullmatch(value):
        raise ValueError(
            f"{value!r} is no user-assigned identity; one looks like /subscriptions/…/resourceGroups/…"
            "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Name"
        )
    return value


def _subscription(value: str | None) -> str | None:
    if value is not None and not _GUID.fullmatch(value):
        raise ValueError(f"{value!r} is no subscription's id; `az account show --query id` prints it")
    return value


def _environment(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(
        r"azureml:[^:/]+:[^:/]+|azureml://registries/[^/]+/environments/[^/]+/versions/[^/]+|/subscriptions/.+",
        value,
    ):
        raise ValueError(
            f"{value!r} is no environment; one looks like azureml:name:version or "
            "azureml://registries/azureml/environments/name/versions/1"
        )
    return value


Identity = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_identity)]
Subscription = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_subscription)]
Name = Annotated[str | None, BeforeValidator(_unset)]
Environment = Annotated[str | None, AfterValidator(_environment)]


class AzureTraining(Strict):
    """How Azure Machine Learning trains.

    Attributes:
        compute: A compute cluster of the workspace; serverless compute where left out.
        instance_type: The machine of serverless compute, unless the experiment names one.
        spot: Serverless compute of low priority: cheaper, may be interrupted and is then begun again.
        max_runtime: Seconds, where the experiment sets no `timeout`.
        image: A container that is used as it is, instead of one with our Python; requirements are installed at the start.
        environment: An environment of the workspace or of a registry that is used as it is.
        input_mode: Whether data is read as it is needed, or copied to the machine first.
        output_mode: Whether model and output are sent when the script has ended, or as it writes them.
        shared_memory: Of the container, such as `8g`.
        tags: Of every training job.
    """

    compute: Name = None
    instance_type: str = "Standard_DS3_v2"
    spot: bool = False
    max_runtime: int = Field(default=86400, ge=1, le=2592000)
    image: str | None = None
    environment: Environment = None
    input_mode: Literal["mount", "download"] = "mount"
    output_mode: Literal["upload", "mount"] = "upload"
    shared_memory: str | None = Field(default=None, pattern=r"^[1-9]\d*[bkmg]$")
    tags: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _together(self) -> AzureTraining:
        if self.image is not None and self.environment is not None:
            raise ValueError("name `image` or `environment`, not both")
        if self.compute is not None and self.spot:
            raise ValueError("a cluster is of low priority or is not; `spot` is for serverless compute")
        return self


class Autoscaling(Strict):
    """More machines under load, by a setting of Azure Monitor.

    Attributes:
        min: Machines at least.
        max: Machines at most.
        cpu_target: Percent of the CPU above which one machine is added; below half of it, one is taken away.
    """

    min: int = Field(default=1, ge=1)
    max: int = Field(ge=1)
    cpu_target: int = Field(default=70, ge=1, le=100)

    @model_validator(mode="after")
    def _order(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"`min` ({self.min}) is above `max` ({self.max})")
        return self


class AzureEndpoint(Strict):
    """How Azure Machine Learning serves.

    Attributes:
        instance_type: The machine.
        instance_count: How many of them.
        autoscaling: How many machines there may be; it begins with `instance_count`.
        auth: How callers show who they are: with a token of Microsoft Entra ID, or with a key of the endpoint.
        image: Another base image than the one we choose; our Python and the requirements are installed on it.
        environment: An environment that is used as it is; it needs the package `azureml-inference-server-http`.
        strategy: How traffic moves to a new version: all of it once it is healthy, or a part of it first.
        canary_percent: The part that moves first (`canary`), or with each step (`linear`).
        bake: Seconds to watch the new version before more traffic moves.
        standby: Keep the version before running without traffic: a rollback takes seconds, and its machines cost.
        startup_timeout: Seconds a container may take to become healthy.
        request_timeout: Seconds for an answer.
        concurrency: Requests that one machine works on at once.
        public_access: Whether the endpoint can be reached from outside the workspace's network.
        egress: Whether the container can reach anything outside the workspace's network.
        tags: Of everything made for an endpoint.
    """

    instance_type: str = "Standard_DS3_v2"
    instance_count: int = Field(default=1, ge=1)
    autoscaling: Autoscaling | None = None
    auth: Literal["entra", "key"] = "entra"
    image: str | None = None
    environment: Environment = None
    strategy: Literal["all_at_once", "canary", "linear"] = "all_at_once"
    canary_percent: int = Field(default=10, ge=1, le=50)
    bake: int = Field(default=300, ge=0, le=3600)
    standby: bool = True
    startup_timeout: int = Field(default=600, ge=60, le=3600)
    request_timeout: int = Field(default=60, ge=1, le=180)
    concurrency: int = Field(default=4, ge=1)
    public_access: bool = True
    egress: bool = True
    tags: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _together(self) -> AzureEndpoint:
        if self.image is not None and self.environment is not None:
            raise ValueError("name `image` or `environment`, not both")
        return self


class AzureOptions(Strict):
    """An experiment's ``options``: what differs from the section ``azure``."""

    training: AzureTraining = AzureTraining()
    endpoint: AzureEndpoint = AzureEndpoint()
