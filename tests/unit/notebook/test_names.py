"""Names a statement defines, reads, changes and deletes, with Python's scoping."""

from __future__ import annotations

import ast

import pytest

from notebooked_dagster.notebook.names import Facts, scan


def facts(source: str, **options: bool) -> Facts:
    (statement,) = ast.parse(source).body
    return scan(statement, **options)


@pytest.mark.parametrize(
    ("source", "defines", "uses"),
    [
        ("x = a + b", {"x"}, {"a", "b"}),
        ("import a.b.c", {"a"}, set()),
        ("import a.b as c", {"c"}, set()),
        ("from m import n as k", {"k"}, set()),
        ("a, (b, *c) = d", {"a", "b", "c"}, {"d"}),
        ("x += y", {"x"}, {"x", "y"}),
        ("x: T = v", {"x"}, {"T", "v"}),
        ("x: T", set(), {"T"}),
        ("for i in xs: total = total + i", {"i", "total"}, {"xs", "total"}),
        ("for i in xs:\n  y = i\n  z = y", {"i", "y", "z"}, {"xs"}),
        ("with open(p) as f: d = f.read()", {"f", "d"}, {"open", "p"}),
        ("try:\n  a = b\nexcept E as e:\n  print(e)", {"a"}, {"b", "E", "print"}),
        ("[x for x in xs if x > y]", set(), {"xs", "y"}),
        ("[x for x in x]", set(), {"x"}),
        ("[y for x in xs for y in x]", set(), {"xs"}),
        ("{k: v for k, v in d.items()}", set(), {"d"}),
        ("z = [w := i for i in xs]", {"z", "w"}, {"xs"}),
        ("if (n := f()): print(n)", {"n"}, {"f", "print"}),
        ("f'{a!r:>{w}}'", set(), {"a", "w"}),
        ("match s:\n  case {'k': v, **r}: q = v\n  case [h, *t]: pass", {"v", "r", "q", "h", "t"}, {"s"}),
        ("del a", set(), {"a"}),
        ("df.apply(lambda r: r + k)", set(), {"df", "k"}),
    ],
)
def test_defines_and_uses(source: str, defines: set[str], uses: set[str]) -> None:
    found = facts(source, shows_value=True)
    assert found.defines == defines
    assert found.uses == uses


@pytest.mark.parametrize(
    ("source", "uses", "deferred"),
    [
        (
            "def f(a, b=c, *d, e: T = g, **h) -> R:\n  return a + b + x + d + e + h",
            {"c", "g", "T", "R"},
            {"x"},
        ),
        ("@deco(arg)\ndef f():\n  y = 1\n  return y", {"deco", "arg"}, set()),
        ("def f():\n  def g():\n    return a + b\n  a = 1\n  return g", set(), {"b"}),
        ("def f():\n  x = 1\n  def g():\n    nonlocal x\n    x = 2\n  g()", set(), set()),
        ("class C(B, metaclass=M):\n  k = v\n  w = k\n  def m(self):\n    return k", {"B", "M", "v"}, {"k"}),
        ("class C:\n  def m(self):\n    return __class__", set(), {"__class__"}),
        ("f = lambda x, y=d: x + y + z", {"d"}, {"z"}),
        ("def f(x: 'Later') -> list['Other']: pass", {"list"}, {"Later", "Other"}),
        ("def f(x: Literal['no']): pass", {"Literal"}, set()),
    ],
)
def test_functions_read_later(source: str, uses: set[str], deferred: set[str]) -> None:
    found = facts(source)
    assert found.uses == uses
    assert found.deferred == deferred


@pytest.mark.parametrize(
    ("source", "mutates"),
    [
        ("df['x'] = 1", {"df"}),
        ("df.loc[m, 'x'] = 1", {"df"}),
        ("cfg.lr = 0.1", {"cfg"}),
        ("xs.append(y)", {"xs"}),
        ("df.drop('a', axis=1, inplace=True)", {"df"}),
        ("df.drop('a', axis=1, inplace=False)", set()),
        ("model.fit(X, y)", {"model"}),
        ("w.uniform_(0, 1)", {"w"}),
        ("del d['k']", {"d"}),
        ("y = df.copy()", set()),
        ("for d in (a, b):\n  d['x'] = 1", {"a", "b", "d"}),
        ("print(df.head())", set()),
    ],
)
def test_mutation(source: str, mutates: set[str]) -> None:
    assert facts(source).mutates == mutates


def test_branches_bind_for_sure_only_when_all_do() -> None:
    assert facts("if a:\n  x = 1\nelse:\n  x = 2").must == {"x"}
    assert facts("if a:\n  x = 1").must == set()
    assert facts("if a:\n  x = 1\nelse:\n  raise E").must == {"x"}
    assert facts("try:\n  import a\nexcept ImportError:\n  a = None").must == {"a"}


def test_a_training_loop_trains_the_model_and_not_the_data() -> None:
    found = facts(
        "for x, y in loader:\n  optimizer.zero_grad()\n  loss = criterion(net(x.to(device)), y)\n  loss.backward()\n  optimizer.step()"
    )
    assert {"net", "optimizer"} <= found.trains
    assert not found.trains & {"loader", "device"}


def test_global_writes_of_a_function() -> None:
    routine = facts("def f():\n  global q\n  q = p").routines["f"]
    assert routine.writes == {"q"}
    assert routine.reads == {"p"}


def test_parameters_a_function_trains() -> None:
    routine = facts("def train(net, data):\n  for b in data:\n    net.fit(b)").routines["train"]
    assert "net" in routine.trains


def test_nesting_too_deep_for_the_visitor_is_read_flat() -> None:
    found = facts("x = " + "-" * 900 + "a")
    assert "x" in found.defines
    assert "a" in found.uses
