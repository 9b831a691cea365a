"""What a statement does to names: one pass over its AST, with Python's scoping.

:func:`scan` is given a top-level statement of a cell and answers with :class:`Facts`: what it binds, reads, changes and
deletes at notebook level when it runs, what the functions it defines will read when they are called, what it calls.

The visitor keeps a chain of scopes. In the notebook's own scope reading and binding happen in order, so a name that
the statement surely bound before it reads it is nobody else's business. In functions, binding anywhere in the body
makes a name local, so reads are settled when the body ends. Class bodies run at once and are invisible to the functions
in them; the first iterable of a comprehension is evaluated outside it; ``:=`` binds outside it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .calls import MUTATING_METHODS, PURE_METHODS, TRAINING_METHODS

_MODULE, _FUNCTION, _CLASS, _INLINE = range(4)
#: Methods that name their object alone: what reached it went through a hand-written loop that is looked at as a whole.
_OF_A_LOOP = frozenset({"step", "backward", "apply_gradients", "minimize"})
#: Receivers of these are learned things (or hold one) inside a hand-written training loop.
_LOOP_METHODS = frozenset(
    [
        "train",
        "eval",
        "zero_grad",
        "step",
        "parameters",
        "fit",
        "backward",
        "update",
        "state_dict",
        "load_state_dict",
        "trainable_variables",
        "trainable_weights",
        "apply_gradients",
        "zero_",
        "minimize",
        "train_on_batch",
        "partial_fit",
    ]
)


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        name: As written, dotted; a call or a subscript in the chain leaves ``()`` or ``[]`` (``sm.OLS().fit``).
        root: The name the chain starts at; None for ``(a or b).fit()``.
        node: Its AST.
        discarded: Whether it is an expression statement: nobody takes the result.
    """

    name: str
    root: str | None
    node: ast.Call
    discarded: bool = False

    @property
    def method(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(slots=True)
class Routine:
    """A function or class that a statement defines, as its callers see it.

    Attributes:
        name: Its name.
        params: Its positional parameters in order; empty for a class.
        keywords: All its parameters, keyword-only ones included.
        is_class: Whether it is a class: then its methods are taken together.
        bases: Dotted names of a class's bases.
        reads: Notebook-level names it (and what is nested in it) reads when called.
        writes: Notebook-level names it binds when called (``global``).
        mutates: Parameters and notebook-level names whose objects it changes.
        trains: Those of them it changes as training does.
        calls: What it calls.
        returns_value: Whether a ``return`` with a value is in it.
    """

    name: str
    params: tuple[str, ...] = ()
    keywords: frozenset[str] = frozenset()
    is_class: bool = False
    bases: tuple[str, ...] = ()
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    mutates: set[str] = field(default_factory=set)
    trains: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    returns_value: bool = False


_CALLED_IN_TEXT = re.compile(r"(?<![\w.])([A-Za-z_]\w*)(?=[.(])")
_AT_NAME = re.compile(r"@([A-Za-z_]\w*)")


@dataclass(slots=True)
class Facts:
    """What :func:`scan` found out about one statement.

    Attributes:
        defines: Names it may bind at notebook level.
        must: Those it surely binds: they replace what was there.
        uses: Names it reads from what came before.
        deferred: Names that what it defines reads when called.
        mutates: Names whose objects it changes in place.
        trains: Those it changes as training does.
        deletes: Names it deletes.
        stars: Modules it star-imports.
        imports: Local name to what it stands for (``np`` -> ``numpy``, ``SVC`` -> ``sklearn.svm.SVC``).
        modules: All modules it imports, for imports that matter by being made.
        calls: Calls made when it runs.
        routines: Functions and classes it defines at notebook level.
        aliases: Name bound here -> names whose objects it may be (part of).
        holds: Name bound here -> names whose objects it was made from.
        attributes: Dotted names read or written at notebook level that are not called (``results.params``).
        stored: Dotted targets of attribute and subscript assignments (``os.environ[]``).
        texts: String constants, shortened to short ones: file names.
        named: Names that a formula in a string calls.
        coarse: Whether nesting was too deep for the visitor and this is a flat approximation.
    """

    defines: set[str] = field(default_factory=set)
    must: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)
    deferred: set[str] = field(default_factory=set)
    mutates: set[str] = field(default_factory=set)
    trains: set[str] = field(default_factory=set)
    deletes: set[str] = field(default_factory=set)
    stars: list[str] = field(default_factory=list)
    imports: dict[str, str] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    routines: dict[str, Routine] = field(default_factory=dict)
    aliases: dict[str, set[str]] = field(default_factory=dict)
    holds: dict[str, set[str]] = field(default_factory=dict)
    attributes: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    coarse: bool = False


class _Scope:
    """One scope while it is being visited."""

    __slots__ = (
        "aliases", "binds", "called", "calls", "global_names", "holds", "kind", "looped", "methods", "mutated", "outer", "parent",
        "reads", "returns", "trained",
    )  # fmt: skip

    def __init__(self, kind: int, parent: _Scope | None) -> None:
        self.kind = kind
        self.parent = parent
        self.binds: set[str] = set()
        self.reads: set[str] = set()
        self.global_names: set[str] = set()
        self.outer: set[str] = set()
        self.aliases: dict[str, set[str]] = {}
        self.holds: dict[str, set[str]] = {}
        self.mutated: set[str] = set()
        self.trained: set[str] = set()
        self.looped: set[str] = set()
        self.called: set[str] = set()
        self.methods: dict[str, set[str]] = {}
        self.calls: list[Call] = []
        self.returns = False


def scan(statement: ast.stmt, *, shows_value: bool = False) -> Facts:
    """Find out what ``statement`` does to names.

    Args:
        statement: A top-level statement of a cell.
        shows_value: Whether it is the last of its cell: an expression there is shown, not thrown away.
    """
    try:
        return _Visitor().run(statement, shows_value=shows_value)
    except RecursionError:
        return _flat(statement)


def dotted_name(node: ast.AST) -> tuple[str, str | None]:
    """The dotted form of an expression and the name it starts at; ``("", None)`` where it has no such form."""
    parts: list[str] = []
    suffix = ""
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr + suffix)
            suffix = ""
            node = node.value
        elif isinstance(node, ast.Name):
            parts.append(node.id + suffix)
            parts.reverse()
            return ".".join(parts), node.id
        elif isinstance(node, ast.Call):
            suffix = "()" + suffix
            node = node.func
        elif isinstance(node, ast.Subscript):
            suffix = "[]" + suffix
            node = node.value
        elif isinstance(node, ast.Await | ast.Starred):
            node = node.value
        else:
            parts.reverse()
            return ".".join(["", *parts]) if parts else "", None


def _flat(statement: ast.stmt) -> Facts:
    """Facts without scopes, for nesting that no recursive visitor survives. Errs on the side of reading too much."""
    facts = Facts(coarse=True)
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            (facts.uses if isinstance(node.ctx, ast.Load) else facts.defines).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            facts.defines.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            facts.defines.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    facts.defines.discard("*")
    facts.must = set(facts.defines)
    return facts


class _Visitor:
    """Visits one statement. Dispatches on the node's class through one dict; no generic traversal of the usual nodes."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.scope = _Scope(_MODULE, None)
        self.dispatch: dict[type[ast.AST], Callable[[ast.AST], None]] = {}
        self._bound = _HANDLERS

    def run(self, statement: ast.stmt, *, shows_value: bool) -> Facts:
        facts, scope = self.facts, self.scope
        if isinstance(statement, ast.Expr):
            self._discarded(statement.value, shown=shows_value)
        else:
            self.visit(statement)
        self._training_loop(scope)
        external = facts.uses | facts.defines
        facts.calls = scope.calls
        facts.aliases = scope.aliases
        facts.holds = scope.holds
        facts.trains = _trained(scope) & external
        facts.mutates = (_reach(scope.mutated, scope.aliases) | facts.trains) & external
        facts.uses |= facts.mutates - facts.must - facts.defines
        return facts

    def visit(self, node: ast.AST) -> None:
        handler = self._bound.get(node.__class__)
        if handler is not None:
            handler(self, node)
            return
        for name in node._fields:
            value = getattr(node, name, None)
            if value.__class__ is list:
                for item in value:
                    if isinstance(item, ast.AST):
                        self.visit(item)
            elif isinstance(value, ast.AST):
                self.visit(value)

    def visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    # --- names ---------------------------------------------------------------------------------------------------

    def read(self, name: str) -> None:
        scope: _Scope | None = self.scope
        while scope is not None:
            kind = scope.kind
            if kind == _FUNCTION:
                scope.reads.add(name)
                return
            if kind == _MODULE:
                if name not in self.facts.must:
                    self.facts.uses.add(name)
                return
            if name in scope.binds:
                return
            scope = scope.parent

    def bind(self, name: str, *, walrus: bool = False) -> None:
        scope = self.scope
        if walrus:
            while scope.kind == _INLINE and scope.parent is not None:
                scope = scope.parent
        if scope.kind == _MODULE:
            self.facts.defines.add(name)
            self.facts.must.add(name)
            return
        scope.binds.add(name)
        if scope.kind == _CLASS and name in scope.global_names:
            self.facts.defines.add(name)

    def _name(self, node: ast.Name) -> None:
        if node.ctx.__class__ is ast.Load:
            self.read(node.id)
        elif node.ctx.__class__ is ast.Store:
            self.bind(node.id)
        else:
            self._delete_name(node.id)

    def _delete_name(self, name: str) -> None:
        self.read(name)
        if self.scope.kind == _MODULE:
            if name in self.facts.must:
                self.facts.must.discard(name)
                self.facts.defines.discard(name)
            self.facts.deletes.add(name)
        else:
            self.scope.binds.add(name)

    def _named_expr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.bind(node.target.id, walrus=True)
        self._link([node.target], node.value)

    def _global(self, node: ast.Global) -> None:
        self.scope.global_names.update(node.names)

    def _nonlocal(self, node: ast.Nonlocal) -> None:
        self.scope.outer.update(node.names)

    # --- targets and links ---------------------------------------------------------------------------------------

    def _target(self, node: ast.expr) -> None:
        kind = node.__class__
        if kind is ast.Name:
            self.bind(node.id)  # type: ignore[attr-defined]
        elif kind is ast.Tuple or kind is ast.List:
            for item in node.elts:  # type: ignore[attr-defined]
                self._target(item)
        elif kind is ast.Starred:
            self._target(node.value)  # type: ignore[attr-defined]
        else:
            dotted, root = dotted_name(node)
            if kind is ast.Subscript:
                self.visit(node.value)  # type: ignore[attr-defined]
                self.visit(node.slice)  # type: ignore[attr-defined]
            else:
                self.visit(node.value)  # type: ignore[attr-defined]
            if root is not None:
                self._mutate(root)
            if self.scope.kind == _MODULE and dotted:
                self.facts.stored.append(dotted)

    def _mutate(self, name: str, *, training: bool = False) -> None:
        scope = self._effect_scope()
        scope.mutated.add(name)
        if training:
            scope.trained.add(name)

    def _effect_scope(self) -> _Scope:
        """Where effects are noted: the innermost function, else the statement."""
        scope = self.scope
        while scope.kind in (_INLINE, _CLASS) and scope.parent is not None:
            scope = scope.parent
        return scope

    def _link(self, targets: Iterable[ast.expr], value: ast.expr | None) -> None:
        if value is None:
            return
        scope = self._effect_scope()
        target_list = list(targets)
        if (
            len(target_list) == 1
            and isinstance(target_list[0], ast.Tuple)
            and isinstance(value, ast.Tuple)
            and len(target_list[0].elts) == len(value.elts)
        ):
            for target, item in zip(target_list[0].elts, value.elts, strict=True):
                self._link([target], item)
            return
        aliases, holds = _sources(value)
        if not aliases and not holds:
            return
        for target in target_list:
            for name in _target_names(target):
                if aliases:
                    scope.aliases.setdefault(name, set()).update(aliases - {name})
                if holds:
                    scope.holds.setdefault(name, set()).update(holds - {name})

    # --- statements ----------------------------------------------------------------------------------------------

    def _assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Lambda):
            self._lambda(node.value, kept=True)
        else:
            self.visit(node.value)
        for target in node.targets:
            self._target(target)
        self._link(node.targets, node.value)

    def _aug_assign(self, node: ast.AugAssign) -> None:
        target = node.target
        if isinstance(target, ast.Name):
            self.read(target.id)
            self.visit(node.value)
            self._mutate(target.id)
            self.bind(target.id)
        else:
            self.visit(node.value)
            self._target(target)

    def _ann_assign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self._target(node.target)
            self._link([node.target], node.value)
        elif isinstance(node.target, ast.Name) and self.scope.kind == _FUNCTION:
            self.bind(node.target.id)

    def _annotation(self, node: ast.expr | None) -> None:
        if node is None:
            return
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                self._string_annotation(node.value)
            return
        if isinstance(node, ast.Subscript):
            dotted, _ = dotted_name(node.value)
            self.visit(node.value)
            if dotted.rpartition(".")[2] != "Literal":
                self._annotation(node.slice)
            return
        if isinstance(node, ast.Tuple | ast.List):
            for item in node.elts:
                self._annotation(item)
            return
        if isinstance(node, ast.BinOp):
            self._annotation(node.left)
            self._annotation(node.right)
            return
        self.visit(node)

    def _string_annotation(self, text: str) -> None:
        """Names in a forward reference: read when somebody asks for the hints, so later."""
        try:
            tree = ast.parse(text, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        self.facts.deferred.update(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))

    def _delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name | ast.Tuple | ast.List):
                self.visit(target)
            else:
                self._target(target)

    def _expr(self, node: ast.Expr) -> None:
        self._discarded(node.value, shown=False)

    def _discarded(self, value: ast.expr, *, shown: bool) -> None:
        inner = value.value if isinstance(value, ast.Await) else value
        if isinstance(inner, ast.Call):
            self._call(inner, discarded=True, shown=shown)
        else:
            self.visit(value)

    def _return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.visit(node.value)
            self._effect_scope().returns = True

    def _import(self, node: ast.Import) -> None:
        module = self.scope.kind == _MODULE
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            plain = alias.asname is not None or "." not in alias.name
            self.bind(name)
            if module:
                self.facts.modules.append(alias.name)
                self.facts.imports[name] = alias.name if plain else name
                if not plain:
                    # ``import a.b`` adds to what the name ``a`` already offers; it replaces nothing.
                    self.facts.must.discard(name)

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        top = self.scope.kind == _MODULE
        if top:
            self.facts.modules.append(module)
        for alias in node.names:
            if alias.name == "*":
                self.facts.stars.append(module)
                continue
            name = alias.asname or alias.name
            self.bind(name)
            if top:
                self.facts.imports[name] = f"{module}.{alias.name}"

    def _if(self, node: ast.If) -> None:
        self.visit(node.test)
        self._branches([node.body, node.orelse])

    def _branches(self, bodies: list[list[ast.stmt]], *, start: set[str] | None = None) -> None:
        """Visit bodies of which exactly one runs; what all of them bind is surely bound."""
        if self.scope.kind != _MODULE:
            for body in bodies:
                self.visit_all(body)
            return
        before = set(self.facts.must if start is None else start)
        results: list[set[str]] = []
        for body in bodies:
            self.facts.must = set(before)
            self.visit_all(body)
            if not (body and isinstance(body[-1], ast.Raise | ast.Continue | ast.Break)):
                results.append(self.facts.must)
        self.facts.must = set.intersection(*results) if results else before

    def _for(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._target(node.target)
        self._link([node.target], node.iter)
        # A loop is taken to run at least once: what its body binds is there afterwards.
        self.visit_all(node.body)
        self.visit_all(node.orelse)

    def _while(self, node: ast.While) -> None:
        self.visit(node.test)
        self.visit_all(node.body)
        self.visit_all(node.orelse)

    def _try(self, node: ast.Try) -> None:
        if self.scope.kind != _MODULE:
            self.visit_all(node.body)
            self.visit_all(node.handlers)
            self.visit_all(node.orelse)
            self.visit_all(node.finalbody)
            return
        before = set(self.facts.must)
        self.visit_all(node.body)
        self.visit_all(node.orelse)
        results = [self.facts.must]
        for handler in node.handlers:
            self.facts.must = set(before)
            self.visit(handler)
            if not (handler.body and isinstance(handler.body[-1], ast.Raise)):
                results.append(self.facts.must)
        self.facts.must = set.intersection(*results)
        self.visit_all(node.finalbody)

    def _except(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self.visit(node.type)
        if node.name is None:
            self.visit_all(node.body)
            return
        known = self.scope.kind == _MODULE and node.name in self.facts.defines
        self.bind(node.name)
        self.visit_all(node.body)
        if self.scope.kind == _MODULE:
            # Python deletes the name when the handler ends.
            self.facts.must.discard(node.name)
            if not known:
                self.facts.defines.discard(node.name)

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self._target(item.optional_vars)
                self._link([item.optional_vars], item.context_expr)
        self.visit_all(node.body)

    def _match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        before = set(self.facts.must)
        for case in node.cases:
            self.visit(case.pattern)
            if case.guard is not None:
                self.visit(case.guard)
            self.visit_all(case.body)
            if self.scope.kind == _MODULE:
                self.facts.must = set(before)

    def _match_as(self, node: ast.MatchAs) -> None:
        if node.pattern is not None:
            self.visit(node.pattern)
        if node.name is not None:
            self.bind(node.name)

    def _match_star(self, node: ast.MatchStar) -> None:
        if node.name is not None:
            self.bind(node.name)

    def _match_mapping(self, node: ast.MatchMapping) -> None:
        self.visit_all(node.keys)
        self.visit_all(node.patterns)
        if node.rest is not None:
            self.bind(node.rest)

    def _type_alias(self, node: ast.AST) -> None:
        self.bind(node.name.id)  # type: ignore[attr-defined]
        self._function_like([], lambda: self.visit(node.value), (), node)  # type: ignore[attr-defined]

    # --- functions and classes -----------------------------------------------------------------------------------

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit_all(node.decorator_list)
        arguments = node.args
        self.visit_all(arguments.defaults)
        self.visit_all(arguments.kw_defaults)
        params = _parameters(arguments)
        type_params = getattr(node, "type_params", ())
        with_types = self._type_params(type_params)
        for argument in params:
            self._annotation(argument.annotation)
        self._annotation(node.returns)
        self._close_type_params(with_types)
        top = self.scope.kind == _MODULE
        self.bind(node.name)
        scope = self._function_like(
            [argument.arg for argument in params], lambda: self.visit_all(node.body), type_params, node
        )
        if top:
            positional = tuple(argument.arg for argument in [*arguments.posonlyargs, *arguments.args])
            self.facts.routines[node.name] = _routine(node.name, positional, params, scope)

    def _lambda(self, node: ast.Lambda, *, kept: bool = False) -> None:
        self.visit_all(node.args.defaults)
        self.visit_all(node.args.kw_defaults)
        params = _parameters(node.args)
        scope = self._function_like(
            [argument.arg for argument in params], lambda: self.visit(node.body), (), node
        )
        if not kept:
            # ``df.apply(lambda …)``: whoever was handed it calls it, most likely now.
            for name in sorted(scope.reads):
                self.read(name)

    def _function_like(
        self, params: list[str], body: Callable[[], None], type_params: Iterable[ast.AST], node: ast.AST
    ) -> _Scope:
        """Visit a body that runs later, then hand what it leaves open to the scope around it."""
        outer = self.scope
        scope = self.scope = _Scope(_FUNCTION, outer)
        scope.binds.update(params)
        scope.binds.update(getattr(parameter, "name", "") for parameter in type_params)
        try:
            body()
        finally:
            self.scope = outer
        self._training_loop(scope)
        local = scope.binds - scope.global_names - scope.outer
        free = (scope.reads | scope.outer) - local
        written = scope.global_names & (scope.binds | scope.mutated)
        self._hand_up(outer, scope, free, local)
        scope.reads = free
        scope.outer = written
        if written:
            self._global_writes(written)
        return scope

    def _hand_up(self, outer: _Scope, scope: _Scope, free: set[str], local: set[str]) -> None:
        target: _Scope | None = outer
        while target is not None and target.kind != _FUNCTION:
            if target.kind == _INLINE:
                free = free - target.binds
            target = target.parent
        if target is None:
            self.facts.deferred.update(free)
            return
        target.reads.update(free)
        # A nested function is as good as called by the function around it.
        target.mutated.update(_reach(scope.mutated, scope.aliases) - local)
        target.trained.update(_trained(scope) - local)
        target.calls.extend(scope.calls)

    def _global_writes(self, names: set[str]) -> None:
        scope: _Scope | None = self.scope
        while scope is not None and scope.kind != _FUNCTION:
            scope = scope.parent
        if scope is not None:
            scope.global_names.update(names)
            scope.mutated.update(names)

    def _type_params(self, type_params: Iterable[ast.AST]) -> bool:
        names = {getattr(parameter, "name", "") for parameter in type_params}
        if not names:
            return False
        self.scope = _Scope(_INLINE, self.scope)
        self.scope.binds.update(names)
        for parameter in type_params:
            for part in ("bound", "default_value"):
                child = getattr(parameter, part, None)
                if child is not None:
                    self.visit(child)
        return True

    def _close_type_params(self, opened: bool) -> None:
        if opened and self.scope.parent is not None:
            self.scope = self.scope.parent

    def _class(self, node: ast.ClassDef) -> None:
        self.visit_all(node.decorator_list)
        type_params = getattr(node, "type_params", ())
        opened = self._type_params(type_params)
        self.visit_all(node.bases)
        for keyword in node.keywords:
            self.visit(keyword.value)
        outer = self.scope
        self.scope = _Scope(_CLASS, outer)
        deferred_before = self.facts.deferred
        top = (outer.parent.kind if opened and outer.parent else outer.kind) == _MODULE
        methods: list[_Scope] = []
        if top:
            self.facts.deferred = set()
        try:
            for child in node.body:
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    methods.append(self._method(child))
                else:
                    self.visit(child)
        finally:
            self.scope = outer
        self._close_type_params(opened)
        if top:
            self.facts.routines[node.name] = _class_routine(node, methods, self.facts.deferred)
            # The class's own name is known to its methods by the time they run.
            self.facts.deferred = deferred_before | self.facts.deferred
        self.bind(node.name)

    def _method(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> _Scope:
        self.visit_all(node.decorator_list)
        self.visit_all(node.args.defaults)
        self.visit_all(node.args.kw_defaults)
        params = _parameters(node.args)
        type_params = getattr(node, "type_params", ())
        opened = self._type_params(type_params)
        for argument in params:
            self._annotation(argument.annotation)
        self._annotation(node.returns)
        self._close_type_params(opened)
        self.bind(node.name)
        return self._function_like(
            [argument.arg for argument in params], lambda: self.visit_all(node.body), type_params, node
        )

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        first = node.generators[0]
        self.visit(first.iter)
        outer = self.scope
        self.scope = _Scope(_INLINE, outer)
        try:
            for index, generator in enumerate(node.generators):
                if index:
                    self.visit(generator.iter)
                self._target(generator.target)
                self.visit_all(generator.ifs)
            if isinstance(node, ast.DictComp):
                self.visit(node.key)
                self.visit(node.value)
            else:
                self.visit(node.elt)
        finally:
            self.scope = outer

    # --- expressions ---------------------------------------------------------------------------------------------

    def _constant(self, node: ast.Constant) -> None:
        if node.value.__class__ is not str:
            return
        if len(node.value) < 200 and self.scope.kind != _FUNCTION:
            self.facts.texts.append(node.value)
        if "~" in node.value and "(" in node.value:
            # A formula of statsmodels or patsy calls functions of the notebook by name.
            self.facts.named |= set(_CALLED_IN_TEXT.findall(node.value))

    def _expression_text(self, node: ast.Call) -> None:
        """``df.query("age > @limit")`` reads ``limit`` where it is called."""
        texts = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "expr")]
        for text in texts:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                for name in _AT_NAME.findall(text.value):
                    self.read(name)

    def _attribute(self, node: ast.Attribute) -> None:
        value = node.value
        if value.__class__ is ast.Name:
            self.read(value.id)
        else:
            self.visit(value)
        if self.scope.kind != _FUNCTION:
            dotted, root = dotted_name(node)
            if root is not None:
                self.facts.attributes.append(dotted)

    def _call_node(self, node: ast.Call) -> None:
        self._call(node)

    def _call(self, node: ast.Call, *, discarded: bool = False, shown: bool = False) -> None:
        function = node.func
        name, root = dotted_name(function)
        scope = self._effect_scope()
        call = Call(name, root, node, discarded)
        scope.calls.append(call)
        if isinstance(function, ast.Attribute):
            self._method_call(call, function, scope, discarded=discarded and not shown)
            if function.attr in ("query", "eval"):
                self._expression_text(node)
            value = function.value
            if value.__class__ is ast.Name:
                self.read(value.id)
            else:
                self.visit(value)
        elif isinstance(function, ast.Name):
            scope.called.add(function.id)
            self.read(function.id)
        else:
            self.visit(function)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            self.visit(keyword.value)

    def _method_call(self, call: Call, function: ast.Attribute, scope: _Scope, *, discarded: bool) -> None:
        root, method = call.root, function.attr
        if root is None:
            return
        scope.methods.setdefault(root, set()).add(method)
        through_call = "()" in call.name
        if method in MUTATING_METHODS:
            if through_call and method not in TRAINING_METHODS:
                return
            self._mutate(root, training=method in TRAINING_METHODS)
            if method in _OF_A_LOOP:
                scope.trained.discard(root)
                scope.looped.add(root)
        elif method[-1:] == "_" and method[:1] != "_":
            self._mutate(root)
            for name in _roots(call.node.args):
                self._mutate(name)
        elif any(
            keyword.arg == "inplace" and isinstance(keyword.value, ast.Constant) and keyword.value.value
            for keyword in call.node.keywords
        ) or (discarded and not through_call and method not in PURE_METHODS):
            self._mutate(root)

    def _training_loop(self, scope: _Scope) -> None:
        """A body with ``backward()`` or an optimizer's ``step()`` trains what it calls and what it asks for parameters."""
        methods: set[str] = set()
        for names in scope.methods.values():
            methods |= names
        if not methods & {"backward", "apply_gradients"} and not (
            "step" in methods and "zero_grad" in methods
        ):
            return
        for root, names in scope.methods.items():
            if names & _LOOP_METHODS:
                scope.mutated.add(root)
                scope.looped.add(root)
        for name in scope.called:
            if name[:1].islower() and name not in _NEVER_MODELS:
                scope.looped.add(name)
                scope.mutated.add(name)


_NEVER_MODELS = frozenset(
    [
        "print",
        "len",
        "range",
        "enumerate",
        "zip",
        "int",
        "float",
        "str",
        "list",
        "dict",
        "set",
        "tuple",
        "isinstance",
        "getattr",
        "setattr",
        "iter",
        "next",
        "sum",
        "min",
        "max",
        "abs",
        "round",
        "sorted",
        "map",
        "filter",
        "open",
        "type",
        "tqdm",
        "trange",
        "display",
        "super",
        "format",
        "reversed",
        "any",
        "all",
        "bool",
        "criterion",
        "loss_fn",
        "loss_func",
        "loss_function",
        "time",
    ]
)


def _trained(scope: _Scope) -> set[str]:
    """Everything a scope trains: what it fits with what that was made from, and what its loops step."""
    return _reach(scope.trained, scope.aliases, scope.holds) | scope.looped


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if arguments.vararg is not None:
        found.append(arguments.vararg)
    if arguments.kwarg is not None:
        found.append(arguments.kwarg)
    return found


def _routine(name: str, positional: tuple[str, ...], params: list[ast.arg], scope: _Scope) -> Routine:
    local = scope.binds - scope.global_names - {argument.arg for argument in params}
    trains = _trained(scope) - local
    return Routine(
        name=name,
        params=positional,
        keywords=frozenset(argument.arg for argument in params),
        reads=set(scope.reads),
        writes=set(scope.outer),
        mutates=(_reach(scope.mutated, scope.aliases) - local) | trains,
        trains=trains,
        calls=scope.calls,
        returns_value=scope.returns,
    )


def _class_routine(node: ast.ClassDef, methods: list[_Scope], deferred: set[str]) -> Routine:
    routine = Routine(name=node.name, is_class=True, reads=set(deferred) - {node.name})
    routine.bases = tuple(dotted_name(base)[0] for base in node.bases)
    for scope in methods:
        local = scope.binds - scope.global_names
        routine.writes |= scope.outer
        routine.mutates |= _reach(scope.mutated, scope.aliases) - local
        routine.trains |= _trained(scope) - local
        routine.calls.extend(scope.calls)
    return routine


def _reach(names: set[str], *links: dict[str, set[str]]) -> set[str]:
    """``names`` and everything they may be, or were made from."""
    if not names or not any(links):
        return set(names)
    found, open_names = set(names), list(names)
    while open_names:
        name = open_names.pop()
        for link in links:
            for other in link.get(name, ()):
                if other not in found:
                    found.add(other)
                    open_names.append(other)
    return found


def _target_names(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Tuple | ast.List):
        return [name for item in target.elts for name in _target_names(item)]
    if isinstance(target, ast.Starred):
        return _target_names(target.value)
    _, root = dotted_name(target)
    return [root] if root is not None else []


def _roots(nodes: Iterable[ast.expr]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            found |= _roots(node.elts)
        elif isinstance(node, ast.Dict):
            found |= _roots(node.values)
        elif isinstance(node, ast.GeneratorExp | ast.ListComp):
            found |= _roots([node.generators[0].iter])
        elif isinstance(node, ast.BinOp):
            found |= _roots([node.left, node.right])
        else:
            _, root = dotted_name(node)
            if root is not None:
                found.add(root)
            if isinstance(node, ast.Call):
                found |= _roots(node.args)
    return found


def _sources(value: ast.expr) -> tuple[set[str], set[str]]:
    """Names whose objects ``value`` may be (part of), and names whose objects it is made from."""
    if isinstance(value, ast.Await | ast.Starred | ast.NamedExpr):
        return _sources(value.value)
    if isinstance(value, ast.Name):
        return {value.id}, set()
    if isinstance(value, ast.IfExp):
        left, right = _sources(value.body), _sources(value.orelse)
        return left[0] | right[0], left[1] | right[1]
    if isinstance(value, ast.List | ast.Tuple | ast.Set | ast.Dict):
        names = _roots([value])
        return names, set()
    if isinstance(value, ast.Subscript):
        name, root = dotted_name(value)
        if root is None or "()" in name:
            return set(), _roots([value])
        # A mask, a list of columns or a slice makes a new table; one key or position reaches into the old.
        part = value.slice
        if isinstance(
            part, ast.Compare | ast.List | ast.Slice | ast.Tuple | ast.BinOp | ast.UnaryOp | ast.BoolOp
        ):
            return set(), set()
        return {root}, set()
    if isinstance(value, ast.Attribute):
        name, root = dotted_name(value)
        return ({root}, set()) if root is not None and "()" not in name else (set(), _roots([value]))
    if isinstance(value, ast.Call):
        name, root = dotted_name(value.func)
        arguments = _roots([*value.args, *(keyword.value for keyword in value.keywords)])
        if name in ("zip", "enumerate", "reversed", "iter", "sorted", "tqdm", "list", "tuple", "dict"):
            return arguments, set()
        if isinstance(value.func, ast.Attribute) and root is not None:
            if value.func.attr in (
                "items",
                "values",
                "parameters",
                "named_parameters",
                "children",
                "modules",
                "to",
                "cuda",
            ):
                return {root} | (arguments if "tqdm" in name else set()), arguments
            return set(), arguments | {root}
        return set(), arguments | ({root} if root is not None else set())
    if isinstance(value, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Compare):
        return set(), _roots([value] if isinstance(value, ast.BinOp) else [])
    return set(), set()


_HANDLERS: dict[type[ast.AST], Callable[..., None]] = {
    ast.Name: _Visitor._name,
    ast.Attribute: _Visitor._attribute,
    ast.Call: _Visitor._call_node,
    ast.Constant: _Visitor._constant,
    ast.NamedExpr: _Visitor._named_expr,
    ast.Global: _Visitor._global,
    ast.Nonlocal: _Visitor._nonlocal,
    ast.Assign: _Visitor._assign,
    ast.AugAssign: _Visitor._aug_assign,
    ast.AnnAssign: _Visitor._ann_assign,
    ast.Delete: _Visitor._delete,
    ast.Expr: _Visitor._expr,
    ast.Return: _Visitor._return,
    ast.Import: _Visitor._import,
    ast.ImportFrom: _Visitor._import_from,
    ast.If: _Visitor._if,
    ast.For: _Visitor._for,
    ast.AsyncFor: _Visitor._for,
    ast.While: _Visitor._while,
    ast.Try: _Visitor._try,
    ast.TryStar: _Visitor._try,
    ast.ExceptHandler: _Visitor._except,
    ast.With: _Visitor._with,
    ast.AsyncWith: _Visitor._with,
    ast.Match: _Visitor._match,
    ast.MatchAs: _Visitor._match_as,
    ast.MatchStar: _Visitor._match_star,
    ast.MatchMapping: _Visitor._match_mapping,
    ast.FunctionDef: _Visitor._function,
    ast.AsyncFunctionDef: _Visitor._function,
    ast.Lambda: _Visitor._lambda,
    ast.ClassDef: _Visitor._class,
    ast.ListComp: _Visitor._comprehension,
    ast.SetComp: _Visitor._comprehension,
    ast.GeneratorExp: _Visitor._comprehension,
    ast.DictComp: _Visitor._comprehension,
}
if hasattr(ast, "TypeAlias"):
    _HANDLERS[ast.TypeAlias] = _Visitor._type_alias
