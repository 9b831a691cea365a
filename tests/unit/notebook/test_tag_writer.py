from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebooked_dagster.errors import NotebookError, UserError
from notebooked_dagster.notebook.reader import read_notebook
from notebooked_dagster.notebook.tag_writer import write_tags

CELLS = [
    {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Ä title\n", "text"]},
    {"cell_type": "code", "id": "b", "metadata": {"tags": ["old"]}, "execution_count": 3, "outputs": [], "source": "x = 1"},
    {"cell_type": "code", "id": "c", "metadata": {"collapsed": True, "z": [1, {}]}, "execution_count": None, "outputs": [], "source": []},
    {"cell_type": "code", "execution_count": None, "outputs": [], "source": "y = 2"},
]  # fmt: skip
NOTEBOOK = {"cells": CELLS, "metadata": {"tags": ["not", "ours"]}, "nbformat": 4, "nbformat_minor": 5}


def written(folder: Path, text: str) -> Path:
    path = folder / "n.ipynb"
    path.write_bytes(text.encode())
    return path


def test_only_the_tags_change_in_a_file_as_jupyter_writes_it(tmp_path: Path) -> None:
    text = json.dumps(NOTEBOOK, indent=1, ensure_ascii=False) + "\n"
    path = written(tmp_path, text)
    assert write_tags(path, {0: ["imports"], 1: ["old", "train"], 2: ["model"], 3: ["inference"]})
    before, after = text.splitlines(), path.read_text(encoding="utf-8").splitlines()
    added = [line for line in after if line not in before]
    # `"old"` is there again with a comma behind it.
    assert {"old", "train", "imports", "model", "inference"} == {
        line.strip(' ",') for line in added if line.strip(' ",').isalpha()
    }
    for line in before:
        assert line in after or line.rstrip(",") in (item.rstrip(",") for item in after) or "{}" in line
    assert [cell.tags for cell in read_notebook(path).cells] == [
        ("imports",),
        ("old", "train"),
        ("model",),
        ("inference",),
    ]


def test_writing_what_is_there_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(NOTEBOOK))
    stamp = path.stat().st_mtime_ns
    assert not write_tags(path, {1: ["old"]})
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("indent", [None, 1, 4, "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_removing_what_was_added_gives_the_same_bytes(
    tmp_path: Path, newline: str, indent: int | str | None, mark: str
) -> None:
    text = mark + json.dumps(NOTEBOOK, indent=indent).replace("\n", newline) + newline
    path = written(tmp_path, text)
    write_tags(path, {1: ["train", "model"]})
    assert path.read_bytes() != text.encode()
    write_tags(path, {1: ["old"]})
    assert json.loads(path.read_bytes().decode("utf-8-sig")) == NOTEBOOK
    assert path.read_bytes().decode().replace(" ", "").replace(newline, "") == text.replace(" ", "").replace(
        newline, ""
    )


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "cell_type": st.sampled_from(["code", "markdown", "raw"]),
                "source": st.text(),
                "metadata": st.dictionaries(
                    st.text(), st.recursive(st.none() | st.text(), st.lists, max_leaves=3), max_size=3
                ),
            }
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([None, 1, 2, "\t"]),
    st.booleans(),
)
def test_any_notebook_keeps_everything_but_the_tags(
    tmp_path_factory: pytest.TempPathFactory,
    cells: list[dict[str, object]],
    indent: int | None,
    ascii_only: bool,
) -> None:
    document = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    path = written(tmp_path_factory.mktemp("n"), text)
    write_tags(path, {0: ["train"]})
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["cells"][0]["metadata"].pop("tags") == ["train"]
    cells[0]["metadata"].pop("tags", None)  # type: ignore[attr-defined]
    assert found == document


def test_what_cannot_be_tagged_is_refused(tmp_path: Path) -> None:
    old = {"nbformat": 3, "nbformat_minor": 0, "worksheets": [{"cells": []}], "metadata": {}}
    with pytest.raises(NotebookError, match="nbformat 3 has no tags"):
        write_tags(written(tmp_path, json.dumps(old)), {0: ["train"]})
    path = written(tmp_path, json.dumps(NOTEBOOK))
    with pytest.raises(UserError, match="no cell 9"):
        write_tags(path, {8: ["train"]})
    with pytest.raises(UserError, match="is no tag"):
        write_tags(path, {0: ["a,b"]})
    assert json.loads(path.read_text(encoding="utf-8")) == NOTEBOOK
