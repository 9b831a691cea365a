"""Where inference does not do to its input what training does (NB301)."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from . import calls as known
from .classify import Classification
from .flow import Flow, Node
from .model import Finding, Role, Severity, Slice, Stage

_APPLIES = frozenset({"transform", "fit_transform"})
#: What they encode is the target, which no request brings.
_OF_TARGETS = frozenset({"LabelEncoder", "LabelBinarizer", "MultiLabelBinarizer"})


def skew(flow: Flow, outcome: Classification, slices: Mapping[Stage, Slice]) -> list[Finding]:
    """What inference reads that only training makes, and what training applies to its input that inference forgets."""
    if Stage.INFERENCE not in slices:
        return []
    return [*_made_in_training(flow, outcome), *_forgotten(flow, outcome)]


def _made_in_training(flow: Flow, outcome: Classification) -> Iterator[Finding]:
    """Names inference reads that only training makes, the model apart."""
    training = {index for index, verdict in enumerate(outcome.verdicts) if verdict.role is Role.TRAIN}
    for index in outcome.inference:
        node = flow.nodes[index]
        for name in sorted(node.deps):
            made = [source for source in node.deps[name] if source in training]
            if not made or name in outcome.models or name in flow.imports or name.startswith("\0"):
                continue
            yield _finding(
                f"Inference reads {name}, which only training makes (cell {flow.nodes[made[0]].cell + 1}).",
                f"Make {name} in preprocessing, or save it with the model.",
                node,
            )


def _forgotten(flow: Flow, outcome: Classification) -> Iterator[Finding]:
    """Scalers and the like through which a model's training input goes, and a prediction's input does not."""
    training = {index for index in outcome.training if outcome.looks[index].trains}
    for index in outcome.inference:
        node = flow.nodes[index]
        if not outcome.looks[index].predict:
            continue
        prepared: dict[str, int] = {}
        for trained in _trainings(node, outcome, training):
            prepared.update(_preparers(flow, outcome, trained))
        if not prepared:
            continue
        path = outcome.closure([index], stop=training)
        read = {
            name for step in path for name in (flow.nodes[step].facts.uses | flow.nodes[step].facts.deferred)
        }
        for name, source in prepared.items():
            if name not in read:
                cell = flow.nodes[source].cell + 1
                yield _finding(
                    f"Training goes through {name}.transform (cell {cell}); this prediction's input does not.",
                    f"Apply {name} here too, or make a pipeline of {name} and the model.",
                    node,
                )


def _trainings(node: Node, outcome: Classification, training: set[int]) -> set[int]:
    """The training of the model that a statement applies, or that a function applies when it is called."""
    found: set[int] = set()
    for model in outcome.models:
        if model in node.facts.uses:
            found.update(source for source in node.deps.get(model, ()) if source in training)
        elif model in node.facts.deferred:
            found.update([index for index in outcome.training if model in outcome.looks[index].trains][-1:])
    return found


def _preparers(flow: Flow, outcome: Classification, index: int) -> dict[str, int]:
    """Fitted transformers on the way into one training, and the statement that applies each."""
    node = flow.nodes[index]
    found: dict[str, int] = {}
    for seen in node.calls:
        if seen.method not in known.FIT_METHODS or seen.kind == "transformer":
            continue
        names = {
            part.id
            for argument in seen.call.node.args[:1]
            for part in ast.walk(argument)
            if isinstance(part, ast.Name)
        }
        starts = {source for name in names for source in node.deps.get(name, ()) if source < index}
        for step in sorted(outcome.closure(starts)):
            found.update(dict.fromkeys(_applied(flow.nodes[step]), step))
        found.update(dict.fromkeys(_applied(node), index))
    return {name: step for name, step in found.items() if name not in outcome.models}


def _applied(node: Node) -> Iterator[str]:
    for seen in node.calls:
        if (
            seen.method in _APPLIES
            and seen.kind == "transformer"
            and seen.call.root is not None
            and seen.call.name.count(".") == 1
            and "()" not in seen.call.name
            and known.last(seen.maker) not in _OF_TARGETS
        ):
            yield seen.call.root


def _finding(message: str, fix: str, node: Node) -> Finding:
    return Finding(
        "NB301", "train-inference-skew", Severity.WARNING, message, fix, node.cell, node.stmt.lineno
    )
