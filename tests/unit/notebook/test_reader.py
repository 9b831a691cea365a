"""Reading notebooks as they are found, and refusing what is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from notebooked_dagster.errors import NotebookReadError
from notebooked_dagster.notebook.model import Notebook
from notebooked_dagster.notebook.reader import OUTPUT_TEXT_LIMIT, read_notebook


def saved(folder: Path, content: Any) -> Path:
    path = folder / "n.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def read(folder: Path, *cells: Any, keep_output_text: bool = False, **keys: Any) -> Notebook:
    document = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5, **keys}
    return read_notebook(saved(folder, document), keep_output_text=keep_output_text)


def refused(folder: Path, content: Any) -> NotebookReadError:
    path = saved(folder, content)
    with pytest.raises(NotebookReadError) as caught:
        read_notebook(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    return caught.value


def code(source: Any = "x = 1", **keys: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], **keys}


@pytest.mark.parametrize("minor", range(6))
def test_every_minor_version_of_4(tmp_path: Path, minor: int) -> None:
    notebook = read(tmp_path, code(["a = 1\n", "b = 2"], execution_count=7), nbformat_minor=minor)
    assert notebook.nbformat == (4, minor)
    assert notebook.cells[0].source == "a = 1\nb = 2"
    assert notebook.cells[0].execution_count == 7
    assert not notebook.warnings


def test_a_newer_minor_version_is_read_and_said(tmp_path: Path) -> None:
    (warning,) = read(tmp_path, code(), nbformat_minor=9).warnings
    assert "4.9" in warning


def test_nbformat_3_is_upgraded(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Title"]},
        {"cell_type": "code", "input": ["x = 1\n", "x"], "prompt_number": 4, "language": "python", "outputs": [
            {"output_type": "pyout", "html": ["<b>seen</b>"], "text": ["1"]},
            {"output_type": "pyerr", "traceback": ["broken"]}]},
    ]  # fmt: skip
    path = saved(tmp_path, {"worksheets": [{"cells": cells}], "nbformat": 3, "nbformat_minor": 0})
    notebook = read_notebook(path, keep_output_text=True)
    heading, cell = notebook.cells
    assert (heading.kind, heading.source) == ("markdown", "## Title")
    assert (cell.kind, cell.source, cell.execution_count) == ("code", "x = 1\nx", 4)
    assert cell.has_error_output
    assert {"<b>seen</b>", "1", "broken"} <= set(cell.output_text.split("\n"))


def test_nbformat_1_and_2_are_upgraded(tmp_path: Path) -> None:
    first = {"cells": [{"cell_type": "code", "code": "x = 1", "prompt_number": 2}, {"cell_type": "text", "text": "prose"}]}  # fmt: skip
    notebook = read_notebook(saved(tmp_path, {**first, "nbformat": 1}))
    assert [(cell.kind, cell.source) for cell in notebook.cells] == [("code", "x = 1"), ("markdown", "prose")]
    assert notebook.cells[0].execution_count == 2
    second = [{"cell_type": "code", "input": "y"}, {"cell_type": "html", "source": "<p>"}]
    notebook = read_notebook(saved(tmp_path, {"worksheets": [{"cells": second}], "nbformat": 2}))
    assert [(cell.kind, cell.source) for cell in notebook.cells] == [("code", "y"), ("markdown", "<p>")]


def test_ids_may_repeat_be_empty_or_be_missing(tmp_path: Path) -> None:
    notebook = read(tmp_path, code(id="a"), code(id="a"), code(id=""), code(), code(id=3))
    assert [cell.id for cell in notebook.cells] == ["a", "a", "", None, None]
    (warning,) = notebook.warnings
    assert "more than once: a" in warning


def test_what_is_missing_or_odd_is_tolerated(tmp_path: Path) -> None:
    notebook = read(
        tmp_path,
        {},
        {"cell_type": "raw", "source": ""},
        code(None, metadata=None, outputs=None),
        code(metadata={"tags": "train", "mine": {"deep": [1]}}),
        code(metadata={"tags": ["train", 5, "a b"]}, execution_count="12"),
        {"cell_type": ["no", "word"], "source": "kept"},
        metadata=[],
        nbformat_minor="5",
    )
    assert [cell.kind for cell in notebook.cells] == ["raw", "raw", "code", "code", "code", "raw"]
    assert [cell.tags for cell in notebook.cells[3:5]] == [(), ("train", "a b")]
    assert notebook.cells[3].metadata["mine"] == {"deep": [1]}
    assert notebook.cells[4].execution_count == 12
    assert notebook.cells[5].source == "kept"
    assert any("unknown type" in warning for warning in notebook.warnings)


def test_kernel_and_language(tmp_path: Path) -> None:
    odd = {"kernelspec": {"name": "conda_pytorch_p36", "display_name": "x"}}
    assert (read(tmp_path, metadata=odd).kernel, read(tmp_path, metadata=odd).language) == (
        "conda_pytorch_p36",
        "python",
    )
    assert read(tmp_path, metadata={"language_info": {"name": "R"}}).language == "r"
    assert read(tmp_path, metadata={"kernelspec": {"name": 5}, "language_info": 3}).language == "python"


def test_a_byte_order_mark_is_read_and_said(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + json.dumps({"cells": [code("é")], "nbformat": 4}).encode()
    notebook = read_notebook(saved(tmp_path, data))
    assert notebook.cells[0].source == "é"
    assert "byte-order mark" in notebook.warnings[0]


def test_line_ends_become_one_kind(tmp_path: Path) -> None:
    assert read(tmp_path, code(["a\r\n", "b\r", "c"])).cells[0].source == "a\nb\nc"


def test_what_only_the_slow_parser_takes(tmp_path: Path) -> None:
    text = '{"cells": [{"cell_type": "code", "source": "s = \'\\ud800\'", "metadata": {"x": NaN, "y": -Infinity}}], "nbformat": 4, "big": 1%s}'  # fmt: skip
    notebook = read_notebook(saved(tmp_path, (text % ("0" * 400)).encode()))
    assert notebook.cells[0].source == "s = '\ufffd'"
    assert notebook.cells[0].metadata["x"] != notebook.cells[0].metadata["x"]


def test_outputs_are_measured_and_kept_only_on_request(tmp_path: Path) -> None:
    outputs = [
        {"output_type": "stream", "text": ["secret\n"] * 50_000},
        {"output_type": "display_data", "data": {"image/png": "A" * 10_000, "application/json": {"k": "v"}}},
    ]
    without = read(tmp_path, code(outputs=outputs)).cells[0]
    assert without.output_text == ""
    assert 360_000 < without.output_bytes < 600_000
    assert not without.has_error_output
    kept = read(tmp_path, code(outputs=outputs), keep_output_text=True).cells[0].output_text
    assert len(kept) == OUTPUT_TEXT_LIMIT
    assert "AAAA" not in kept


def test_title_and_description_come_from_the_prose(tmp_path: Path) -> None:
    prose = {"cell_type": "markdown", "source": "intro\n## The title ##\n", "metadata": {}}
    notebook = read(tmp_path, code(), prose)
    assert notebook.title == "The title ##"
    assert notebook.description == "intro\n## The title ##"
    assert read(tmp_path, code()).title == "n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b'{"cells": [{"cell_type": "code", "sou', "truncated"),
        (b'{"cells": [', "truncated"),
        (b'{"cells": [],\n<<<<<<< HEAD\n"nbformat": 4}', "line 2, column 1"),
        (b"[]", "a list, not an object"),
        (b"3", "a int, not an object"),
        (b"print('hello')", "not valid JSON"),
        (b'{"cells": "\xe9"}', "not UTF-8: byte 11 is 0xe9"),
        ('{"cells": []}'.encode("utf-16"), "UTF-16"),
        ('{"cells": []}'.encode("utf-16-le"), "UTF-16"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"cells": [], "nbformat": 4, "n": ' + b"1" * 5000 + b"}", "integer"),
        ({"a": 1}, "not a notebook"),
        ({"nbformat": 5, "cells": []}, "nbformat 5 is not supported"),
        ({"nbformat": 0, "cells": []}, "nbformat 0 is not supported"),
        ({"nbformat": 4}, "no `cells`"),
        ({"nbformat": 4, "cells": {}}, "`cells` is not a list"),
        ({"nbformat": 4, "cells": [{}, 7]}, "cell 2"),
        ({"nbformat": 4, "cells": [{"source": 5}]}, "cells[0].source"),
        ({"nbformat": 4, "cells": [{"source": ["a", None]}]}, "cells[0].source"),
    ],
)
def test_what_is_no_notebook_is_refused_with_its_place(tmp_path: Path, content: Any, message: str) -> None:
    assert message in str(refused(tmp_path, content))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ipynb")
    for path, message in [
        (tmp_path / "none.ipynb", "no such file"),
        (tmp_path, "a folder"),
        (tmp_path / "pipe.ipynb", "no ordinary file"),
        (tmp_path / "nul\0.ipynb", "no path"),
        (saved(tmp_path, {}) / "below.ipynb", "cannot be read"),
    ]:
        with pytest.raises(NotebookReadError, match=message):
            read_notebook(path)


def test_reading_imports_nothing_heavy(tmp_path: Path) -> None:
    path = saved(tmp_path, {"cells": [code("%matplotlib inline\nx = !ls\n%time y = 2")], "nbformat": 4})
    script = (
        "import sys, pathlib\n"
        "from notebooked_dagster.notebook.analysis import analyse_path\n"
        f"analyse_path(pathlib.Path({str(path)!r}))\n"
        "print([name for name in ('IPython', 'nbformat', 'dagster', 'pandas', 'mlflow', 'jsonschema') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_half_a_character_is_replaced_and_told(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    path.write_text(
        '{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [{"cell_type": "code", "metadata":'
        ' {"tags": ["a\\ud800"]}, "outputs": [], "execution_count": null, "source": "print(\\"\\ud83d \\ud83d\\ude00\\")"}]}'
    )
    notebook = read_notebook(path)
    assert notebook.cells[0].source == 'print("\ufffd \U0001f600")'
    assert notebook.cells[0].tags == ("a\ufffd",)
    assert any("half of a character" in text for text in notebook.warnings)


def test_a_file_of_zeros_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    path.write_bytes(b"\0" * 4096)
    with pytest.raises(NotebookReadError, match="zero bytes"):
        read_notebook(path)
