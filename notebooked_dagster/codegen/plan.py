"""Decide where each statement of the training slice goes. A plan is a value: nothing is written here.

The notebook has one namespace; the scripts have functions and two modules. What makes them mean the same:

- Imports go to the top of ``preprocess.py``, and ``train.py`` imports the names from there.
- A function or class moves to module level when nothing it needs *at its definition* is made by a stage. It goes into
  ``preprocess.py`` unless what it reads *when called* is made by training.
- Names that a stage makes and such a function reads, or that shadow an import or a builtin, are declared ``global`` in
  the stage's function. All others are ordinary locals, handed on as arguments and return values.
"""

from __future__ import annotations

import ast
import builtins
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from notebooked_dagster.notebook.model import Analysis, Role, Slice, Stage, Statement

_FIRST = frozenset({Role.IMPORTS, Role.PARAMETERS, Role.UTILS, Role.PREPROCESS, Role.REQUIREMENTS})
_TRAINING = frozenset({Role.MODEL, Role.TRAIN})
_BUILTINS = frozenset(dir(builtins))
_REFLECTION = frozenset({"globals", "locals", "vars", "exec", "eval"})
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Function:
    """A function made of a stage's statements.

    Attributes:
        name: ``preprocess``, ``train`` or ``evaluate``, or another where the notebook uses that name itself.
        statements: In notebook order.
        parameters: Names it takes, sorted.
        returns: Names it returns, sorted.
        globals: Names it assigns at module level, sorted.
    """

    name: str
    statements: tuple[Statement, ...]
    parameters: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    globals: tuple[str, ...] = ()


@dataclass(slots=True)
class Plan:
    """Where everything goes.

    Attributes:
        imports: Import statements for the top of ``preprocess.py``.
        constants: Hyperparameter statements, taken out of the stages.
        shared: Definitions at module level of ``preprocess.py``.
        training: Definitions at module level of ``train.py``.
        preprocess: The preprocessing function.
        train: The training function.
        evaluate: The measuring function.
        made: Names any stage function binds.
        uses_await: Whether a stage awaits at top level.
    """

    imports: tuple[Statement, ...] = ()
    constants: tuple[Statement, ...] = ()
    shared: tuple[Statement, ...] = ()
    training: tuple[Statement, ...] = ()
    preprocess: Function = field(default_factory=lambda: Function("preprocess", ()))
    train: Function = field(default_factory=lambda: Function("train", ()))
    evaluate: Function = field(default_factory=lambda: Function("evaluate", ()))
    made: frozenset[str] = frozenset()
    uses_await: bool = False
    has_star: bool = False

    def shared_names(self) -> list[str]:
        """What ``preprocess.py`` has at module level before anything runs."""
        return bound(self.imports + self.constants + self.shared)


def make_plan(
    analysis: Analysis,
    statements: Sequence[Statement],
    constants: Sequence[Statement],
    wanted: Iterable[str],
    taken: frozenset[str],
) -> Plan:
    """Place statements.

    Args:
        analysis: For which cells await.
        statements: What the scripts are made of, in notebook order, without ``constants``.
        constants: Hyperparameter statements.
        wanted: Names that must come out of the stages whatever else: the model, what inference reads.
        taken: Names the notebook binds; our own functions avoid them.
    """
    moving = _movable_imports(statements)
    imports = [statement for statement in statements if statement.key in moving]
    rest = [statement for statement in statements if statement.key not in moving]
    shared, training, left = _hoist(rest, imports, constants)
    groups = _grouped(left)
    plan = Plan(imports=tuple(imports), constants=tuple(constants), shared=shared, training=training)
    plan.has_star = any(statement.star_imports for statement in imports)
    plan.made = frozenset(bound(left))
    awaiting = {code.cell.index for code in analysis.code if code.uses_await}
    plan.uses_await = any(_awaits(statement) for statement in left if statement.cell in awaiting)
    _connect(plan, groups, frozenset(wanted), taken)
    return plan


def is_import(statement: Statement) -> bool:
    """Whether it is an import, or a ``try``/``if`` that does nothing but import."""
    return _only_imports(statement.node)


def _movable_imports(statements: Sequence[Statement]) -> set[tuple[int, int]]:
    """Imports that mean the same at the top: not those that rebind a name something before them has bound otherwise."""
    bound_by: dict[str, str] = {}
    moving: set[tuple[int, int]] = set()
    for statement in statements:
        if not is_import(statement):
            bound_by.update(dict.fromkeys(statement.defines, ""))
            continue
        meant = _import_targets(statement.node)
        if all(bound_by.get(name, target) == target for name, target in meant.items()):
            moving.add(statement.key)
        bound_by.update(meant)
    return moving


def _import_targets(node: ast.stmt) -> dict[str, str]:
    """What each name of an import stands for; nothing where it depends (``try``)."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name
            if alias.asname
            else alias.name.partition(".")[0]
            for alias in node.names
        }
    if isinstance(node, ast.ImportFrom):
        return {
            alias.asname or alias.name: f"{node.module or ''}.{alias.name}"
            for alias in node.names
            if alias.name != "*" and node.module != "__future__"
        }
    return {}


def _only_imports(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Try):
        parts = [*node.body, *node.orelse, *node.finalbody]
        parts += [inner for handler in node.handlers for inner in handler.body]
        return all(_only_imports(part) or isinstance(part, ast.Pass) for part in parts) and any(
            _only_imports(part) for part in node.body
        )
    return False


def _hoist(
    rest: Sequence[Statement], imports: Sequence[Statement], constants: Sequence[Statement]
) -> tuple[tuple[Statement, ...], tuple[Statement, ...], list[Statement]]:
    """Definitions that can stand at module level, apart from those that must stay where they are."""
    times = Counter(name for statement in (*rest, *imports) for name in statement.defines)
    definitions = {statement.key: statement for statement in rest if isinstance(statement.node, Definition)}
    made = {name for statement in rest if statement.key not in definitions for name in statement.defines} | {
        name for statement in rest for name in statement.deletes
    }
    staying: set[tuple[int, int]] = {
        key
        for key, statement in definitions.items()
        if any(times[name] > 1 for name in statement.defines) or statement.uses & made
    }
    # Whoever is built from what stays, stays as well.
    while True:
        held = {name for key in staying for name in definitions[key].defines}
        more = {key for key, statement in definitions.items() if key not in staying and statement.uses & held}
        if not more:
            break
        staying |= more
    hoisted = [statement for key, statement in definitions.items() if key not in staying]
    late = {
        name
        for statement in rest
        if statement.key not in definitions or statement.key in staying
        if statement.role in _TRAINING or statement.role is Role.EVALUATE
        for name in statement.defines
    } - {
        name
        for statement in rest
        if (statement.key not in definitions or statement.key in staying) and statement.role in _FIRST
        for name in statement.defines
    }
    early_calls = {
        name for statement in rest if statement.role in _FIRST for name in statement.uses | statement.deferred
    }
    in_train: set[tuple[int, int]] = set()
    while True:
        held = {name for statement in hoisted if statement.key in in_train for name in statement.defines}
        more = {
            statement.key
            for statement in hoisted
            if statement.key not in in_train
            and (statement.deferred | statement.uses) & (late | held)
            and not statement.defines & early_calls
        }
        if not more:
            break
        in_train |= more
    ordered = _by_need(hoisted)
    left = [statement for statement in rest if statement.key not in definitions or statement.key in staying]
    return (
        tuple(statement for statement in ordered if statement.key not in in_train),
        tuple(statement for statement in ordered if statement.key in in_train),
        left,
    )


def _by_need(definitions: Sequence[Statement]) -> list[Statement]:
    """Notebook order, but what is needed at a definition (a base class, a decorator) comes before it."""
    by_name = {name: statement for statement in definitions for name in statement.defines}
    done: dict[tuple[int, int], Statement] = {}

    def place(statement: Statement, above: frozenset[tuple[int, int]]) -> None:
        if statement.key in done or statement.key in above:
            return
        for name in sorted(statement.uses):
            needed = by_name.get(name)
            if needed is not None:
                place(needed, above | {statement.key})
        done[statement.key] = statement

    for statement in definitions:
        place(statement, frozenset())
    return list(done.values())


def _grouped(left: Sequence[Statement]) -> tuple[list[Statement], list[Statement], list[Statement]]:
    first: list[Statement] = []
    last: list[Statement] = []
    training: list[Statement] = []
    for statement in left:
        if statement.role is Role.EVALUATE:
            last.append(statement)
        elif statement.role in _FIRST and not (is_import(statement) and _rebinds(statement, training)):
            first.append(statement)
        else:
            training.append(statement)
    return first, training, last


def _rebinds(statement: Statement, earlier: Sequence[Statement]) -> bool:
    """Whether an import takes a name over from what runs before it: it has to run after that."""
    return any(statement.defines & (other.defines | other.uses) for other in earlier)


def _connect(
    plan: Plan,
    groups: tuple[list[Statement], list[Statement], list[Statement]],
    wanted: frozenset[str],
    taken: frozenset[str],
) -> None:
    """Work out arguments, return values and globals of the three functions."""
    definitions = (*plan.shared, *plan.training)
    read_later = frozenset(name for statement in definitions for name in statement.deferred)
    made = [frozenset(bound(group)) for group in groups]
    used = [_reads(group) for group in groups]
    module_level = frozenset(plan.shared_names()) | frozenset(bound(plan.training))
    names = [_free_name(name, taken) for name in ("preprocess", "train", "evaluate")]
    functions: list[Function] = []
    for index, group in enumerate(groups):
        before = frozenset[str]().union(*made[:index])
        after = frozenset[str]().union(*used[index + 1 :])
        in_train = frozenset(
            name for statement in plan.training for name in statement.deferred | statement.uses
        )
        reflective = any(_reflects(statement) for statement in group)
        needs_global = frozenset(
            name
            for name in made[index]
            if name in read_later or name in module_level or reflective or _unbound_first(name, group, before)
        )
        # A name that other functions read from the module comes in through the module, not as an argument.
        comes_in = (used[index] & before) - (read_later & (before | made[index]))
        needs_global |= frozenset(name for name in comes_in if name in needs_global)
        parameters = comes_in - needs_global
        going = made[index] & (after | wanted | (in_train if index == 0 else frozenset()))
        functions.append(
            Function(
                names[index],
                tuple(group),
                tuple(sorted(parameters)),
                tuple(sorted(going - _deleted_last(group))),
                tuple(sorted(needs_global)),
            )
        )
    plan.preprocess, plan.train, plan.evaluate = functions


def _reads(group: Sequence[Statement]) -> frozenset[str]:
    return frozenset(
        name for statement in group for name in (statement.uses | statement.deferred | statement.mutates)
    )


def bound(statements: Iterable[Statement]) -> list[str]:
    """The names statements bind, in order, each once."""
    return list(dict.fromkeys(name for statement in statements for name in sorted(statement.defines)))


def _deleted_last(group: Sequence[Statement]) -> frozenset[str]:
    gone: set[str] = set()
    for statement in group:
        gone -= statement.defines
        gone |= statement.deletes
    return frozenset(gone)


def _unbound_first(name: str, group: Sequence[Statement], before: frozenset[str]) -> bool:
    """Whether a function would read ``name`` before it binds it, so that it must be the module's name."""
    if name in before:
        return False
    for statement in group:
        if name in statement.uses and (name in _BUILTINS or name not in statement.defines):
            return True
        if name in statement.defines:
            return name in _BUILTINS and name in statement.uses
    return False


def _reflects(statement: Statement) -> bool:
    return bool(statement.uses & _REFLECTION) and any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _REFLECTION
        for node in ast.walk(statement.node)
    )


def _awaits(statement: Statement) -> bool:
    waiting: list[ast.AST] = [statement.node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith):
            return True
        if not isinstance(node, Definition | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _free_name(name: str, taken: frozenset[str]) -> str:
    return name if name not in taken else f"run_{name}"


def training_statements(analysis: Analysis) -> list[Statement]:
    """What the scripts are made of, in notebook order: the train slice, and preprocessing where nothing trains."""
    part: Slice | None = analysis.slices.get(Stage.TRAIN)
    if part is not None and part.own:
        return list(part.statements)
    found: dict[tuple[int, int], Statement] = {}
    for stage in (Stage.PREPROCESS, Stage.MODEL):
        part = analysis.slices.get(stage)
        for statement in part.statements if part is not None else ():
            found[statement.key] = statement
    return [found[key] for key in sorted(found)]
