"""How the notebook predicts: the code from raw features to an answer, found in it and made into one function."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from notebooked_dagster.notebook.model import Analysis, Role, Stage, Statement

_PREDICTS = frozenset(
    {
        "predict",
        "predict_proba",
        "decision_function",
        "forecast",
        "predict_on_batch",
        "kneighbors",
        "generate",
        "recommend",
        "get_forecast",
    }
)
_PREFERRED = re.compile(r"(?i)predict|infer|classif|forecast|recommend|recogni|score|generate")
_TRANSFORMS = frozenset(
    {
        "transform",
        "astype",
        "reshape",
        "to_numpy",
        "toarray",
        "todense",
        "float",
        "to",
        "unsqueeze",
        "flatten",
        "values",
        "fillna",
        "copy",
        "array",
        "asarray",
        "from_numpy",
        "tensor",
        "DataFrame",
        "Tensor",
        "FloatTensor",
        "DMatrix",
        "add_constant",
        "expand_dims",
        "texts_to_sequences",
        "pad_sequences",
    }
)
# They choose rows of a table and leave each row as it is.
_ROWS = frozenset({"head", "tail", "sample", "nlargest", "nsmallest", "take"})
_BUILTINS = frozenset(dir(builtins))
CONTRACT = frozenset({"model_fn", "input_fn", "predict_fn", "output_fn", "create_app", "main", "app"})


@dataclass(slots=True)
class Prediction:
    """The function that answers a request.

    Attributes:
        parameters: Its arguments; one takes the whole body, several take the body's entries by name.
        body: Source lines of the function's body, dedented.
        definitions: Functions and classes of the notebook that stand before it, and literal constants.
        needs: Names it reads that are neither parameters nor its own.
        example: Source of an expression, over names of the training code, that makes an example input by parameter.
        example_needs: Names those expressions read.
        origin: Cell indices it was made from.
    """

    parameters: tuple[str, ...]
    body: tuple[str, ...]
    definitions: tuple[Statement, ...] = ()
    needs: frozenset[str] = frozenset()
    example: dict[str, str] = field(default_factory=dict)
    example_needs: frozenset[str] = frozenset()
    origin: tuple[int, ...] = ()


def find(analysis: Analysis, training: Sequence[Statement], model: str | None) -> Prediction:
    """The way the notebook predicts; plain ``model.predict`` where it shows none.

    Args:
        analysis: The notebook.
        training: The statements of the training scripts.
        model: The name that holds the model.
    """
    part = analysis.slices.get(Stage.INFERENCE)
    own = [
        statement for statement in (part.own if part is not None else ()) if statement.role is Role.INFERENCE
    ]
    available = {name for statement in training for name in statement.defines}
    found = _by_function(analysis, own, model, available)
    if found is None and model is not None:
        routines = {
            statement.node.name
            for statement in analysis.statements
            if isinstance(statement.node, ast.FunctionDef)
        }
        found = _by_replay(own, model, available, routines) or _by_evaluation(training, model, available)
    return found or _default(training, model, available)


# --- a function of the notebook ----------------------------------------------------------------------------------


def _by_function(
    analysis: Analysis, own: Sequence[Statement], model: str | None, available: set[str]
) -> Prediction | None:
    definitions = [
        statement for statement in own if isinstance(statement.node, ast.FunctionDef | ast.ClassDef)
    ]
    functions = [
        statement
        for statement in definitions
        if isinstance(statement.node, ast.FunctionDef) and statement.node.name not in CONTRACT
    ]
    if not functions or any(getattr(statement.node, "name", "") in CONTRACT for statement in definitions):
        return None
    ranked = [
        statement
        for statement in functions
        if _PREFERRED.search(getattr(statement.node, "name", ""))
        or (model is not None and model in statement.deferred)
    ]
    if not ranked:
        return None
    chosen = ranked[-1]
    node = chosen.node
    assert isinstance(node, ast.FunctionDef)
    arguments = [*node.args.posonlyargs, *node.args.args]
    required = [item.arg for item in arguments[: len(arguments) - len(node.args.defaults)]]
    required += [
        item.arg
        for item, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if default is None
    ]
    given = [name for name in required if name == model]
    data = [name for name in required if name != model] or [
        item.arg for item in arguments if item.arg != model
    ]
    if not data:
        return None
    call = ", ".join(f"{name}={name}" for name in [*given, *data])
    if node.args.posonlyargs:
        call = ", ".join([*given, *data])
    constants = [statement for statement in own if statement not in definitions and _is_literal(statement)]
    needs: set[str] = set()
    for statement in definitions:
        needs |= statement.uses | statement.deferred
    needs |= set(given)
    bound = {name for statement in (*definitions, *constants) for name in statement.defines}
    example, example_needs = _called_with(analysis, node, data, available)
    return Prediction(
        parameters=tuple(data),
        body=(f"return {node.name}({call})",),
        definitions=tuple(
            statement
            for statement in own
            if statement in definitions or (statement in constants and statement.defines & needs)
        ),
        needs=frozenset(
            needs
            - (
                bound & {n for s in definitions for n in s.defines}
                | {n for s in constants for n in s.defines}
            )
            - _BUILTINS
        ),
        example=example,
        example_needs=frozenset(example_needs),
        origin=tuple(sorted({statement.cell for statement in definitions})),
    )


def _is_literal(statement: Statement) -> bool:
    node = statement.node
    if not isinstance(node, ast.Assign) or not all(isinstance(target, ast.Name) for target in node.targets):
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _called_with(
    analysis: Analysis, node: ast.FunctionDef, data: Sequence[str], available: set[str]
) -> tuple[dict[str, str], set[str]]:
    """How the notebook itself calls a function, as an example of its input."""
    order = [item.arg for item in (*node.args.posonlyargs, *node.args.args)]
    for statement in analysis.statements:
        for call in ast.walk(statement.node):
            if not (
                isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == node.name
            ):
                continue
            if isinstance(statement.node, ast.FunctionDef | ast.ClassDef):
                continue
            values = dict(zip(order, call.args, strict=False))
            values.update({word.arg: word.value for word in call.keywords if word.arg})
            if not all(name in values for name in data):
                continue
            read = {
                inner.id for name in data for inner in ast.walk(values[name]) if isinstance(inner, ast.Name)
            }
            if read <= available | _BUILTINS and not any(
                isinstance(value, ast.Starred) for value in values.values()
            ):
                return {name: ast.unparse(values[name]) for name in data}, read - _BUILTINS
    return {}, set()


# --- flat code ---------------------------------------------------------------------------------------------------


def _by_replay(
    own: Sequence[Statement], model: str, available: set[str], routines: set[str]
) -> Prediction | None:
    flat = [statement for statement in own if not isinstance(statement.node, ast.FunctionDef | ast.ClassDef)]
    for index, statement in enumerate(flat):
        call = _prediction_call(statement.node, model)
        if call is None or isinstance(statement.node, ast.For | ast.While | ast.If | ast.Try):
            continue
        made = _replay(statement, call, flat[:index], own, available, routines)
        if made is not None:
            return made
    return None


def _replay(
    statement: Statement,
    call: ast.Call,
    before: Sequence[Statement],
    own: Sequence[Statement],
    available: set[str],
    routines: set[str],
) -> Prediction | None:
    chain = _chain(statement, before)
    if chain is None:
        return None
    root, middle = chain
    result, tail = _result(statement, call)
    definitions = [item for item in own if isinstance(item.node, ast.FunctionDef | ast.ClassDef)]
    if root is not None:
        node = root.node
        assert isinstance(node, ast.Assign)
        target = node.targets[0]
        assert isinstance(target, ast.Name)
        parameter = target.id
        example, prepared = _prepared(node.value, parameter, routines)
        body = [
            *prepared,
            *(line for item in middle for line in item.text.split("\n")),
            *tail,
            f"return {result}",
        ]
        returned = _names_in(result)
        read = set().union(*(item.uses for item in middle), statement.uses if tail else returned)
        read |= {name for line in prepared for name in _names_in(line)}
        bound = {name for item in middle for name in item.defines} | statement.defines
    else:
        inner = _innermost(_argument(call), routines)
        if inner is None or middle:
            return None
        parameter, example = "data", inner
        tree = ast.parse(result, mode="eval").body if not tail else None
        if tree is None:
            return None
        text = _replaced(result, ast.unparse(inner), parameter)
        if text is None:
            return None
        body = [f"return {text}"]
        read = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)} - {parameter}
        bound = set()
    example_read = {node.id for node in ast.walk(example) if isinstance(node, ast.Name)}
    usable = example_read <= available | _BUILTINS
    used = [item for item in definitions if item.defines & read]
    for item in used:
        read |= item.uses | item.deferred
    names = {name for item in used for name in item.defines}
    return Prediction(
        parameters=(parameter,),
        body=tuple(body),
        definitions=tuple(used),
        needs=frozenset(read - bound - names - {parameter} - _BUILTINS),
        example={parameter: ast.unparse(example)} if usable else {},
        example_needs=frozenset(example_read - _BUILTINS) if usable else frozenset(),
        origin=(statement.cell,),
    )


def _names_in(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _prepared(value: ast.expr, parameter: str, routines: set[str]) -> tuple[ast.expr, list[str]]:
    """The raw input in ``scaler.transform(raw)`` or ``add_features(raw)``, and the line that prepares it so.

    What a request brings is raw: a fitted transformer, or a function of the notebook's own, stands between.
    """
    inner = value
    while (
        isinstance(inner, ast.Call)
        and inner.args
        and not isinstance(inner.args[0], ast.Starred | ast.Constant)
    ):
        by_method = isinstance(inner.func, ast.Attribute) and inner.func.attr == "transform"
        by_routine = isinstance(inner.func, ast.Name) and inner.func.id in routines and len(inner.args) == 1
        if not by_method and not by_routine:
            break
        inner = inner.args[0]
    text = None if inner is value else _replaced(ast.unparse(value), ast.unparse(inner), parameter)
    return (value, []) if text is None else (inner, [f"{parameter} = {text}"])


def _chain(
    statement: Statement, before: Sequence[Statement]
) -> tuple[Statement | None, list[Statement]] | None:
    """The inference statements that lead to a prediction: the one that names the input, and those between."""
    wanted = set(statement.uses)
    middle: list[Statement] = []
    for item in reversed(before):
        if item.defines & wanted or item.mutates & wanted:
            middle.insert(0, item)
            wanted |= item.uses
    defined = {name for item in middle for name in item.defines}
    roots = [
        item
        for item in middle
        if not item.uses & (defined - item.defines)
        and isinstance(item.node, ast.Assign)
        and isinstance(item.node.targets[0], ast.Name)
        and not _is_scalar(item.node.value)
    ]
    if not middle:
        return None, []
    if len(roots) != 1 or len(roots[0].defines) != 1:
        return None
    return roots[0], [item for item in middle if item is not roots[0]]


def _is_scalar(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not isinstance(value.value, str)


def _result(statement: Statement, call: ast.Call) -> tuple[str, list[str]]:
    """The expression to return, and the source lines to run before it."""
    node = statement.node
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, statement.text.split("\n")
    if isinstance(node, ast.With):
        for inner in ast.walk(node):
            if (
                isinstance(inner, ast.Assign)
                and isinstance(inner.targets[0], ast.Name)
                and any(part is call for part in ast.walk(inner.value))
            ):
                return inner.targets[0].id, statement.text.split("\n")
    value = node.value if isinstance(node, ast.Expr) else None
    if isinstance(value, ast.Tuple):
        value = next((part for part in value.elts if any(inner is call for inner in ast.walk(part))), None)
    if value is None or (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value is not call
    ):
        return ast.unparse(call), []
    return ast.unparse(value), []


# --- from the evaluation -----------------------------------------------------------------------------------------


def _by_evaluation(training: Sequence[Statement], model: str, available: set[str]) -> Prediction | None:
    for index, statement in enumerate(training):
        if statement.role not in (Role.EVALUATE, Role.TRAIN):
            continue
        if isinstance(statement.node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While):
            continue
        call = _prediction_call(statement.node, model)
        argument = _argument(call) if call is not None else None
        if call is None or argument is None:
            continue
        inner = _innermost(argument)
        if inner is None:
            continue
        steps: list[Statement] = []
        while isinstance(inner, ast.Name):
            step = _step(training[:index], inner.id)
            if step is None:
                break
            steps.insert(0, step[0])
            inner = step[1]
            if len(steps) > 20:
                return None
        if not isinstance(inner, ast.Name):
            continue
        expression = ast.unparse(call)
        read = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
        for item in steps:
            read |= item.uses
        bound = {name for item in steps for name in item.defines}
        # A step may give its result the name of its input: the name is then the parameter all the same.
        return Prediction(
            parameters=(inner.id,),
            body=(*(line for item in steps for line in item.text.split("\n")), f"return {expression}"),
            needs=frozenset(read - bound - {inner.id} - _BUILTINS),
            example={inner.id: inner.id} if inner.id in available and inner.id not in bound else {},
            example_needs=frozenset({inner.id}) if inner.id not in bound else frozenset(),
            origin=(statement.cell,),
        )
    return None


def _step(before: Sequence[Statement], name: str) -> tuple[Statement, ast.expr] | None:
    """The statement ``name = something.transform(other)`` and its ``other``, where the last binding is one."""
    for statement in reversed(before):
        if name not in statement.defines:
            if name in statement.mutates:
                return None
            continue
        node = statement.node
        if (
            not isinstance(node, ast.Assign)
            or not isinstance(node.targets[0], ast.Name)
            or len(node.targets) > 1
        ):
            return None
        value = node.value
        if not isinstance(value, ast.Call) or _attribute(value) != "transform" or not value.args:
            return None
        inner = value.args[0]
        # `X = scaler.transform(X)` would need the value that X had before.
        if not isinstance(inner, ast.Name) or inner.id == name:
            return None
        return statement, inner
    return None


def _default(training: Sequence[Statement], model: str | None, available: set[str]) -> Prediction:
    if model is None:
        return Prediction(parameters=("data",), body=("return data",))
    example: dict[str, str] = {}
    for statement in training:
        for node in ast.walk(statement.node):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "fit"
                and node.args
                and isinstance(node.args[0], ast.Name)
                and model in statement.mutates | statement.defines
                and node.args[0].id in available
                and not isinstance(statement.node, ast.FunctionDef | ast.ClassDef)
            ):
                example = {"data": node.args[0].id}
    return Prediction(
        parameters=("data",),
        body=(f"return _support.predict({model}, data)",),
        needs=frozenset({model}),
        example=example,
        example_needs=frozenset(example.values()),
    )


# --- expressions -------------------------------------------------------------------------------------------------


def _prediction_call(root: ast.AST, model: str) -> ast.Call | None:
    for node in _calls(root):
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in _PREDICTS:
            base = function.value
            if isinstance(base, ast.Name) and base.id == model and (node.args or node.keywords):
                return node
        elif isinstance(function, ast.Name) and function.id == model and node.args:
            return node
    return None


def _calls(root: ast.AST) -> Iterator[ast.Call]:
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(
            node, ast.Lambda | ast.FunctionDef | ast.ClassDef | ast.ListComp | ast.GeneratorExp
        ):
            waiting.extend(ast.iter_child_nodes(node))


def _argument(call: ast.Call) -> ast.expr | None:
    if call.args and not isinstance(call.args[0], ast.Starred):
        return call.args[0]
    return next(
        (word.value for word in call.keywords if word.arg in ("X", "x", "steps", "data", "exog", "start")),
        None,
    )


def _innermost(value: ast.expr | None, routines: Collection[str] = ()) -> ast.expr | None:
    """The data inside a chain of row-wise transformations, functions of the notebook's own among them."""
    while isinstance(value, ast.Call):
        name = _attribute(value)
        if isinstance(value.func, ast.Name) and name in routines:
            if len(value.args) != 1 or isinstance(value.args[0], ast.Starred | ast.Constant):
                return None
            value = value.args[0]
            continue
        if isinstance(value.func, ast.Attribute) and name in _ROWS:
            return value
        if name not in _TRANSFORMS or (isinstance(value.func, ast.Name) and name in ("float",)):
            return None
        if (
            value.args
            and not isinstance(value.args[0], ast.Starred)
            and name not in ("astype", "reshape", "to", "unsqueeze", "flatten", "fillna")
        ):
            value = value.args[0]
        elif isinstance(value.func, ast.Attribute):
            value = value.func.value
        else:
            return None
    return value


def _attribute(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _replaced(text: str, inner: str, name: str) -> str | None:
    """``text`` with the one expression ``inner`` in it replaced by a name; None where it is not there just once."""

    class Replace(ast.NodeTransformer):
        count = 0

        def visit(self, node: ast.AST) -> ast.AST:
            if isinstance(node, ast.expr) and ast.unparse(node) == inner:
                self.count += 1
                return ast.Name(id=name, ctx=ast.Load())
            return self.generic_visit(node)

    replacer = Replace()
    tree = replacer.visit(ast.parse(text, mode="eval"))
    return ast.unparse(tree) if replacer.count == 1 else None
