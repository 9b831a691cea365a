"""Read a notebook of any nbformat into values, fast, and say clearly what is wrong where it cannot be read."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from notebooked_dagster.errors import NotebookReadError

from .model import Cell, Notebook

OUTPUT_TEXT_LIMIT = 200_000
_KINDS = frozenset({"code", "markdown", "raw"})
_RESTORE = "Restore it from version control or a checkpoint."
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_HALVES = "Some text holds half of a character (a lone surrogate); it is read as a replacement character."
_NEWEST_MINOR = 5


def read_notebook(path: Path, *, keep_output_text: bool = False) -> Notebook:
    """Read a notebook file.

    Args:
        path: The ``.ipynb`` file.
        keep_output_text: Whether to keep the text of outputs, shortened to ``OUTPUT_TEXT_LIMIT`` characters a cell.

    Raises:
        NotebookReadError: The file is missing, not UTF-8, not JSON, truncated, or not a notebook.
    """
    data = _read_bytes(path)
    return read_notebook_bytes(data, path, keep_output_text=keep_output_text)


def read_notebook_bytes(data: bytes, path: Path, *, keep_output_text: bool = False) -> Notebook:
    """As :func:`read_notebook`, of bytes already at hand; ``path`` is what messages name."""
    warnings: list[str] = []
    document = _parse(data, path, warnings)
    version = _version(document, path, warnings)
    cells = _cells_of(document, version, path)
    metadata = _mapping(document.get("metadata"))
    language, kernel = _language(metadata, cells)
    read = tuple(
        _cell(index, raw, path, keep_output_text=keep_output_text) for index, raw in enumerate(cells)
    )
    unknown = sorted({str(raw.get("cell_type"))[:40] for raw in cells if _kind(raw) is None})
    if unknown:
        warnings.append(f"Cells of an unknown type are read as raw text: {', '.join(unknown[:5])}.")
    repeated = [id_ for id_, times in Counter(cell.id for cell in read if cell.id).items() if times > 1]
    if repeated:
        warnings.append(f"Cell ids occur more than once: {', '.join(sorted(repeated)[:5])}.")
    return Notebook(
        path=path,
        cells=read,
        nbformat=version,
        language=language,
        kernel=kernel,
        metadata=metadata,
        file_sha256=hashlib.sha256(data).hexdigest(),
        warnings=tuple(warnings),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        # A pipe or a device would be waited for, or read, for ever.
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise NotebookReadError("This is no ordinary file.", path=path, hint="Name one .ipynb file.")
        return path.read_bytes()
    except FileNotFoundError:
        raise NotebookReadError(
            "There is no such file.", path=path, hint="Check the path; it is relative to the working folder."
        ) from None
    except IsADirectoryError:
        raise NotebookReadError("This is a folder.", path=path, hint="Name one .ipynb file.") from None
    except OSError as error:
        raise NotebookReadError(
            f"It cannot be read: {error.strerror or error}.",
            path=path,
            hint="Check the file, its permissions and where it points.",
        ) from error
    except ValueError as error:  # a path with a NUL in it
        raise NotebookReadError(f"This is no path: {error}.", path=path) from None


def _parse(data: bytes, path: Path, warnings: list[str]) -> dict[str, Any]:
    if not data.strip():
        raise NotebookReadError("The file is empty.", path=path, hint="Save the notebook again in Jupyter.")
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
        warnings.append("The file starts with a byte-order mark.")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        document = _parse_slowly(data, path, warnings)
    if not isinstance(document, dict):
        raise NotebookReadError(
            f"The JSON in it is a {type(document).__name__}, not an object.",
            path=path,
            hint="A notebook is a JSON object with the key `cells`.",
        )
    return document


def _parse_slowly(data: bytes, path: Path, warnings: list[str]) -> Any:
    """The standard library's parser takes NaN and lone surrogates, and says where an error stands."""
    if not data.strip(b"\0"):
        raise NotebookReadError(
            "The file holds nothing but zero bytes: it was being written when the machine stopped.",
            path=path,
            hint=_RESTORE,
        )
    # JSON starts with two ASCII characters, so a zero byte among them is half of a wider one.
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:2]:
        raise NotebookReadError("The file is UTF-16, not UTF-8.", path=path, hint="Save it as UTF-8.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotebookReadError(
            f"The file is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}.",
            path=path,
            hint="Convert it to UTF-8, for instance with `iconv -f latin1 -t utf-8`.",
        ) from None
    try:
        document = json.loads(text)
        if _SURROGATE_ESCAPE.search(text):
            document = _without_surrogates(document, warnings)
        return document
    except RecursionError:
        raise NotebookReadError("The JSON in it is nested too deep.", path=path, hint=_RESTORE) from None
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated"):
            what, hint = "The file is truncated: it ends", _RESTORE
        else:
            what, hint = (
                f"The file is not valid JSON ({error.msg})",
                "Look for a merge conflict or a bad edit there.",
            )
        raise NotebookReadError(
            f"{what} at line {error.lineno}, column {error.colno}.", path=path, line=error.lineno, hint=hint
        ) from None
    except ValueError as error:
        raise NotebookReadError(f"The file is not valid JSON: {error}.", path=path) from None


def _without_surrogates(value: Any, warnings: list[str]) -> Any:
    """Halves of characters, which JSON can spell and no file or terminal can hold, as replacement characters."""
    if isinstance(value, str):
        whole = _SURROGATE.sub("\ufffd", value)
        if whole != value and _HALVES not in warnings:
            warnings.append(_HALVES)
        return whole
    if isinstance(value, list):
        return [_without_surrogates(item, warnings) for item in value]
    if isinstance(value, dict):
        return {
            _without_surrogates(key, warnings): _without_surrogates(item, warnings)
            for key, item in value.items()
        }
    return value


def _version(document: Mapping[str, Any], path: Path, warnings: list[str]) -> tuple[int, int]:
    major, minor = _integer(document.get("nbformat")), _integer(document.get("nbformat_minor"))
    if major is None:
        if "cells" not in document and "worksheets" not in document:
            raise NotebookReadError(
                "This JSON is not a notebook: it has neither `nbformat` nor `cells`.",
                path=path,
                hint="Name an .ipynb file.",
            )
        major = 4 if "cells" in document else 3
        warnings.append(f"The file does not say its nbformat; {major} is assumed.")
    if major > 4 or major < 1:
        raise NotebookReadError(
            f"nbformat {major} is not supported.", path=path, key="nbformat", hint="Save it as nbformat 4."
        )
    if major == 4 and (minor or 0) > _NEWEST_MINOR:
        warnings.append(f"nbformat 4.{minor} is newer than 4.{_NEWEST_MINOR}; it is read as that.")
    return major, minor or 0


def _cells_of(document: Mapping[str, Any], version: tuple[int, int], path: Path) -> list[Any]:
    if "cells" in document:
        cells = document["cells"]
        if not isinstance(cells, list):
            raise NotebookReadError("`cells` is not a list.", path=path, key="cells", hint=_RESTORE)
        return cells if version[0] >= 4 else [_upgraded(cell) for cell in cells]
    worksheets = document.get("worksheets")
    if version[0] < 4 and isinstance(worksheets, list):
        return [
            _upgraded(cell)
            for sheet in worksheets
            if isinstance(sheet, Mapping) and isinstance(sheet.get("cells"), list)
            for cell in sheet["cells"]
        ]
    raise NotebookReadError(
        "It has no `cells`.", path=path, key="cells", hint="Open it in Jupyter and save it again."
    )


def _upgraded(cell: Any) -> Any:
    """A cell of nbformat 1 to 3 in the shape of 4."""
    if not isinstance(cell, Mapping):
        return cell
    kind = cell.get("cell_type")
    if kind == "code":
        return {
            **cell,
            "source": next((cell[key] for key in ("input", "source", "code") if key in cell), ""),
            "execution_count": cell.get("prompt_number"),
        }
    if kind == "heading":
        level = _integer(cell.get("level")) or 1
        return {"cell_type": "markdown", "source": f"{'#' * level} {_text(cell.get('source')) or ''}"}
    if kind in ("html", "text"):
        return {**cell, "cell_type": "markdown", "source": cell.get("source", cell.get("text", ""))}
    return cell


def _kind(raw: Any) -> str | None:
    """A cell's type, where it is one that there is."""
    kind = raw.get("cell_type") if isinstance(raw, Mapping) else "raw"
    return kind if isinstance(kind, str) and kind in _KINDS else None


def _cell(index: int, raw: Any, path: Path, *, keep_output_text: bool) -> Cell:
    if not isinstance(raw, Mapping):
        raise NotebookReadError("The cell is not a JSON object.", path=path, cell=index + 1, hint=_RESTORE)
    source = _text(raw.get("source"))
    if source is None:
        raise NotebookReadError(
            "The cell's `source` is neither text nor a list of lines.",
            path=path,
            cell=index + 1,
            key=f"cells[{index}].source",
        )
    metadata = _mapping(raw.get("metadata"))
    tags = metadata.get("tags")
    outputs = raw.get("outputs")
    outputs = outputs if isinstance(outputs, list) else []
    identity = raw.get("id")
    return Cell(
        index=index,
        kind=_kind(raw) or "raw",
        source=source.replace("\r\n", "\n").replace("\r", "\n"),
        id=identity if isinstance(identity, str) else None,
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        execution_count=_integer(raw.get("execution_count")),
        metadata=metadata,
        output_bytes=sum(_size(output) for output in outputs),
        output_text=_output_text(outputs) if keep_output_text else "",
        has_error_output=any(
            isinstance(output, Mapping) and output.get("output_type") in ("error", "pyerr")
            for output in outputs
        ),
    )


def _size(value: Any) -> int:
    """About how many bytes of the file a value takes, without serialising it."""
    total, waiting = 0, [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, str):
            total += len(current) + 2
        elif isinstance(current, Mapping):
            total += 2
            waiting += [*current, *current.values()]
        elif isinstance(current, list):
            total += 2 + len(current)
            waiting += current
        else:
            total += 4
    return total


def _output_text(outputs: list[Any]) -> str:
    pieces: list[str] = []
    for output in outputs:
        if not isinstance(output, Mapping):
            continue
        pieces.append(_text(output.get("text")) or "")
        for mime, value in _mapping(output.get("data")).items():
            if mime.startswith("text/") or mime.endswith("json"):
                pieces.append(_shown(value))
        # Before nbformat 4 the kinds of data stood beside one another.
        pieces += [_shown(output[kind]) for kind in ("html", "latex", "json", "javascript") if kind in output]
        pieces.append(_text(output.get("traceback")) or "")
    return "\n".join(piece for piece in pieces if piece)[:OUTPUT_TEXT_LIMIT]


def _shown(value: Any) -> str:
    text = _text(value)
    if text is not None:
        return text
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:  # as deep as the parser goes, and deeper than anything people look at
        return ""


def _language(metadata: Mapping[str, Any], cells: list[Any]) -> tuple[str, str]:
    kernelspec = _mapping(metadata.get("kernelspec"))
    info = _mapping(metadata.get("language_info"))
    kernel = kernelspec.get("name")
    language = info.get("name") or kernelspec.get("language")
    if not isinstance(language, str) or not language:
        # nbformat 3 kept the language with each cell.
        counted = Counter(
            cell["language"]
            for cell in cells
            if isinstance(cell, Mapping) and isinstance(cell.get("language"), str)
        )
        language = counted.most_common(1)[0][0] if counted else "python"
    language = language.lower()
    if language in ("ipython", "python2", "python3"):
        language = "python"
    return language, kernel if isinstance(kernel, str) else ""


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "".join(value)
    return "" if value is None else None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
