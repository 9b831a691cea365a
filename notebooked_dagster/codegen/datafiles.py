"""Where a notebook reads files: the literals that a script must find again somewhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from notebooked_dagster.notebook.model import Statement

from .emit import Edit

_READERS = re.compile(
    r"^(?:read_(?:csv|excel|parquet|json|table|pickle|feather|hdf|fwf|stata|sas|spss|xml|html|orc|file)|loadtxt|genfromtxt|"
    r"loadmat|fromfile|imread|open|load|Image\.open|ZipFile|is_file|ImageFolder|load_workbook|listdir|glob)$"
)
_DATA_FILE = re.compile(
    r"(?i)\.(?:csv|tsv|txt|json|jsonl|parquet|xlsx?|npz|npy|pkl|pickle|joblib|h5|hdf5?|zip|gz|bz2|data|mat|feather|arff|"
    r"db|sqlite3?|dat|xml|png|jpe?g|wav|names|dta|sav)$"
)
_ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|s3:|gs:)", re.IGNORECASE)
_WRITING = re.compile(r"[wax+]")


def names_read(statements: Iterable[Statement]) -> frozenset[str]:
    """Names that are handed to a function which reads the file they name."""
    return frozenset(
        call.args[0].id
        for statement in statements
        for call in ast.walk(statement.node)
        if isinstance(call, ast.Call)
        and _READERS.match(_name(call.func))
        and not _writes(call)
        and call.args
        and isinstance(call.args[0], ast.Name)
    )


def edits(statement: Statement, read_by_name: frozenset[str] = frozenset()) -> list[Edit]:
    """Insertions that wrap each literal path which a statement reads in ``data_file(…)``.

    Args:
        statement: The statement.
        read_by_name: Names that something reads a file by; what is bound to another name need not be a file here.
    """
    found: list[Edit] = []
    for literal, target in _paths(statement.node):
        read = target is None or target in read_by_name
        if literal.end_lineno is None or literal.end_col_offset is None:
            continue
        found.append(
            Edit(
                (literal.lineno, literal.col_offset),
                (literal.lineno, literal.col_offset),
                "_support.data_file(",
            )
        )
        found.append(
            Edit(
                (literal.end_lineno, literal.end_col_offset),
                (literal.end_lineno, literal.end_col_offset),
                ")" if read else ", required=False)",
            )
        )
    return found


def paths(statement: Statement) -> list[str]:
    """The literal paths a statement reads."""
    return [str(literal.value) for literal, _ in _paths(statement.node)]


def is_data_path(text: str) -> bool:
    """Whether a string names a data file here, not somewhere on the network."""
    return bool(_DATA_FILE.search(text)) and not _ELSEWHERE.match(text) and "\n" not in text


def _paths(root: ast.AST) -> Iterator[tuple[ast.Constant, str | None]]:
    """Literal paths, and the name that each is bound to; None for those read where they stand."""
    in_fstrings = {
        id(inner) for node in ast.walk(root) if isinstance(node, ast.JoinedStr) for inner in ast.walk(node)
    }
    seen: set[int] = set()
    for node in ast.walk(root):
        for literal in _candidates(node):
            if id(literal) not in seen and id(literal) not in in_fstrings:
                seen.add(id(literal))
                yield literal, _target(node)


def _candidates(node: ast.AST) -> Iterator[ast.Constant]:
    if isinstance(node, ast.Call) and _READERS.match(_name(node.func)):
        if _writes(node):
            return
        first = node.args[0] if node.args else None
        named = [
            word.value
            for word in node.keywords
            if word.arg in ("filepath_or_buffer", "io", "path", "fname", "file", "path_or_buf")
        ]
        for value in [first, *named]:
            if _is_path(value, known_reader=_name(node.func) != "load"):
                yield value  # type: ignore[misc]
    elif isinstance(node, ast.Assign) and _is_path(node.value, known_reader=False):
        yield node.value  # type: ignore[misc]


def _target(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Assign):
        return None
    first = node.targets[0]
    return first.id if isinstance(first, ast.Name) else ""


def _is_path(value: ast.AST | None, *, known_reader: bool) -> bool:
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
        return False
    text = value.value
    if not text or "\n" in text or len(text) > 300 or _ELSEWHERE.match(text):
        return False
    return bool(_DATA_FILE.search(text)) or (known_reader and "/" in text and " " not in text)


def _writes(call: ast.Call) -> bool:
    if _name(call.func) not in ("open", "ZipFile"):
        return False
    modes = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
    return any(
        isinstance(mode, ast.Constant) and isinstance(mode.value, str) and bool(_WRITING.search(mode.value))
        for mode in modes
    )


def _name(function: ast.AST) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
