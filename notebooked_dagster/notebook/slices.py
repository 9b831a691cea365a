"""Stage slices: the minimal code that each stage needs, in notebook order.

``TRAIN`` owns training and evaluation (roles ``TRAIN`` and ``EVALUATE``) and needs everything they depend on.
``INFERENCE`` stops at training: what training made arrives as a saved model, so its statements are not repeated; the
definitions that are needed to load it are. ``PREPROCESS`` is one slice for both. Every statement's role says which
stage it belongs to wherever it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable

from .classify import Classification
from .flow import Flow
from .model import Role, Slice, Stage, Statement

_OWNERS: dict[Stage, tuple[Role, ...]] = {
    Stage.IMPORTS: (Role.IMPORTS,),
    Stage.UTILS: (Role.UTILS,),
    Stage.PREPROCESS: (Role.PREPROCESS,),
    Stage.MODEL: (Role.MODEL,),
    Stage.TRAIN: (Role.TRAIN, Role.EVALUATE),
    Stage.INFERENCE: (Role.INFERENCE,),
}
_ORDER = tuple(_OWNERS)
_STAGE_OF = {role: stage for stage, roles in _OWNERS.items() for role in roles}


def make_slices(flow: Flow, outcome: Classification, statements: tuple[Statement, ...]) -> dict[Stage, Slice]:
    """Slices of all stages that the notebook has.

    Args:
        flow: The notebook's flow.
        outcome: Its classification.
        statements: Its statements with their roles, in the flow's order.
    """
    chosen = set(outcome.needed)
    tagged = {index for index, verdict in enumerate(outcome.verdicts) if verdict.explicit}
    owned: dict[Stage, list[int]] = {stage: [] for stage in _ORDER}
    for index, verdict in enumerate(outcome.verdicts):
        stage = _STAGE_OF.get(verdict.role)
        if stage is not None and (index in chosen or index in tagged):
            owned[stage].append(index)
    train_like = {index for index, verdict in enumerate(outcome.verdicts) if verdict.role is Role.TRAIN}
    members: dict[Stage, set[int]] = {}
    for stage, own in owned.items():
        if not own:
            continue
        if stage is Stage.INFERENCE:
            members[stage] = _inference_members(flow, outcome, own, train_like)
        elif stage is Stage.TRAIN:
            reach = outcome.closure(own)
            members[stage] = reach | _ambient_before(flow, outcome, reach)
        else:
            members[stage] = outcome.closure(own, stop=train_like)
    return {
        stage: _slice(flow, outcome, statements, stage, own, members[stage], members)
        for stage, own in owned.items()
        if own
    }


def _ambient_before(flow: Flow, outcome: Classification, reach: set[int]) -> set[int]:
    """Seeds and set-up that come before the last statement of the slice."""
    end = max(reach)
    extra = [
        node.index
        for node in flow.nodes[:end]
        if node.index in outcome.needed
        and (node.ambient or (node.is_import and not node.defines))
        and not node.is_definition
    ]
    future = [
        node.index
        for node in flow.nodes[:end]
        if node.index in outcome.needed and "__future__" in node.facts.modules
    ]
    effects = [
        node.index
        for node in flow.nodes[:end]
        if node.is_import and node.index in outcome.needed and node.index not in reach
    ]
    return outcome.closure([*extra, *future, *effects])


def _inference_members(
    flow: Flow, outcome: Classification, own: Iterable[int], train_like: set[int]
) -> set[int]:
    reach = outcome.closure(own, stop=train_like - set(own))
    trained = outcome.closure(
        [index for member in reach for index in outcome.sources(member) if index in train_like]
    )
    # Loading the model needs the classes and functions it was built with, not the training.
    classes = [
        index
        for index in trained - reach
        if flow.nodes[index].is_definition
        and outcome.verdicts[index].role in (Role.MODEL, Role.UTILS)
        and any(routine.is_class for routine in flow.nodes[index].facts.routines.values())
    ]
    future = [index for index in outcome.needed if "__future__" in flow.nodes[index].facts.modules]
    return reach | outcome.closure([*classes, *future], stop=train_like)


def _comes_earlier(
    outcome: Classification, source: int, mine: set[int], members: set[int], rank: int
) -> bool:
    """Whether a name from ``source`` has to be handed to a stage: an earlier stage made it, or training did."""
    other = _STAGE_OF.get(outcome.verdicts[source].role)
    if source in mine or other is None or other in (Stage.IMPORTS, Stage.UTILS):
        return False
    return source not in members or _ORDER.index(other) < rank


def _slice(
    flow: Flow,
    outcome: Classification,
    statements: tuple[Statement, ...],
    stage: Stage,
    own: list[int],
    members: set[int],
    everything: dict[Stage, set[int]],
) -> Slice:
    mine = set(own)
    defined = {name for index in mine for name in flow.nodes[index].defines}
    inputs: set[str] = set()
    rank = _ORDER.index(stage)
    for index in sorted(members if stage is not Stage.TRAIN else mine):
        node = flow.nodes[index]
        read = [(name, sources) for name, sources in node.deps.items() if not name.startswith("\0")]
        read += [(name, flow.final.get(name, ())) for name in node.facts.deferred if name not in node.deps]
        for name, sources in read:
            if any(_comes_earlier(outcome, source, mine, members, rank) for source in sources):
                inputs.add(name)
    outputs: set[str] = set()
    for later, indices in everything.items():
        if _ORDER.index(later) <= rank:
            continue
        for index in indices - mine:
            if _STAGE_OF.get(outcome.verdicts[index].role) is not stage:
                outputs |= {
                    name
                    for name, sources in flow.nodes[index].deps.items()
                    if not name.startswith("\0") and any(source in mine for source in sources)
                }
    if stage is Stage.TRAIN:
        outputs |= set(outcome.models[:1]) & (defined | {n for i in mine for n in flow.nodes[i].mutates})
    return Slice(
        stage=stage,
        own=tuple(statements[index] for index in sorted(mine)),
        needed=tuple(statements[index] for index in sorted(members - mine)),
        inputs=frozenset(inputs),
        outputs=frozenset(outputs),
    )
