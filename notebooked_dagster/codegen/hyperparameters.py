"""Find the literals of a notebook that a person would tune."""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from notebooked_dagster.errors import ConfigError
from notebooked_dagster.notebook.model import Role, Statement

from .datafiles import is_data_path
from .model import Hyperparameter

_KNOWN = re.compile(
    r"(?i)^(?:.*_)?(?:lr|learning_rate|epochs?|n_?epochs?|num_epochs|batch(?:_?size)?|bs|hidden(?:_\w+)?|dropout|momentum|"
    r"weight_decay|seed|random_state|random_seed|test_size|val_size|n_estimators|max_depth|alpha|beta|gamma|C|k|"
    r"n_clusters|n_components|n_neighbors|max_iter|num_(?:layers|rounds|boost_round|leaves)|n_splits|folds?|threshold|"
    r"patience|window(?:_size)?|horizon|lags?|steps?|optimizer|kernel|penalty|model_name|activation)(?:_\w+)?$"
)
_SIMPLE = (int, float, bool, str, type(None))
# Names train.py's own command line uses.
_RESERVED = frozenset({"data_path", "model_dir", "output_dir", "help"})


def find(
    statements: Sequence[Statement], configured: Mapping[str, Any]
) -> tuple[list[Statement], list[Hyperparameter]]:
    """The statements that assign hyperparameters, and what they assign.

    A hyperparameter is a name that one top-level statement binds to a literal and nothing changes afterwards. In a
    cell tagged ``parameters`` every such name is one; elsewhere it must look like one or be configured.

    Raises:
        ConfigError: ``configured`` names something that is no hyperparameter of this notebook.
    """
    times = Counter(name for statement in statements for name in statement.defines)
    changed = {name for statement in statements for name in statement.mutates | statement.deletes}
    found: list[tuple[Statement, str, Any]] = []
    for statement in statements:
        assigned = _literal(statement)
        if assigned is None:
            continue
        name, value = assigned
        alone = times[name] == 1 and name not in changed and name not in _RESERVED
        if alone and (name in configured or _looks_like_one(name, value, statement.role)):
            found.append((statement, name, value))
    names = [name for _, name, _ in found]
    for name in configured:
        if name not in names and name not in ("random_state", "seed"):
            near = difflib.get_close_matches(name, names, 1)
            raise ConfigError(
                f"The notebook has no hyperparameter {name!r}.",
                key=f"hyperparameters.{name}",
                hint=f"Did you mean {near[0]!r}?"
                if near
                else f"It has: {', '.join(names) or 'none; assign a literal to a name in a cell tagged `parameters`'}.",
            )
    return (
        [statement for statement, _, _ in found],
        [
            Hyperparameter(name, value, configured.get(name, value), statement.cell)
            for statement, name, value in found
        ],
    )


def _looks_like_one(name: str, value: Any, role: Role) -> bool:
    if name.startswith("_"):
        return False
    # A path to data is --data-path's business.
    if isinstance(value, str) and is_data_path(value):
        return False
    if role is Role.PARAMETERS:
        return True
    if isinstance(value, list | dict | tuple):
        return False
    if isinstance(value, str):
        return bool(_KNOWN.match(name)) and "/" not in value
    return bool(_KNOWN.match(name)) or (name.isupper() and not isinstance(value, bool | None))


def _literal(statement: Statement) -> tuple[str, Any] | None:
    node = statement.node
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        target, value = node.target, node.value
    else:
        return None
    if not isinstance(target, ast.Name):
        return None
    try:
        literal = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return (target.id, literal) if _plain(literal) else None


def _plain(value: Any) -> bool:
    """Whether a value survives JSON unchanged, so that a command line can carry it."""
    if isinstance(value, _SIMPLE):
        return not isinstance(value, float) or (value == value and abs(value) != float("inf"))
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return False
