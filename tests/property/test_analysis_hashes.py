"""What changes a stage's hash, and what must not."""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from notebooked_dagster.notebook.analysis import analyse
from notebooked_dagster.notebook.model import Cell, Notebook, Stage

CELLS = (
    "import pandas as pd\nimport matplotlib.pyplot as plt\nfrom sklearn.svm import SVC\nfrom sklearn.metrics import accuracy_score",
    "df = pd.read_csv('d.csv')\ndf['a'] = df['a'] * 2",
    'def helper(v):\n    """Says what it does."""\n    return v + 1',
    "X, y = helper(df[['a']]), df['y']",
    "clf = SVC(C=1.5)\nclf.fit(X, y)",
    "print('accuracy', accuracy_score(y, clf.predict(X)))",
    "sample = [[0.5]]\nclf.predict(sample)",
)


def hashes(cells: list[tuple[str, str]]) -> dict[Stage, str]:
    made = tuple(Cell(index, kind, source) for index, (kind, source) in enumerate(cells))
    return dict(analyse(Notebook(Path("n.ipynb"), made)).hashes)


def plain(cells: tuple[str, ...] = CELLS) -> list[tuple[str, str]]:
    return [("code", source) for source in cells]


NOISE = st.sampled_from(
    [
        ("markdown", "# A heading"),
        ("raw", "raw text"),
        ("code", ""),
        ("code", "# a thought"),
        ("code", "df.head()"),
        ("code", "df.describe()"),
        ("code", "plt.plot(df['a'])\nplt.show()"),
        ("code", "print(df.shape)"),
    ]
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(2, len(CELLS)), NOISE), max_size=6))
def test_prose_plots_and_looks_change_nothing(noise: list[tuple[int, tuple[str, str]]]) -> None:
    cells = plain()
    for place, cell in sorted(noise, key=lambda item: -item[0]):
        cells.insert(place, cell)
    assert hashes(cells) == hashes(plain())


@settings(max_examples=40)
@given(
    st.lists(st.booleans(), min_size=len(CELLS), max_size=len(CELLS)),
    st.sampled_from(["# note", "", "   # odd"]),
)
def test_formatting_changes_nothing(rewritten: list[bool], extra: str) -> None:
    cells = [
        ("code", f"{extra}\n{ast.unparse(ast.parse(source))}\n{extra}" if again else source)
        for source, again in zip(CELLS, rewritten, strict=True)
    ]
    assert hashes(cells) == hashes(plain())


def changed(old: str, new: str) -> set[Stage]:
    before = hashes(plain())
    after = hashes(plain(tuple(source.replace(old, new) for source in CELLS)))
    return {stage for stage in before if before[stage] != after.get(stage)}


def test_editing_training_changes_training_alone() -> None:
    assert Stage.TRAIN in changed("clf.fit(X, y)", "clf.fit(X, y, None)")
    assert Stage.INFERENCE not in changed("clf.fit(X, y)", "clf.fit(X, y, None)")
    assert Stage.TRAIN in changed("C=1.5", "C=2.5")
    assert Stage.INFERENCE not in changed("C=1.5", "C=2.5")


def test_editing_inference_changes_inference_alone() -> None:
    assert changed("[[0.5]]", "[[0.7]]") == {Stage.INFERENCE}


def test_editing_preprocessing_reaches_training() -> None:
    found = changed("* 2", "* 3")
    assert {Stage.PREPROCESS, Stage.TRAIN} <= found


def test_a_docstring_and_a_comment_say_nothing() -> None:
    assert changed("Says what it does.", "Says something else.") == set()


@settings(max_examples=80)
@given(st.lists(st.text(alphabet="abx=()[]{}:.,+ \n\t'\"#%!?\\=0", max_size=40), max_size=6))
def test_any_text_is_analysed(sources: list[str]) -> None:
    cells = tuple(Cell(index, "code", source) for index, source in enumerate(sources))
    analysis = analyse(Notebook(Path("n.ipynb"), cells))
    assert len(analysis.classes) == len(sources)
