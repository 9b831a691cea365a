"""``ProjectConfig``: the file ``config.yaml`` at the project's root."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from .azure import AzureEndpoint, AzureTraining, Identity, Subscription
from .databricks import CatalogName, DatabricksEndpoint, DatabricksTraining, Host
from .experiment import ExperimentConfig, Strict, Text
from .kubernetes import KubernetesEndpoint, KubernetesStorage, KubernetesTraining, Name
from .sagemaker import Arn, Bucket, SageMakerEndpoint, SageMakerTraining
from .storage import StorageSection
from .vertex import GcsBucket, KmsKey, Network, ServiceAccount, VertexEndpoint, VertexTraining


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
    """Azure Machine Learning: keyword arguments of ``AzureProvider``. Credentials are found as the Azure SDK finds them.

    Attributes:
        subscription_id: The subscription; `AZURE_SUBSCRIPTION_ID` where left out.
        resource_group: The resource group.
        workspace: The workspace.
        compute: The compute cluster that trains; serverless compute where left out.
        datastore: Where scripts, data and models go: a blob datastore of the workspace.
        prefix: The folder in the datastore.
        identity: A user-assigned identity that training and serving run under; Azure's own choice where left out.
        endpoint_url: Another address of Azure Resource Manager, for another cloud or an emulator.
        poll: Seconds between two looks at a job.
        patience: Seconds that the API may be out of reach while a job is waited for.
        training: How it trains.
        endpoint: How it serves.
        prices: USD an hour of machines, by their type, where they differ from the table that is shipped.
    """

    subscription_id: Subscription = None
    resource_group: str | None = None
    workspace: str | None = None
    compute: str | None = None
    datastore: str = "workspaceblobstore"
    prefix: str = "notebooked"
    identity: Identity = None
    endpoint_url: str | None = None
    poll: float = Field(default=10.0, gt=0)
    patience: float = Field(default=900.0, ge=0)
    training: AzureTraining = AzureTraining()
    endpoint: AzureEndpoint = AzureEndpoint()
    prices: dict[str, float] = Field(default_factory=dict)


class GcpSection(Strict):
    """Vertex AI: keyword arguments of ``VertexProvider``. Credentials are found as the Google SDK finds them.

    Attributes:
        project: The project; the credentials' own where left out.
        region: Of everything.
        bucket: Where scripts, data and models go.
        prefix: The folder in the bucket.
        service_account: The account training and serving run under.
        network: A VPC that training is peered with.
        kms_key: Encrypts jobs, models and endpoints.
        endpoint_url: Another address of the APIs, for an emulator.
        poll: Seconds between two looks at a job.
        patience: Seconds that the API may be out of reach while a job is waited for.
        training: How it trains.
        endpoint: How it serves.
        prices: USD an hour of machines and GPUs, by their name, where they differ from the table that is shipped.
    """

    project: str | None = None
    region: str | None = None
    bucket: GcsBucket = None
    prefix: str = "notebooked"
    service_account: ServiceAccount = None
    network: Network = None
    kms_key: KmsKey = None
    endpoint_url: str | None = None
    poll: float = Field(default=10.0, gt=0)
    patience: float = Field(default=900.0, ge=0)
    training: VertexTraining = VertexTraining()
    endpoint: VertexEndpoint = VertexEndpoint()
    prices: dict[str, float] = Field(default_factory=dict)


class KubernetesSection(Strict):
    """A Kubernetes cluster: keyword arguments of ``KubernetesProvider``. It is found as kubectl finds it.

    Attributes:
        context: A context of the kubeconfig; its current one where left out.
        kubeconfig: The file; `KUBECONFIG`, `~/.kube/config`, or the pod's own service account where left out.
        namespace: Where everything goes; the context's, or the pod's own, where left out.
        service_account: That pods run under; the namespace's default where left out.
        image: The container that trains and serves; `python:<ours>-slim` where left out.
        image_pull_from: Secrets of the namespace that images are pulled with.
        storage: The object store.
        poll: Seconds between two looks at a job.
        patience: Seconds that the API server may be out of reach while a job is waited for.
        training: How it trains.
        endpoint: How it serves.
    """

    context: str | None = None
    kubeconfig: str | None = None
    namespace: Name = None
    service_account: Name = None
    image: str | None = None
    image_pull_from: tuple[str, ...] = ()
    storage: KubernetesStorage = KubernetesStorage()
    poll: float = Field(default=5.0, gt=0)
    patience: float = Field(default=900.0, ge=0)
    training: KubernetesTraining = KubernetesTraining()
    endpoint: KubernetesEndpoint = KubernetesEndpoint()


class DatabricksSection(Strict):
    """Databricks: keyword arguments of ``DatabricksProvider``. Credentials are found as the Databricks SDK finds them.

    Attributes:
        host: The workspace; that of `DATABRICKS_HOST` or of the profile where left out.
        profile: A profile of `.databrickscfg`.
        catalog: The catalog in Unity Catalog that has the schema.
        schema_name: The schema that has the volume, and that models are registered in.
        volume: The volume scripts, data and models go to.
        prefix: The folder in the volume.
        poll: Seconds between two looks at a job.
        patience: Seconds that the API may be out of reach while a job is waited for.
        training: How it trains.
        endpoint: How it serves.
        prices: USD an hour of machines, by their type: what the cloud asks, and the DBUs; there is no table of them here.
    """

    host: Host = None
    profile: str | None = None
    catalog: CatalogName = None
    schema_name: CatalogName = None
    volume: CatalogName = None
    prefix: str = "notebooked"
    poll: float = Field(default=10.0, gt=0)
    patience: float = Field(default=900.0, ge=0)
    training: DatabricksTraining = DatabricksTraining()
    endpoint: DatabricksEndpoint = DatabricksEndpoint()
    prices: dict[str, float] = Field(default_factory=dict)


class PiSection(Strict):
    """Devices at the edge that serve, and this machine, which trains: keyword arguments of ``PiProvider``.

    Attributes:
        device: The device that serves, by its name in edge.yaml, unless the experiment names another.
        health_timeout: Seconds a new version has to become healthy there.
        patience: Seconds that a device may be out of reach while it is changing something for us.
        python: The interpreter that trains.
        pass_environment: Names or patterns of variables that trainings inherit.
        stop_grace: Seconds between SIGTERM and SIGKILL.
        keep_jobs: Finished jobs kept of each experiment.
    """

    device: Text | None = None
    health_timeout: float = Field(default=180.0, gt=0)
    patience: float = Field(default=60.0, ge=0)
    python: str | None = None
    pass_environment: tuple[str, ...] = ()
    stop_grace: float = Field(default=10.0, ge=0)
    keep_jobs: int = Field(default=20, ge=1)


class AutomationSection(Strict):
    """What the sensors do.

    Attributes:
        sensors: Whether sensors are on without anybody switching them on in the UI.
        interval: Seconds between two looks at the notebooks.
        health_interval: Seconds between two looks at the endpoints.
        bootstrap: Whether an experiment that never ran is asked for.
        delete_orphans: Whether endpoints that Dagster made and nobody declares any more are removed. The project has to have a
            `name` for that: by their folder's name, two of them in containers are one.
    """

    sensors: Literal["running", "stopped"] = "stopped"
    interval: int = Field(default=30, ge=1)
    health_interval: int = Field(default=60, ge=5)
    bootstrap: bool = True
    delete_orphans: bool = False


class ProjectConfig(Strict):
    """The whole file. Every key can be set by ``NOTEBOOKED_<SECTION>__<KEY>``, which wins over the file.

    Attributes:
        name: What tells this project's endpoints from those of others at the same provider; the folder's name where left out.
        mlflow: Tracking.
        local: This machine as a provider.
        aws: SageMaker.
        azure: Azure Machine Learning.
        gcp: Vertex AI.
        kubernetes: A Kubernetes cluster.
        databricks: Databricks.
        pi: Devices at the edge that serve.
        storage: Object storage for users' own assets.
        automation: Sensors.
        defaults: Keys every experiment has unless it says otherwise.
        experiments: The experiments.
    """

    name: Text | None = None
    mlflow: MlflowSection = MlflowSection()
    local: LocalSection = LocalSection()
    aws: AwsSection = AwsSection()
    azure: AzureSection = AzureSection()
    gcp: GcpSection = GcpSection()
    kubernetes: KubernetesSection = KubernetesSection()
    databricks: DatabricksSection = DatabricksSection()
    pi: PiSection = PiSection()
    storage: StorageSection = StorageSection()
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

    @field_validator("automation")
    @classmethod
    def _deletes_its_own(cls, automation: AutomationSection, info: ValidationInfo) -> AutomationSection:
        if automation.delete_orphans and info.data.get("name") is None:
            raise ValueError(
                "`delete_orphans` needs the project's `name`: the folder's is that of every project in a container"
            )
        return automation
