"""What can be said of a Kubernetes cluster in ``config.yaml`` (section ``kubernetes``) and in an experiment's ``options``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .experiment import Strict

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_QUALIFIED = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


def _unset(value: object) -> object:
    # `${NAMESPACE:-}` in a file that others share is a variable nobody set.
    return None if value == "" else value


def _name(value: str | None) -> str | None:
    if value is not None and not _DNS_LABEL.fullmatch(value):
        raise ValueError(
            f"{value!r} is no name in Kubernetes: use lower-case letters, digits and '-', at most 63 of them"
        )
    return value


def _quantity(value: object) -> object:
    # `cpu: 2` is as good as `cpu: "2"`.
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(text, str) and not _QUANTITY.fullmatch(text):
        raise ValueError(f"{text!r} is no quantity in Kubernetes; one looks like 500m, 2, 512Mi or 4Gi")
    return text


def _labels(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _QUALIFIED.fullmatch(name) or not _LABEL_VALUE.fullmatch(text):
            raise ValueError(f"the label {name!r}: {text!r} is none in Kubernetes")
        if name.startswith("notebooked/"):
            raise ValueError(f"the label {name!r} begins with `notebooked/`, which is ours")
    return value


def _url(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s?#]*)?", value):
        raise ValueError(f"{value!r} is no folder of an object store; one looks like s3://bucket/folder")
    return value


def _gateway(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
        raise ValueError(f"{value!r} is no address of a gateway; one looks like http://203.0.113.7")
    return value


Gateway = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_gateway)]
Name = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_name)]
Quantity = Annotated[str, BeforeValidator(_quantity)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
StoreUrl = Annotated[str | None, BeforeValidator(_unset), AfterValidator(_url)]


class KubernetesStorage(Strict):
    """The object store that scripts, data and models go through: Amazon S3, MinIO, Ceph, or what else speaks S3.

    Attributes:
        url: Bucket and folder: `s3://bucket/folder`. The bucket has to exist.
        endpoint_url: Its address as this machine reaches it; Amazon's where left out.
        cluster_endpoint_url: Its address as pods reach it, where that is another one.
        region: Of the bucket, where the store has regions.
        profile: A profile of the AWS configuration, for this machine.
        access_from: A Secret of the namespace whose keys become variables of pods (`AWS_ACCESS_KEY_ID`, …); pods use their service account's identity where left out.
    """

    url: StoreUrl = None
    endpoint_url: str | None = None
    cluster_endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_from: Name = None


class Toleration(Strict):
    """A taint of nodes that pods put up with.

    Attributes:
        key: The taint's; any where left out.
        operator: How `value` is compared.
        value: The taint's.
        effect: The taint's; any where left out.
    """

    key: str | None = None
    operator: Annotated[str, Field(pattern="^(Equal|Exists)$")] = "Equal"
    value: str | None = None
    effect: Annotated[str | None, Field(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$")] = None

    @model_validator(mode="after")
    def _whole(self) -> Toleration:
        if self.key is None and self.operator != "Exists":
            raise ValueError("a toleration without `key` needs `operator: Exists`")
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("a toleration with `operator: Exists` has no `value`")
        return self


class Machine(Strict):
    """What a pod asks for, and where it may run.

    Attributes:
        cpu: CPUs that are asked for: `500m`, `2`.
        memory: Memory that is asked for, and the most it may use: `512Mi`, `4Gi`.
        cpu_limit: CPUs at most; as many as are free where left out.
        gpu: GPUs.
        gpu_resource: The name the cluster has for them.
        disk: Ephemeral storage that is asked for.
        node_selector: Labels that a node has to have.
        tolerations: Taints of nodes that are put up with.
        priority_class: PriorityClass.
        run_as_user: The user's number that containers run as; the image's own where left out.
        image: The container; `python:<ours>-slim` where left out here and in the section.
        labels: Of every pod.
        annotations: Of every pod.
    """

    cpu: Quantity = "1"
    memory: Quantity = "2Gi"
    cpu_limit: Quantity | None = None
    gpu: int = Field(default=0, ge=0)
    gpu_resource: str = "nvidia.com/gpu"
    disk: Quantity | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class: str | None = None
    run_as_user: int | None = Field(default=None, ge=1)
    image: str | None = None
    labels: Labels = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class KubernetesTraining(Machine):
    """How a cluster trains.

    Attributes:
        max_runtime: Seconds, where the experiment sets no `timeout`; waiting for a node does not count.
        start_timeout: Seconds that a pod may wait for a node, its image or its quota; training is given up then.
        backoff: How often training is begun again where its pod was taken away (evicted, its node drained or lost). A script that fails is not tried again.
        ttl: Seconds that a job which has ended stays in the cluster; for ever where null.
        grace: Seconds between SIGTERM and SIGKILL; what is left of them after the script's half is for saving the log.
        operator: `kubeflow` makes a PyTorchJob, which Kubeflow's training operator runs, instead of a Job.
    """

    max_runtime: int = Field(default=86400, ge=1)
    start_timeout: int = Field(default=3600, ge=1)
    backoff: int = Field(default=0, ge=0, le=100)
    ttl: int | None = Field(default=604800, ge=60)
    grace: int = Field(default=30, ge=2, le=3600)
    operator: Literal["kubeflow"] | None = None

    @model_validator(mode="after")
    def _begun_again(self) -> KubernetesTraining:
        if self.operator is not None and self.backoff:
            raise ValueError(
                "Kubeflow begins pods again by exit codes, not by what took them away; remove `backoff`"
            )
        return self


class Autoscaling(Strict):
    """A HorizontalPodAutoscaler, or Knative's where KServe serves.

    Attributes:
        min: Pods at least; 0 takes `concurrency`, and pods are started when somebody asks.
        max: Pods at most.
        cpu_target: Percent of the CPU asked for that more pods are added at.
        concurrency: Requests at a time for each pod that more pods are added at, instead of `cpu_target`; for `operator: kserve`.
    """

    min: int = Field(default=1, ge=0)
    max: int = Field(ge=1)
    cpu_target: int = Field(default=70, ge=1, le=100)
    concurrency: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _order(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"`min` ({self.min}) is above `max` ({self.max})")
        if self.min == 0 and self.concurrency is None:
            raise ValueError("pods that are not there use no CPU to count by: `min: 0` takes `concurrency`")
        return self


class Ingress(Strict):
    """How an endpoint is reached from outside of the cluster.

    Attributes:
        host: The host's name; `{endpoint}` is replaced.
        class_name: IngressClass; the cluster's default where left out.
        tls_from: A Secret of the namespace with certificate and key; plain HTTP where left out.
        annotations: For the controller.
    """

    host: str
    class_name: str | None = None
    tls_from: Name = None
    annotations: dict[str, str] = Field(default_factory=dict)


class KubernetesEndpoint(Machine):
    """How a cluster serves.

    Attributes:
        replicas: Pods of a version that has all traffic.
        max_pods: Pods that a split of the traffic may take, all versions together: a share is a number of pods, so more of them come nearer to it.
        autoscaling: More pods under load, instead of `replicas`.
        ingress: An address outside of the cluster; the API server's proxy and the Service alone where left out.
        health_timeout: Seconds a version may take to become ready.
        keep_warm: Keep the version before running, so that a rollback takes seconds.
        operator: `kserve` makes an InferenceService, which KServe runs, instead of Deployments.
        mode: KServe's deployment mode: `serverless` (Knative; exact shares, scale to zero) or `raw` (no shares); what the cluster is set up for where left out.
        gateway: KServe's ingress gateway as this machine reaches it (`http://203.0.113.7`), where the names of endpoints are not in the DNS.
    """

    cpu: Quantity = "500m"
    memory: Quantity = "1Gi"
    replicas: int = Field(default=1, ge=1)
    max_pods: int = Field(default=10, ge=2)
    autoscaling: Autoscaling | None = None
    ingress: Ingress | None = None
    health_timeout: int = Field(default=600, ge=1)
    keep_warm: bool = False
    operator: Literal["kserve"] | None = None
    mode: Literal["serverless", "raw"] | None = None
    gateway: Gateway = None

    @model_validator(mode="after")
    def _of_the_operator(self) -> KubernetesEndpoint:
        counted = self.autoscaling is not None and self.autoscaling.concurrency is not None
        if self.operator is None:
            if self.mode is not None or self.gateway is not None or counted:
                raise ValueError("`mode`, `gateway` and `autoscaling.concurrency` take `operator: kserve`")
        elif self.ingress is not None or self.keep_warm:
            raise ValueError(
                "KServe makes its own way in, and a rollback is a rollout of its own; remove `ingress` and `keep_warm`"
            )
        elif self.mode == "raw" and counted:
            raise ValueError(
                "without Knative nobody counts requests: `autoscaling.concurrency` takes `mode: serverless`"
            )
        return self


class KubernetesOptions(Strict):
    """An experiment's ``options``: what differs from the section ``kubernetes``."""

    training: KubernetesTraining = KubernetesTraining()
    endpoint: KubernetesEndpoint = KubernetesEndpoint()
