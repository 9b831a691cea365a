"""What a folder of scripts does when it trains, as a digest."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from notebooked_dagster.notebook.hashes import digest_of, stage_hash

_REQUIREMENTS = ("requirements-train.txt", "requirements.txt")


def training_digest(scripts: Path) -> str:
    """A digest that changes when training would do something else, whoever changed the scripts.

    Comments, formatting and docstrings do not count, nor does ``inference.py``; what has to be installed does.

    Args:
        scripts: The folder of an experiment's scripts.
    """
    total = hashlib.sha256()
    for path in sorted(scripts.rglob("*.py")):
        name = path.relative_to(scripts)
        if name.as_posix() == "inference.py" or any(part.startswith((".", "__")) for part in name.parts):
            continue
        total.update(f"{name.as_posix()}\0{_meaning(path.read_bytes())}\0".encode())
    found = next((scripts / name for name in _REQUIREMENTS if (scripts / name).is_file()), None)
    if found is not None:
        total.update(found.read_bytes())
    return total.hexdigest()[:32]


def _meaning(source: bytes) -> str:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()  # edited by hand, and broken: training will say so
    first = 1 if ast.get_docstring(tree, clean=False) is not None else 0
    return stage_hash(digest_of(statement) for statement in tree.body[first:])
