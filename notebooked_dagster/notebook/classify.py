"""What every statement and cell is for, with a reason and a confidence.

Order of decisions: explicit tags; what a statement calls (:mod:`.looks`); which training matters; what feeds it
(preprocessing, model definition), what it feeds (evaluation, inference); the rest is exploration or drawing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import calls as known
from .flow import Flow, Node
from .looks import Look, look
from .model import Role, Tag

_TAG_ROLES: dict[str, Role] = {tag.value: Role(tag.value) for tag in Tag}
#: Stages in the order in which a script runs them.
RANK = {
    Role.IMPORTS: 0,
    Role.PARAMETERS: 1,
    Role.UTILS: 1,
    Role.PREPROCESS: 2,
    Role.MODEL: 3,
    Role.TRAIN: 4,
    Role.EVALUATE: 5,
    Role.INFERENCE: 6,
}
_LATER = ((5, Role.TRAIN), (4, Role.TRAIN), (3, Role.MODEL), (2, Role.PREPROCESS))
_LEFT_OUT = frozenset({Role.EXPLORE, Role.PLOT, Role.SKIP, Role.REQUIREMENTS, Role.EMPTY})


@dataclass(slots=True)
class Verdict:
    """What one statement is for.

    Attributes:
        role: The role.
        confidence: 0 to 1.
        reason: A clause that starts with a verb.
        explicit: Whether a tag decided.
    """

    role: Role
    confidence: float
    reason: str
    explicit: bool = False


def _nothing(*_: object, **__: object) -> set[int]:
    return set()


@dataclass(slots=True)
class Classification:
    """The outcome.

    Attributes:
        verdicts: One a statement.
        looks: One a statement.
        training: Statements whose training counts, in order.
        evaluation: Statements that measure.
        inference: Statements that apply the model to new input.
        needed: Everything training, evaluation and inference depend on, themselves included.
        models: Names of trained models, best guess first.
    """

    verdicts: list[Verdict]
    looks: list[Look]
    training: list[int] = field(default_factory=list)
    evaluation: list[int] = field(default_factory=list)
    inference: list[int] = field(default_factory=list)
    needed: set[int] = field(default_factory=set)
    models: tuple[str, ...] = ()
    closure: Callable[..., set[int]] = _nothing
    sources: Callable[[int], set[int]] = _nothing


def classify(flow: Flow, tags: Mapping[int, Sequence[str]], model_name: str | None = None) -> Classification:
    """Decide what every statement is for.

    Args:
        flow: The notebook's flow.
        tags: Cell index -> its valid tags.
        model_name: The model, where configuration names it.
    """
    return _Classifier(flow, tags, model_name).run()


class _Classifier:
    def __init__(self, flow: Flow, tags: Mapping[int, Sequence[str]], model_name: str | None) -> None:
        self.flow = flow
        self.nodes = flow.nodes
        self.looks = [look(node, flow) for node in flow.nodes]
        self.tags = tags
        self.model_name = model_name
        self.verdicts: list[Verdict | None] = [None] * len(self.nodes)
        self.after: set[int] = set()
        self.consumers: dict[int, list[int]] = {}
        self.explicit_roles: dict[int, Role] = {}

    def run(self) -> Classification:
        self._tagged()
        training = self._training_statements()
        self._consumers()
        self._after(training)
        models = self._models(training)
        metrics = self._metrics(training)
        evaluation = self._evaluation(metrics, training)
        inference = self._inference(training, evaluation)
        kept = self._kept(training, evaluation, inference, models)
        core = self.closure([*kept, *evaluation])
        inference = [index for index in inference if index not in core or index in self.explicit_roles]
        needed = core | self.closure(inference)
        self._ambient(needed)
        self._assign(needed, set(kept), set(training), set(evaluation), set(inference))
        self._in_order(needed)
        verdicts = [verdict for verdict in self.verdicts if verdict is not None]
        return Classification(
            verdicts=verdicts,
            looks=self.looks,
            training=[index for index in sorted(needed) if verdicts[index].role is Role.TRAIN],
            closure=self.closure,
            sources=self.sources,
            evaluation=[index for index in sorted(needed) if verdicts[index].role is Role.EVALUATE],
            inference=[index for index in sorted(needed) if verdicts[index].role is Role.INFERENCE],
            needed=needed,
            models=models,
        )

    # --- tags ----------------------------------------------------------------------------------------------------

    def _tagged(self) -> None:
        for node in self.nodes:
            roles = [_TAG_ROLES[tag] for tag in self.tags.get(node.cell, ()) if tag in _TAG_ROLES]
            if not roles:
                continue
            role = roles[0] if len(roles) == 1 else self._by_content(node, roles)
            if Role.SKIP in roles:
                role = Role.SKIP
            elif node.is_import and role is not Role.REQUIREMENTS:
                role = Role.IMPORTS
            elif role not in (Role.SKIP, Role.REQUIREMENTS):
                role = self._untouched_role(node, role)
            self.explicit_roles[node.index] = role
            names = ", ".join(self.tags[node.cell])
            self.verdicts[node.index] = Verdict(role, 1.0, f"is tagged {names}", explicit=True)

    def _untouched_role(self, node: Node, role: Role) -> Role:
        """Drawing, looking and measuring stay what they are in a tagged cell; everything else is what the tag says."""
        seen = self.looks[node.index]
        if role is Role.TRAIN and seen.metric and not seen.trains and not node.is_definition:
            return Role.EVALUATE
        if isinstance(node.stmt, ast.Expr) and not node.defines and not node.trains:
            if seen.plot and not seen.metric and not seen.predict:
                return Role.PLOT
            if seen.shown and not seen.prints and not seen.metric and role is not Role.INFERENCE:
                return Role.EXPLORE
        return role

    def _by_content(self, node: Node, roles: Sequence[Role]) -> Role:
        seen = self.looks[node.index]
        wanted: list[Role] = []
        if node.is_import:
            wanted = [Role.IMPORTS]
        elif node.is_definition:
            kind = self.flow.kind_of_maker(
                next(iter(node.facts.defines), ""), ast.Call(func=ast.Name(id=""), args=[], keywords=[])
            )
            wanted = [Role.MODEL, Role.UTILS] if kind == "model" else [Role.UTILS, Role.MODEL]
        elif seen.trains or seen.train_reason:
            wanted = [Role.TRAIN]
        elif seen.predict:
            wanted = [Role.INFERENCE, Role.TRAIN]
        elif seen.model:
            wanted = [Role.MODEL, Role.TRAIN]
        elif seen.literal:
            wanted = [Role.PARAMETERS, Role.PREPROCESS]
        elif seen.metric:
            wanted = [Role.TRAIN]
        else:
            wanted = [Role.PREPROCESS]
        return next((role for role in wanted if role in roles), roles[0])

    # --- training ------------------------------------------------------------------------------------------------

    def _usable(self, index: int) -> bool:
        return self.explicit_roles.get(index) not in _LEFT_OUT

    def _training_statements(self) -> list[int]:
        tagged = [index for index, role in self.explicit_roles.items() if role is Role.TRAIN]
        if tagged:
            strong = {index for index in tagged if self.looks[index].train_reason}
            chosen = strong or set(tagged)
            return sorted(chosen)
        found = [
            index
            for index, seen in enumerate(self.looks)
            if seen.train_reason
            and self._usable(index)
            and not self.nodes[index].is_definition
            and self.explicit_roles.get(index, Role.TRAIN) is Role.TRAIN
        ]
        strong_ones = [index for index in found if not self.looks[index].weak]
        return strong_ones or found

    def _consumers(self) -> None:
        for node in self.nodes:
            for sources in node.deps.values():
                for source in sources:
                    self.consumers.setdefault(source, []).append(node.index)

    def _after(self, training: Iterable[int]) -> None:
        """Statements that a trained model reaches."""
        trained = set(training)
        carried: dict[int, set[str]] = {}
        for index in trained:
            node = self.nodes[index]
            names = set(self.looks[index].trains) | node.trains | node.facts.defines
            carried[index] = names or node.mutates
        for node in self.nodes:
            if node.index in trained:
                continue
            for name, sources in node.deps.items():
                if any(
                    source in self.after or (source in carried and name in carried[source])
                    for source in sources
                    if source < node.index
                ):
                    if not node.is_definition and not node.is_import:
                        self.after.add(node.index)
                    break

    def _models(self, training: Sequence[int]) -> tuple[str, ...]:
        """Names of trained things, best guess first."""
        scores: dict[str, float] = {}
        trained_at: dict[str, int] = {}
        for order, index in enumerate(training):
            for place, name in enumerate(self.looks[index].trains):
                if name in self.flow.imports or name in self.flow.routines:
                    continue
                kind = self.flow.kinds.get(name, "") or self.nodes[index].kinds.get(name, "")
                bonus = {
                    "model": 4.0,
                    "": 1.0,
                    "instance": 1.5,
                    "optimizer": -6.0,
                    "transformer": -3.0,
                    "data": -5.0,
                }
                scores[name] = bonus.get(kind, 0.0) - 0.01 * place + 0.02 * order
                trained_at[name] = index
        for node in self.nodes:
            seen = self.looks[node.index]
            for name in node.uses & scores.keys():
                if node.index <= trained_at[name]:
                    continue
                if seen.saves:
                    scores[name] += 3.0
                if seen.predict and _applies(node, name):
                    scores[name] += 1.0
                    if not self._metric_follows(node.index):
                        scores[name] += 2.0
                if seen.metric:
                    scores[name] += 0.5
        if training:
            for name in self.looks[training[-1]].trains:
                if name in scores:
                    scores[name] += 1.5
        for node in self.nodes:
            # ``best = search.best_estimator_``: the one that goes on.
            for name in node.defines:
                if self.flow.makers.get(name) == "best_estimator_" and node.kinds.get(name) == "model":
                    scores[name] = max(scores.values(), default=0.0) + 0.5
        ordered = sorted(scores, key=lambda name: -scores[name])
        if self.model_name:
            ordered = [self.model_name, *(name for name in ordered if name != self.model_name)]
        return tuple(ordered)

    def _metric_follows(self, index: int) -> bool:
        return bool(self.looks[index].metric) or any(
            self.looks[consumer].metric for consumer in self.consumers.get(index, ())
        )

    # --- evaluation and inference --------------------------------------------------------------------------------

    def _metrics(self, training: Sequence[int]) -> list[int]:
        if not training:
            return []
        trained = set(training)
        found = []
        for node in self.nodes:
            index = node.index
            seen = self.looks[index]
            if self.explicit_roles.get(index) is Role.EVALUATE:
                found.append(index)
                continue
            if index in trained or index in self.explicit_roles or node.is_definition or node.is_import:
                continue
            if not seen.metric or seen.saves:
                continue
            if seen.plot and not node.defines and not seen.prints:
                continue
            if index in self.after or (seen.weak and index > training[0]):
                found.append(index)
        measured = set(found)
        for node in self.nodes:
            # ``print(acc)`` shows what was measured, ``assert acc > 0.9`` insists on it.
            if node.index in self.explicit_roles or node.index in measured or node.index in trained:
                continue
            if (self.looks[node.index].prints or _insists(node.stmt)) and any(
                source in measured and name in self.nodes[source].defines
                for name, sources in node.deps.items()
                for source in sources
            ):
                found.append(node.index)
        return sorted(found)

    def _evaluation(self, metrics: Sequence[int], training: Sequence[int]) -> list[int]:
        """The metrics and the predictions they are made of."""
        trained = set(training)
        found = set(metrics)
        for index in self.closure(metrics):
            node = self.nodes[index]
            if (
                index in self.after
                and index not in trained
                and index not in self.explicit_roles
                and not node.is_definition
            ):
                found.add(index)
        return sorted(found)

    def _inference(self, training: Sequence[int], evaluation: Sequence[int]) -> list[int]:
        tagged = [index for index, role in self.explicit_roles.items() if role is Role.INFERENCE]
        if tagged:
            return sorted(tagged)
        if not training:
            return []
        measured, trained = set(evaluation), set(training)
        found: set[int] = set()
        for node in self.nodes:
            index, seen = node.index, self.looks[node.index]
            if index in measured or index in trained or index in self.explicit_roles or not seen.predict:
                continue
            if node.is_definition:
                if seen.predict and self._reads_trained_model(node, trained) and not seen.plot:
                    found.add(index)
                continue
            if index not in self.after or (seen.plot and not node.defines) or self._only_drawn(index):
                continue
            found.add(index)
        for index in sorted(found):
            self._decoded(index, found, measured | trained)
        return sorted(found)

    def _reads_trained_model(self, node: Node, trained: set[int]) -> bool:
        names = {name for index in trained for name in self.looks[index].trains}
        return bool((node.facts.deferred | node.facts.uses) & names)

    def _only_drawn(self, index: int) -> bool:
        consumers = self.consumers.get(index, ())
        return bool(consumers) and all(
            self.looks[consumer].plot and not self.nodes[consumer].is_definition for consumer in consumers
        )

    def _decoded(self, index: int, found: set[int], excluded: set[int]) -> None:
        """What is made of a prediction belongs to it (``names[np.argmax(p)]``)."""
        open_indices = [index]
        while open_indices:
            for consumer in self.consumers.get(open_indices.pop(), ()):
                node, seen = self.nodes[consumer], self.looks[consumer]
                if consumer in found or consumer in excluded or consumer in self.explicit_roles:
                    continue
                if (
                    not node.defines
                    or node.is_definition
                    or seen.plot
                    or seen.shown
                    or seen.saves
                    or seen.trains
                ):
                    continue
                if consumer in self.after:
                    found.add(consumer)
                    open_indices.append(consumer)

    def _kept(
        self,
        training: Sequence[int],
        evaluation: Sequence[int],
        inference: Sequence[int],
        models: Sequence[str],
    ) -> list[int]:
        """Training that produces the model, or that what is measured or applied depends on."""
        if not training:
            return []
        if any(self.explicit_roles.get(index) is Role.TRAIN for index in training):
            return [
                index
                for index, role in sorted(self.explicit_roles.items())
                if role in (Role.TRAIN, Role.EVALUATE)
            ]
        main = models[0] if models else None
        wanted = [index for index in training if main in self.looks[index].trains] or [training[-1]]
        reach = self.closure([*wanted, *evaluation, *inference])
        return [index for index in training if index in reach]

    # --- closure -------------------------------------------------------------------------------------------------

    def transparent(self, index: int, name: str) -> bool:
        """Whether a statement that changed ``name`` only drew or looked, so that readers of ``name`` see past it."""
        node, seen = self.nodes[index], self.looks[index]
        role = self.explicit_roles.get(index)
        if role in _LEFT_OUT:
            return role is not Role.EXPLORE or name not in node.defines
        if name in node.defines or node.trains or seen.trains or index in self.explicit_roles:
            return False
        return bool(seen.plot or seen.shown)

    def closure(self, start: Iterable[int], *, stop: frozenset[int] | set[int] = frozenset()) -> set[int]:
        """``start`` and everything it depends on.

        Args:
            start: Statement indices.
            stop: Statements that are not entered (unless they are in ``start``).
        """
        found: set[int] = set()
        open_indices = list(start)
        while open_indices:
            index = open_indices.pop()
            if index not in found:
                found.add(index)
                open_indices.extend(
                    source for source in self.sources(index) if source not in found and source not in stop
                )
            if not open_indices:
                open_indices.extend(self._open_names(found, stop))
        return found

    def sources(self, index: int) -> set[int]:
        """The statements that statement ``index`` depends on directly."""
        result: set[int] = set()
        for name, sources in self.nodes[index].deps.items():
            pending = list(sources)
            seen = {index}
            while pending:
                source = pending.pop()
                if source in seen:
                    continue
                seen.add(source)
                if self.transparent(source, name):
                    pending.extend(self.nodes[source].deps.get(name, ()))
                else:
                    result.add(source)
        return result

    def _open_names(self, found: set[int], stop: frozenset[int] | set[int]) -> list[int]:
        """Definers of names that included functions read when called and that nothing included defines yet."""
        bound: set[str] = set()
        for index in found:
            bound |= self.nodes[index].defines
        missing: list[int] = []
        for index in sorted(found):
            node = self.nodes[index]
            for name in node.facts.deferred - bound:
                if name in known.BUILTIN_NAMES:
                    continue
                definers = self.flow.final.get(name) or tuple(self.flow.definers.get(name, ()))[:1]
                chosen = [source for source in definers if not self.transparent(source, name)]
                if not definers and self.flow.stars:
                    chosen = list(self.flow.stars)
                missing.extend(source for source in chosen if source not in found and source not in stop)
        return missing

    def _ambient(self, needed: set[int]) -> None:
        """Seeds, paths and environment before the last statement that is needed; imports made for their effect."""
        if not needed:
            return
        end = max(needed)
        extra: list[int] = []
        for node in self.nodes[:end]:
            if node.index in needed or not self._usable(node.index):
                continue
            if (
                node.ambient
                and not known.AMBIENT_DISPLAY.match(node.ambient)
                and not self.looks[node.index].plot
                and self._fetches_for(node, needed)
            ) or (
                node.is_import
                and any(
                    module == "__future__"
                    or known.first(module) in known.SIDE_EFFECT_IMPORTS
                    or module in known.SIDE_EFFECT_IMPORTS
                    for module in node.facts.modules
                )
            ):
                extra.append(node.index)
        needed |= self.closure(extra)

    def _fetches_for(self, node: Node, needed: set[int]) -> bool:
        """Whether a download is one that the needed code reads; true of everything that downloads nothing."""
        if not known.FETCHING.match(node.ambient):
            return True
        names = {
            name
            for name in node.facts.uses
            if name not in self.flow.imports and name not in self.flow.routines
        }
        texts = set(node.facts.texts)
        return any(
            self.looks[index].loads
            and (names & self.nodes[index].facts.uses or texts & set(self.nodes[index].facts.texts))
            for index in needed
            if index > node.index
        )

    # --- roles ---------------------------------------------------------------------------------------------------

    def _assign(
        self, needed: set[int], kept: set[int], training: set[int], evaluation: set[int], inference: set[int]
    ) -> None:
        for node in self.nodes:
            index = node.index
            if self.verdicts[index] is not None:
                continue
            seen = self.looks[index]
            if index in kept:
                sure = 0.6 if seen.weak else 0.95 if seen.trains else 0.8
                self.verdicts[index] = Verdict(Role.TRAIN, sure, _training_reason(seen))
            elif index in inference:
                self.verdicts[index] = Verdict(
                    Role.INFERENCE,
                    0.75,
                    f"applies the model with {seen.predict}" if seen.predict else "works on predictions",
                )
            elif index in evaluation:
                reason = (
                    f"measures the trained model ({seen.metric})"
                    if seen.metric
                    else "insists on what was measured"
                    if _insists(node.stmt)
                    else "predicts what is then measured"
                )
                self.verdicts[index] = Verdict(Role.EVALUATE, 0.85, reason)
            elif index in needed:
                self.verdicts[index] = self._needed_role(node, seen)
            else:
                self.verdicts[index] = self._unneeded_role(node, seen, bool(training), index in training)
        self._only_for_inference(needed, [*kept, *evaluation])
        self._settle_accumulators(needed)
        self._settle_ambient(needed)

    def _settle_accumulators(self, needed: set[int]) -> None:
        """``losses = []`` that something fills is no parameter: it belongs to what fills it."""
        for index in needed:
            verdict, node = self.verdicts[index], self.nodes[index]
            if verdict is None or verdict.explicit or verdict.role is not Role.PARAMETERS:
                continue
            for consumer in sorted(self.consumers.get(index, ())):
                filled = self.verdicts[consumer]
                if filled is not None and consumer in needed and self.nodes[consumer].mutates & node.defines:
                    if filled.role in (
                        Role.PREPROCESS,
                        Role.MODEL,
                        Role.TRAIN,
                        Role.EVALUATE,
                        Role.INFERENCE,
                    ):
                        self.verdicts[index] = Verdict(
                            filled.role, 0.75, f"starts {_names(node.defines)}, filled later"
                        )
                    break

    def _only_for_inference(self, needed: set[int], core: Sequence[int]) -> None:
        """What stands behind training and only inference needs is inference."""
        if not core:
            return
        shared = self.closure(core)
        for index in needed - shared:
            verdict = self.verdicts[index]
            if verdict is None or verdict.explicit or index < min(core) or self.nodes[index].ambient:
                continue
            if verdict.role in (Role.PREPROCESS, Role.PARAMETERS):
                self.verdicts[index] = Verdict(Role.INFERENCE, 0.7, f"{verdict.reason} (inference only)")

    def _needed_role(self, node: Node, seen: Look) -> Verdict:
        if node.is_import:
            return Verdict(Role.IMPORTS, 0.99, "imports modules")
        if node.is_definition:
            return self._definition(node)
        if seen.literal:
            return Verdict(Role.PARAMETERS, 0.8, f"sets {_names(node.defines)} to constants")
        if any(kind in ("model", "optimizer") for kind in node.kinds.values()) and not node.facts.routines:
            what = seen.model or _names(node.defines)
            return Verdict(Role.MODEL, 0.85, f"builds the model ({what})")
        if (
            node.mutates
            and any(self.flow.kinds.get(name) in ("model", "optimizer") for name in node.mutates)
            and not seen.loads
        ):
            return Verdict(Role.MODEL, 0.75, f"sets up {_names(node.mutates)}")
        if seen.loads:
            return Verdict(Role.PREPROCESS, 0.9, f"loads data with {seen.loads}")
        if (
            isinstance(node.stmt, ast.If | ast.Try)
            and node.facts.routines
            and not node.defines - set(node.facts.routines)
        ):
            return Verdict(Role.UTILS, 0.8, f"defines {_names(node.defines)}")
        names = _names(node.defines or node.mutates)
        return Verdict(
            Role.PREPROCESS,
            0.8,
            f"prepares {names}, which training or inference needs" if names else "is needed",
        )

    def _definition(self, node: Node) -> Verdict:
        name, routine = next(iter(node.facts.routines.items()), ("", None))
        if routine is None:
            return Verdict(Role.UTILS, 0.8, "defines a function")
        kind = self.flow.kind_of_routine(routine)
        if kind == "model":
            bases = f", a {known.last(routine.bases[0])}" if routine.bases else ""
            return Verdict(Role.MODEL, 0.9, f"defines the model {name}{bases}")
        return Verdict(Role.UTILS, 0.9, f"defines {name}")

    def _unneeded_role(self, node: Node, seen: Look, trains: bool, is_training: bool) -> Verdict:
        if node.is_import:
            return Verdict(Role.IMPORTS, 0.99, "imports modules")
        if is_training:
            return Verdict(Role.EXPLORE, 0.6, f"{_training_reason(seen)}, which nothing measures or uses")
        if node.is_definition:
            if seen.plot and not seen.predict:
                return Verdict(Role.PLOT, 0.8, f"defines a function that draws ({seen.plot})")
            return (
                self._definition(node)
                if not trains
                else Verdict(
                    self._definition(node).role, 0.5, f"{self._definition(node).reason}, which no stage needs"
                )
            )
        if seen.plot:
            return Verdict(Role.PLOT, 0.9, f"draws ({seen.plot})")
        if seen.saves:
            return Verdict(
                Role.EXPLORE, 0.6, f"writes a file ({seen.saves}); the scripts save the model themselves"
            )
        if seen.shown:
            return Verdict(Role.EXPLORE, 0.9, "only shows something")
        if seen.literal:
            return Verdict(
                Role.EXPLORE if trains else Role.PARAMETERS, 0.5, f"sets {_names(node.defines)} to constants"
            )
        if node.ambient:
            return Verdict(Role.UTILS, 0.5, f"sets up the process ({node.ambient})")
        if not trains and seen.loads:
            return Verdict(Role.PREPROCESS, 0.7, f"loads data with {seen.loads}")
        if not trains and seen.model:
            return Verdict(Role.MODEL, 0.5, f"builds {known.last(seen.model)}, which nothing trains")
        return Verdict(
            Role.EXPLORE,
            0.7,
            "no training, evaluation or inference needs it" if trains else "nothing is trained",
        )

    def _settle_ambient(self, needed: set[int]) -> None:
        """A seed belongs to what comes next; paths and environment belong to the imports they are for."""
        following: Role | None = None
        for node in reversed(self.nodes):
            verdict = self.verdicts[node.index]
            if verdict is None or node.index not in needed:
                continue
            if (
                node.ambient
                and not verdict.explicit
                and not node.defines
                and verdict.role not in (Role.TRAIN, Role.EVALUATE)
            ):
                role: Role = (
                    following if following in (Role.MODEL, Role.TRAIN, Role.PREPROCESS) else Role.PREPROCESS
                )
                if node.ambient.startswith(("sys.path", "os.environ", "warnings.", "matplotlib.use")):
                    role = Role.IMPORTS
                self.verdicts[node.index] = Verdict(role, 0.7, f"sets up the process ({node.ambient})")
            elif verdict.role in (Role.PREPROCESS, Role.MODEL, Role.TRAIN) and not node.is_definition:
                following = verdict.role

    def _in_order(self, needed: set[int]) -> None:
        """Scripts run preprocessing, then the model, then training: whatever cannot move there stays with the later."""
        changed_by = {rank: (set[str](), set[str]()) for rank in range(2, 7)}
        for node in self.nodes:
            verdict = self.verdicts[node.index]
            if verdict is None or node.index not in needed or verdict.role in _LEFT_OUT:
                continue
            rank = RANK.get(verdict.role, 0)
            if node.is_definition or node.is_import:
                continue
            written = node.defines | node.mutates | node.facts.deletes
            if rank in (1, 2, 3) and not verdict.explicit:
                for later, role in _LATER:
                    if later <= rank:
                        break
                    reads, writes = changed_by[later]
                    if writes & (node.uses | written) or reads & written:
                        reason = f"{verdict.reason}; depends on the order after {role.value}"
                        self.verdicts[node.index] = Verdict(role, 0.65, reason)
                        rank = later
                        break
            if rank >= 2:
                reads, writes = changed_by[rank]
                reads |= node.uses
                writes |= written
        self._measured_between(needed)

    def _measured_between(self, needed: set[int]) -> None:
        """A measurement that later training would falsify has to be made where it stands: it is part of training."""
        reads: set[str] = set()
        writes: set[str] = set()
        for node in reversed(self.nodes):
            verdict = self.verdicts[node.index]
            if verdict is None or node.index not in needed:
                continue
            written = node.defines | node.mutates | node.facts.deletes
            if verdict.role is Role.EVALUATE and (writes & (node.uses | written) or reads & written):
                reason = f"{verdict.reason}; made before training goes on"
                self.verdicts[node.index] = verdict = Verdict(Role.TRAIN, 0.65, reason, verdict.explicit)
            if verdict.role is Role.TRAIN:
                reads |= node.uses
                writes |= written


def _applies(node: Node, name: str) -> bool:
    return any(
        seen.call.root == name and (seen.method in known.PREDICT_METHODS or seen.call.name == name)
        for seen in node.calls
    ) or any(
        isinstance(argument, ast.Name) and argument.id == name
        for seen in node.calls
        for argument in seen.call.node.args
    )


def _insists(statement: ast.stmt) -> bool:
    """Whether a statement does nothing but end the program where something is not as it has to be."""
    if isinstance(statement, ast.If):
        return not statement.orelse and isinstance(statement.body[-1], ast.Raise)
    return isinstance(statement, ast.Assert)


def _training_reason(seen: Look) -> str:
    names = _names(seen.trains)
    return (
        f"trains {names} with {seen.train_reason}"
        if names
        else f"trains with {seen.train_reason or 'its calls'}"
    )


def _names(names: Iterable[str]) -> str:
    ordered = list(names) if isinstance(names, list | tuple) else sorted(names)
    shown = ", ".join(ordered[:3])
    return f"{shown}, …" if len(ordered) > 3 else shown
