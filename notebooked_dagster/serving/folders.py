"""Model folders on their way into an endpoint, and what a version's log says about notebook cells."""

from __future__ import annotations

import shutil
from pathlib import Path

from notebooked_dagster.errors import DeploymentError, NotebookedError

from .state import DeploymentSpec, EndpointRecord


def checked_source(spec: DeploymentSpec) -> Path:
    """The model folder, absolute. Raises DeploymentError where it cannot be served."""
    source = spec.model_dir.expanduser().resolve()
    if not 0 < spec.weight <= 100:
        raise DeploymentError(f"A weight lies between 1 and 100, not {spec.weight}.")
    if not source.is_dir():
        raise DeploymentError(
            "There is no such model folder.", path=source, hint="Train first, or check the path."
        )
    if not (source / "inference.py").is_file() and not (source / "MLmodel").is_file():
        raise DeploymentError(
            "The folder holds no model: neither inference.py nor an MLflow model (MLmodel).",
            path=source,
            hint="Point at the model folder that training wrote.",
        )
    return source


def next_version(folder: Path, record: EndpointRecord) -> int:
    """A number never used, also not by a deployment that failed."""
    used = [int(path.name) for path in folder.glob("versions/*") if path.name.isdigit()]
    return max([0, *used, *(int(version) for version in record.versions)]) + 1


def copy_model(source: Path, target: Path, code: Path | None = None) -> None:
    """Copy a model folder. Not hard links: training into the same folder again would change what is served.

    Args:
        source: The model folder.
        target: The copy.
        code: A folder whose scripts replace those of the same name in the copy.
    """
    try:
        shutil.copytree(source, target, symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
        for script in sorted(code.iterdir()) if code is not None else ():
            if script.is_file() and (script.suffix == ".py" or script.name == "source_map.json"):
                shutil.copyfile(script, target / script.name)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise DeploymentError(f"The model folder cannot be copied: {error}.", path=source) from error


def keep_log_only(folder: Path) -> None:
    """Of a version that never served, its log is all that is of use."""
    shutil.rmtree(folder / "model", ignore_errors=True)


def remapped(text: str, model_dir: Path) -> str:
    """Text whose tracebacks name notebook cells; as it is where the folder has no source map or a damaged one."""
    if not (model_dir / "source_map.json").is_file():
        return text
    from notebooked_dagster.codegen.traceback import remap

    try:
        return str(remap(text, model_dir))
    except (NotebookedError, OSError, ValueError, KeyError):
        # The log itself matters more than its rewriting, and it is what the person is looking for now.
        return text
