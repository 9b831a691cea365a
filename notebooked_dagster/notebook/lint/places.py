"""What ties a notebook to one machine or one day: absolute paths, unpinned installs, saved outputs."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

from notebooked_dagster.notebook.model import Analysis, CellCode, Finding

from . import catalogue
from .config import LintConfig

#: Folders that belong to a person, a mount or a hosted service.
_PERSONAL = re.compile(
    r"(?:file://)?/(?:home|Users|root|mnt|media|Volumes|content|kaggle|dbfs|workspace|workspaces|notebooks)/(?=\S)"
    r"|(?:file:///)?[A-Za-z]:(?:\\|/(?!/))|\\\\[\w.$-]+\\"
)
_IN_SHELL = re.compile(
    r"(?:^|[\s=\"'])((?:/(?:home|Users|root|mnt|media|Volumes|content|kaggle|dbfs)/|[A-Za-z]:\\)[^\s\"']*)"
)
_LONGEST = 300
_READS_FILES = re.compile(
    r"(?:^|\.)(?:open|Path|read_\w+|load\w*|to_\w+|save\w*|imread|listdir|glob|chdir|join|walk|makedirs)$"
)
_INSTALL = re.compile(
    r"^\s*(?:[!%]{1,2})\s*(?:sudo\s+)?(?:\S*python\S*\s+-m\s+)?(?:uv\s+)?(pip3?|conda|mamba)\s+install\s+(.*)$"
)
_TAKES_VALUE = frozenset(
    [
        "-r",
        "--requirement",
        "-c",
        "--constraint",
        "-i",
        "--index-url",
        "--extra-index-url",
        "-f",
        "--find-links",
        "-t",
        "--target",
        "--prefix",
        "--root",
        "--platform",
        "--python-version",
        "--proxy",
        "--timeout",
        "--trusted-host",
        "--cache-dir",
        "--channel",
        "-n",
        "--name",
        "-p",
    ]
)
_COMMIT = re.compile(r"@[0-9a-f]{7,40}(?:#|$)|@v?\d+(?:\.\d+)+(?:#|$)")


def check(analysis: Analysis, config: LintConfig) -> Iterator[Finding]:
    """NB203, NB204, NB205."""
    for entry in analysis.code:
        yield from _paths(entry, config)
        yield from _installs(entry)
    sizes = [cell.output_bytes for cell in analysis.notebook.code_cells if cell.output_bytes > len("[]")]
    if sizes:
        yield catalogue.OUTPUTS_COMMITTED.at(
            f"{len(sizes)} cells have saved outputs, {max(1, sum(sizes) // 1024)} kB together."
        )


def _paths(entry: CellCode, config: LintConfig) -> Iterator[Finding]:
    found: dict[tuple[int, str], None] = {}
    if entry.tree is not None:
        for node in ast.walk(entry.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_personal(node.value):
                found[node.lineno, node.value] = None
            elif isinstance(node, ast.Call):
                found.update(dict.fromkeys(_arguments(node)))
    for removal in (*entry.removals, *entry.unsupported):
        for match in _IN_SHELL.finditer(removal.text.split("\n")[0]):
            found[removal.line, match[1]] = None
    for line, text in found:
        if not text.removeprefix("file://").startswith(config.allowed_paths):
            shown = text if len(text) <= 60 else f"{text[:57]}…"
            yield catalogue.ABSOLUTE_PATH.at(f"{shown} exists on one machine only.", entry.cell.index, line)


def _is_personal(text: str) -> bool:
    if len(text) > _LONGEST or "\n" in text or not _PERSONAL.match(text):
        return False
    # "A:\n" in prose and "x:/y" patterns: a drive letter is followed by a word.
    return text[0] in "/\\f" or bool(re.match(r"[\w.$ -]+", text[3:]))


def _arguments(call: ast.Call) -> Iterator[tuple[int, str]]:
    """Absolute POSIX paths, wherever they lead, that are handed to something that opens files."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if not _READS_FILES.search(name) or not call.args:
        return
    first = call.args[0]
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        text = first.value
        if len(text) <= _LONGEST and re.fullmatch(r"/[\w.-]+(?:/[\w .*-]+)+/?", text):
            yield first.lineno, text


def _installs(entry: CellCode) -> Iterator[Finding]:
    lines = entry.cell.source.split("\n")
    for number, line in enumerate(lines, 1):
        following = number
        while line.endswith("\\") and following < len(lines):
            line, following = f"{line[:-1]} {lines[following]}", following + 1
        found = _INSTALL.match(line)
        if found is None:
            continue
        loose = list(_unpinned(found[1], found[2]))
        if loose:
            names = ", ".join(loose)
            yield catalogue.UNPINNED_INSTALL.at(
                f"{names} {'is' if len(loose) == 1 else 'are'} installed without a version.",
                entry.cell.index,
                number,
            )


def _unpinned(tool: str, arguments: str) -> Iterator[str]:
    try:
        words = shlex.split(arguments.split("&&")[0].split("|")[0].split(">/dev")[0], comments=True)
    except ValueError:
        words = arguments.split()
    skip = False
    for word in words:
        if skip or word.startswith("-"):
            skip = word in _TAKES_VALUE and not skip
            continue
        if word in (".", ";") or word[0] in "{$./~" or word.endswith((".whl", ".tar.gz", ".zip")):
            continue
        if "://" in word:
            if not _COMMIT.search(word):
                yield word.rpartition("/")[2].partition("@")[0] or "a repository"
        elif "=" not in re.sub(r"[<>!~]=", "", word) if tool in ("conda", "mamba") else "==" not in word:
            yield re.split(r"[<>!~=\[;@ ]", word)[0]
