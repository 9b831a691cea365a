"""The code location: everything that ``assets/`` and ``config.yaml`` of the project declare.

``workspace.yaml`` and ``dagster … -m notebooked_dagster.definitions`` name this module; the project is the one of the
working folder, or of ``NOTEBOOKED_PROJECT_ROOT``.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import yaml
from dagster.components.core.component_tree import ComponentTreeException

from notebooked_dagster.components import NotebookedProject, NotebookExperiment, Takes
from notebooked_dagster.components.graph import RESOURCES, experiment_definitions, job_selection
from notebooked_dagster.components.spec import ExperimentSpec
from notebooked_dagster.components.submitted import training_jobs_sensor
from notebooked_dagster.config import check_unique
from notebooked_dagster.config.document import Document, read_documents
from notebooked_dagster.core import logs
from notebooked_dagster.core.collector import no_collections
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.core.tracked import refuse_tracked_environment
from notebooked_dagster.errors import ConfigError
from notebooked_dagster.resources import Workplace
from notebooked_dagster.resources.objects import storage_resources
from notebooked_dagster.sensors import Watched, project_sensors
from notebooked_dagster.sensors.devices import device_definitions

_MODULE = "notebooked_assets"
_KEYS = ("type", "attributes", "template_vars_module", "requirements", "post_processing")
_COMPONENTS = (NotebookExperiment.__name__, NotebookedProject.__name__, Takes.__name__)
# Dagster warns of its own beta classes at every load of every process, eight times an experiment; the version is pinned.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads."""
    # What a process of Dagster's has in its environment must not come to light in what we log or report.
    REDACTOR.add_environment(os.environ)
    if logs.VARIABLE in os.environ:
        logs.configure(level=logging.INFO)
    return project_definitions(Workplace.here())


def project_definitions(place: Workplace) -> dg.Definitions:
    """The definitions of a project.

    Raises:
        ConfigError: A declaration is wrong, or git keeps secrets in ``.env``. As everywhere in Dagster, one wrong file stops
            the code location; while ``dagster dev`` runs, the UI goes on with what was loaded before.
    """
    refuse_tracked_environment(place.root)
    # Nothing that is built here is garbage.
    with no_collections():
        return _built(place)


def _built(place: Workplace) -> dg.Definitions:
    declared, loaded = _declared(place)
    listed = _listed_only_in_config(place, declared)
    experiments = [*declared, *listed]
    _check_names(experiments)
    parts = [*loaded, *(experiment_definitions(spec) for spec in listed)]
    jobs = {job.name: job for part in parts for job in part.jobs or ()}
    return dg.Definitions.merge(*parts, _project_wide(place, experiments, jobs), *device_definitions(place))


def project_experiments(place: Workplace) -> list[ExperimentSpec]:
    """The experiments of a project, however declared. Raises ConfigError as ``project_definitions`` does."""
    declared, _ = _declared(place)
    experiments = [*declared, *_listed_only_in_config(place, declared)]
    _check_names(experiments)
    return experiments


def _check_names(experiments: list[ExperimentSpec]) -> None:
    check_unique(
        [spec.config for spec in experiments],
        {spec.config.name: (spec.declared_in, None) for spec in experiments},
    )


def _project_wide(
    place: Workplace, experiments: list[ExperimentSpec], own: Mapping[str, Any]
) -> dg.Definitions:
    jobs = []
    # A job has one partitioning; experiments with their own run by their own jobs.
    whole = [spec for spec in experiments if spec.partitions is None]
    if whole:
        selection = job_selection(whole[0])
        for spec in whole[1:]:
            selection = selection | job_selection(spec)
        jobs.append(
            dg.define_asset_job(
                "all_experiments_job",
                selection=selection,
                description="Every experiment of the project.",
                executor_def=dg.in_process_executor,
            )
        )
    sensors = project_sensors(place, [Watched(spec.config, spec.notebook) for spec in experiments], own)
    if experiments:
        # On by itself: it looks only for what a run submitted on purpose.
        sensors.append(
            training_jobs_sensor(
                experiments, place.project.automation.interval, dg.DefaultSensorStatus.RUNNING
            )
        )
    return dg.Definitions(
        jobs=jobs,
        sensors=sensors,
        resources={**RESOURCES, **storage_resources(place.project)},
        # A step costs 2 s in a process of its own; training has one anyway.
        executor=dg.in_process_executor,
    )


def _declared(place: Workplace) -> tuple[list[ExperimentSpec], list[dg.Definitions]]:
    """What the folder of declarations holds: our experiments, and the definitions of everything in it."""
    folder = place.settings.assets
    if not folder.is_dir() or not any(folder.iterdir()):
        return [], []
    tree = dg.ComponentTree.from_module(_module_of(folder), place.root)
    try:
        experiments = [component.spec for component in tree.get_all_components(of_type=NotebookExperiment)]
        for project in tree.get_all_components(of_type=NotebookedProject):
            experiments.extend(project.experiments)
        _check_names(experiments)
        # Of the folder alone. Asked for everything, the tree adds a description of every component of every package in the
        # environment, and imports them for it: with dagster-aws, dagster-gcp or dagster-azure that is seconds of SDKs.
        return experiments, [tree.build_defs(folder), dg.Definitions(component_tree=tree)]
    except (ComponentTreeException, ConfigError) as error:
        plain = next((found for found in _causes(error) if isinstance(found, ConfigError)), None)
        if plain is not None:
            raise plain from None
        _check_files(folder)
        raise
    except Exception as error:
        # Dagster's YAML parser comes before ours, with its own words; ours name the fix.
        _check_files(folder)
        refused = next((found for found in _causes(error) if isinstance(found, yaml.YAMLError)), None)
        if refused is not None:
            raise ConfigError(
                f"A declaration is YAML that Dagster does not read: {getattr(refused, 'problem', refused)}.",
                path=folder,
                hint="Look for anchors (`&`) that contain their own alias (`*`), and for tags (`!`).",
            ) from error
        raise


def _module_of(folder: Path) -> ModuleType:
    """The folder as a package that needs no ``__init__.py``, no place on the path, and no name others might have."""
    module = ModuleType(_MODULE)
    module.__file__ = None
    module.__path__ = [str(folder)]
    sys.modules[_MODULE] = module
    return module


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _check_files(folder: Path) -> None:
    for path in sorted((*folder.rglob("defs.yaml"), *folder.rglob("defs.yml"))):
        for document in read_documents(path):
            kind = _checked_type(document, path)
            if not _exists(kind):
                near = get_close_matches(kind, [f"notebooked_dagster.{name}" for name in _COMPONENTS], 1, 0.5)
                raise ConfigError(
                    f"There is no component {kind!r}.",
                    path=path,
                    line=document.line(("type",)),
                    key="type",
                    hint=f"Did you mean {near[0]}?"
                    if near
                    else "Install the package that has it, or correct the name.",
                )


def _checked_type(document: Document, path: Path) -> str:
    """The component a document names. Raises ConfigError where its outer form is not that of a ``defs.yaml``."""
    data = document.data
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"This has to be a mapping with `type` and `attributes`, not {type(data).__name__}.",
            path=path,
            hint="Start with `type: notebooked_dagster.NotebookExperiment`.",
        )
    for key in data:
        if key not in _KEYS:
            near = get_close_matches(str(key), _KEYS, 1)
            raise ConfigError(
                f"There is no key `{key}`.",
                path=path,
                line=document.line((key,)),
                key=str(key),
                hint=f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(_KEYS)}.",
            )
    kind, attributes = data.get("type"), data.get("attributes")
    if not isinstance(kind, str):
        raise ConfigError(
            "The key `type` has to name a component.",
            path=path,
            line=document.line(("type",)),
            key="type",
            hint="Write `type: notebooked_dagster.NotebookExperiment`.",
        )
    if attributes is not None and not isinstance(attributes, Mapping):
        raise ConfigError(
            f"`attributes` has to be a mapping, not {type(attributes).__name__}.",
            path=path,
            line=document.line(("attributes",)),
            key="attributes",
            hint="Write each attribute on a line of its own: `notebook: …`.",
        )
    return kind


def _exists(kind: str) -> bool:
    module, _, name = kind.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except (ImportError, ValueError):
        return False


def _listed_only_in_config(place: Workplace, declared: list[ExperimentSpec]) -> list[ExperimentSpec]:
    """The experiments of the project's own ``config.yaml``, where no ``NotebookedProject`` has taken them up."""
    path = place.root / "config.yaml"
    if any(spec.declared_in == path for spec in declared):
        return []
    return [NotebookExperiment(config, path).spec for config in place.project.experiments]
