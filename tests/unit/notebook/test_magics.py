"""Cells become plain Python, line for line, and whatever is taken out is reported."""

from __future__ import annotations

import ast
import warnings

import pytest

from notebooked_dagster.notebook.magics import to_python
from notebooked_dagster.notebook.model import Cell, CellCode


def python(source: str) -> CellCode:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = to_python(Cell(3, "code", source))
    assert made.source.count("\n") == source.count("\n")
    return made


def rules(made: CellCode) -> list[str]:
    return [removal.rule for removal in made.removals]


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        "",
        "# only a remark",
        's = """\n%matplotlib inline\n!ls\n"""',
        "y = (10\n% 3)",
        "y = 10 \\\n% 3",
        "if __name__ == '__main__':\n    main()",
        "p = '\\d'",
        "def display(x):\n    return x\ndisplay(3)",
    ],
)
def test_python_is_left_as_it_is(source: str) -> None:
    made = python(source)
    assert made.source == source
    assert not made.removals
    assert made.error is None


@pytest.mark.parametrize(
    ("source", "expected", "rule"),
    [
        ("%matplotlib inline\nx = 1", "\nx = 1", "magic-dropped"),
        ("%load_ext autoreload\n%autoreload 2", "\n", "magic-dropped"),
        ("%config InlineBackend.figure_format = 'svg'", "", "magic-dropped"),
        ("%%time\nx = f()\ny = 2", "\nx = f()\ny = 2", "magic-unwrapped"),
        ("\n%%time\nx = 1", "\n\nx = 1", "magic-unwrapped"),
        ("%%timeit -n 3 y = 2\nx = y", "y = 2\nx = y", "magic-unwrapped"),
        ("%%timeit -n3 -r 2\nx = 1", "\nx = 1", "magic-unwrapped"),
        ("%%capture\nx = 1", "\nx = 1", "magic-unwrapped"),
        ("%time x = f()", "x = f()", "magic-unwrapped"),
        ("%time -1 + x", "-1 + x", "magic-unwrapped"),
        ("%timeit -n 10 -r3 f(x)", "f(x)", "magic-unwrapped"),
        ("%prun -l 10 -s cumulative f(x)", "f(x)", "magic-unwrapped"),
        ("%lprun -f total total(5)", "total(5)", "magic-unwrapped"),
        ("r = %timeit -o f(x)", "r = f(x)", "magic-unwrapped"),
        ("if a:\n    %time b()", "if a:\n    b()", "magic-unwrapped"),
        ("df?", "", "help-dropped"),
        ("?df.head\nx = 1", "\nx = 1", "help-dropped"),
        ("df.head??", "", "help-dropped"),
        ("!ls -l\nx = 1", "\nx = 1", "shell-dropped"),
        ("if a:\n    !ls\nx = 1", "if a:\n    pass\nx = 1", "shell-dropped"),
        ("!ls (a \\\n   b\nx = 1", "\n\nx = 1", "shell-dropped"),
        ("%env A=b c", "__import__('os').environ['A'] = 'b c'", "magic-replaced"),
        ("%env A={key}", "__import__('os').environ['A'] = str(key)", "magic-replaced"),
        ("%%html\n<b>'</b>", "\n", "magic-dropped"),
        ("%%javascript\nalert(1)", "\n", "magic-dropped"),
        ("display(df)", "pass", "display-dropped"),
        ("x = 1; display(x)", "x = 1; pass", "display-dropped"),
        ("for d in ds: display(d)", "for d in ds: pass", "display-dropped"),
        ("é = 'ü'; display(é,\n 'ä'); z = 2", "é = 'ü'; pass; z = 2\n", "display-dropped"),
        ("get_ipython().run_line_magic('matplotlib', 'inline')", "pass", "magic-dropped"),
        ("ip = get_ipython()\nip.magic('autoreload 2')", "ip = None\npass", "magic-dropped"),
    ],
)
def test_what_only_a_notebook_has(source: str, expected: str, rule: str) -> None:
    made = python(source)
    assert made.error is None
    assert made.source == expected
    assert rule in rules(made)
    assert not made.unsupported
    assert {removal.cell for removal in made.removals} == {3}


@pytest.mark.parametrize(
    "source",
    [
        "files = !ls *.csv",
        "a, b = !head -2 x",
        "%%bash\nls | wc",
        "%%sh\nls",
        "%%writefile model.py\nx = 1",
        "%%sql\nselect 1",
        "%%R\nx <- 1",
        "%%cython\ncdef int x",
        "%cd data",
        "%run other.ipynb",
        "PATH = get_ipython().run_line_magic('env', 'PATH')",
        "files = get_ipython().getoutput('ls')",
    ],
)
def test_what_production_cannot_promise_is_refused(source: str) -> None:
    made = python(source)
    assert made.error is None
    (refusal,) = made.unsupported
    assert refusal in made.removals
    assert refusal.line == 1
    assert refusal.text in source


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("!pip install pandas", ("pandas",)),
        ("%pip install -q -U 'scikit-learn>=1.4,<2' lightgbm==4.5.0  # why", ("scikit-learn>=1.4,<2", "lightgbm==4.5.0")),
        ("!pip3 install dask[complete]==2024.1 --index-url https://example.org/simple", ("dask[complete]==2024.1",)),
        ("!{sys.executable} -m pip install a b", ("a", "b")),
        ("!python3 -m pip -q install a", ("a",)),
        ("!pip -q install a", ("a",)),
        ("!uv pip install a", ("a",)),
        ("!conda install -y -c conda-forge numpy", ("numpy",)),
        ("%conda install numpy", ("numpy",)),
        ("!pip install -r requirements.txt", ()),
        ("!pip install -e . && ls", ()),
        ("!apt-get update && pip install a==1; ls", ("a==1",)),
        ("!yes | pip install a", ("a",)),
        ("!pip install git+https://example.org/u/thing.git@v1", ("thing @ git+https://example.org/u/thing.git@v1",)),
        ("!pip install git+https://example.org/u/t.git#egg=other", ("other @ git+https://example.org/u/t.git",)),
        ("!pip install a \\\n  b \\\n  c", ("a", "b", "c")),
        ("pip install a", ("a",)),
        ("get_ipython().system('pip install a')", ("a",)),
        ("get_ipython().run_line_magic('pip', 'install a')", ("a",)),
    ],
)  # fmt: skip
def test_installs_become_requirements(command: str, expected: tuple[str, ...]) -> None:
    made = python(f"{command}\nx = 1")
    assert made.requirements == expected
    assert rules(made) == ["install-to-requirements"]
    assert made.source.split("\n")[-1] == "x = 1"


def test_a_magic_inside_a_string_or_a_bracket_stays() -> None:
    source = '!ls\ns = """\n!ls\n%time x\n>>> y\n"""\nt = (7\n%time\n)\nu = 7 \\\n%time'
    made = python(source)
    assert made.error is None
    assert made.source == source.replace("!ls", "", 1)
    assert rules(made) == ["shell-dropped"]


def test_a_magics_own_quotes_open_nothing() -> None:
    made = python("!echo 'it''s (\n%matplotlib inline\nx = 1")
    assert made.source == "\n\nx = 1"


def test_pasted_prompts_go_and_a_docstrings_stay() -> None:
    assert python(">>> x = 1\n>>> for i in y:\n...     print(i)").source == "x = 1\nfor i in y:\n    print(i)"
    assert python("In [3]: x = 1").source == "x = 1"
    docstring = 'def f():\n    """\n    >>> f()\n    ... 1\n    """\n%time f()'
    assert python(docstring).source == docstring.replace("%time f()", "f()")


def test_what_was_captured_keeps_its_name() -> None:
    made = python("%%capture out --no-stderr\nf()")
    space: dict[str, object] = {"f": list}
    exec(made.source + "\nassert out.stdout == ''\nout.show()", space)


def test_several_magics_of_one_cell() -> None:
    made = python("%%time\n%matplotlib inline\n!pip install a\nx = 1\ny?")
    assert made.source == "\n\n\nx = 1\n"
    assert [(removal.line, removal.rule) for removal in made.removals] == [
        (1, "magic-unwrapped"),
        (2, "magic-dropped"),
        (3, "install-to-requirements"),
        (5, "help-dropped"),
    ]


def test_asking_for_the_notebook_is_answered_with_none() -> None:
    made = python("if 'google.colab' in str(get_ipython()):\n    mount()")
    assert "get_ipython" not in made.source
    assert rules(made) == ["magic-replaced"]
    exec(made.source, {})


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    get_ipython().magic('x')\n    inside = True\nexcept NameError:\n    inside = False",
        "try:\n    shell = get_ipython().__class__.__name__\nexcept (NameError, ImportError):\n    shell = ''",
        "from IPython import get_ipython\nx = get_ipython()",
    ],
)
def test_a_cell_that_is_ready_for_no_notebook_is_left_alone(source: str) -> None:
    assert python(source).source == source


def test_await_at_top_level_is_seen() -> None:
    assert python("x = await f()").uses_await
    assert python("async with a as b:\n    pass").uses_await
    assert not python("async def f():\n    await g()").uses_await


@pytest.mark.parametrize(
    ("source", "line"),
    [("x = 1\ny = (\n", 2), ("for = 3", 1), ("a\n\n  b = 2 c", 3), ("health.loc[(:, 1)]", 1)],
)
def test_a_cell_that_is_no_python_says_where(source: str, line: int) -> None:
    made = python(source)
    assert made.tree is None
    assert made.error is not None
    assert made.error.lineno == line
    assert made.source == source


@pytest.mark.parametrize(
    "source", ["x = '\ud800'", "x\0y", "(" * 5000, "x = " + "-" * 20_000 + "1", "\u2028", "\x0c\n"]
)
def test_nothing_a_cell_holds_raises(source: str) -> None:
    made = python(source)
    assert (made.tree is None) == (made.error is not None)


def test_lines_stay_lines_of_the_cell() -> None:
    made = python(
        "%matplotlib inline\n!pip install a\n\ndef f():\n    %time g()\n    return 1\nfoo?\nx = f()"
    )
    assert made.tree is not None
    assert [(type(node), node.lineno) for node in made.tree.body] == [(ast.FunctionDef, 4), (ast.Assign, 8)]
