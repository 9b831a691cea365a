"""Read config.yaml and defs.yaml; what is wrong is said with file, line, key and fix."""

from __future__ import annotations

import copy
import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from notebooked_dagster.errors import ConfigError

from .azure import AzureOptions
from .databricks import DatabricksOptions
from .document import Document, KeyPath, key_text, read_documents
from .experiment import ExperimentConfig
from .kubernetes import KubernetesOptions
from .local import LocalOptions
from .pi import PiOptions
from .project import ProjectConfig
from .sagemaker import SageMakerOptions
from .values import apply_override, interpolate, is_secret, literal_secrets, overrides
from .vertex import VertexOptions

COMPONENT_TYPES = (
    "notebooked_dagster.NotebookExperiment",
    "notebooked_dagster.components.NotebookExperiment",
)
# Options of other providers are theirs to check.
PROVIDER_OPTIONS: Mapping[str, type[BaseModel]] = {
    "local": LocalOptions,
    "sagemaker": SageMakerOptions,
    "azure": AzureOptions,
    "vertex": VertexOptions,
    "gcp": VertexOptions,
    "kubernetes": KubernetesOptions,
    "databricks": DatabricksOptions,
    "pi": PiOptions,
}
_CLOUDS = ("aws", "azure", "gcp", "kubernetes", "databricks")
_SECTIONS = (
    "mlflow",
    "local",
    "aws",
    "azure",
    "gcp",
    "kubernetes",
    "databricks",
    "pi",
    "storage",
    "automation",
    "defaults",
)
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "tuple_type": "a list",
    "list_type": "a list",
}
_CREDENTIALS = "Credentials are found as the cloud's own SDK finds them: environment, profile, workload or managed identity."
_Model = TypeVar("_Model", bound=BaseModel)
log = logging.getLogger("notebooked.config")


def load_project(path: Path, environment: Mapping[str, str] | None = None) -> ProjectConfig:
    """Read ``config.yaml``.

    Args:
        path: The file.
        environment: The variables that override and are referred to; the process's where None.

    Raises:
        ConfigError: Something in the file, or in a variable, is wrong. All faults are in ``details["problems"]``.
    """
    environment = os.environ if environment is None else environment
    documents = read_documents(path)
    if len(documents) > 1:
        raise ConfigError(
            "The file holds several documents.",
            path=path,
            line=documents[1].line(()),
            hint="Remove the `---`.",
        )
    document = documents[0]
    data = _mapping(document, document.data, ())
    _refuse_secrets(document, data)
    data = _interpolated(document, data, environment)
    data = _with_sections(data, environment)
    data["experiments"] = _entries(document, data, environment)
    project = _validated(ProjectConfig, data, document, ())
    _check_defaults(project.defaults, document)
    for index, experiment in enumerate(project.experiments):
        _check_options(experiment, document, ("experiments", index, "options"))
    check_unique(
        project.experiments,
        {c.name: (path, document.line(("experiments", i))) for i, c in enumerate(project.experiments)},
    )
    return project


def load_file(path: Path, model: type[_Model], environment: Mapping[str, str] | None = None) -> _Model:
    """Read a YAML file of another kind, with the same care: references to the environment, no secrets, faults by line.

    Raises:
        ConfigError: Something in the file, or in a variable, is wrong.
    """
    document = read_documents(path)[0]
    data = _mapping(document, document.data, ())
    _refuse_secrets(document, data)
    data = _interpolated(document, data, os.environ if environment is None else environment)
    return _validated(model, data, document, ())


def project_or_default(root: Path, environment: Mapping[str, str] | None = None) -> ProjectConfig:
    """The project's ``config.yaml`` where there is one, else the defaults with what the environment sets."""
    path = root / "config.yaml"
    if os.path.lexists(path):
        return load_project(path, environment)
    environment = os.environ if environment is None else environment
    data = _with_sections({}, environment)
    return _validated(ProjectConfig, data, Document(path, data, {}), ())


def load_experiment(
    path: Path,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    *,
    index: int | None = None,
) -> ExperimentConfig:
    """Read a ``NotebookExperiment`` of a ``defs.yaml``.

    Args:
        path: The file.
        environment: As in ``load_project``.
        defaults: Keys it has unless it says otherwise.
        index: Which document of the file; the first that declares an experiment where None.

    Raises:
        ConfigError: Something in the file, or in a variable, is wrong.
    """
    documents = read_documents(path)
    for document in documents if index is None or index >= len(documents) else [documents[index]]:
        data = _mapping(document, document.data, ())
        if data.get("type") in COMPONENT_TYPES:
            return _experiment_of(document, data.get("attributes"), ("attributes",), environment, defaults)
    raise ConfigError(
        "The file declares no notebook experiment.",
        path=path,
        hint=f"Start it with `type: {COMPONENT_TYPES[0]}`.",
    )


def parse_experiment(
    attributes: Any,
    path: Path,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> ExperimentConfig:
    """An experiment from attributes somebody has parsed already; the file is read only to say where a fault stands."""
    document = Document(path, {"attributes": attributes}, {})
    try:
        return _experiment_of(document, attributes, ("attributes",), environment, defaults)
    except ConfigError:
        if path.is_file():
            load_experiment(path, environment, defaults)
        raise


def check_unique(
    experiments: Iterable[ExperimentConfig], places: Mapping[str, tuple[Path, int | None]] | None = None
) -> None:
    """Two experiments may share neither a name (``a-b`` and ``a_b`` are one in Dagster) nor an endpoint.

    Raises:
        ConfigError: Two do.
    """
    keys: dict[str, ExperimentConfig] = {}
    endpoints: dict[tuple[str, str], ExperimentConfig] = {}
    for experiment in experiments:
        path, line = (places or {}).get(experiment.name, (None, None))
        if experiment.key in keys:
            raise ConfigError(
                f"Two experiments are called {experiment.key!r}"
                + (
                    f" (as {keys[experiment.key].name!r} and {experiment.name!r})."
                    if keys[experiment.key].name != experiment.name
                    else "."
                ),
                path=path,
                line=line,
                key="name",
                hint="Give one of them another name.",
            )
        keys[experiment.key] = experiment
        if not experiment.endpoint.enabled:
            continue
        endpoint = (experiment.provider, experiment.endpoint_name)
        if endpoint in endpoints:
            raise ConfigError(
                f"The experiments {endpoints[endpoint].name!r} and {experiment.name!r} both deploy to the endpoint "
                f"{experiment.endpoint_name!r}.",
                path=path,
                line=line,
                key="endpoint.name",
                hint="Name another endpoint in one of them, or set `endpoint: false`.",
            )
        endpoints[endpoint] = experiment


def _experiment_of(
    document: Document,
    attributes: Any,
    key: KeyPath,
    environment: Mapping[str, str] | None,
    defaults: Mapping[str, Any] | None,
) -> ExperimentConfig:
    environment = os.environ if environment is None else environment
    data = dict(_mapping(document, attributes if attributes is not None else {}, key))
    data.setdefault("name", document.path.parent.name)
    _refuse_secrets(document, data, key)
    data = _interpolated(document, data, environment, key)
    data = _completed(data, environment, defaults or {})
    experiment = _validated(ExperimentConfig, data, document, key)
    _check_options(experiment, document, (*key, "options"))
    return experiment


def _completed(
    data: dict[str, Any], environment: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Defaults below, ``NOTEBOOKED_EXPERIMENTS__<NAME>__<KEY>`` on top."""
    data = {**copy.deepcopy(dict(defaults)), **data}
    name = str(data.get("name", "")).replace("-", "_").lower()
    for path, text in _experiment_overrides(environment).items():
        if len(path) > 1 and path[0] == name:
            data = copy.deepcopy(data)
            apply_override(data, path[1:], text)
    return data


def _experiment_overrides(environment: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    if isinstance(environment, os._Environ):
        # A thousand experiments look at the same environment; one scan a state of it is enough.
        return _scan(
            tuple(item for item in os.environ.items() if item[0].startswith("NOTEBOOKED_EXPERIMENTS__"))
        )
    return overrides(environment, "experiments")


@lru_cache(maxsize=4)
def _scan(items: tuple[tuple[str, str], ...]) -> dict[tuple[str, ...], str]:
    return overrides(dict(items), "experiments")


def _with_sections(data: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    result = dict(data)
    for section in _SECTIONS:
        found = overrides(environment, section)
        if found:
            values = copy.deepcopy(result.get(section) or {})
            if isinstance(values, dict):
                for path, text in found.items():
                    apply_override(values, path, text)
            result[section] = values
    return result


def _entries(document: Document, data: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    entries = data.get("experiments")
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise ConfigError(
            f"This has to be a list, not {_kind(entries)}.",
            path=document.path,
            line=document.line(("experiments",)),
            key="experiments",
            hint="Start each experiment with `- name: …`.",
        )
    defaults = data.get("defaults") or {}
    return [
        _completed(entry, environment, defaults)
        if isinstance(entry, dict) and isinstance(defaults, dict)
        else entry
        for entry in entries
    ]


def _check_defaults(defaults: Mapping[str, Any], document: Document) -> None:
    """What is wrong with a default is wrong here, not in the declarations that take it.

    Rules about several keys at once are left to the declarations: only together with theirs do the keys make sense.
    """
    try:
        ExperimentConfig.model_validate({"name": "defaults", "notebook": "defaults.ipynb", **defaults})
    except ValidationError as error:
        if all(item["loc"] for item in error.errors(include_url=False, include_input=False)):
            raise _explain(error, ExperimentConfig, document, ("defaults",)) from None


def _check_options(experiment: ExperimentConfig, document: Document, key: KeyPath) -> None:
    """What is wrong with a provider's options is said before anything is submitted, with file and line."""
    model = PROVIDER_OPTIONS.get(experiment.provider)
    if model is not None and experiment.options:
        _validated(model, experiment.options, document, key)


def _mapping(document: Document, data: Any, key: KeyPath) -> dict[str, Any]:
    if isinstance(data, dict):
        return data
    raise ConfigError(
        f"This has to be a mapping of keys, not {_kind(data)}.",
        path=document.path,
        line=document.line(key),
        key=key_text(key) or None,
        hint="Write `key: value` lines.",
    )


def _interpolated(
    document: Document, data: dict[str, Any], environment: Mapping[str, str], key: KeyPath = ()
) -> dict[str, Any]:
    try:
        result: dict[str, Any] = interpolate(data, environment, key)
    except ConfigError as error:
        place = tuple(error.details.get("key_path", key))
        raise ConfigError(
            error.message,
            path=document.path,
            line=document.line(place),
            key=error.key,
            hint=error.hint,
            details=error.details,
        ) from None
    return result


def _refuse_secrets(document: Document, data: Any, key: KeyPath = ()) -> None:
    found = [place for place in literal_secrets(data, key) if "hyperparameters" not in place]
    if not found:
        return
    variable = str(found[0][-1]).upper()
    hint = f"Put it into the environment and write ${{{variable}}} here; then change the secret, it may be known."
    if found[0][0] in _CLOUDS:
        hint = f"{_CREDENTIALS} Remove it here; then change the secret, it may be known."
    raise ConfigError(
        "A secret stands here in plain text.",
        path=document.path,
        line=document.line(found[0]),
        key=key_text(found[0]),
        hint=hint,
    )


def _validated(model: type[_Model], data: Any, document: Document, key: KeyPath) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # `from None`: pydantic's own message may quote the input, and with it a secret.
        raise _explain(error, model, document, key) from None


def _explain(
    error: ValidationError, model: type[BaseModel], document: Document, prefix: KeyPath
) -> ConfigError:
    problems = []
    for item in error.errors(include_url=False, include_context=True, include_input=True):
        place = _place(item["loc"], model)
        message, hint = _sentence(item, place, model)
        problems.append((message, hint, (*prefix, *place)))
    # A key nobody knows explains the one that is missing, so it comes first.
    problems.sort(key=lambda problem: not problem[0].startswith("There is no key"))
    message, hint, place = problems[0]
    if len(problems) > 1:
        rest = "; ".join(f"{key_text(where)}: {text}" for text, _, where in problems[1:4])
        more = len(problems) - 4
        message += f" Also: {rest}" + (f" and {more} more" if more > 0 else "")
    shown = place[1:] if place and place[0] == "attributes" else place
    return ConfigError(
        message,
        path=document.path,
        line=document.line(place),
        key=key_text(shown) or None,
        hint=hint,
        details={
            "problems": [
                {"key": key_text(where), "line": document.line(where), "message": text}
                for text, _, where in problems
            ]
        },
    )


def _place(loc: Sequence[str | int], model: type[BaseModel]) -> KeyPath:
    """Pydantic's location without the union branches and shorthands it adds."""
    place: list[str | int] = []
    at: Any = model
    for part in loc:
        fields = at.model_fields if isinstance(at, type) and issubclass(at, BaseModel) else None
        if isinstance(part, str) and fields is not None and part in fields:
            place.append(part)
            at = _inner(fields[part].annotation)
        elif isinstance(part, int) or at is None or fields is not None or at is dict:
            place.append(part)
    return tuple(place)


def _inner(annotation: Any) -> Any:
    """The model an annotation is about; ``dict`` for one, None for a scalar."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else dict if annotation is dict else str
    if getattr(annotation, "__origin__", None) is dict:
        return dict
    for argument in get_args(annotation):
        found = _inner(argument)
        if found is dict or (isinstance(found, type) and issubclass(found, BaseModel)):
            return found
    return str


def _sentence(item: Any, place: KeyPath, model: type[BaseModel]) -> tuple[str, str | None]:
    kind = item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(place, model)
    if kind == "missing":
        return f"The key `{place[-1]}` is missing.", f"Add `{place[-1]}: …`."
    if kind == "value_error":
        text = str(item["ctx"]["error"])
        return text[:1].upper() + text[1:] + ".", None
    expected = _EXPECTED.get(kind, item["msg"].removeprefix("Input should be "))
    value = item.get("input")
    if isinstance(value, str | int | float | bool) and not _secret_place(place):
        return f"This has to be {expected}, not {value!r}.", _quoting_hint(kind, value)
    return f"This has to be {expected}, not {_kind(value)}.", _quoting_hint(kind, value)


def _quoting_hint(kind: str, value: Any) -> str | None:
    if kind == "string_type" and isinstance(value, bool):
        return "YAML reads yes, no, on, off, true and false as truth values; quote it."
    if kind == "string_type" and value is not None:
        return "Write one value in quotes."
    return None


def _secret_place(place: KeyPath) -> bool:
    return is_secret(place) or "environment" in place


def _unknown_key(place: KeyPath, model: type[BaseModel]) -> tuple[str, str]:
    at: Any = model
    for part in place[:-1]:
        if isinstance(part, str) and isinstance(at, type) and issubclass(at, BaseModel):
            at = _inner(at.model_fields[part].annotation)
    known = sorted(at.model_fields) if isinstance(at, type) and issubclass(at, BaseModel) else []
    name = str(place[-1])
    if place[0] in _CLOUDS and is_secret(place):
        return f"There is no key `{name}`.", f"{_CREDENTIALS} Remove the key."
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    hint = f"Did you mean `{near[0]}`?" if near else f"The keys here are: {', '.join(known)}."
    return f"There is no key `{name}`.", hint


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "a truth value", type(None): "empty"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
