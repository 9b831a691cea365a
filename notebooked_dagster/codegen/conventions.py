"""Imports that a notebook takes for granted: ``np`` used and never imported, ``xrange`` that Python 3 has renamed.

Such a notebook ran where a profile, an earlier session or Python 2 had the name. Everybody writes these names for the same
thing, so the scripts import it, and a finding says so.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable

from notebooked_dagster.notebook.model import Analysis, Role, Statement

_BUILTINS = frozenset(dir(builtins))
_MODULES = [
    "collections",
    "copy",
    "csv",
    "functools",
    "gc",
    "glob",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "operator",
    "os",
    "pickle",
    "pprint",
    "random",
    "re",
    "shutil",
    "string",
    "subprocess",
    "sys",
    "tempfile",
    "time",
    "urllib",
    "warnings",
    "zipfile",
    "torch",
    "scipy",
    "requests",
]
CONVENTIONS: dict[str, str] = {
    **{name: f"import {name}" for name in _MODULES},
    "np": "import numpy as np",
    "pd": "import pandas as pd",
    "plt": "import matplotlib.pyplot as plt",
    "sns": "import seaborn as sns",
    "tf": "import tensorflow as tf",
    "sm": "import statsmodels.api as sm",
    "smf": "import statsmodels.formula.api as smf",
    "xgb": "import xgboost as xgb",
    "lgb": "import lightgbm as lgb",
    "stats": "from scipy import stats",
    "Path": "from pathlib import Path",
    "defaultdict": "from collections import defaultdict",
    "Counter": "from collections import Counter",
    "partial": "from functools import partial",
    "nan": "from numpy import nan",
    # Python 2's names, and what Python 3 calls the same.
    "xrange": "from builtins import range as xrange",
    "raw_input": "from builtins import input as raw_input",
    "unicode": "from builtins import str as unicode",
    "basestring": "from builtins import str as basestring",
    "long": "from builtins import int as long",
    "unichr": "from builtins import chr as unichr",
    "reduce": "from functools import reduce",
    "reload": "from importlib import reload",
}


def supplied_imports(analysis: Analysis, statements: Iterable[Statement]) -> list[Statement]:
    """Import statements for conventional names that ``statements`` read and the notebook nowhere binds.

    Args:
        analysis: The notebook.
        statements: What the scripts are made of.
    """
    if any(statement.star_imports for statement in analysis.statements):
        return []
    bound = {name for statement in analysis.statements for name in statement.defines}
    used: dict[str, int] = {}
    for statement in statements:
        for name in sorted((statement.uses | statement.deferred) - bound - _BUILTINS):
            if name in CONVENTIONS:
                used.setdefault(name, statement.cell)
    return [_statement(name, cell, -1 - place) for place, (name, cell) in enumerate(sorted(used.items()))]


def _statement(name: str, cell: int, position: int) -> Statement:
    text = CONVENTIONS[name]
    return Statement(
        cell=cell,
        position=position,
        first_line=1,
        last_line=1,
        text=text,
        node=ast.parse(text).body[0],
        defines=frozenset({name}),
        role=Role.IMPORTS,
    )
