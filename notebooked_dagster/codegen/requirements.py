"""What the scripts need installed: from the imports really used, pinned to what is installed here."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from notebooked_dagster.notebook.model import Finding, Severity, Statement

# Modules whose distribution has another name, for where that distribution is not installed.
_ALIASES = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "google": "google-cloud-core",
    "PIL": "pillow",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@dataclass(frozen=True, slots=True)
class Requirements:
    """The lines of a requirements file, the modules to copy instead, and what is to be said."""

    lines: tuple[str, ...]
    local_modules: tuple[Path, ...] = ()
    findings: tuple[Finding, ...] = ()


def requirements_for(
    statements: Iterable[Statement],
    pinned: Sequence[str],
    always: Sequence[str] = (),
    local_folder: Path | None = None,
) -> Requirements:
    """The requirements of some statements.

    Args:
        statements: Their imports count, also those inside functions.
        pinned: What the notebook itself installs (``%pip install``); its versions win.
        always: Distributions needed whatever is imported.
        local_folder: Modules beside the notebook are copied, not installed.
    """
    own: dict[str, str] = {}
    findings: list[Finding] = []
    for text in pinned:
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.specifier or requirement.url:
            own[canonicalize_name(requirement.name)] = str(requirement)
    found: dict[str, str] = {}
    local: dict[str, Path] = {}
    for module, cell in sorted(_modules(statements).items()):
        path = _beside(module, local_folder)
        if path is not None:
            local[module] = path
            continue
        name, version = _distribution(module)
        found[canonicalize_name(name)] = f"{name}=={version}" if version else name
        if version is None and canonicalize_name(name) not in own:
            findings.append(
                Finding(
                    "NB410",
                    "unpinned-requirement",
                    Severity.INFO,
                    f"`{module}` is not installed here, so its version is not pinned.",
                    f"Install {name}, or write `%pip install {name}==…` in a cell tagged `requirements`.",
                    cell,
                )
            )
    for name in always:
        version = _version(name)
        found[canonicalize_name(name)] = f"{name}=={version}" if version else name
    found.update({name: text for name, text in own.items() if name in found})
    lines = tuple(found[name] for name in sorted(found))
    return Requirements(lines, tuple(local[name] for name in sorted(local)), tuple(findings))


def _modules(statements: Iterable[Statement]) -> dict[str, int]:
    """Top-level modules that are not the standard library's, with the cell that imports each first."""
    found: dict[str, int] = {}
    for statement in statements:
        if "import" not in statement.text:
            continue
        for node in ast.walk(statement.node):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            else:
                continue
            for name in names:
                root = name.partition(".")[0]
                if root not in sys.stdlib_module_names and root != "__future__":
                    found.setdefault(root, statement.cell)
    return found


def _beside(module: str, folder: Path | None) -> Path | None:
    if folder is None or not module.isidentifier():
        return None
    file = folder / f"{module}.py"
    return file if file.is_file() else None


def _distribution(module: str) -> tuple[str, str | None]:
    # Most modules have the name of their distribution; looking into all that is installed takes a tenth of a second.
    name = _ALIASES.get(module, module)
    version = _version(name)
    if version is not None:
        return name, version
    names = _by_module().get(module)
    if not names:
        return name, None
    chosen = min(names, key=lambda item: ("stubs" in item, item))
    return chosen, _version(chosen)


@cache
def _by_module() -> dict[str, list[str]]:
    return {module: sorted(set(names)) for module, names in metadata.packages_distributions().items()}


@cache
def _version(name: str) -> str | None:
    try:
        # A local version (`2.13.0+cpu`) names a build that the index of another machine does not have.
        return re.sub(r"\+.*$", "", metadata.version(name))
    except metadata.PackageNotFoundError:
        return None
