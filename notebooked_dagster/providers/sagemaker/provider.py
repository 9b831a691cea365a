"""SageMakerProvider: the provider's face. Training jobs are told in ``training``, endpoints in ``hosting``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from notebooked_dagster.config.sagemaker import SageMakerEndpoint, SageMakerOptions, SageMakerTraining
from notebooked_dagster.errors import ConfigError, DataError
from notebooked_dagster.providers.arguments import checked_options, is_elsewhere, is_url
from notebooked_dagster.providers.base import ALL_CAPABILITIES, Capability, Experiment, Plan
from notebooked_dagster.providers.cloud.package import requirements
from notebooked_dagster.providers.cloud.provider import CloudProvider, Remote
from notebooked_dagster.providers.jobs import JobSpec

from . import images
from .hosting import Hosting
from .session import AwsSession, code_of, message_of, translated
from .storage import Storage, split
from .training import LOG_GROUP, remote_of, training_request

_JOBS_LISTED = 1000


class SageMakerProvider(CloudProvider):
    """Train and serve on Amazon SageMaker. Credentials are found as the AWS SDK finds them.

    Args:
        state_dir: Where copies of jobs are kept; ``Settings().state`` where None.
        region: AWS region; the AWS configuration's where None.
        role_arn: The role that training and serving run under.
        bucket: Where scripts, data and models go; it has to exist.
        prefix: The folder in the bucket.
        profile: A profile of the AWS configuration.
        endpoint_url: Another address of the API, for an emulator.
        training: ``SageMakerTraining``, or its fields.
        endpoint: ``SageMakerEndpoint``, or its fields.
        prices: USD an hour by instance type, where they differ from the table that is shipped.
        poll: Seconds between two looks at a job or an endpoint.
        patience: Seconds that AWS may be out of reach while a job is waited for.
        log_grace: Seconds that the last lines of a log may take to arrive.
        tracking_uri: The MLflow server, for jobs that somebody else submitted.
        tracking_required: Whether a job fails when MLflow cannot be reached.
        cancel_on_interrupt: Whether a job is stopped when the process that waits for it is interrupted.
    """

    name: ClassVar[str] = "sagemaker"
    request_span: ClassVar[tuple[str, Mapping[str, str]]] = (
        "SageMaker Runtime/InvokeEndpoint",
        {"rpc.system": "aws-api", "rpc.service": "SageMaker Runtime", "rpc.method": "InvokeEndpoint"},
    )
    capabilities = ALL_CAPABILITIES - {Capability.ENDPOINT_LOGS}
    pipes_requirements: ClassVar[tuple[str, ...]] = ("boto3",)

    def __init__(
        self,
        state_dir: Path | str | None = None,
        *,
        region: str | None = None,
        role_arn: str | None = None,
        bucket: str | None = None,
        prefix: str = "notebooked",
        profile: str | None = None,
        endpoint_url: str | None = None,
        training: SageMakerTraining | Mapping[str, Any] | None = None,
        endpoint: SageMakerEndpoint | Mapping[str, Any] | None = None,
        prices: Mapping[str, float] | None = None,
        poll: float = 10.0,
        patience: float = 900.0,
        log_grace: float = 15.0,
        tracking_uri: str | None = None,
        tracking_required: bool = False,
        cancel_on_interrupt: bool = True,
    ) -> None:
        super().__init__(
            state_dir,
            tracking_uri=tracking_uri,
            tracking_required=tracking_required,
            poll=poll,
            patience=patience,
            log_grace=log_grace,
            cancel_on_interrupt=cancel_on_interrupt,
            training=training,
            endpoint=endpoint,
            prices=prices,
        )
        self.session = AwsSession(region, profile, endpoint_url)
        self._role = role_arn
        self._bucket = bucket
        self._prefix = prefix

    @cached_property
    def storage(self) -> Storage:
        """Our folder in the bucket."""
        if not self._bucket:
            raise ConfigError(
                "No S3 bucket is named.",
                key="aws.bucket",
                hint="Set aws.bucket in config.yaml to a bucket in the same region.",
            )
        return Storage(self.session, self._bucket, self._prefix)

    @property
    def role(self) -> str:
        """The execution role."""
        if not self._role:
            raise ConfigError(
                "No execution role is named.",
                key="aws.role_arn",
                hint="Set aws.role_arn; `notebooked plan` prints the policy it needs.",
            )
        return self._role

    def options(self, given: Mapping[str, Any]) -> SageMakerOptions:
        """An experiment's options on top of the section's. Raises ConfigError."""
        return checked_options(SageMakerOptions, given, self._sections)

    # Training

    def _check(self, experiment: Experiment) -> None:
        options = self.options(experiment.options)
        _ = self.role, self.storage
        instance = experiment.instance_type or options.training.instance_type
        if not instance.startswith("ml."):
            raise ConfigError(
                f"{instance!r} is no machine of SageMaker's.",
                key="instance_type",
                hint="Its names start with `ml.`, for instance ml.m5.large.",
            )
        if options.training.network_isolation and experiment.pipes is not None:
            raise ConfigError(
                "With network isolation a job cannot send messages.",
                key="options.training.network_isolation",
                hint="Set `pipes: false`, or `network_isolation: false`.",
            )
        if options.training.network_isolation and requirements("train", experiment.scripts).strip():
            raise ConfigError(
                "With network isolation the requirements cannot be installed.",
                key="options.training.network_isolation",
                hint="Name a container that has them: options.training.image; and empty the notebook's requirements.",
            )
        self.training_image(experiment)
        if is_elsewhere(experiment.data_path, "s3://"):
            raise DataError(
                f"SageMaker reads data from S3 or from this machine, not from {experiment.data_path!r}.",
                key="data_path",
            )

    def training_image(self, wanted: Experiment | JobSpec) -> images.Image:
        """The container that an experiment trains in."""
        options = self.options(wanted.options).training
        return images.choose(
            "training",
            self.session.region,
            self.session.domain,
            wanted.instance_type or options.instance_type,
            self.requirements(wanted),
            options.image,
        )

    def plan(self, experiment: Experiment, endpoint_name: str | None = None) -> Plan:
        """What training would send, cost and need; asks only what changes nothing."""
        from .plan import plan

        return plan(self, experiment, endpoint_name)

    def request(
        self, job_id: str, spec: JobSpec, environment: Mapping[str, str], data: str | None
    ) -> dict[str, Any]:
        """The request that starts a job. Nothing is sent."""
        options = self.options(spec.options).training
        return training_request(
            job_id,
            spec,
            options,
            role=self.role,
            image=self.training_image(spec).uri,
            source=self._source(job_id),
            output=self.storage.uri("jobs"),
            data=data,
            environment=environment,
            region=self.session.region,
        )

    def _source(self, job_id: str) -> str:
        return self.storage.uri("jobs", job_id, "source", "sourcedir.tar.gz")

    def _submit(self, job_id: str, spec: JobSpec, package: Path, environment: Mapping[str, str]) -> None:
        data = spec.data_path
        if data is not None and not is_url(data):
            data = self.storage.put_data(Path(data))
        request = self.request(job_id, spec, environment, data)
        self.storage.upload(package, self._source(job_id))
        from botocore.exceptions import ClientError

        with translated(f"Training of {spec.experiment!r} cannot be started"):
            try:
                self.session.client("sagemaker").create_training_job(**request)
            except ClientError as error:
                # The reply to an earlier try was lost: the job is there.
                if code_of(error) != "ResourceInUse":
                    raise

    def _pipes_place(self, job_id: str) -> dict[str, str]:
        bucket, key = split(self._pipes(job_id))
        url = self.session.endpoint_url
        return {
            "bucket": bucket,
            "key_prefix": key,
            "region": self.session.region,
            **({"endpoint_url": url} if url else {}),
        }

    def _pipes(self, job_id: str) -> str:
        return self.storage.uri("jobs", job_id, "pipes")

    def _look(self, job_id: str) -> Remote | None:
        from botocore.exceptions import ClientError

        with translated(f"Training job {job_id!r} cannot be looked at"):
            try:
                found = self.session.client("sagemaker").describe_training_job(TrainingJobName=job_id)
            except ClientError as error:
                if code_of(error) == "ValidationException" and "not found" in message_of(error).lower():
                    return None
                raise
        return remote_of(found, self.session.region, self.prices)

    def _summaries(self, since: datetime | None = None) -> dict[str, Remote]:
        found: dict[str, Remote] = {}
        with translated("Training jobs cannot be listed"):
            pages = self.session.client("sagemaker").get_paginator("list_training_jobs")
            for page in pages.paginate(
                NameContains="nbd-",
                SortBy="CreationTime",
                SortOrder="Descending",
                PaginationConfig={"MaxItems": _JOBS_LISTED, "PageSize": 100},
                **({"CreationTimeAfter": since} if since is not None else {}),
            ):
                for item in page["TrainingJobSummaries"]:
                    if item["TrainingJobName"].startswith("nbd-"):
                        found[item["TrainingJobName"]] = remote_of(item, self.session.region, self.prices)
        return found

    def _stop(self, job_id: str) -> None:
        from botocore.exceptions import ClientError

        with translated(f"Training job {job_id!r} cannot be stopped"):
            try:
                self.session.client("sagemaker").stop_training_job(TrainingJobName=job_id)
            except ClientError as error:
                # It has ended by itself.
                if code_of(error) != "ValidationException":
                    raise

    def _lines(self, job_id: str, cursor: Any) -> tuple[list[str], Any]:
        from botocore.exceptions import ClientError

        logs = self.session.client("logs")
        tokens: dict[str, str] = dict(cursor or {})
        lines: list[str] = []
        with translated(f"The log of training job {job_id!r} cannot be read"):
            try:
                streams = logs.describe_log_streams(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=f"{job_id}/", limit=50
                )["logStreams"]
                for stream in sorted(item["logStreamName"] for item in streams):
                    host = stream.split("/", 1)[1].rsplit("-", 1)[0]
                    prefix = "" if host == "algo-1" else f"[{host}] "
                    new, tokens[stream] = _events(logs, stream, tokens.get(stream))
                    lines.extend(prefix + line for line in new)
            except ClientError as error:
                # Nothing has been printed yet.
                if code_of(error) != "ResourceNotFoundException":
                    raise
        return lines, tokens

    def _fetch_code(self, job_id: str, target: Path) -> None:
        self.storage.fetch_archive(self._source(job_id), target)

    def _fetch_output(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(self.storage.uri("jobs", job_id, "output", "output.tar.gz"), target)

    def _fetch_model(self, job_id: str, remote: Remote, target: Path) -> None:
        self.storage.fetch_archive(self._model(job_id, remote), target)

    def _has_model(self, job_id: str, remote: Remote) -> bool:
        return self.storage.holds_a_file(self._model(job_id, remote))

    def _model(self, job_id: str, remote: Remote) -> str:
        return remote.model_uri or self.storage.uri("jobs", job_id, "output", "model.tar.gz")

    # Serving

    @cached_property
    def _hosting(self) -> Hosting:
        return Hosting(self.session, self.storage, self.role, self.state, poll=self._poll)


def _events(logs: Any, stream: str, token: str | None) -> tuple[list[str], str]:
    """The events of a stream after a token, and the token after them. The same token twice is the end."""
    lines: list[str] = []
    while True:
        page = logs.get_log_events(
            logGroupName=LOG_GROUP,
            logStreamName=stream,
            startFromHead=True,
            **({"nextToken": token} if token else {}),
        )
        lines.extend(event["message"].rstrip("\n") for event in page["events"])
        if page["nextForwardToken"] == token:
            return lines, page["nextForwardToken"]
        token = page["nextForwardToken"]
