"""The values code generation hands around."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from notebooked_dagster.errors import CodegenError
from notebooked_dagster.notebook.model import Finding

SOURCE_MAP = "source_map.json"


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What a user may decide about the scripts.

    Attributes:
        experiment: The experiment's name; the notebook's stem where empty.
        hyperparameters: Values that replace the notebook's own defaults, by name.
        model_name: The name in the notebook that holds the model, where analysis is to be overruled.
        allow_unsupported: Leave out ``%%bash`` and ``x = !ls`` where a stage needs them, instead of refusing.
        strict: Refuse a notebook that trains nothing, instead of generating what there is.
    """

    experiment: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    model_name: str | None = None
    allow_unsupported: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A literal of the notebook that configuration and the command line may replace.

    Attributes:
        name: As the notebook calls it.
        value: The notebook's value.
        default: The default written into the script: configuration's value where it gives one.
        cell: 0-based index of the cell that assigns it.
    """

    name: str
    value: Any
    default: Any
    cell: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a generated line comes from: 0-based cell index and 1-based line in the cell."""

    cell: int
    line: int


@dataclass(frozen=True, slots=True)
class SourceMap:
    """For each script, which notebook line each of its lines is.

    Attributes:
        notebook: The notebook's file name.
        scripts: By script name: 1-based script line to its origin. Lines of the frame are not in it.
        cells: Source lines of the cells the map names, by cell index: a traceback shows them.
        stage_hashes: Of the notebook the scripts were made from, by stage: tells whether two sets train the same.
    """

    notebook: str
    scripts: Mapping[str, Mapping[int, Origin]]
    cells: Mapping[int, tuple[str, ...]]
    stage_hashes: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file ``source_map.json``: compact, deterministic."""
        document = {
            "format": 1,
            "notebook": self.notebook,
            "scripts": {
                name: {str(line): [origin.cell, origin.line] for line, origin in sorted(lines.items())}
                for name, lines in sorted(self.scripts.items())
            },
            "stage_hashes": dict(sorted(self.stage_hashes.items())),
            "cells": {str(index): list(lines) for index, lines in sorted(self.cells.items())},
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SourceMap:
        """Read it back. Raises CodegenError where the text is no source map."""
        try:
            document = json.loads(text)
            return cls(
                notebook=document["notebook"],
                scripts={
                    name: {int(line): Origin(*origin) for line, origin in lines.items()}
                    for name, lines in document["scripts"].items()
                },
                cells={int(index): tuple(lines) for index, lines in document["cells"].items()},
                stage_hashes=dict(document.get("stage_hashes", {})),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CodegenError(
                f"The source map is damaged: {error}.", hint="Generate the scripts again."
            ) from error


@dataclass(frozen=True, slots=True)
class GeneratedScripts:
    """The text of everything an experiment runs with.

    Attributes:
        files: By file name.
        source_map: Also in ``files``, as JSON.
        hyperparameters: What the command line of ``train.py`` takes.
        framework: ``sklearn``, ``torch``, … as far as imports and calls tell; the saved model's own type decides later.
        model_name: The name that holds the model; None where there is none.
        findings: What the user should know of the scripts.
        trains: Whether there is a ``train.py``.
    """

    files: Mapping[str, str]
    source_map: SourceMap
    hyperparameters: tuple[Hyperparameter, ...] = ()
    framework: str | None = None
    model_name: str | None = None
    findings: tuple[Finding, ...] = ()
    trains: bool = True
