"""What old public notebooks hold: Python 2, %pylab, blank lines before what only IPython understands."""

from __future__ import annotations

import ast

import pytest

from notebooked_dagster.notebook.magics import to_python
from notebooked_dagster.notebook.model import Cell
from notebooked_dagster.notebook.python2 import to_python3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("print x", "print(x)"),
        ("print", "print()"),
        ("print 'a %s' % b, c  # why", "print('a %s' % b, c)  # why"),
        ("print x,", 'print(x, end=" ")'),
        ("print ('%d') % x", "print(('%d') % x)"),
        ("print (x, y)\nprint z", "print (x, y)\nprint(z)"),
        ("for a in b: print a; print 2", "for a in b: print(a); print(2)"),
        ("print [1,\n  2]", "print([1,\n  2])"),
        ("import sys\nprint >> sys.stderr, x, y", "import sys\nprint(x, y, file=sys.stderr)"),
        ("print >>f", "print(file=f)"),
        ("try:\n    a\nexcept (A, B), e:\n    print e", "try:\n    a\nexcept (A, B) as e:\n    print(e)"),
        ("raise ValueError, 'no'", "raise ValueError('no')"),
        ("if a <> 5L:\n    print a", "if a != 5:\n    print(a)"),
        ("for i in xrange(3):\n    print i", "for i in range(3):\n    print(i)"),
        ("def f(x):\n    if x:\n        print 'yes'\n    else:\n        return 1", "def f(x):\n    if x:\n        print('yes')\n    else:\n        return 1"),
    ],
)  # fmt: skip
def test_statements_of_python_2(old: str, new: str) -> None:
    changed = to_python3(old)
    assert changed is not None
    assert changed[0] == new
    ast.parse(new)
    assert new.count("\n") == old.count("\n")


@pytest.mark.parametrize("source", ["x = (", "a b", "lambda (a, b): a", "'open", "x = ###"])
def test_what_is_not_python_2_is_left_alone(source: str) -> None:
    assert to_python3(source) is None


def test_a_cell_of_python_2_is_kept_and_reported() -> None:
    code = to_python(Cell(3, "code", "%matplotlib inline\nfrom sklearn import svm\nprint 'x', svm"))
    assert code.error is None
    assert code.source.split("\n")[2] == "print('x', svm)"
    (removal,) = [one for one in code.removals if one.rule == "python2-syntax"]
    assert (removal.cell, removal.line, removal.text) == (3, 3, "print 'x', svm")


def test_a_cell_that_stays_broken_is_not_half_rewritten() -> None:
    code = to_python(Cell(0, "code", "print x\nfor = 3"))
    assert code.error is not None
    assert code.source == "print x\nfor = 3"
    assert not code.removals


def test_pylab_is_the_imports_that_it_makes() -> None:
    code = to_python(Cell(0, "code", "%pylab inline\nx = linspace(0, 1)"))
    assert code.error is None
    assert "from pylab import *" in code.source.split("\n")[0]
    assert code.source.split("\n")[1] == "x = linspace(0, 1)"


def test_ipythons_transformation_keeps_lines_where_they_are() -> None:
    code = to_python(Cell(0, "code", "%matplotlib inline\n\nx = 1\nfiles = !ls\nprint x"))
    assert code.source.split("\n")[2] == "x = 1"
    assert code.source.split("\n")[4] == "print(x)"
