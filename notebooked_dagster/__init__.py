"""Put notebooks into production with Dagster.

Importing this package imports nothing heavy: no Dagster, no MLflow, no cloud SDK. The components have their short
names here (``type: notebooked_dagster.NotebookExperiment``) and are imported when somebody asks for them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from notebooked_dagster.components import NotebookedProject as NotebookedProject
    from notebooked_dagster.components import NotebookExperiment as NotebookExperiment
    from notebooked_dagster.components import Takes as Takes

__version__ = "0.1.0"
_COMPONENTS = ("NotebookExperiment", "NotebookedProject", "Takes")


def __getattr__(name: str) -> Any:
    if name in _COMPONENTS:
        from importlib import import_module

        return getattr(import_module("notebooked_dagster.components"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # `dg` finds the components of a package by what `dir` lists.
    return [*globals(), *_COMPONENTS]
