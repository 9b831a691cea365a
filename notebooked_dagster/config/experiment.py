"""``ExperimentConfig``: what ``assets/<name>/defs.yaml`` and an entry of ``config.yaml`` say of one experiment.

The short forms (``schedule: "0 3 * * *"``) are in the JSON schema too: ``dg check yaml`` and editors judge by it.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_CRON_FIELDS = (5, 6)
_ALIASES = ("@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@annually", "@midnight")


def _number_as_text(value: Any) -> Any:
    # `model: 3` and `names: [1, 2]` are what people mean as text; a bool is a YAML trap and stays one.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_number_as_text, json_schema_input_type=str | int | float)]

# As ``notebook.model.Tag``, which this layer may not import.
TagName = Literal[
    "imports", "utils", "preprocess", "model", "train", "inference", "requirements", "parameters", "skip"
]


class Strict(BaseModel):
    """A section in which a key nobody knows is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), hide_input_in_errors=True)


class ScheduleConfig(Strict):
    """When the experiment runs by itself.

    Attributes:
        cron: Five fields, or ``@daily`` and the like.
        timezone: An IANA name.
        running: Whether the schedule is on without anybody switching it on in the UI.
    """

    cron: str
    timezone: str = "UTC"
    running: bool = False

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        if value not in _ALIASES and len(value.split()) not in _CRON_FIELDS:
            raise ValueError(
                f"{value!r} is no cron expression; it has five fields, for instance '0 3 * * *' for 03:00 every day"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{value!r} is no time zone; use an IANA name such as 'Europe/Berlin'") from None
        return value


_LOWER = re.compile(
    r"loss|logloss|error|[a-z]*mse|mae|mape|smape|aic|bic|deviance|perplexity|brier|time|duration|latency|wer|cer|fid|hamming|divergence"
)
_HIGHER = re.compile(
    r"acc|accuracy|auc|roc|f1|fbeta|precision|recall|r2|rsquared|score|jaccard|silhouette|kappa|mcc|corrcoef|map|ndcg|bleu|rouge|iou|dice"
)


def lower_is_better(metric: str) -> bool | None:
    """Whether less of a metric is better, by the words of its name; None where they do not tell.

    scikit-learn's ``neg_mean_squared_error`` and its like are turned round already: more is better.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", metric.lower()) if word]
    if words[:1] == ["neg"]:
        return False
    if any(_LOWER.fullmatch(word) for word in words):
        return True
    return False if any(_HIGHER.fullmatch(word) for word in words) else None


class MetricGate(Strict):
    """What a model has to reach before it is deployed.

    Attributes:
        metric: As in the script's ``metrics.json``.
        min: It has to be at least this.
        max: It may be at most this.
        better_than: ``champion``: at least as good as what the endpoint serves now.
        direction: Whether more is better; only for ``better_than``. Told by ``min``/``max``, else by the name.
        tolerance: How much worse than the champion is still good enough.
    """

    metric: str
    min: float | None = None
    max: float | None = None
    better_than: Literal["champion"] | None = None
    direction: Literal["higher", "lower"] | None = None
    tolerance: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _has_limit(self) -> MetricGate:
        if self.min is None and self.max is None and self.better_than is None:
            raise ValueError("a gate needs `min`, `max` or `better_than: champion`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` ({self.min:g}) is above `max` ({self.max:g}): no model could pass")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is a better one."""
        if self.direction is not None:
            return self.direction == "higher"
        if (self.min is None) != (self.max is None):
            return self.min is not None
        return lower_is_better(self.metric) is not True


class EndpointConfig(Strict):
    """Where the model is served.

    Attributes:
        name: The experiment's name where left out.
        weight: Share of the traffic for a new version, in percent; below 100 it is the challenger.
        auto_deploy: Whether a model that passed is deployed by itself; else deploying is a click.
        enabled: ``false`` trains and serves nothing.
    """

    name: Text | None = None
    weight: int = Field(default=100, ge=0, le=100)
    auto_deploy: bool = True
    enabled: bool = True

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        return value if value is None else check_name(value)


class ParityConfig(Strict):
    """The check that runs the notebook's own training beside the script.

    Attributes:
        enabled: Whether there is such a check.
        tolerance: How far metrics and predictions may differ, relative to their size.
        seed: Set in both before anything runs.
        with_job: Whether it runs in the experiment's job; else only when asked for, because it trains twice.
        timeout: Seconds for the notebook.
    """

    enabled: bool = True
    tolerance: float = Field(default=1e-6, ge=0)
    seed: int = Field(default=42, ge=0, lt=2**32)
    with_job: bool = False
    timeout: float = Field(default=3600, gt=0)


class PipesCheck(Strict):
    """A check of the model that the notebook reports itself.

    Attributes:
        name: As in ``report_asset_check``.
        description: Shown in the UI.
        blocking: Whether a model that failed it is not deployed in the same run.
    """

    name: Text
    description: str | None = None
    blocking: bool = False

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_]+", value):
            raise ValueError(f"{value!r} cannot be a check's name: letters, digits and _ can be in one")
        if value in ("metric_gate", "parity"):
            raise ValueError(f"{value!r} is a check of ours; call it something else")
        return value


class PipesConfig(Strict):
    """What a training job reports itself, by Dagster Pipes.

    Attributes:
        enabled: Whether it does.
        checks: What checks it reports: names, or settings of each.
    """

    enabled: bool = True
    checks: tuple[PipesCheck, ...] = ()

    @field_validator("checks", mode="before", json_schema_input_type=list[PipesCheck | str])
    @classmethod
    def _checks(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple({"name": item} if isinstance(item, str) else item for item in value)

    @model_validator(mode="after")
    def _once(self) -> PipesConfig:
        names = [check.name for check in self.checks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the check {name!r} is named twice")
        return self


class PartitionsConfig(Strict):
    """One model a day of data, or one a data set. ``{partition}`` in ``data_path`` is replaced by its key.

    Attributes:
        daily: The first day.
        timezone: Of the day.
        datasets: The names.
    """

    daily: date | None = None
    timezone: str = "UTC"
    datasets: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> PartitionsConfig:
        if (self.daily is None) == (not self.datasets):
            raise ValueError("partitions need either `daily: <first day>` or `datasets: [<name>, …]`")
        if len(set(self.datasets)) != len(self.datasets):
            raise ValueError("a data set is named twice")
        return self


class LintSettings(Strict):
    """What the audit of the notebook leaves out.

    Attributes:
        enabled: Whether there is such a check.
        ignore: Rule ids.
        fail_on: The least severity that fails the check.
    """

    enabled: bool = True
    ignore: tuple[str, ...] = ()
    fail_on: Literal["error", "warning", "info"] = "error"


class ExperimentConfig(Strict):
    """One experiment.

    Attributes:
        name: Letters, digits, ``_`` and ``-``; the folder's name in defs.yaml where left out.
        notebook: Path of the notebook, relative to the project's folder.
        provider: Where it trains and serves: ``local``, ``sagemaker``, ``azure``, ``gcp`` (or ``vertex``),
            ``kubernetes``, ``databricks``, ``pi`` (trains here, serves on a device), or what an installed package adds.
        description: The first Markdown cell of the notebook where left out.
        hyperparameters: Values that replace the notebook's own; defaults of the job's run config.
        data_path: File, folder or URI with the data; ``{partition}`` is replaced.
        instance_type: The provider's word for the machine that trains.
        instance_count: How many of them.
        options: Further settings of the provider, as in its section of config.yaml, for this experiment alone.
        environment: Further environment variables of training and serving.
        timeout: Seconds a training may take.
        memory_limit: Bytes a training may use; with a suffix ``512M``, ``4G``.
        own_environment: Train in a fresh virtual environment made from the generated requirements.
        allow_unsupported: Leave out cells that production cannot promise (``%%bash``) instead of refusing them.
        tag_prefix: A prefix that marks our cell tags (``nb:``); tags without it count too.
        extra_tags: Words of your own and the tag each stands for (``{fit: train}``).
        schedule: Cron, or ``{cron, timezone, running}``.
        metric_gate: What a model has to reach, one gate or a list.
        endpoint: Name, or settings; ``false`` serves nothing.
        parity: ``false``, or settings.
        partitions: Daily data, or one model a data set.
        model: The notebook's name for the model, where analysis is to be overruled.
        registered_model: Name in the MLflow registry; the experiment's where left out, ``false`` for none.
        tracking: Whether runs are logged to MLflow.
        autolog: MLflow's autologging: ``auto`` for frameworks with a curve a run (LightGBM, XGBoost, Keras, Lightning, fastai),
            ``true`` for whatever MLflow knows (some seconds more), ``false`` for none.
        owners: Mail addresses, or ``team:<name>``.
        kinds: Further kinds to show in the UI.
        tags: Further tags of the assets.
        lint: What the audit leaves out.
        executor: ``in_process`` (starts in seconds) or ``multiprocess``.
        wait: Whether a run waits until training has ended. With ``false`` it ends when the job is submitted, and the sensor
            ``training_jobs`` makes the model when the job has ended: no process waits for a cloud.
        pipes: Whether the training job reports log lines, metrics as they come, and checks of its own by Dagster Pipes:
            ``true``, or ``{checks: [<name>, …]}``.
        retries: How often a failed training is tried again.
        automation: Whether sensors and automation conditions ask for it.
    """

    name: str
    notebook: Path
    provider: Text = "local"
    description: str | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    data_path: Text | None = None
    instance_type: Text | None = None
    instance_count: int = Field(default=1, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Text] = Field(default_factory=dict)
    timeout: float | None = Field(default=None, gt=0)
    memory_limit: int | None = Field(default=None, gt=0)
    own_environment: bool = False
    allow_unsupported: bool = False
    tag_prefix: str = ""
    extra_tags: dict[str, TagName] = Field(default_factory=dict)
    schedule: ScheduleConfig | None = None
    metric_gate: tuple[MetricGate, ...] = ()
    endpoint: EndpointConfig = EndpointConfig()
    parity: ParityConfig = ParityConfig()
    partitions: PartitionsConfig | None = None
    model: str | None = None
    registered_model: Text | Literal[False] | None = None
    tracking: bool = True
    autolog: bool | Literal["auto"] = "auto"
    owners: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    tags: dict[str, Text] = Field(default_factory=dict)
    lint: LintSettings = LintSettings()
    executor: Literal["in_process", "multiprocess"] = "in_process"
    wait: bool = True
    pipes: PipesConfig = PipesConfig(enabled=False)
    retries: int = Field(default=0, ge=0, le=20)
    automation: bool = True

    @field_validator("name", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        if isinstance(value, bool) or value is None:
            written = {True: "yes", False: "no", None: "null"}[value]
            raise ValueError(
                f"YAML reads an unquoted {written}, true, on and their like as something other than text; quote it"
            )
        return check_name(str(value)) if isinstance(value, str | int | float) else value

    @field_validator("notebook")
    @classmethod
    def _notebook(cls, value: Path) -> Path:
        if value.suffix != ".ipynb":
            raise ValueError(f"{value} is no notebook; its name has to end in .ipynb")
        return value

    @field_validator("memory_limit", mode="before", json_schema_input_type=int | str | None)
    @classmethod
    def _size(cls, value: Any) -> Any:
        match = (
            re.fullmatch(r"\s*([\d.]+)\s*([KMGT])i?B?\s*", value, re.IGNORECASE)
            if isinstance(value, str)
            else None
        )
        if match is None:
            return value
        return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))

    @field_validator("schedule", mode="before", json_schema_input_type=ScheduleConfig | str | None)
    @classmethod
    def _schedule(cls, value: Any) -> Any:
        return {"cron": value} if isinstance(value, str) else value

    @field_validator(
        "metric_gate", mode="before", json_schema_input_type=MetricGate | list[MetricGate] | None
    )
    @classmethod
    def _gates(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict | MetricGate) else () if value is None else value

    @field_validator("endpoint", mode="before", json_schema_input_type=EndpointConfig | str | bool | None)
    @classmethod
    def _endpoint(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {"enabled": value}
        return {"name": value} if isinstance(value, str) else {} if value is None else value

    @field_validator("parity", mode="before", json_schema_input_type=ParityConfig | bool | None)
    @classmethod
    def _parity(cls, value: Any) -> Any:
        return _switch(value)

    @field_validator("lint", mode="before", json_schema_input_type=LintSettings | bool | None)
    @classmethod
    def _lint(cls, value: Any) -> Any:
        return _switch(value)

    @field_validator("pipes", mode="before", json_schema_input_type=PipesConfig | bool | None)
    @classmethod
    def _pipes(cls, value: Any) -> Any:
        return {"enabled": False} if value is None else _switch(value)

    @field_validator("partitions", mode="before", json_schema_input_type=PartitionsConfig | list[Text] | None)
    @classmethod
    def _partitions(cls, value: Any) -> Any:
        return {"datasets": value} if isinstance(value, list) else value

    @field_validator("owners")
    @classmethod
    def _owners(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for owner in value:
            if "@" not in owner and not owner.startswith("team:"):
                raise ValueError(f"{owner!r} is neither a mail address nor `team:<name>`")
        return value

    @field_validator("hyperparameters")
    @classmethod
    def _hyperparameters(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not str(name).isidentifier():
                raise ValueError(f"{name!r} cannot be a Python name, so no notebook assigns it")
            if not _is_plain(value[name]):
                raise ValueError(
                    f"{name!r} is {type(value[name]).__name__}; a hyperparameter is a number, text, true, false, null, or "
                    "lists and mappings of them (YAML reads an unquoted 2020-01-01 as a date: quote it)"
                )
        return value

    @model_validator(mode="after")
    def _partition_is_used(self) -> ExperimentConfig:
        has_field = self.data_path is not None and "{partition}" in self.data_path
        if self.partitions is not None and self.data_path is not None and not has_field:
            raise ValueError(
                "`data_path` has to contain {partition}, or every partition trains on the same data"
            )
        if self.partitions is None and has_field:
            raise ValueError("`data_path` contains {partition}, but `partitions` is not set")
        return self

    @property
    def key(self) -> str:
        """The name as Dagster takes it: hyphens are underscores."""
        return self.name.replace("-", "_")

    @property
    def endpoint_name(self) -> str:
        """What the endpoint is called."""
        return self.endpoint.name or self.name

    @property
    def endpoint_names(self) -> tuple[str, ...]:
        """All its endpoints: one a data set where it is partitioned by data sets, else one."""
        datasets = self.partitions.datasets if self.partitions is not None else ()
        return tuple(f"{self.endpoint_name}-{name}" for name in datasets) or (self.endpoint_name,)

    def partition_of(self, endpoint: str) -> str | None:
        """The data set that one of its endpoints is of; None where there is one endpoint for all."""
        datasets = self.partitions.datasets if self.partitions is not None else ()
        return next((name for name in datasets if endpoint == f"{self.endpoint_name}-{name}"), None)

    @property
    def model_registry_name(self) -> str | None:
        """What the model is registered as; None where it is not."""
        if self.registered_model is False or not self.tracking:
            return None
        return self.registered_model or self.name


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, str | int | float | bool)


def _switch(value: Any) -> Any:
    return {"enabled": value} if isinstance(value, bool) else {} if value is None else value


def check_name(value: str) -> str:
    """A name that works in asset keys, folders, URLs and MLflow. Raises ValueError."""
    if _NAME.fullmatch(value):
        return value
    suggestion = re.sub(r"[^A-Za-z0-9_-]+", "_", value.strip()).strip("_-") or "experiment"
    if not suggestion[0].isalpha():
        suggestion = f"experiment_{suggestion}"
    raise ValueError(
        f"{value!r} cannot be a name: it starts with a letter and has letters, digits, `_` and `-`, at most 63; "
        f"for instance {suggestion[:63]!r}"
    )
