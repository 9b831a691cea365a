"""Understand a notebook without running it: classes of cells, slices and hashes of stages, findings.

:func:`analyse` never raises because of what a notebook contains: a cell that does not parse, a notebook in another
language, or one that trains nothing is described by findings; whoever needs scripts refuses it then.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from notebooked_dagster.core.collector import no_collections

from .cells import cell_classes
from .classify import Verdict, classify
from .flow import Flow
from .hashes import digest_of, stage_hash
from .magics import to_python
from .model import Analysis, Cell, CellCode, Notebook, Role, Slice, Stage, Statement
from .names import Facts, scan
from .observations import is_python, observe
from .reader import read_notebook
from .slices import make_slices
from .tags import TagVocabulary


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """What may be told to the analysis.

    Attributes:
        tags: What cell tags mean.
        model_name: The name that holds the model, where the notebook alone does not make it clear.
    """

    tags: TagVocabulary = field(default_factory=TagVocabulary)
    model_name: str | None = None


class _Piece(NamedTuple):
    """A statement before its role is known."""

    cell: int
    position: int
    first_line: int
    last_line: int
    text: str
    node: ast.stmt


def analyse(notebook: Notebook, options: AnalysisOptions | None = None) -> Analysis:
    """Everything that can be known of a notebook without running it.

    Args:
        notebook: As read.
        options: Tag vocabulary, the model's name.
    """
    with no_collections():
        return _analyse(notebook, options or AnalysisOptions())


def _analyse(notebook: Notebook, options: AnalysisOptions) -> Analysis:
    code = tuple(_to_python(cell, notebook) for cell in notebook.code_cells)
    tags = options.tags.of_cells(notebook)
    findings = list(options.tags.findings(notebook))
    readable = is_python(notebook.language)
    pieces = [piece for entry in code if readable and entry.tree is not None for piece in _statements(entry)]
    flow = Flow([(piece.cell, piece.node, facts, last) for piece, facts, last in pieces])
    outcome = classify(flow, tags, options.model_name)
    statements = tuple(
        _with_role(piece, facts, flow, index, verdict)
        for index, ((piece, facts, _), verdict) in enumerate(zip(pieces, outcome.verdicts, strict=True))
    )
    slices = make_slices(flow, outcome, statements)
    findings.extend(observe(notebook, code, flow, outcome, slices))
    return Analysis(
        notebook=notebook,
        code=code,
        classes=cell_classes(code, statements, outcome, tags),
        statements=statements,
        slices=slices,
        hashes=_hashes(slices),
        findings=tuple(findings),
        model_names=outcome.models,
    )


def analyse_path(path: Path, options: AnalysisOptions | None = None) -> Analysis:
    """Read a notebook and analyse it.

    Args:
        path: The file.
        options: Tag vocabulary, the model's name.

    Raises:
        NotebookReadError: The file is missing or is not a notebook.
    """
    return analyse(read_notebook(path), options)


def _to_python(cell: Cell, notebook: Notebook) -> CellCode:
    try:
        code: CellCode = to_python(cell, path=notebook.path)
        return code
    except (RecursionError, MemoryError):
        error = SyntaxError("it is nested too deeply for Python's parser")
    except ValueError as problem:  # lone surrogates, which no UTF-8 text has
        error = SyntaxError(str(problem))
    return CellCode(cell, cell.source, None, error)


def _statements(entry: CellCode) -> list[tuple[_Piece, Facts, bool]]:
    tree = entry.tree
    if tree is None:
        return []
    lines = entry.source.split("\n")
    found: list[tuple[_Piece, Facts, bool]] = []
    body = tree.body
    end_of_previous = 0
    for position, node in enumerate(body):
        last = position == len(body) - 1
        first_line = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])
        last_line = node.end_lineno or node.lineno
        shares = first_line == end_of_previous or (not last and body[position + 1].lineno == last_line)
        if shares:
            text = ast.get_source_segment(entry.source, node) or "\n".join(lines[first_line - 1 : last_line])
        else:
            while first_line - 1 > end_of_previous and lines[first_line - 2].lstrip().startswith("#"):
                first_line -= 1
            text = "\n".join(lines[first_line - 1 : last_line])
        end_of_previous = last_line
        facts = scan(node, shows_value=last)
        found.append((_Piece(entry.cell.index, position, first_line, last_line, text, node), facts, last))
    return found


def _with_role(piece: _Piece, facts: Facts, flow: Flow, index: int, verdict: Verdict) -> Statement:
    node = flow.nodes[index]
    mutates = frozenset(node.mutates)
    return Statement(
        cell=piece.cell,
        position=piece.position,
        first_line=piece.first_line,
        last_line=piece.last_line,
        text=piece.text,
        node=piece.node,
        defines=frozenset(node.defines),
        uses=frozenset(facts.uses) | mutates,
        deferred=frozenset(facts.deferred),
        mutates=mutates,
        deletes=frozenset(facts.deletes),
        star_imports=tuple(facts.stars),
        role=verdict.role,
        calls=tuple(dict.fromkeys(seen.dotted for seen in node.calls)),
    )


def _hashes(slices: Mapping[Stage, Slice]) -> dict[Stage, str]:
    digests: dict[tuple[int, int], bytes] = {}
    result: dict[Stage, str] = {}
    for stage, part in slices.items():
        ordered: Sequence[Statement] = part.statements
        for statement in ordered:
            if statement.key not in digests:
                digests[statement.key] = digest_of(statement.node)
        result[stage] = stage_hash(digests[statement.key] for statement in ordered)
    return result


__all__ = ["AnalysisOptions", "Role", "analyse", "analyse_path"]
