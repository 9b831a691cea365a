"""``ProjectConfig``: the file ``config.yaml`` at the project's root."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr, model_validator

from .experiment import ExperimentConfig, Strict
from .sagemaker import Arn, Bucket, SageMakerEndpoint, SageMakerTraining


class MlflowSection(Strict):
    """Where runs are logged.

    Attributes:
        tracking_uri: SQLite under the state folder where left out.
        tracking_required: Whether training fails when the server cannot be reached.
        username: For a server with basic authentication.
        password: Only by reference to the environment: ``${MLFLOW_TRACKING_PASSWORD}``.
        token: Likewise.
    """

    tracking_uri: str | None = None
    tracking_required: bool = False
    username: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None


class LocalSection(Strict):
    """Settings of the provider ``local``: keyword arguments of ``LocalProvider``.

    Attributes:
        python: The interpreter that trains.
        pass_environment: Names or patterns of variables that jobs inherit.
        serve_host: The address endpoints bind to.
        health_timeout: Seconds a new version has to become healthy.
        stop_grace: Seconds between SIGTERM and SIGKILL.
        keep_jobs: Finished jobs kept of each experiment.
    """

    python: str | None = None
    pass_environment: tuple[str, ...] = ()
    serve_host: str | None = None
    health_timeout: float = Field(default=120.0, gt=0)
    stop_grace: float = Field(default=10.0, ge=0)
    keep_jobs: int = Field(default=20, ge=1)


class AwsSection(Strict):
    """Amazon SageMaker: keyword arguments of ``SageMakerProvider``. Credentials are found as the AWS SDK finds them.

    Attributes:
        region: Of everything; the AWS configuration's where left out.
        role_arn: The role that training and serving run under.
        bucket: Where scripts, data and models go.
        prefix: The folder in the bucket.
        profile: A profile of the AWS configuration.
        endpoint_url: Another address of the API, for an emulator.
        poll: Seconds between two looks at a job.
        patience: Seconds that the API may be out of reach while a job is waited for.
        training: How it trains.
        endpoint: How it serves.
        prices: USD an hour of machines, by their type, where they differ from the table that is shipped.
    """

    region: str | None = None
    role_arn: Arn = None
    bucket: Bucket = None
    prefix: str = "notebooked"
    profile: str | None = None
    endpoint_url: str | None = None
    poll: float = Field(default=10.0, gt=0)
    patience: float = Field(default=900.0, ge=0)
    training: SageMakerTraining = SageMakerTraining()
    endpoint: SageMakerEndpoint = SageMakerEndpoint()
    prices: dict[str, float] = Field(default_factory=dict)


class AzureSection(Strict):
    """Azure Machine Learning. Credentials are found as the Azure SDK finds them.

    Attributes:
        subscription_id: The subscription.
        resource_group: The resource group.
        workspace: The workspace.
        compute: The compute cluster that trains.
    """

    subscription_id: str | None = None
    resource_group: str | None = None
    workspace: str | None = None
    compute: str | None = None


class GcpSection(Strict):
    """Vertex AI. Credentials are found as the Google SDK finds them.

    Attributes:
        project: The project.
        region: The region.
        bucket: The staging bucket.
        service_account: The account training and serving run under.
    """

    project: str | None = None
    region: str | None = None
    bucket: str | None = None
    service_account: str | None = None


class AutomationSection(Strict):
    """What the sensors do.

    Attributes:
        sensors: Whether sensors are on without anybody switching them on in the UI.
        interval: Seconds between two looks at the notebooks.
        health_interval: Seconds between two looks at the endpoints.
        bootstrap: Whether an experiment that never ran is asked for.
        delete_orphans: Whether endpoints that Dagster made and nobody declares any more are removed.
    """

    sensors: Literal["running", "stopped"] = "stopped"
    interval: int = Field(default=30, ge=1)
    health_interval: int = Field(default=60, ge=5)
    bootstrap: bool = True
    delete_orphans: bool = False


class ProjectConfig(Strict):
    """The whole file. Every key can be set by ``NOTEBOOKED_<SECTION>__<KEY>``, which wins over the file.

    Attributes:
        mlflow: Tracking.
        local: This machine as a provider.
        aws: SageMaker.
        azure: Azure Machine Learning.
        gcp: Vertex AI.
        automation: Sensors.
        defaults: Keys every experiment has unless it says otherwise.
        experiments: The experiments.
    """

    mlflow: MlflowSection = MlflowSection()
    local: LocalSection = LocalSection()
    aws: AwsSection = AwsSection()
    azure: AzureSection = AzureSection()
    gcp: GcpSection = GcpSection()
    automation: AutomationSection = AutomationSection()
    defaults: dict[str, Any] = Field(default_factory=dict)
    experiments: tuple[ExperimentConfig, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, data: Any) -> Any:
        # `aws:` with every line below it commented out is an empty section, not a mistake.
        return (
            {key: value for key, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )
