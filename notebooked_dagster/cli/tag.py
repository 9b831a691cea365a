"""``notebooked tag``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from notebooked_dagster.errors import ConfigError

from .options import NOTEBOOK, session, shared_options, vocabulary_options

if TYPE_CHECKING:
    from notebooked_dagster.notebook.model import Analysis
    from notebooked_dagster.notebook.tags import TagVocabulary


@click.command("tag")
@click.argument("notebook", metavar="NOTEBOOK|EXPERIMENT", type=NOTEBOOK)
@click.option(
    "--suggest", "mode", flag_value="suggest", default="suggest", help="Show the tags. The default."
)
@click.option("--write", "mode", flag_value="write", help="Write them; nothing else in the file changes.")
@vocabulary_options
@click.option(
    "--min-confidence", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="Leave cells alone of which we are less sure.",
)  # fmt: skip
@shared_options
def tag_command(notebook: Path, mode: str, vocabulary: TagVocabulary, min_confidence: float) -> None:
    """Suggest tags for a notebook's cells, or write them. Tags that are there stay, and decide."""
    from notebooked_dagster.notebook.analysis import AnalysisOptions, analyse, analyse_path

    from .project import notebook_meant

    if mode not in ("suggest", "write"):
        raise ConfigError("Choose --suggest or --write.")
    notebook, options = notebook_meant(notebook, AnalysisOptions(vocabulary))
    analysis = analyse_path(notebook, options)
    wanted = suggestions(analysis, options.tags.prefix, min_confidence)
    tagged = replace(
        analysis.notebook,
        cells=tuple(replace(c, tags=tuple(wanted.get(c.index, c.tags))) for c in analysis.notebook.cells),
    )
    after = analyse(tagged, options)
    changed = sorted(
        {s.value for s in {*analysis.hashes, *after.hashes} if analysis.hashes.get(s) != after.hashes.get(s)}
    )
    if mode == "write" and wanted:
        from notebooked_dagster.notebook.tag_writer import write_tags

        write_tags(notebook, wanted)
    data = {
        "path": str(notebook),
        "written": mode == "write",
        "cells": [
            {
                "cell": entry.cell + 1,
                "tags": list(wanted[entry.cell]),
                "confidence": round(entry.confidence, 3),
                "reason": entry.reason,
            }
            for entry in analysis.classes
            if entry.cell in wanted
        ],
        "stages_changed": changed,
    }
    session().emit(data, lambda: _text(analysis, wanted, mode, changed))


def suggestions(analysis: Analysis, prefix: str, min_confidence: float) -> dict[int, list[str]]:
    """The whole tag list of each cell that is to get tags: what it has, then ours."""
    from notebooked_dagster.notebook.model import Tag

    known = {tag.value for tag in Tag} - {Tag.SKIP.value}
    wanted = {}
    for entry in analysis.classes:
        if entry.explicit or entry.confidence < min_confidence:
            continue
        present = list(analysis.notebook.cells[entry.cell].tags)
        ours = [f"{prefix}{role.value}" for role in entry.roles if role.value in known]
        new = [tag for tag in ours if tag not in present]
        if new:
            wanted[entry.cell] = present + new
    return wanted


def _text(analysis: Analysis, wanted: dict[int, list[str]], mode: str, changed: list[str]) -> str:
    lines = [
        f"cell {entry.cell + 1}: {', '.join(wanted[entry.cell])}  ({entry.confidence:.0%}: {entry.reason})"
        for entry in analysis.classes
        if entry.cell in wanted
    ]
    count = f"{len(wanted)} cell{'' if len(wanted) == 1 else 's'}"
    lines.append(f"{count} tagged." if mode == "write" else f"{count} to tag; --write writes them.")
    if changed:
        lines.append(
            f"With these tags the code of some stages differs from what is found without: {', '.join(changed)}."
        )
    return "\n".join(lines)
