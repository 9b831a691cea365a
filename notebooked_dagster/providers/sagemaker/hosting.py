"""Endpoints in SageMaker's terms.

A version of an endpoint is a SageMaker model, an archive and a description in our folder of the bucket. What an endpoint
serves, and in which roles, is said by its endpoint configuration: it cannot be changed, only replaced as a whole, so that
roles and traffic never disagree. A deployment that does not become healthy leaves the configuration that was there.

API: SageMaker 2017-07-24, SageMaker Runtime 2017-05-13, Application Auto Scaling 2016-02-06.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooked_dagster.config.sagemaker import SageMakerEndpoint
from notebooked_dagster.core import tracing
from notebooked_dagster.errors import (
    ConfigError,
    EndpointNotFoundError,
    NotebookedError,
    ProviderError,
)
from notebooked_dagster.providers.base import Endpoint, EndpointStatus
from notebooked_dagster.providers.cloud import serving
from notebooked_dagster.providers.cloud.hosting import CloudHosting, EndpointState, Wanted
from notebooked_dagster.providers.cloud.serving import ROLES, conflict

from . import images
from .session import AwsSession, code_of, message_of, translated
from .storage import Storage
from .training import tags

_PREFIX = "nbd-"
_STATUS = {
    "Creating": EndpointStatus.CREATING,
    "InService": EndpointStatus.HEALTHY,
    "Updating": EndpointStatus.HEALTHY,
    "SystemUpdating": EndpointStatus.HEALTHY,
    "RollingBack": EndpointStatus.HEALTHY,
    "UpdateRollbackFailed": EndpointStatus.DEGRADED,
    "Failed": EndpointStatus.FAILED,
}
_MOVING = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_LONGEST_DELETION = 900.0
_DIMENSION = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}


@dataclass(frozen=True, slots=True, kw_only=True)
class State(EndpointState):
    """An endpoint as SageMaker and our descriptions have it now.

    Attributes:
        status: SageMaker's word.
        reason: Why it failed.
        config: The endpoint configuration in force.
        counts: Machines that run now, by version; those without one of their own are not in it.
    """

    status: str
    reason: str
    config: str
    counts: Mapping[str, int]


class Hosting(CloudHosting[State, SageMakerEndpoint]):
    """The endpoints of one folder of one bucket.

    Args:
        session: Credentials.
        storage: Our folder.
        role: ARN of the execution role.
        state: Where fetched models are kept.
        poll: Seconds between two looks.
    """

    provider, cloud, scheme = "sagemaker", "SageMaker", "s3://"
    # SageMaker takes 63 characters; a configuration's name has ours, a version and six digits more.
    names = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,43}[A-Za-z0-9])?")
    names_are = "letters, digits and hyphens, at most 45 of them"
    _storage: Storage

    def __init__(self, session: AwsSession, storage: Storage, role: str, state: Path, *, poll: float) -> None:
        super().__init__(storage, state, poll=poll)
        self._session = session
        self._role = role

    @property
    def _sagemaker(self) -> Any:
        return self._session.client("sagemaker")

    def _busy(self, error: Exception) -> str:
        from botocore.exceptions import ClientError

        refused = isinstance(error, ClientError) and code_of(error) == "ValidationException"
        text = message_of(error) if refused else ""
        return text if re.search(r"(?i)in-progress|in progress|already exist", text) else ""

    # Asking

    def all(self) -> list[Endpoint]:
        """All of ours, by name."""
        found = []
        with translated("Endpoints cannot be listed"):
            pages = self._sagemaker.get_paginator("list_endpoints").paginate(NameContains=_PREFIX)
            names = [item["EndpointName"] for page in pages for item in page["Endpoints"]]
        for name in sorted(name for name in names if name.startswith(_PREFIX)):
            # Between the two calls somebody may have deleted it; one of the same prefix may be somebody else's.
            with contextlib.suppress(EndpointNotFoundError):
                if (state := self._seen(name.removeprefix(_PREFIX))) is not None:
                    found.append(self._view(state))
        return found

    def _answer(self, name: str, body: bytes) -> Any:
        from botocore.exceptions import ClientError

        with translated(f"Endpoint {name!r} cannot be asked"):
            try:
                reply = self._session.client("sagemaker-runtime").invoke_endpoint(
                    EndpointName=aws_name(name),
                    Body=body,
                    ContentType="application/json",
                    Accept="application/json",
                    **_trace(),
                )
            except ClientError as error:
                if code_of(error) == "ValidationError" and "not found" in message_of(error):
                    raise self._unknown(name) from error
                if code_of(error) == "ModelError":
                    status = int(error.response.get("OriginalStatusCode", 500))
                    said = str(error.response.get("OriginalMessage", "") or message_of(error)).strip()
                    raise serving.model_error(name, status, said, _where(name)) from error
                raise
            text = reply["Body"].read()
        return serving.parsed(name, text)

    def _state(self, name: str) -> State:
        """An endpoint. Raises EndpointNotFoundError where there is none of this very name."""
        self._check_name(name)
        state = self._seen(name)
        if state is None or state.name != name:
            raise self._unknown(name)
        return state

    def _seen(self, name: str) -> State | None:
        """The endpoint that has a name's place at SageMaker, which knows no difference between ``a_b`` and ``a-b``.

        Raises:
            EndpointNotFoundError: It is somebody else's.
        """
        from botocore.exceptions import ClientError

        with translated(f"Endpoint {name!r} cannot be looked at"):
            try:
                found = self._sagemaker.describe_endpoint(EndpointName=aws_name(name))
            except ClientError as error:
                if code_of(error) == "ValidationException":
                    return None
                raise
            config = self._sagemaker.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
            arn = config["EndpointConfigArn"]
            kept = {item["Key"]: item["Value"] for item in self._sagemaker.list_tags(ResourceArn=arn)["Tags"]}
        if "notebooked/endpoint" not in kept:
            raise self._unknown(name)
        roles = {role: kept[f"notebooked/{role}"] for role in ROLES if kept.get(f"notebooked/{role}")}
        variants = {
            item["VariantName"].removeprefix("v"): item for item in found.get("ProductionVariants", ())
        }
        total = sum(float(item.get("CurrentWeight", 0)) for item in variants.values()) or 1.0
        return State(
            name=kept["notebooked/endpoint"],
            status=found["EndpointStatus"],
            reason=str(found.get("FailureReason", "")),
            config=found["EndpointConfigName"],
            weights={v: round(100 * float(i.get("CurrentWeight", 0)) / total) for v, i in variants.items()},
            counts={
                v: i["CurrentInstanceCount"] for v, i in variants.items() if i.get("CurrentInstanceCount")
            },
            roles=roles,
            documents=self._documents(name, roles),
        )

    def _id(self, name: str) -> str:
        return aws_name(name)

    def _view(self, state: State) -> Endpoint:
        status = _STATUS.get(state.status, EndpointStatus.STOPPED)
        deployments = serving.deployments(
            state.roles, state.weights, state.documents, dict.fromkeys(state.weights, status)
        )
        message = state.reason or ("" if state.status == "InService" else f"SageMaker says: {state.status}.")
        return Endpoint(state.name, "sagemaker", self._url(state.name), status, deployments, message)

    def _url(self, name: str) -> str:
        base = self._session.client("sagemaker-runtime").meta.endpoint_url.rstrip("/")
        return f"{base}/endpoints/{aws_name(name)}"

    # Changing

    def _deploy(self, wanted: Wanted[SageMakerEndpoint]) -> Endpoint:
        name, options, weight = wanted.name, wanted.options, wanted.weight
        before = self._before(name)
        folder = self._folder(wanted)
        version = self._reserve(name, before)
        roles = serving.roles_after(before.roles if before is not None else {}, version, weight)
        try:
            document = self._prepare(wanted, folder, version)
            variants = [_variant(name, version, document, weight if "challenger" in roles else 100)]
            if before is not None and "challenger" in roles:
                variants.insert(0, _kept(before, roles["champion"], 100 - weight))
            config = self._configure(name, document, variants, roles)
            after = self._replaced(
                name, before, config, variants, options.tags, _policy(options) if len(variants) == 1 else None
            )
        except BaseException:
            self._withdraw(name, version, before)
            raise
        return self._served(after)

    def rollback(self, name: str) -> Endpoint:
        """Serve the previous version again."""
        state = self._state(name)
        roles = serving.roles_back(name, state.roles)
        document = state.documents[roles["champion"]]
        variants = [_variant(name, roles["champion"], document, 100)]
        config = self._configure(name, document, variants, roles)
        return self._served(self._replaced(name, state, config, variants, {}, None))

    def _share_out(self, state: State, weights: Mapping[str, int]) -> Endpoint:
        name = state.name
        wanted = [
            {"VariantName": f"v{version}", "DesiredWeight": float(share)}
            for version, share in weights.items()
        ]
        with translated(f"The traffic of endpoint {name!r} cannot be changed"), self._conflicts(name):
            self._sagemaker.update_endpoint_weights_and_capacities(
                EndpointName=aws_name(name), DesiredWeightsAndCapacities=wanted
            )
        return self._view(self._settled(name, state.config))

    def delete(self, name: str) -> list[str]:
        """Remove an endpoint and all that was made for it; what an earlier try has left is removed, too."""
        self._check_name(name)
        state = self._seen(name)
        configs = self._names("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", name)
        models = self._names("list_models", "Models", "ModelName", name)
        versions = self._stored(name)
        if state.name != name if state is not None else not (configs or models or versions):
            raise self._unknown(name)
        documents = {str(version): self._document(name, str(version)) for version in versions}
        if state is not None and state.status != "Deleting":
            with translated(f"Endpoint {name!r} cannot be deleted"), self._conflicts(name):
                self._sagemaker.delete_endpoint(EndpointName=aws_name(name))
        if self._waited(lambda: self._seen(name), lambda seen: seen is None, _LONGEST_DELETION) is not None:
            raise ProviderError(
                f"Endpoint {name!r} is being deleted, and is still there after {_LONGEST_DELETION:.0f} s.",
                hint="Delete it again later: that removes what was made for it.",
            )
        self._unscale(name, documents)
        for config in configs:
            self._remove("delete_endpoint_config", EndpointConfigName=config)
        for model in models:
            self._remove("delete_model", ModelName=model)
        # The last: it says what there is to remove.
        self._storage.remove_below(self._place(name))
        return self._gone(name, documents.values(), f"The log group {_log_group(name)} is kept.")

    # The steps of a deployment

    def _before(self, name: str) -> State | None:
        state = self._seen(name)
        if state is None:
            return None
        if state.name != name:
            raise ConfigError(
                f"At SageMaker {name!r} would be the same endpoint as {state.name!r}.",
                key="endpoint.name",
                hint="Choose a name that differs in more than `-` and `_`.",
            )
        if state.status in _MOVING:
            raise conflict(name, state.status)
        if state.status == "Failed":
            # It never served anything; SageMaker lets it only be deleted.
            self.delete(name)
            return None
        return state

    def _reserve(self, name: str, before: State | None) -> str:
        """The next version's number, which nobody else gets."""
        known = map(int, before.roles.values() if before is not None else ())
        version = str(max([0, *self._stored(name), *known]) + 1)
        if not self._storage.write(self._place(name, version, "reserved"), b"", new=True):
            raise conflict(name, "another process has begun a deployment at the same moment")
        return version

    def _prepare(self, wanted: Wanted[SageMakerEndpoint], folder: Path, version: str) -> dict[str, Any]:
        """Archive, description and SageMaker model of a version."""
        name, options = wanted.name, wanted.options
        archive = self._place(name, version, "model.tar.gz")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.tar.gz"
            needed = serving.pack(wanted.experiment, folder, path)
            image = images.choose(
                "inference",
                self._session.region,
                self._session.domain,
                None if options.serverless is not None else options.instance_type,
                needed,
                options.image,
            )
            self._storage.upload(path, archive)
        document = self._described(
            wanted,
            folder,
            version,
            image=image.uri,
            variant=_machine(options),
            autoscaling=options.autoscaling.model_dump() if options.autoscaling is not None else None,
            kms_key=options.kms_key,
            tags=options.tags,
        )
        environment = {
            **wanted.experiment.environment,
            "SAGEMAKER_PROGRAM": "inference.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
            "SAGEMAKER_REGION": self._session.region,
        }
        vpc = {"Subnets": list(options.subnets), "SecurityGroupIds": list(options.security_groups)}
        with translated(f"Version {version} of endpoint {name!r} cannot be made"), self._conflicts(name):
            self._sagemaker.create_model(
                ModelName=f"{aws_name(name)}-v{version}",
                ExecutionRoleArn=self._role,
                PrimaryContainer={"Image": image.uri, "ModelDataUrl": archive, "Environment": environment},
                Tags=tags({"notebooked/endpoint": name, **options.tags}),
                **({"VpcConfig": vpc} if options.subnets else {}),
            )
        return document

    def _configure(
        self,
        name: str,
        document: Mapping[str, Any],
        variants: list[dict[str, Any]],
        roles: Mapping[str, str],
    ) -> str:
        """An endpoint configuration, encrypted and tagged as the version is that it is made for."""
        config = f"{aws_name(name)}-v{document['version']}-{secrets.token_hex(3)}"
        marks = {
            "notebooked/endpoint": name,
            **{f"notebooked/{role}": found for role, found in roles.items()},
        }
        more = {"KmsKeyId": document["kms_key"]} if document.get("kms_key") else {}
        with translated(f"The configuration of endpoint {name!r} cannot be made"):
            self._sagemaker.create_endpoint_config(
                EndpointConfigName=config,
                ProductionVariants=variants,
                Tags=tags({**marks, **document.get("tags", {})}),
                **more,
            )
        return config

    def _replaced(
        self,
        name: str,
        before: State | None,
        config: str,
        variants: list[dict[str, Any]],
        own_tags: Mapping[str, str],
        policy: dict[str, Any] | None,
    ) -> State:
        """Serve another configuration, and wait until it is served; what served before scales on where that fails."""
        call = {"EndpointName": aws_name(name), "EndpointConfigName": config}
        what = f"Endpoint {name!r} cannot be deployed"
        if before is None:
            with translated(what), self._conflicts(name):
                self._sagemaker.create_endpoint(**call, Tags=tags({"notebooked/endpoint": name, **own_tags}))
            return self._settled(name, config)
        now = self._state(name)
        if (now.config, now.roles) != (before.config, before.roles):
            raise conflict(name, "another deployment was done while this one was prepared")
        kept = {item["VariantName"].removeprefix("v") for item in variants}
        try:
            # SageMaker refuses to remove a variant that is scaled.
            self._unscale(name, {v: before.documents.get(v, {}) for v in before.weights if v not in kept})
            with translated(what), self._conflicts(name):
                self._sagemaker.update_endpoint(**call, **({"DeploymentConfig": policy} if policy else {}))
            return self._settled(name, config)
        except BaseException:
            with contextlib.suppress(Exception):
                self._rescale(before)
            raise

    def _served(self, state: State) -> Endpoint:
        """What is to be done when a configuration is served."""
        self._tidy(state)
        self._input.forget(state.name)
        self._rescale(state)
        return self._view(state)

    def _settled(self, name: str, config: str) -> State:
        """Wait until SageMaker is done; the endpoint then has to serve this configuration."""
        state = self._waited(lambda: self._state(name), lambda seen: seen.status not in _MOVING)
        if state.status == "InService" and state.config == config:
            return state
        raise serving.unready(
            name,
            state.reason or state.status,
            serves=state.status == "InService",
            hint=_where(name),
            traceback=self._traceback(lambda: self._last_log(name)),
        )

    def _last_log(self, name: str) -> str:
        """What the container that was started last printed."""
        logs, group = self._session.client("logs"), _log_group(name)
        streams = logs.describe_log_streams(
            logGroupName=group, orderBy="LastEventTime", descending=True, limit=1
        )["logStreams"]
        page = logs.get_log_events(logGroupName=group, logStreamName=streams[0]["logStreamName"])
        return "\n".join(item["message"] for item in page["events"])

    def _withdraw(self, name: str, version: str, before: State | None) -> None:
        """Remove what a deployment that failed made; what is served stays."""
        with contextlib.suppress(Exception):
            if before is None:
                state = self._state(name)
                if state.status == "Failed":
                    self._sagemaker.delete_endpoint(EndpointName=aws_name(name))
            for config in self._names("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", name):
                if config.startswith(f"{aws_name(name)}-v{version}-"):
                    self._remove("delete_endpoint_config", EndpointConfigName=config)
            self._remove("delete_model", ModelName=f"{aws_name(name)}-v{version}")
            self._storage.remove_below(self._place(name, version))

    def _tidy(self, state: State) -> None:
        """Remove configurations and versions that nothing serves or keeps for a rollback.

        A version that is newer than all of these is of a deployment that has begun in the meantime.
        """
        name, kept = state.name, set(state.roles.values())
        newest = max(map(int, kept))
        with contextlib.suppress(NotebookedError):
            for config in self._names("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", name):
                if config != state.config and int(_version(config, name)) <= newest:
                    self._remove("delete_endpoint_config", EndpointConfigName=config)
            for model in self._names("list_models", "Models", "ModelName", name):
                version = _version(model, name)
                if version not in kept and int(version) <= newest:
                    self._remove("delete_model", ModelName=model)
                    self._storage.remove_below(self._place(name, version))

    def _names(self, operation: str, items: str, key: str, name: str) -> list[str]:
        """Configurations or models of one endpoint; those of an endpoint whose name begins alike are not."""
        pattern = re.compile(rf"{re.escape(aws_name(name))}-v\d+(-[0-9a-f]+)?")
        with translated(f"What belongs to endpoint {name!r} cannot be listed"):
            pages = self._sagemaker.get_paginator(operation).paginate(NameContains=aws_name(name))
            return [item[key] for page in pages for item in page[items] if pattern.fullmatch(str(item[key]))]

    def _remove(self, operation: str, **which: str) -> None:
        from botocore.exceptions import ClientError

        with translated(f"{next(iter(which.values()))} cannot be removed"):
            try:
                getattr(self._sagemaker, operation)(**which)
            except ClientError as error:
                # It is gone already.
                if code_of(error) != "ValidationException":
                    raise

    def _rescale(self, state: State) -> None:
        """Let every version that is served scale as it was deployed to."""
        scaling = self._session.client("application-autoscaling")
        for version in state.weights:
            wanted = state.documents.get(version, {}).get("autoscaling")
            if wanted is None:
                continue
            target = _target(state.name, version)
            with translated(f"Autoscaling of endpoint {state.name!r} cannot be set up"):
                scaling.register_scalable_target(
                    **target, MinCapacity=wanted["min"], MaxCapacity=wanted["max"]
                )
                scaling.put_scaling_policy(
                    **target,
                    PolicyName=f"{aws_name(state.name)}-v{version}",
                    PolicyType="TargetTrackingScaling",
                    TargetTrackingScalingPolicyConfiguration={
                        "TargetValue": wanted["invocations"],
                        "PredefinedMetricSpecification": {
                            "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
                        },
                    },
                )

    def _unscale(self, name: str, documents: Mapping[str, Mapping[str, Any]]) -> None:
        from botocore.exceptions import ClientError

        scaling = self._session.client("application-autoscaling")
        for version, document in documents.items():
            if document.get("autoscaling") is None:
                continue
            with translated(f"Autoscaling of endpoint {name!r} cannot be ended"):
                try:
                    scaling.deregister_scalable_target(**_target(name, version))
                except ClientError as error:
                    # It does not scale any more.
                    if code_of(error) != "ObjectNotFoundException":
                        raise


def aws_name(name: str) -> str:
    """An endpoint's name at SageMaker, which takes no underscores."""
    return _PREFIX + name.replace("_", "-")


def _machine(options: SageMakerEndpoint) -> dict[str, Any]:
    """What a version runs on, as part of a ProductionVariant."""
    if options.serverless is not None:
        return {
            "ServerlessConfig": {
                "MemorySizeInMB": options.serverless.memory,
                "MaxConcurrency": options.serverless.concurrency,
            }
        }
    count = options.instance_count
    if options.autoscaling is not None:
        count = min(max(count, options.autoscaling.min), options.autoscaling.max)
    return {
        "InstanceType": options.instance_type,
        "InitialInstanceCount": count,
        "ContainerStartupHealthCheckTimeoutInSeconds": options.startup_timeout,
        "ModelDataDownloadTimeoutInSeconds": options.startup_timeout,
    }


def _variant(name: str, version: str, document: Mapping[str, Any], weight: int) -> dict[str, Any]:
    return {
        "VariantName": f"v{version}",
        "ModelName": f"{aws_name(name)}-v{version}",
        "InitialVariantWeight": float(weight),
        **document["variant"],
    }


def _kept(state: State, version: str, weight: int) -> dict[str, Any]:
    """The variant of a version that goes on being served, with as many machines as it has grown to."""
    variant = _variant(state.name, version, state.documents[version], weight)
    if version in state.counts:
        variant["InitialInstanceCount"] = state.counts[version]
    return variant


def _version(made: str, name: str) -> str:
    """The version that a configuration or a model of an endpoint was made for."""
    return made.removeprefix(f"{aws_name(name)}-v").partition("-")[0]


def _target(name: str, version: str) -> dict[str, str]:
    """A variant as Application Auto Scaling names it."""
    return {**_DIMENSION, "ResourceId": f"endpoint/{aws_name(name)}/variant/v{version}"}


def _policy(options: SageMakerEndpoint) -> dict[str, Any] | None:
    """How traffic moves to a new version; None for SageMaker's own way, all at once when it is healthy."""
    if options.serverless is not None or (options.strategy == "all_at_once" and not options.alarms):
        return None
    routing: dict[str, Any] = {"Type": options.strategy.upper(), "WaitIntervalInSeconds": options.bake}
    if options.strategy != "all_at_once":
        size = {"Type": "CAPACITY_PERCENT", "Value": options.canary_percent}
        routing["CanarySize" if options.strategy == "canary" else "LinearStepSize"] = size
    policy: dict[str, Any] = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}
    if options.alarms:
        policy["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": alarm} for alarm in options.alarms]}
    return policy


def _trace() -> dict[str, str]:
    """SageMaker forwards no header of its caller's but this one."""
    traceparent = tracing.headers().get("traceparent")
    return {"CustomAttributes": f"traceparent={traceparent}"} if traceparent else {}


def _log_group(name: str) -> str:
    return f"/aws/sagemaker/Endpoints/{aws_name(name)}"


def _where(name: str) -> str:
    return f"The container's log is in CloudWatch, group {_log_group(name)}."
