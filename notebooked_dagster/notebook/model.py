"""The values the notebook package hands around. Frozen, plain, free of I/O."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Stage(StrEnum):
    """The parts of an experiment that have a slice, a hash and a place in the generated scripts, in order."""

    IMPORTS = "imports"
    UTILS = "utils"
    PREPROCESS = "preprocess"
    MODEL = "model"
    TRAIN = "train"
    INFERENCE = "inference"


class Tag(StrEnum):
    """Every cell tag we give a meaning to. The first six are the stages."""

    IMPORTS = "imports"
    UTILS = "utils"
    PREPROCESS = "preprocess"
    MODEL = "model"
    TRAIN = "train"
    INFERENCE = "inference"
    REQUIREMENTS = "requirements"
    PARAMETERS = "parameters"
    SKIP = "skip"


class Role(StrEnum):
    """What a statement of code is for. The stages, and the roles that never reach a script.

    ``EVALUATE`` is code that measures a trained model; it goes into ``train.py`` behind training.
    ``EXPLORE`` is looking at data, ``PLOT`` is drawing: both are left out of every slice and hash.
    """

    IMPORTS = "imports"
    PARAMETERS = "parameters"
    UTILS = "utils"
    PREPROCESS = "preprocess"
    MODEL = "model"
    TRAIN = "train"
    EVALUATE = "evaluate"
    INFERENCE = "inference"
    EXPLORE = "explore"
    PLOT = "plot"
    REQUIREMENTS = "requirements"
    SKIP = "skip"
    EMPTY = "empty"


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell as it stands in the file.

    Attributes:
        index: 0-based position among all cells of the file.
        kind: ``code``, ``markdown`` or ``raw``.
        source: The text, lines joined by ``\\n``.
        id: nbformat 4.5's cell id; None before that. May repeat in a file.
        tags: As written, in order.
        execution_count: None where never run.
        metadata: The whole cell metadata.
        output_bytes: Size of the outputs in the file, in bytes (an estimate to the JSON's granularity).
        output_text: Text of the outputs, shortened to ``reader.OUTPUT_TEXT_LIMIT`` characters; kept only where
            the reader was asked for it (lint looks for secrets in it).
        has_error_output: Whether an output of type ``error`` is there.
    """

    index: int
    kind: str
    source: str
    id: str | None = None
    tags: tuple[str, ...] = ()
    execution_count: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    output_bytes: int = 0
    output_text: str = ""
    has_error_output: bool = False

    @property
    def number(self) -> int:
        """1-based position among all cells: what people are told."""
        return self.index + 1


@dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook as read, whatever its nbformat, in the shape of nbformat 4.

    Attributes:
        path: Where it was read from, as given.
        cells: All cells, in order.
        nbformat: Major and minor version in the file.
        language: ``python`` unless the metadata says otherwise.
        kernel: The kernelspec's name; empty where there is none.
        metadata: The notebook-level metadata.
        file_sha256: Hex digest of the file's bytes.
        warnings: What the reader tolerated, in sentences (a repeated id, an unknown minor version).
    """

    path: Path
    cells: tuple[Cell, ...]
    nbformat: tuple[int, int] = (4, 5)
    language: str = "python"
    kernel: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    file_sha256: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def code_cells(self) -> tuple[Cell, ...]:
        """The code cells, in order."""
        return tuple(cell for cell in self.cells if cell.kind == "code")

    @property
    def title(self) -> str:
        """The first Markdown heading, or the file's stem."""
        for cell in self.cells:
            if cell.kind == "markdown":
                for line in cell.source.splitlines():
                    if line.startswith("#"):
                        return line.lstrip("#").strip()
        return self.path.stem

    @property
    def description(self) -> str:
        """The first Markdown cell's text; empty where there is none."""
        return next((cell.source.strip() for cell in self.cells if cell.kind == "markdown"), "")


@dataclass(frozen=True, slots=True)
class Removal:
    """Something taken out of a cell so that it can run outside a notebook; always reported.

    Attributes:
        cell: Cell index.
        line: 1-based line in the cell.
        text: What stood there.
        reason: One sentence.
        rule: A short id such as ``magic-dropped``, ``shell-dropped``, ``display-dropped``, ``main-guard``.
    """

    cell: int
    line: int
    text: str
    reason: str
    rule: str


@dataclass(frozen=True, slots=True)
class CellCode:
    """A code cell made into plain Python **with the same number of lines**, so that line N of ``source`` is line N
    of the cell.

    Attributes:
        cell: The cell.
        source: Python without magics. Removed lines are blank or ``pass`` at their indentation.
        tree: Its AST; None where it does not parse.
        error: The SyntaxError where it does not parse.
        removals: What was taken out.
        requirements: What ``%pip``/``!pip install`` in it asked for, as PEP 508 strings where possible.
        unsupported: Things production cannot promise (``%%bash``, ``x = !ls``): the cell is refused for
            generation unless the user opts in. One removal each.
        uses_await: Whether it awaits at top level.
    """

    cell: Cell
    source: str
    tree: ast.Module | None
    error: SyntaxError | None = None
    removals: tuple[Removal, ...] = ()
    requirements: tuple[str, ...] = ()
    unsupported: tuple[Removal, ...] = ()
    uses_await: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    """One top-level statement of a cell: the grain of slices. Compared by identity of its place.

    Attributes:
        cell: Cell index.
        position: 0-based position among the cell's statements.
        first_line: 1-based first line in the cell, decorators and directly preceding comment lines included.
        last_line: 1-based last line in the cell.
        text: The original lines (after magics), comments included, not dedented.
        node: The AST node.
        defines: Names it binds at notebook (module) level.
        uses: Names it reads at notebook level **when it runs**.
        deferred: Names that functions, lambdas and classes it defines read when they are *called* later.
        mutates: Names whose objects it changes (``df["x"] = …``, ``model.fit(…)``, ``lst.append(…)``); a subset
            relation to ``uses`` holds: what is mutated is also used.
        deletes: Names it deletes.
        star_imports: Modules it star-imports.
        role: What it is for.
        calls: Dotted names of what it calls, resolved through imports where possible
            (``sklearn.linear_model.LogisticRegression``), else as written (``model.fit``).
    """

    cell: int
    position: int
    first_line: int
    last_line: int
    text: str
    node: ast.stmt = field(compare=False, repr=False)
    defines: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    deferred: frozenset[str] = frozenset()
    mutates: frozenset[str] = frozenset()
    deletes: frozenset[str] = frozenset()
    star_imports: tuple[str, ...] = ()
    role: Role = Role.EMPTY
    calls: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[int, int]:
        """Its place: (cell index, position)."""
        return (self.cell, self.position)


@dataclass(frozen=True, slots=True)
class CellClass:
    """What a cell was taken for.

    Attributes:
        cell: Cell index.
        roles: Most important first; several where the cell carries several tags or mixes work.
        confidence: 0 to 1. Exactly 1.0 where an explicit tag decided.
        reason: One sentence a person can check (``calls LogisticRegression.fit and binds model``).
        explicit: Whether a tag decided.
    """

    cell: int
    roles: tuple[Role, ...]
    confidence: float
    reason: str
    explicit: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """The code one stage needs, from anywhere in the notebook, in notebook order.

    Attributes:
        stage: Whose.
        own: Statements that *are* the stage.
        needed: Statements it depends on (imports, helpers, constants, definitions), without ``own``.
        inputs: Names it reads that come from earlier stages' statements.
        outputs: Names it binds that later stages read.
    """

    stage: Stage
    own: tuple[Statement, ...]
    needed: tuple[Statement, ...]
    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()

    @property
    def statements(self) -> tuple[Statement, ...]:
        """``needed`` and ``own`` together, in notebook order."""
        return tuple(sorted({*self.own, *self.needed}, key=lambda statement: statement.key))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing lint or analysis has to say.

    Attributes:
        rule: ``NB101`` and so on; the catalogue is ``lint.rules``.
        name: The rule's readable name (``undefined-name``).
        severity: How bad.
        message: One sentence.
        fix: What to do, one imperative sentence.
        cell: 0-based cell index; None for the whole notebook.
        line: 1-based line in the cell; None for the whole cell.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    fix: str
    cell: int | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything known of a notebook without running it.

    Attributes:
        notebook: What was read.
        code: One entry a code cell, in order.
        classes: One entry a code cell, in order.
        statements: Every top-level statement of every cell that parses, in notebook order, roles assigned.
        slices: One a stage that the notebook has.
        hashes: Hex digest a stage: normalised AST of its slice.
        findings: What analysis itself reports (train/inference skew, unknown tags, syntax errors, …).
        model_names: Names that hold a trained model, best guess first.
    """

    notebook: Notebook
    code: tuple[CellCode, ...]
    classes: tuple[CellClass, ...]
    statements: tuple[Statement, ...]
    slices: Mapping[Stage, Slice]
    hashes: Mapping[Stage, str]
    findings: Sequence[Finding] = ()
    model_names: tuple[str, ...] = ()

    @property
    def removals(self) -> tuple[Removal, ...]:
        """All removals, in notebook order."""
        return tuple(removal for code in self.code for removal in code.removals)
