"""Find a provider by name. Nothing of a provider is imported until somebody asks for it.

A third party adds one with an entry point in the group ``notebooked_dagster.providers``::

    [project.entry-points."notebooked_dagster.providers"]
    slurm = "my_package.slurm:SlurmProvider"
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from notebooked_dagster.errors import (
    ConfigError,
    MissingPackageError,
    NotebookedError,
    ProviderError,
)

from .base import BaseProvider, Capability

GROUP = "notebooked_dagster.providers"
_BUILT_IN: Mapping[str, str] = {
    "local": "notebooked_dagster.providers.local:LocalProvider",
    "sagemaker": "notebooked_dagster.providers.sagemaker:SageMakerProvider",
    "vertex": "notebooked_dagster.providers.vertex:VertexProvider",
    "azure": "notebooked_dagster.providers.azure:AzureProvider",
    "kubernetes": "notebooked_dagster.providers.kubernetes:KubernetesProvider",
    "databricks": "notebooked_dagster.providers.databricks:DatabricksProvider",
    "pi": "notebooked_dagster.providers.pi:PiProvider",
}
_ALIASES: Mapping[str, str] = {"gcp": "vertex"}


@dataclass(frozen=True, slots=True)
class ProviderInfo:
    """What can be said of a provider without using it.

    Attributes:
        name: What ``provider:`` in defs.yaml takes.
        usable: Whether ``get_provider`` can give it.
        capabilities: What it declares; empty where it is not usable.
        origin: ``built in``, or the package that brings it.
        problem: Why it is not usable; empty otherwise.
        hint: What to do about that.
    """

    name: str
    usable: bool
    capabilities: frozenset[Capability] = frozenset()
    origin: str = "built in"
    problem: str = ""
    hint: str = ""


def canonical(name: str) -> str:
    """The one name of a provider that goes by two."""
    return _ALIASES.get(name, name)


def same_provider(name: str | None, other: str) -> bool:
    """Whether two names are one provider's; None is whichever."""
    return name is None or canonical(name) == canonical(other)


def get_provider(name: str, **settings: Any) -> BaseProvider:
    """The provider of a name, made with its settings.

    Args:
        name: ``local``, ``sagemaker``, ``vertex`` (or ``gcp``), ``azure``, ``kubernetes``, ``databricks``, ``pi``, or what an entry point is called.
        settings: Keyword arguments of the provider's class.

    Raises:
        ConfigError: There is no such provider, or it takes no such setting.
        MissingPackageError: It needs packages that are not installed.
        ProviderError: A third party's provider cannot be loaded.
    """
    kind = load_provider(name)
    _check_settings(name, kind, settings)
    return kind(**settings)


def load_provider(name: str) -> type[BaseProvider]:
    """The class of a provider; see ``get_provider`` for the errors."""
    name = _ALIASES.get(name, name)
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        kind: type[BaseProvider] = getattr(import_module(module), attribute)
        return kind
    entries = _third_party()
    if name in entries:
        return _loaded(entries[name])
    known = ", ".join(sorted({*_BUILT_IN, *entries}))
    raise ConfigError(f"There is no provider {name!r}.", key="provider", hint=f"There is: {known}.")


def available() -> dict[str, ProviderInfo]:
    """Every provider that is known of, by name. One that cannot be loaded is reported and does not hurt the others."""
    return {name: _info(name) for name in sorted({*_BUILT_IN, *_third_party()})}


def _info(name: str) -> ProviderInfo:
    entry = _third_party().get(name) if name not in _BUILT_IN else None
    origin = entry.dist.name if entry is not None and entry.dist is not None else "built in"
    try:
        kind = load_provider(name)
    except NotebookedError as error:
        return ProviderInfo(name, False, origin=origin, problem=error.message, hint=error.hint or "")
    return ProviderInfo(name, True, kind.capabilities, origin)


def _third_party() -> dict[str, EntryPoint]:
    """Entry points by name, the first of a name winning; a built-in's name cannot be taken."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in _BUILT_IN:
            found.setdefault(entry.name, entry)
    return found


def _loaded(entry: EntryPoint) -> type[BaseProvider]:
    package = entry.dist.name if entry.dist is not None else entry.value
    try:
        kind = entry.load()
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"Provider {entry.name!r} of {package} needs the package {error.name!r}, which is not installed.",
            hint=f"`pip install '{package}'`, or see what {package} says of its extras.",
        ) from error
    except Exception as error:
        raise ProviderError(
            f"Provider {entry.name!r} of {package} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"Update or remove {package}; the other providers work.",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, BaseProvider)) or inspect.isabstract(kind):
        raise ProviderError(
            f"{entry.value} of {package} is not a provider.",
            hint="It has to be a subclass of notebooked_dagster.providers.base.BaseProvider with every method.",
        )
    return kind


def _check_settings(name: str, kind: type[BaseProvider], settings: Mapping[str, Any]) -> None:
    try:
        inspect.signature(kind).bind(**settings)
    except TypeError as error:
        takes = ", ".join(inspect.signature(kind).parameters) or "nothing"
        raise ConfigError(
            f"Provider {name!r} cannot be made: {error}.", key="provider", hint=f"Its settings are: {takes}."
        ) from error
