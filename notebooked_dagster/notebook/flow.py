"""How data flows through a notebook: which statements a statement's names come from.

One pass over the statements in notebook order keeps, for every name, the statements whose work a reader of that name
would see: the last ones that bound it, then whoever changed its object in place. A statement that changes a name
depends on who had it before, so the last changer stands for the whole chain and nothing here is quadratic.

Calling a function of the notebook reads what its body reads *at that moment*, and changes what its body changes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from . import calls as known
from .names import Call, Facts, Routine, dotted_name

#: Constructors whose kind is that of what is put into them.
PIPELINES = frozenset(
    [
        "Pipeline",
        "make_pipeline",
        "make_imb_pipeline",
        "FeatureUnion",
        "make_union",
        "ColumnTransformer",
        "make_column_transformer",
    ]
)
#: Prefixes of dependencies that are not names: a file written here and read there.
_FILE = "\0file:"


@dataclass(slots=True)
class SeenCall:
    """A call with its names resolved at the place where it is made.

    Attributes:
        call: As found in the statement.
        dotted: Resolved through imports (``sklearn.svm.SVC().fit``).
        maker: What made the receiver (``sklearn.svm.SVC`` for ``clf.fit``); empty where unknown.
        kind: The receiver's kind: ``model``, ``transformer``, ``optimizer``, ``instance``, ``data``, ``module`` or empty.
    """

    call: Call
    dotted: str
    maker: str = ""
    kind: str = ""

    @property
    def method(self) -> str:
        """The last part of its name."""
        return self.dotted.rpartition(".")[2]


@dataclass(slots=True)
class Node:
    """A statement in the flow.

    Attributes:
        index: Its place in the list of all statements.
        cell: Cell index.
        stmt: Its AST.
        facts: What it does to names by itself.
        uses: Everything it reads when it runs, what the functions it calls read included.
        soft: The part of ``uses`` that only called or passed functions read.
        defines: What it binds, ``global`` writes of called functions included.
        mutates: What it changes, through aliases and called functions too.
        trains: What it changes as training does.
        deps: Name -> statements it comes from.
        late: Names that only a later statement defines.
        unknown: Names nothing defines.
        calls: Its calls, resolved.
        inner: Calls that functions of the notebook make on its behalf, resolved.
        ambient: Whether it sets up the process (seeds, paths, environment) for what follows.
        kinds: Kinds of the names it binds.
        last: Whether it is the last statement of its cell.
    """

    index: int
    cell: int
    stmt: ast.stmt
    facts: Facts
    last: bool = False
    uses: set[str] = field(default_factory=set)
    soft: set[str] = field(default_factory=set)
    defines: set[str] = field(default_factory=set)
    mutates: set[str] = field(default_factory=set)
    trains: set[str] = field(default_factory=set)
    deps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    calls: list[SeenCall] = field(default_factory=list)
    inner: list[SeenCall] = field(default_factory=list)
    ambient: str = ""
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def is_definition(self) -> bool:
        """Whether it is a ``def`` or a ``class``."""
        return isinstance(self.stmt, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)

    @property
    def is_import(self) -> bool:
        """Whether it is an import (``try: import … except ImportError`` included)."""
        return bool(self.facts.modules) and (
            isinstance(self.stmt, ast.Import | ast.ImportFrom)
            or (isinstance(self.stmt, ast.Try) and self.facts.defines <= set(self.facts.imports) | {"e"})
        )


@dataclass(slots=True)
class _Effect:
    """What calling a routine does, everything it calls included."""

    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    mutates: set[str] = field(default_factory=set)
    trains: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)


class Flow:
    """The pass. ``nodes`` is complete after construction.

    Args:
        statements: (cell index, AST, facts, whether it is the last of its cell), in notebook order.
    """

    def __init__(self, statements: Sequence[tuple[int, ast.stmt, Facts, bool]]) -> None:
        self.nodes = [
            Node(index, cell, stmt, facts, is_last)
            for index, (cell, stmt, facts, is_last) in enumerate(statements)
        ]
        self.definers: dict[str, list[int]] = {}
        self.imports: dict[str, str] = {}
        self.routines: dict[str, Routine] = {}
        self.kinds: dict[str, str] = {}
        self.makers: dict[str, str] = {}
        self._env: dict[str, tuple[int, ...]] = {}
        self.stars: tuple[int, ...] = ()
        self._aliases: dict[str, set[str]] = {}
        self._same: dict[str, set[str]] = {}
        self._holds: dict[str, set[str]] = {}
        self._files: dict[str, tuple[int, ...]] = {}
        self._effects: dict[str, _Effect] = {}
        for node in self.nodes:
            for name in node.facts.defines:
                self.definers.setdefault(name, []).append(node.index)
            for routine in node.facts.routines.values():
                for name in routine.writes:
                    self.definers.setdefault(name, []).append(node.index)
        for node in self.nodes:
            self._step(node)
        self.final = dict(self._env)

    # --- one statement -------------------------------------------------------------------------------------------

    def _step(self, node: Node) -> None:
        facts = node.facts
        node.uses = set(facts.uses)
        node.defines = set(facts.defines)
        node.calls = [self._seen(call) for call in facts.calls]
        node.trains = {
            name
            for name in facts.trains
            if name not in self.imports and name not in self.routines and self._learns(name)
        }
        node.mutates = self._own_mutations(facts) | node.trains
        if facts.routines and not node.is_definition:
            # A compound statement may call what it defines.
            node.soft |= facts.deferred - facts.must
        if facts.named:
            node.soft |= {name for name in facts.named if name in self._env}
        self._called(node)
        self._spread(node)
        node.soft -= node.uses
        node.uses |= node.soft
        node.ambient = self._ambient(node)
        for name in node.uses | node.mutates | facts.deletes:
            self._depend(node, name)
        self._file_links(node)
        self._bind(node)

    def _learns(self, name: str) -> bool:
        """Whether what is bound to a name can learn: not a table, a loader, a number."""
        return self.kinds.get(name) not in ("data", "constant")

    def _own_mutations(self, facts: Facts) -> set[str]:
        if not facts.mutates:
            return set()
        stored = {known.first(dotted) for dotted in facts.stored}
        return {
            name
            for name in facts.mutates
            if (name not in self.imports or name in stored)
            and (name not in facts.trains or self._learns(name))
        }

    def resolve(self, dotted: str) -> str:
        """A dotted name with its head replaced by what was imported under it."""
        head = known.first(dotted)
        target = self.imports.get(head)
        return dotted if target is None or not head else target + dotted[len(head) :]

    def _seen(self, call: Call) -> SeenCall:
        dotted = self.resolve(call.name)
        root = call.root
        if root is None:
            return SeenCall(call, dotted)
        if root in self.imports or root in self.routines:
            head = dotted.partition("()")[0]
            if "()" in dotted:
                return SeenCall(call, dotted, head, self.kind_of_maker(head, call.node))
            return SeenCall(call, dotted, "", "module" if root in self.imports else "")
        return SeenCall(call, dotted, self.makers.get(root, ""), self.kinds.get(root, ""))

    def _called(self, node: Node) -> None:
        """What calling or passing functions of the notebook adds."""
        for name in node.facts.uses:
            if name in self.routines:
                node.soft |= self._effect(name).reads
        for seen in node.calls:
            call = seen.call
            if call.name in self.routines:
                self._apply(node, call, self.routines[call.name])
            elif seen.dotted in known.ARGUMENT_MUTATORS:
                position = known.ARGUMENT_MUTATORS[seen.dotted]
                if len(call.node.args) > position:
                    self._mutate_argument(node, call.node.args[position], training=False)
            elif "." not in call.name and call.name[-1:] == "_":
                for argument in call.node.args:
                    self._mutate_argument(node, argument, training=False)
            elif seen.method in known.TRAINING_METHODS or "train" in seen.method or seen.method == "fit":
                given: list[tuple[str | None, ast.expr]] = [(None, one) for one in call.node.args]
                given += [(keyword.arg, keyword.value) for keyword in call.node.keywords]
                for label, argument in given:
                    if isinstance(argument, ast.Name) and (
                        self.kinds.get(argument.id) == "model"
                        or (label in ("model", "net", "network") and seen.kind == "module")
                    ):
                        self._mutate_argument(node, argument, training=True)
            if (
                "." in call.name
                and call.root in self.kinds
                and self.makers.get(call.root, "") in self.routines
            ):
                # A method of a class of the notebook reads and writes what the class's methods do.
                effect = self._effect(self.makers[call.root])
                node.soft |= effect.reads
                node.mutates |= effect.mutates & set(self._env)
                node.inner.extend(self._seen(inner) for inner in effect.calls)
                self._write_globals(node, effect)

    def _apply(self, node: Node, call: Call, routine: Routine) -> None:
        effect = self._effect(routine.name)
        node.inner.extend(self._seen(inner) for inner in effect.calls)
        self._write_globals(node, effect)
        if routine.is_class:
            return
        given: dict[str, ast.expr] = dict(zip(routine.params, call.node.args, strict=False))
        given.update({keyword.arg: keyword.value for keyword in call.node.keywords if keyword.arg})
        for name in effect.mutates:
            training = name in effect.trains
            if name in routine.keywords:
                if name in given:
                    self._mutate_argument(node, given[name], training=training)
            elif name in self._env and name not in self.imports:
                node.mutates.add(name)
                if training:
                    node.trains.add(name)

    def _write_globals(self, node: Node, effect: _Effect) -> None:
        node.defines |= effect.writes

    def _mutate_argument(self, node: Node, argument: ast.expr, *, training: bool) -> None:
        names = {argument.id} if isinstance(argument, ast.Name) else set()
        if isinstance(argument, ast.Attribute | ast.Subscript) or (
            isinstance(argument, ast.Call) and isinstance(argument.func, ast.Attribute)
        ):
            names = {dotted_name(argument)[1] or ""} - {""}
        elif isinstance(argument, ast.List | ast.Tuple):
            names = {item.id for item in argument.elts if isinstance(item, ast.Name)}
        for name in names:
            if name in self.imports or name in self.routines or name not in (node.uses | node.defines):
                continue
            if training and self.kinds.get(name) == "data":
                continue
            node.mutates.add(name)
            if training:
                node.trains.add(name)

    def _effect(self, name: str) -> _Effect:
        """A routine's effect with everything it calls, worked out once until a definition changes."""
        cached = self._effects.get(name)
        if cached is not None:
            return cached
        effect = _Effect()
        self._effects[name] = effect
        open_names, seen = [name], {name}
        while open_names:
            current = open_names.pop()
            routine = self.routines[current]
            effect.reads |= routine.reads
            effect.writes |= routine.writes
            effect.calls.extend(routine.calls)
            own = routine.keywords if current != name else frozenset()
            effect.mutates |= routine.mutates - own
            effect.trains |= routine.trains - own
            for other in routine.reads:
                if other in self.routines and other not in seen:
                    seen.add(other)
                    open_names.append(other)
        self._through_parameters(self.routines[name], effect, depth=0, seen={name})
        return effect

    def _through_parameters(self, routine: Routine, effect: _Effect, depth: int, seen: set[str]) -> None:
        """``def run(net): train(net)`` changes ``net`` because ``train`` changes its parameter."""
        for call in routine.calls:
            inner = self.routines.get(call.name)
            if inner is None or inner.is_class or depth > 5 or inner.name in seen:
                continue
            below = _Effect(mutates=set(inner.mutates), trains=set(inner.trains))
            self._through_parameters(inner, below, depth + 1, seen | {inner.name})
            given: dict[str, ast.expr] = dict(zip(inner.params, call.node.args, strict=False))
            given.update({keyword.arg: keyword.value for keyword in call.node.keywords if keyword.arg})
            for name in below.mutates & set(given):
                root = dotted_name(given[name])[1]
                if root is not None and (root in routine.keywords or root in routine.reads):
                    effect.mutates.add(root)
                    if name in below.trains:
                        effect.trains.add(root)

    def _spread(self, node: Node) -> None:
        """A change of a name is a change of what the name is part of, or was made around."""
        if not node.mutates:
            return
        plain = _closure(node.mutates, self._aliases)
        if node.trains:
            reached = _closure(node.trains, self._aliases, self._holds)
            learned = {
                name
                for name in reached
                if name in node.trains or self.kinds.get(name) in ("model", "transformer")
            }
            node.trains |= learned
            plain |= learned
        node.mutates = {name for name in plain if name not in self.imports or name in node.mutates}
        node.mutates -= node.facts.must - node.facts.mutates

    def _depend(self, node: Node, name: str) -> None:
        found = self._env.get(name)
        if found is not None:
            node.deps[name] = found
            return
        if name in known.BUILTIN_NAMES:
            return
        later = [index for index in self.definers.get(name, ()) if index > node.index]
        if self.stars and not later:
            node.deps[name] = self.stars
        elif later:
            node.deps[name] = (later[0],)
            if name in node.facts.uses and name not in node.soft:
                node.late.add(name)
        elif name not in node.soft and name not in node.facts.defines:
            node.unknown.add(name)

    def _bind(self, node: Node) -> None:
        index, facts = node.index, node.facts
        if facts.stars:
            self.stars = (*self.stars, index)
        for name in node.mutates:
            self._env[name] = (index,)
            for other in self._same.get(name, ()):
                if other != name and other in self._env and index not in self._env[other]:
                    self._env[other] = (*self._env[other], index)
        for name in node.defines:
            before = self._env.get(name, ())
            self._env[name] = (index,) if name in facts.must or name in node.mutates else (*before, index)
        for name in facts.deletes - facts.defines:
            self._env.pop(name, None)
        self._bind_links(node)
        if facts.routines:
            self.routines.update(facts.routines)
            self._effects.clear()
        for name in facts.must - set(facts.routines):
            if name in self.routines:
                del self.routines[name]
                self._effects.clear()
            if name in self.imports and name not in facts.imports:
                del self.imports[name]
        self.imports.update(facts.imports)

    def _bind_links(self, node: Node) -> None:
        facts = node.facts
        for name in facts.defines:
            if name in facts.must and name not in facts.uses:
                for table in (self._aliases, self._holds):
                    table.pop(name, None)
                self._same.pop(name, None)
            if name in facts.aliases:
                self._aliases.setdefault(name, set()).update(facts.aliases[name] - {name})
                if isinstance(node.stmt, ast.Assign) and isinstance(node.stmt.value, ast.Name):
                    other = node.stmt.value.id
                    self._same.setdefault(name, set()).add(other)
                    self._same.setdefault(other, set()).add(name)
            if name in facts.holds:
                self._holds.setdefault(name, set()).update(facts.holds[name] - {name})
        self._bind_kinds(node)

    # --- kinds ---------------------------------------------------------------------------------------------------

    def _bind_kinds(self, node: Node) -> None:
        for name in node.facts.defines:
            self.kinds.pop(name, None)
            self.makers.pop(name, None)
        for target, value in _assignments(node.stmt):
            kind, maker = self.kind_of(value)
            if kind:
                self.kinds[target] = node.kinds[target] = kind
            if maker:
                self.makers[target] = maker
        for name in node.facts.imports:
            self.kinds[name] = "module"
        if isinstance(node.stmt, ast.For):
            for name in node.facts.aliases.keys() & node.facts.defines:
                if any(self.kinds.get(other) == "model" for other in node.facts.aliases[name]):
                    self.kinds[name] = node.kinds[name] = "model"

    def kind_of(self, value: ast.expr) -> tuple[str, str]:
        """Kind and maker of a value; unknown where it is nested too deeply to look through."""
        try:
            return self._kind_of(value)
        except RecursionError:
            return "", ""

    def _kind_of(self, value: ast.expr) -> tuple[str, str]:
        if isinstance(value, ast.Await):
            value = value.value
        if isinstance(value, ast.Name):
            return self.kinds.get(value.id, ""), self.makers.get(value.id, "")
        if isinstance(value, ast.Attribute) and value.attr.startswith("best_estimator"):
            return "model", "best_estimator_"
        if isinstance(value, ast.List | ast.Tuple | ast.Dict):
            items = value.values if isinstance(value, ast.Dict) else value.elts
            inner = {self.kind_of(item)[0] for item in items[:20] if item is not None}
            inner |= {
                self.kind_of(part)[0]
                for item in items[:20]
                if isinstance(item, ast.Tuple)
                for part in item.elts
            }
            return ("model", "") if "model" in inner else ("", "")
        if isinstance(value, ast.IfExp):
            return self.kind_of(value.body)
        if isinstance(value, ast.Constant):
            return "constant", ""
        if not isinstance(value, ast.Call):
            return "", ""
        dotted, root = dotted_name(value.func)
        resolved = self.resolve(dotted)
        head, mark, rest = resolved.partition("()")
        if (
            root is not None
            and root not in self.imports
            and root not in self.routines
            and not known.is_instance(head)
        ):
            return self._kind_of_method(root, resolved)
        kind = self.kind_of_maker(head, value)
        if (
            mark
            and kind in ("model", "instance")
            and known.last(rest) in known.PREDICT_METHODS | {"transform", "score"}
        ):
            return "", ""
        return kind, head

    def _kind_of_method(self, root: str, resolved: str) -> tuple[str, str]:
        method = known.last(resolved)
        if method in (
            "to",
            "cuda",
            "cpu",
            "double",
            "half",
            "float",
            "eval",
            "train",
            "fit",
            "compile",
            "apply",
            "clone",
        ):
            return self.kinds.get(root, ""), self.makers.get(root, "")
        return "", ""

    def kind_of_maker(self, head: str, node: ast.Call) -> str:
        """Kind of what a constructor or factory returns."""
        name = known.last(head)
        if head in self.routines:
            return self.kind_of_routine(self.routines[head])
        if name in PIPELINES:
            return "model" if self._has_model(node) else "transformer"
        if known.is_transformer(head):
            return "transformer"
        if (
            known.OPTIMIZER_CLASS.match(name)
            or known.LOSS_CLASS.match(name)
            or known.HOLDER_CLASS.match(name)
        ):
            return "optimizer" if not known.HOLDER_CLASS.match(name) else "model"
        if known.is_model(head):
            return "model"
        if name in (
            "from_pretrained",
            "load_model",
            "create_model",
            "load_learner",
            "from_config",
            "clone",
            "get_model",
        ):
            return "transformer" if "okenizer" in head or "rocessor" in head else "model"
        if head.startswith(
            (
                "torchvision.models.",
                "torch.hub.load",
                "keras.applications.",
                "tensorflow.keras.applications.",
                "timm.",
            )
        ):
            return "model"
        if known.CONTAINER_LAYERS.match(head) and known.is_class_name(head):
            return "model"
        if known.DATA_CLASS.match(name) or head in (
            "torch.device",
            "torch.cuda.is_available",
            "torch.tensor",
        ):
            return "data"
        return "instance" if known.is_class_name(head) else ""

    def _has_model(self, node: ast.Call) -> bool:
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and part is not node:
                head = self.resolve(dotted_name(part.func)[0]).partition("()")[0]
                if known.last(head) not in ("Pipeline", "make_pipeline") and known.is_model(head):
                    return True
            elif isinstance(part, ast.Name) and self.kinds.get(part.id) == "model":
                return True
        return False

    def kind_of_routine(self, routine: Routine, depth: int = 0) -> str:
        """Kind of a class's instances, or of what a function returns."""
        if routine.is_class:
            if any(
                known.last(base) in ("TransformerMixin", "OneToOneFeatureMixin") for base in routine.bases
            ):
                return "transformer"
            for base in routine.bases:
                resolved = self.resolve(base)
                if base in self.routines and depth < 8 and base != routine.name:
                    inner = self.kind_of_routine(self.routines[base], depth + 1)
                    if inner in ("model", "transformer", "data"):
                        return inner
                if "Transformer" in resolved and "nn." not in resolved:
                    return "transformer"
                if known.DATA_CLASS.match(known.last(resolved)):
                    return "data"
                if known.MODEL_BASE.search(resolved) or known.is_model(resolved):
                    return "model"
            return "model" if known.is_model(routine.name) else "instance"
        if not routine.returns_value:
            return ""
        if any(call.method in known.PREDICT_METHODS for call in routine.calls):
            return ""
        for call in routine.calls:
            head = self.resolve(call.name)
            if "()" in head:
                continue
            if head in self.routines and depth < 4 and head != routine.name:
                if self.kind_of_routine(self.routines[head], depth + 1) == "model":
                    return "model"
            elif known.last(head) in PIPELINES:
                if self._has_model(call.node):
                    return "model"
            elif known.is_model(head):
                return "model"
        return ""

    # --- ambience and files --------------------------------------------------------------------------------------

    def _ambient(self, node: Node) -> str:
        """The dotted name by which a statement sets up the process; empty where it does not."""
        for dotted in node.facts.stored:
            root = known.first(dotted)
            if root in self.imports:
                resolved = self.resolve(dotted).replace("[]", "")
                if known.first(resolved) not in known.PLOT_ROOTS:
                    return resolved
        if isinstance(node.stmt, ast.Import | ast.ImportFrom) or node.is_definition:
            return ""
        for seen in node.calls:
            if known.AMBIENT.match(seen.dotted) and seen.call.discarded:
                return seen.dotted
            if seen.call.discarded and seen.call.name in self.routines:
                for inner in self._effect(seen.call.name).calls:
                    if inner.method in known.SEED_METHODS and known.AMBIENT.match(self.resolve(inner.name)):
                        return self.resolve(inner.name)
        return ""

    def _file_links(self, node: Node) -> None:
        writes = reads = False
        for seen in (*node.calls, *node.inner):
            writes = (
                writes
                or known.SAVE_FUNCTIONS.search(seen.dotted) is not None
                or _opens_for_writing(seen.call.node)
            )
            reads = reads or known.LOAD_FUNCTIONS.search(seen.dotted) is not None
            if known.last(seen.dotted) in (
                "urlretrieve",
                "extractall",
                "get_file",
                "download",
                "makedirs",
                "extract",
                "copyfile",
            ):
                writes = True
        if not writes and not reads:
            return
        keys = [text for text in node.facts.texts if "." in text or "/" in text]
        if reads and self._files:
            for key in keys:
                if key in self._files:
                    node.deps[_FILE + key] = self._files[key]
        if writes:
            for key in keys:
                self._files[key] = (node.index,)


def _opens_for_writing(call: ast.Call) -> bool:
    if not (isinstance(call.func, ast.Name) and call.func.id == "open" and len(call.args) > 1):
        return False
    mode = call.args[1]
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and mode.value[:1] in "wax"


def _assignments(stmt: ast.stmt) -> Iterable[tuple[str, ast.expr]]:
    """(name, value) pairs a statement assigns, in order, those in its blocks included."""
    pending: list[ast.stmt] = [stmt]
    while pending:
        current = pending.pop()
        if isinstance(current, ast.Assign):
            for target in current.targets:
                yield from _pairs(target, current.value)
        elif isinstance(current, ast.AnnAssign) and current.value is not None:
            yield from _pairs(current.target, current.value)
        elif isinstance(
            current, ast.With | ast.For | ast.While | ast.If | ast.Try | ast.AsyncWith | ast.AsyncFor
        ):
            inner = [
                child for part in ("body", "orelse", "finalbody") for child in getattr(current, part, ())
            ]
            pending.extend(reversed(inner))


def _pairs(target: ast.expr, value: ast.expr) -> Iterable[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif (
        isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts)
    ):
        for item, part in zip(target.elts, value.elts, strict=True):
            if isinstance(item, ast.Name):
                yield item.id, part


def _closure(names: Iterable[str], *tables: dict[str, set[str]]) -> set[str]:
    found = set(names)
    open_names = list(found)
    while open_names:
        name = open_names.pop()
        for table in tables:
            for other in table.get(name, ()):
                if other not in found:
                    found.add(other)
                    open_names.append(other)
    return found
