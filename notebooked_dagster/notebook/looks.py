"""What one statement looks like by itself: does it train, measure, predict, draw, look at data?

The evidence that :mod:`.classify` weighs against how data flows.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from . import calls as known
from .flow import Flow, Node, SeenCall
from .measures import AVERAGES, FITTED_NUMBERS, FITTED_REPORTS, by_hand

_PREPARER_NAME = re.compile(
    r"(?i)^(?:\w*scaler?\w*|\w*encoder|enc|le|lb|mlb|ohe|\w*vectori[sz]er|vec|tfidf\w*|cv|\w*imputer|\w*imp|\w*tokenizer|tok|\w*binarizer"
    r"|sc|sc_\w+|\w*_sc|\w*transformer|\w*normali[sz]er|poly\w*|\w*_poly|preprocessor|preproc\w*|\w*datagen|label_enc\w*|ss|mms|"
    r"oversample\w*|smote|sm|ros|rus|selector|ct|full_pipeline|num_pipeline|cat_pipeline|discreti[sz]er|pt|qt)$"
)
_METRIC_WORDS = re.compile(
    r"(?i)\b(?:accurac\w*|acc|precision|recall|f1\S*|f-?score|auc|roc\S*|mse|rmse|mae|mape|smape|rmsle|r2|r\^2|r-?squared|mean squared|"
    r"test loss|val\w* loss|validation|loss|error|score|perplexity|silhouette|inertia|confusion|classification report|log.?loss|aic|bic)\b"
)
_METRIC_NAMES = re.compile(
    r"(?i)^(?:\w*accurac\w*|acc|\w*_acc|acc_\w*|\w*_?correct|n_correct|num_correct|precision\w*|recall\w*|\w*f1\w*|\w*auc\w*|\w*rmse\w*|mse\w*|\w*_mse|"
    r"mae\w*|\w*_mae|\w*mape\w*|r2\w*|\w*_r2|test_loss\w*|val_loss\w*|\w*_error|\w*_errors|error_rate|\w*scores?|confusion\w*|conf_mat\w*|cm|report)$"
)
_FITTED_ATTRIBUTES = FITTED_REPORTS | FITTED_NUMBERS.keys()


@dataclass(slots=True)
class Look:
    """The evidence for one statement.

    Attributes:
        trains: Names that hold what it trained; empty where it trains nothing.
        train_reason: The call that trains (``clf.fit``); empty where it trains nothing.
        weak: Whether it trains only if nothing better does (``PCA.fit``, ``cross_val_score``).
        metric: The call or word by which it measures; empty where it does not.
        predict: The call by which it applies a model; empty where it does not.
        plot: The call that draws.
        shown: Whether it only shows something (a bare expression, ``print``, ``df.head()``).
        prints: Whether it is a ``print``.
        loads: The call that loads data.
        saves: The call that writes a file.
        model: The constructor of a model it calls.
        literal: Whether it binds plain names to constants.
        loads_model: Whether it reads a trained model back.
    """

    trains: list[str] = field(default_factory=list)
    train_reason: str = ""
    weak: bool = False
    metric: str = ""
    predict: str = ""
    plot: str = ""
    shown: bool = False
    prints: bool = False
    loads: str = ""
    saves: str = ""
    model: str = ""
    literal: bool = False
    loads_model: bool = False


def look(node: Node, flow: Flow) -> Look:
    """The evidence that one statement gives; none where it is nested too deeply to look through."""
    try:
        return _look(node, flow)
    except RecursionError:
        return Look()


def _look(node: Node, flow: Flow) -> Look:
    found = Look()
    if node.is_import:
        return found
    if node.is_definition:
        _look_at_definition(node, found)
        return found
    stmt = node.stmt
    found.literal = _is_literal(stmt)
    if isinstance(stmt, ast.Expr):
        found.shown = not isinstance(stmt.value, ast.Call | ast.Await | ast.Yield)
    for seen in node.calls:
        _look_at_call(seen, node, found)
    if node.inner:
        _look_inside(node, found, flow)
    _look_at_loop(node, found, flow)
    _look_at_words(node, found)
    if isinstance(stmt, ast.Expr) and not found.trains:
        _look_at_expression(stmt, node, found)
    elif isinstance(stmt, ast.For | ast.If | ast.With | ast.While) and not found.trains:
        found.shown = found.shown or _only_shows(stmt)
    for root in (known.first(dotted) for dotted in node.facts.stored):
        if known.first(flow.resolve(root)) in known.PLOT_ROOTS:
            found.plot = found.plot or root
    return found


def _look_at_definition(node: Node, found: Look) -> None:
    routine = next(iter(node.facts.routines.values()), None)
    if routine is None:
        return
    for call in routine.calls:
        if call.method in known.PREDICT_METHODS:
            found.predict = found.predict or call.name
        if call.method in known.PLOT_METHODS or call.name.startswith(("plt.", "sns.", "ax.", "axes")):
            found.plot = found.plot or call.name


def _is_literal(stmt: ast.stmt) -> bool:
    if isinstance(stmt, ast.Assign):
        value: ast.expr | None = stmt.value
        if not all(isinstance(target, ast.Name | ast.Tuple) for target in stmt.targets):
            return False
    elif isinstance(stmt, ast.AnnAssign):
        value = stmt.value
    else:
        return False
    return value is not None and _constant_like(value)


def _constant_like(value: ast.expr, depth: int = 0) -> bool:
    if isinstance(value, ast.Constant):
        return True
    if depth > 4:
        return False
    if isinstance(value, ast.UnaryOp):
        return _constant_like(value.operand, depth + 1)
    if isinstance(value, ast.BinOp):
        return _constant_like(value.left, depth + 1) and _constant_like(value.right, depth + 1)
    if isinstance(value, ast.List | ast.Tuple | ast.Set):
        return len(value.elts) <= 200 and all(_constant_like(item, depth + 1) for item in value.elts)
    if isinstance(value, ast.Dict):
        return all(
            item is not None and _constant_like(item, depth + 1) for item in (*value.keys, *value.values)
        )
    return False


def _look_at_call(seen: SeenCall, node: Node, found: Look) -> None:
    dotted, method = seen.dotted, seen.method
    head = known.first(dotted)
    has_arguments = bool(seen.call.node.args or seen.call.node.keywords)
    if head in known.PLOT_ROOTS or (
        "." in seen.call.name
        and method in known.PLOT_METHODS
        and seen.kind not in ("model", "transformer")
        and _draws(seen)
    ):
        found.plot = found.plot or seen.call.name
        return
    if method == "plot" or method.startswith(("plot_", "draw_", "visualize", "show_")):
        found.plot = found.plot or seen.call.name
    _look_for_training(seen, node, found, has_arguments=has_arguments)
    if known.METRIC_FUNCTIONS.search(dotted) or (
        method in known.METRIC_METHODS and "." in seen.call.name and has_arguments and seen.kind != "module"
    ):
        found.metric = found.metric or seen.call.name
        if method in known.CROSS_VALIDATION and not found.trains:
            first = seen.call.node.args[0] if seen.call.node.args else None
            found.trains = [first.id] if isinstance(first, ast.Name) else []
            found.train_reason, found.weak = seen.call.name, True
    if "." in seen.call.name and method in known.PREDICT_METHODS and seen.kind not in ("module", "data"):
        found.predict = found.predict or seen.call.name
    elif seen.call.root is not None and seen.call.name == seen.call.root and seen.kind == "model":
        found.predict = found.predict or f"{seen.call.name}(…)"
    if known.SAVE_FUNCTIONS.search(dotted):
        found.saves = found.saves or seen.call.name
    elif known.MODEL_LOADERS.search(dotted):
        found.loads_model = True
        found.loads = found.loads or seen.call.name
    elif known.LOAD_FUNCTIONS.search(dotted):
        found.loads = found.loads or seen.call.name
    if known.is_model(dotted.partition("()")[0]) and head not in known.PLOT_ROOTS:
        found.model = found.model or dotted.partition("()")[0]


def _draws(seen: SeenCall) -> bool:
    """``show``, ``step``, ``text`` and the like draw only on what is not a model."""
    if seen.method in (
        "step",
        "text",
        "grid",
        "title",
        "bar",
        "show",
        "pie",
        "axis",
        "recorder",
        "step_plot",
        "render",
        "figure",
    ):
        return seen.kind == "" and (seen.call.root or "").lower().startswith(
            ("ax", "fig", "plt", "g", "df", "chart", "plot")
        )
    return True


def _look_for_training(seen: SeenCall, node: Node, found: Look, *, has_arguments: bool) -> None:
    method, call = seen.method, seen.call
    if known.METRIC_FUNCTIONS.search(seen.dotted) and method not in known.FIT_METHODS:
        return
    if seen.dotted in known.TRAIN_FUNCTIONS:
        _trained(found, node, call.name, targets=True, receiver=None)
        return
    if seen.call.root in node.facts.uses and (seen.kind == "module" or "()" not in seen.dotted):
        # `engine.train(model=model, …)`: somebody else's training function, given a model.
        given = _models_given(seen, node)
        if given:
            _trained(found, node, call.name, targets=False, receiver=given[0])
            return
    if method not in known.FIT_METHODS or "." not in seen.dotted:
        return
    if seen.kind in ("module", "data") or call.root == "self":
        return
    maker = known.last(seen.maker)
    if (
        method == "train"
        and not has_arguments
        and not known.HOLDER_CLASS.match(maker)
        and seen.kind in ("model", "")
    ):
        return
    if method in ("minimize", "train_model", "learn", "train") and call.root is None:
        return
    transformer = seen.kind == "transformer" or (
        seen.kind == "" and _PREPARER_NAME.match(call.root or "") is not None
    )
    if transformer:
        if known.REDUCER_CLASS.match(maker) or known.REDUCER_CLASS.match(
            known.last(seen.dotted.partition("()")[0])
        ):
            _trained(found, node, call.name, targets="()" in call.name, receiver=call.root, weak=True)
        return
    through_class = "()" in call.name
    receiver = None if through_class and call.root in node_imports(node, call.root) else call.root
    if through_class and _is_callable_root(seen):
        receiver = None
    statsmodels = (
        not has_arguments or seen.maker.startswith(("statsmodels.", "pyspark.")) or "pyspark" in seen.dotted
    )
    _trained(
        found,
        node,
        call.name,
        targets=through_class or statsmodels or "history" not in call.name,
        receiver=receiver,
    )


def _models_given(seen: SeenCall, node: Node) -> list[str]:
    """Arguments that an imported function of a telling name trains; the flow has found which hold models."""
    if not _TRAINS_BY_NAME.match(seen.method) or seen.kind not in ("module", ""):
        return []
    arguments = [*seen.call.node.args, *(keyword.value for keyword in seen.call.node.keywords)]
    return [one.id for one in arguments if isinstance(one, ast.Name) and one.id in node.trains]


def node_imports(node: Node, root: str | None) -> set[str]:
    """Names imported by the statement itself."""
    return set(node.facts.imports)


def _is_callable_root(seen: SeenCall) -> bool:
    """Whether the chain starts at a constructor: ``SVC().fit`` trains something new, not ``SVC``."""
    head = seen.call.name.partition("()")[0]
    return ("." not in head.strip(".") and head == seen.call.root) or known.is_class_name(head)


_TRAINS_BY_NAME = re.compile(
    r"^(?:train|fit|run_training|training)(?:_(?!test|val|data|df|x|y)\w*)?$|^\w+_train(?:ing)?$"
)
_HISTORY = re.compile(r"(?i)^(?:\w*hist(?:ory)?\w*|h|log|logs|train_log|callback\w*|losses|_)$")


def _trained(
    found: Look, node: Node, reason: str, *, targets: bool, receiver: str | None, weak: bool = False
) -> None:
    names = [receiver] if receiver else []
    stmt = node.stmt
    if targets and isinstance(stmt, ast.Assign | ast.AnnAssign):
        goals = stmt.targets if isinstance(stmt, ast.Assign) else [stmt.target]
        for goal in goals:
            if isinstance(goal, ast.Name) and not _HISTORY.match(goal.id):
                names.insert(0, goal.id)
            elif isinstance(goal, ast.Tuple):
                names.extend(item.id for item in goal.elts if isinstance(item, ast.Name) and not receiver)
    if found.train_reason and found.weak and not weak:
        found.trains, found.train_reason = [], ""
    if weak and found.train_reason and not found.weak:
        return
    found.weak = weak
    found.train_reason = found.train_reason or reason
    found.trains.extend(name for name in names if name not in found.trains)


def _look_inside(node: Node, found: Look, flow: Flow) -> None:
    """What functions of the notebook do on this statement's behalf."""
    direct = {call.call.name for call in node.calls}
    for seen in node.inner:
        method = seen.method
        root = seen.call.root or ""
        if method in ("backward", "apply_gradients", "train_on_batch", "train_step") or (
            method in known.FIT_METHODS
            and "." in seen.dotted
            and seen.kind not in ("transformer", "module", "data")
            and not _PREPARER_NAME.match(root)
            and root != "self"
            and (method != "train" or bool(seen.call.node.args))
        ):
            if not found.train_reason or found.weak:
                learned = [name for name in sorted(node.trains) if flow.kinds.get(name) == "model"]
                found.trains, found.weak = learned or sorted(node.trains), False
                found.train_reason = (
                    f"{sorted(direct)[0] if direct else 'a function'}, which calls {seen.call.name}"
                )
                if not found.trains:
                    _trained(found, node, found.train_reason, targets=True, receiver=None)
        elif seen.dotted in known.TRAIN_FUNCTIONS and not found.train_reason:
            _trained(found, node, seen.call.name, targets=True, receiver=None)
        if known.METRIC_FUNCTIONS.search(seen.dotted) or (
            method in known.METRIC_METHODS and "." in seen.dotted
        ):
            found.metric = found.metric or seen.call.name
        if method in known.PREDICT_METHODS and "." in seen.dotted:
            found.predict = found.predict or seen.call.name
        if method in ("show", "imshow", "savefig", "scatter") or known.first(seen.dotted) in known.PLOT_ROOTS:
            found.plot = found.plot or seen.call.name
        if known.LOAD_FUNCTIONS.search(seen.dotted):
            found.loads = found.loads or seen.call.name


def _look_at_loop(node: Node, found: Look, flow: Flow) -> None:
    """A hand-written training loop in the statement itself."""
    if not isinstance(node.stmt, ast.For | ast.While | ast.With | ast.AsyncFor | ast.Expr | ast.If):
        return
    methods = {seen.method for seen in node.calls}
    if (
        "backward" in methods
        or "apply_gradients" in methods
        or ("step" in methods and "zero_grad" in methods)
    ):
        reason = "backward()" if "backward" in methods else "apply_gradients()"
        if not found.train_reason or found.weak:
            found.weak = False
            found.train_reason = f"a loop that calls {reason}"
        learned = [name for name in sorted(node.trains) if flow.kinds.get(name) == "model"]
        for name in learned or sorted(node.trains - node.facts.must):
            if name not in found.trains:
                found.trains.append(name)


def _look_at_words(node: Node, found: Look) -> None:
    if found.metric:
        return
    for name in sorted(node.facts.defines):
        if _METRIC_NAMES.match(name):
            found.metric = name
            return
    printed = any(seen.call.name in ("print", "display", "pprint", "tqdm.write") for seen in node.calls)
    if printed:
        for text in node.facts.texts:
            match = _METRIC_WORDS.search(text)
            if match:
                found.metric = match.group()
                return
    for dotted in node.facts.attributes:
        if known.last(dotted) in _FITTED_ATTRIBUTES:
            found.metric = dotted
            return
    if any(seen.method in AVERAGES for seen in node.calls):
        found.metric = next((kind for part in ast.walk(node.stmt) if (kind := by_hand(part)) is not None), "")


def _look_at_expression(stmt: ast.Expr, node: Node, found: Look) -> None:
    value = stmt.value
    if not isinstance(value, ast.Call):
        return
    outer = next((seen for seen in node.calls if seen.call.node is value), None)
    if outer is None:
        return
    method = outer.method
    if outer.dotted in known.LOOK_FUNCTIONS or method in known.LOOK_METHODS:
        found.shown = True
        found.prints = outer.dotted in ("print", "pprint", "pprint.pprint")
    elif (node.last and not node.mutates and not found.saves and not found.plot and not node.ambient) or (
        method in known.PURE_METHODS and not node.mutates
    ):
        found.shown = True


def _only_shows(stmt: ast.stmt) -> bool:
    """Whether a compound statement does nothing but print, show or draw."""
    body: list[ast.stmt] = []
    for part in ("body", "orelse", "finalbody"):
        body.extend(getattr(stmt, part, ()))
    for child in body:
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            function = child.value.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            if (
                name in ("print", "display", "pprint")
                or name in known.LOOK_METHODS
                or name in known.PLOT_METHODS
            ):
                continue
            return False
        if isinstance(child, ast.Pass | ast.Break | ast.Continue) or (
            isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        ):
            continue
        if isinstance(child, ast.If | ast.For | ast.With | ast.While) and _only_shows(child):
            continue
        return False
    return bool(body)
