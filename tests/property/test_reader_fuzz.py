"""Whatever stands in a file or a cell: a notebook, or one error that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebooked_dagster.errors import NotebookedError, NotebookReadError
from notebooked_dagster.notebook.magics import to_python
from notebooked_dagster.notebook.model import Cell, Notebook
from notebooked_dagster.notebook.reader import read_notebook_bytes
from notebooked_dagster.notebook.tag_writer import write_tags

SAMPLES = sorted((Path(__file__).parents[2] / "notebooks" / "experiments").glob("*.ipynb"))
FREE = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
KEYS = ["cells", "source", "metadata", "tags", "cell_type", "outputs", "input", "data", "text", "output_type"]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["code", "markdown", "raw", "heading", "html", "4", "error"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=10,
)
CELL_KEYS = [
    "cell_type",
    "source",
    "metadata",
    "outputs",
    "id",
    "execution_count",
    "input",
    "code",
    "language",
]
CELLS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(CELL_KEYS, JSON)) | JSON, max_size=4)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "cells": CELLS | JSON,
        "worksheets": st.lists(st.fixed_dictionaries({"cells": CELLS})) | JSON,
        "nbformat": st.integers(0, 5) | JSON,
        "nbformat_minor": st.integers(0, 9) | JSON,
        "metadata": st.fixed_dictionaries({}, optional={"kernelspec": JSON, "language_info": JSON}) | JSON,
    },
)


def read(data: bytes) -> Notebook | None:
    try:
        notebook = read_notebook_bytes(data, Path("n.ipynb"), keep_output_text=True)
    except NotebookReadError:
        return None
    for cell in notebook.cells:
        assert "\r" not in cell.source
    return notebook


@FREE
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    read(data)


@settings(FREE, max_examples=300)
@given(DOCUMENTS)
def test_any_json(document: dict[str, Any]) -> None:
    read(json.dumps(document).encode())


@settings(FREE, max_examples=60)
@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_samples(sample: Path, data: st.DataObject) -> None:
    content = bytearray(sample.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        length = data.draw(st.integers(0, 40))
        content[at : at + length] = data.draw(
            st.binary(max_size=4)
            | st.sampled_from([b"{", b"}", b'"', b"\\", b"[", b"]", b",", b"null", b"NaN"])
        )
    read(bytes(content))


@settings(FREE, max_examples=60)
@given(st.sampled_from(SAMPLES), st.data())
def test_samples_with_other_values_in_them(sample: Path, data: st.DataObject) -> None:
    document = json.loads(sample.read_bytes())
    place: Any = document
    for _ in range(data.draw(st.integers(0, 4))):
        if not isinstance(place, dict | list) or not place:
            break
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    read(json.dumps(document).encode())


@settings(FREE, max_examples=100)
@given(
    cells=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(CELL_KEYS, JSON)), min_size=1, max_size=3)
)
def test_tags_can_be_written_into_whatever_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, cells: list[dict[str, Any]]
) -> None:
    data = json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 4}).encode()
    before = read(data)
    path = tmp_path_factory.mktemp("n") / "n.ipynb"
    path.write_bytes(data)
    try:
        write_tags(path, {0: ["train", "mine"]})
    except NotebookedError:
        assert before is None
        assert path.read_bytes() == data
        return
    after = read(path.read_bytes())
    assert before is not None
    assert after is not None
    assert after.cells[0].tags == ("train", "mine")
    assert [(cell.kind, cell.source) for cell in after.cells] == [
        (cell.kind, cell.source) for cell in before.cells
    ]
    assert [cell.tags for cell in after.cells[1:]] == [cell.tags for cell in before.cells[1:]]


FRAGMENTS = st.sampled_from(
    ["%time ", "%%time", "%%timeit -n 3 x=1", "%%capture o", "!ls", "!pip install 'a[b]>=1' -r r.txt", "x = !ls", "x = %time y",
     "?x", "x??", "'''", '"""', "(", ")", "[", "]", "{", "}", "\\", "#", "if x:", "    ", "\t", "get_ipython()", ".system('ls')",
     "display(x)", "await f()", ">>> ", "... ", "In [1]: ", "print x", ",f a", "/f a", ";f a", "\n", "\n", "\n", " ", ";",
     "%matplotlib inline", "%%bash", "%env A=b", "%", "!", "!!", "%%", "x", "= ", "def f():", "'", '"', "f'{", "é", "\0", "\r",
     "\x0c", "\x0b", "\x85", "\u2028", "\u00a0", "\ud800", "5L", "<>", "for a in b: print a", "try:", "except E, e:"]
)  # fmt: skip


@settings(FREE, max_examples=500)
@given(st.lists(FRAGMENTS | st.text(st.characters(), max_size=3), max_size=14).map("".join))
def test_any_cell_becomes_as_many_lines(source: str) -> None:
    made = to_python(Cell(0, "code", source))
    assert made.source.count("\n") == source.count("\n")
    assert (made.tree is None) == (made.error is not None)
    assert set(made.unsupported) <= set(made.removals)
    for removal in made.removals:
        assert 1 <= removal.line <= source.count("\n") + 1


@settings(FREE, max_examples=200)
@given(st.lists(st.sampled_from(["x = 1", "s = '''\n%time\n!ls\n'''", "y = (7\n% 3)", "def f():\n    return '?'", "# !", "z = 7 \\\n% 2"]), max_size=5).map("\n".join))  # fmt: skip
def test_python_between_magics_is_untouched(source: str) -> None:
    assert to_python(Cell(0, "code", source)).source == source
    assert to_python(Cell(0, "code", f"!ls 'it\n{source}\n%matplotlib inline")).source == f"\n{source}\n"
