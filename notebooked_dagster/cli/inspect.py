"""``notebooked inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import NOTEBOOK, Session, session, shared_options, vocabulary_options

if TYPE_CHECKING:
    from notebooked_dagster.notebook.model import Analysis, Slice
    from notebooked_dagster.notebook.tags import TagVocabulary


@click.command("inspect")
@click.argument("notebook", metavar="NOTEBOOK|EXPERIMENT", type=NOTEBOOK)
@click.option("--model", "model_name", help="The name that holds the model, where it is not found.")
@vocabulary_options
@click.option("--slice", "stage", help="Print the code of one stage instead.")
@shared_options
def inspect_command(
    notebook: Path, model_name: str | None, vocabulary: TagVocabulary, stage: str | None
) -> None:
    """Show how a notebook is understood, without running it."""
    from notebooked_dagster.notebook.analysis import AnalysisOptions, analyse_path

    from .project import notebook_meant

    analysis = analyse_path(*notebook_meant(notebook, AnalysisOptions(vocabulary, model_name)))
    if stage is not None:
        part = _slice(analysis, stage)
        code = "\n".join(statement.text for statement in part.statements)
        session().emit({"stage": part.stage.value, "code": code}, lambda: code)
        return
    session().emit(as_data(analysis), lambda: _tables(analysis, session()))


def as_data(analysis: Analysis) -> dict[str, Any]:
    """The analysis as plain data; cells are numbered from 1."""
    notebook = analysis.notebook
    return {
        "path": str(notebook.path),
        "title": notebook.title,
        "language": notebook.language,
        "nbformat": list(notebook.nbformat),
        "cells": [
            {
                "cell": entry.cell + 1,
                "roles": [role.value for role in entry.roles],
                "confidence": round(entry.confidence, 3),
                "reason": entry.reason,
                "explicit": entry.explicit,
                "first_line": _first_line(analysis, entry.cell),
            }
            for entry in analysis.classes
        ],
        "slices": {
            stage.value: {
                "own": [_place(s) for s in part.own],
                "needed": [_place(s) for s in part.needed],
                "inputs": sorted(part.inputs),
                "outputs": sorted(part.outputs),
                "hash": analysis.hashes.get(stage),
            }
            for stage, part in analysis.slices.items()
        },
        "models": list(analysis.model_names),
        "removals": [
            {"cell": r.cell + 1, "line": r.line, "rule": r.rule, "reason": r.reason}
            for r in analysis.removals
        ],
        "findings": [
            {
                "rule": f.rule,
                "severity": f.severity.value,
                "cell": None if f.cell is None else f.cell + 1,
                "line": f.line,
                "message": f.message,
            }
            for f in analysis.findings
        ],
        "warnings": list(notebook.warnings),
    }


def _place(statement: Any) -> dict[str, int]:
    return {
        "cell": statement.cell + 1,
        "first_line": statement.first_line,
        "last_line": statement.last_line,
    }


def _first_line(analysis: Analysis, cell: int) -> str:
    return next(
        (line.strip() for line in analysis.notebook.cells[cell].source.split("\n") if line.strip()), ""
    )


def _slice(analysis: Analysis, stage: str) -> Slice:
    for known, part in analysis.slices.items():
        if known.value == stage.lower():
            return part
    there = ", ".join(known.value for known in analysis.slices) or "none"
    raise click.BadParameter(f"The notebook has no stage {stage!r}; it has: {there}.", param_hint="--slice")


def _tables(analysis: Analysis, current: Session) -> None:
    from rich.table import Table
    from rich.text import Text

    console = current.console()
    console.print(Text(analysis.notebook.title, style="bold"), Text(str(analysis.notebook.path), style="dim"))
    cells = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("cell", "roles", "sure", "because", "begins"):
        cells.add_column(name, justify="right" if name in ("cell", "sure") else "left", overflow="fold")
    for entry in analysis.classes:
        roles = ", ".join(role.value for role in entry.roles)
        sure = "tag" if entry.explicit else f"{entry.confidence:.0%}"
        cells.add_row(
            str(entry.cell + 1),
            roles,
            sure,
            Text(entry.reason),
            Text(_first_line(analysis, entry.cell)[:60], style="dim"),
        )
    console.print(cells)
    stages = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "statements", "needs", "reads", "gives", "hash"):
        stages.add_column(name, overflow="fold")
    for stage, part in analysis.slices.items():
        stages.add_row(
            stage.value, str(len(part.own)), str(len(part.needed)), Text(", ".join(sorted(part.inputs))),
            Text(", ".join(sorted(part.outputs))), analysis.hashes.get(stage, "")[:12],
        )  # fmt: skip
    console.print()
    console.print(stages)
    console.print(Text("needs: statements from elsewhere that the stage takes along", style="dim"))
    console.print()
    console.print(Text(f"model: {', '.join(analysis.model_names) or 'none found'}"))
    for finding in analysis.findings:
        place = "" if finding.cell is None else f"cell {finding.cell + 1}: "
        console.print(Text(f"{finding.severity.value} {finding.rule}: {place}{finding.message}"))
