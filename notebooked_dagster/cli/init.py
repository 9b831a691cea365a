"""``notebooked init``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from notebooked_dagster.errors import ConfigError, NotebookReadError

from .lint import SKIPPED_FOLDERS
from .options import session, shared_options
from .sample import FILES, sample_notebook


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one file.

    Attributes:
        path: Relative to the project.
        action: ``written``, ``kept`` (it was there), or ``skipped`` (a notebook that is no experiment).
        reason: Why, as one sentence.
    """

    path: str
    action: str
    reason: str


@click.command("init")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@shared_options
def init_command(folder: Path, force: bool, dry_run: bool) -> None:
    """Make a project in an empty folder, or adopt a folder of notebooks.

    A folder without notebooks gets a small sample. Where there are notebooks, those that train something become
    experiments: assets/<name>/defs.yaml. Nothing that exists is overwritten without --force.
    """
    files, decisions = plan(folder)
    for name, content in files.items():
        path = folder / name
        if path.exists() and not force:
            decisions.append(Decision(name, "kept", "It exists; --force overwrites it."))
            continue
        if not dry_run:
            _write(path, content)
        decisions.append(Decision(name, "written", "Overwritten." if path.exists() and force else "New."))
    data = {
        "folder": str(folder),
        "dry_run": dry_run,
        "files": [{"path": d.path, "action": d.action, "reason": d.reason} for d in decisions],
    }
    session().emit(data, lambda: _text(folder, decisions, dry_run))


_HINTS = """\
  # What a model has to reach before it is deployed, by a metric that training reports; without it every model is:
  # metric_gate: {metric: accuracy, min: 0.9}
  # or at least as good as the one that is served:
  # metric_gate: {metric: accuracy, better_than: champion}
"""


def plan(folder: Path) -> tuple[dict[str, str], list[Decision]]:
    """The files a project in ``folder`` needs, by relative path, and what was decided about its notebooks. Writes nothing."""
    files = dict(FILES)
    decisions: list[Decision] = []
    notebooks = [
        path
        for path in sorted(folder.rglob("*.ipynb"))
        if not SKIPPED_FOLDERS & set(path.relative_to(folder).parts)
    ]
    if not notebooks:
        files["notebooks/sample.ipynb"] = sample_notebook()
        files["assets/sample/defs.yaml"] = defs_yaml("notebooks/sample.ipynb")
        return files, decisions
    taken: set[str] = set()
    for path in notebooks:
        relative = path.relative_to(folder).as_posix()
        trains, reason = _trains(path)
        if trains:
            name = _experiment_name(path, taken)
            files[f"assets/{name}/defs.yaml"] = defs_yaml(relative)
            reason = f"Experiment {name}: {reason}"
        decisions.append(Decision(relative, "adopted" if trains else "skipped", reason))
    return files, decisions


def defs_yaml(notebook: str) -> str:
    """The declaration of one experiment."""
    import yaml

    document = {"type": "notebooked_dagster.NotebookExperiment", "attributes": {"notebook": notebook}}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True) + _HINTS


def _trains(path: Path) -> tuple[bool, str]:
    from notebooked_dagster.notebook.analysis import analyse_path
    from notebooked_dagster.notebook.model import Role, Stage

    try:
        analysis = analyse_path(path)
    except NotebookReadError as problem:
        return False, f"It cannot be read: {problem.message}"
    if Stage.TRAIN not in analysis.slices:
        return False, "Nothing in it trains a model."
    cell = next((entry for entry in analysis.classes if Role.TRAIN in entry.roles), None)
    reason = f"cell {cell.cell + 1} {cell.reason}." if cell else "it trains a model."
    return True, reason


def _experiment_name(path: Path, taken: set[str]) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_") or "experiment"
    if name[0].isdigit():
        name = f"nb_{name}"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique)
    return unique


def _write(path: Path, content: str) -> None:
    from notebooked_dagster.core.files import write_atomic

    try:
        write_atomic(path, content)
    except OSError as problem:
        raise ConfigError(
            f"The file cannot be written: {problem.strerror}.",
            path=path,
            hint="Check the folder's permissions.",
        ) from problem


def _text(folder: Path, decisions: list[Decision], dry_run: bool) -> str:
    lines: list[Any] = [f"{d.action:8} {d.path}  {d.reason}" for d in decisions]
    if dry_run:
        lines.append("Nothing was written.")
    else:
        go = f"cd {folder} && " if folder.resolve() != Path.cwd() else ""
        lines.append(f"\nNext: {go}dagster dev -w workspace.yaml")
    return "\n".join(lines)
