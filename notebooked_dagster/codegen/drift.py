"""Keep generated scripts and the hands that edit them apart: three ways, never a silent overwrite.

Beside the scripts, ``.notebooked/base/`` keeps a copy of what was generated last and ``manifest.json`` its digests. *base* is that
copy, *mine* the file on disk, *theirs* what the notebook generates now.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import filelock

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import DriftError

from .model import GeneratedScripts, SourceMap

_OWN = ".notebooked"
_LOCK_SECONDS = 30


class FileState(StrEnum):
    """How a file on disk stands to what was generated last and what is generated now."""

    UNCHANGED = "unchanged"
    REGENERATED = "regenerated"
    NEW = "new"
    MISSING = "missing"
    EDITED = "edited"
    CONFLICT = "edited-and-regenerated"
    FOREIGN = "foreign"
    REMOVED = "removed"

    @property
    def protected(self) -> bool:
        """Whether writing would lose somebody's work."""
        return self in (FileState.EDITED, FileState.CONFLICT, FileState.FOREIGN)


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file, three ways. A text is None where the file is not there that way."""

    name: str
    state: FileState
    base: str | None
    mine: str | None
    theirs: str | None

    def edits(self) -> str:
        """What was edited by hand, as a unified diff."""
        return _diff(self.base or "", self.mine or "", f"generated/{self.name}", f"edited/{self.name}")

    def changes(self) -> str:
        """What the notebook changed since, as a unified diff."""
        return _diff(self.base or "", self.theirs or "", f"generated/{self.name}", f"new/{self.name}")


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Every file of an experiment's folder, three ways."""

    folder: Path
    files: tuple[FileReport, ...]

    @property
    def drifted(self) -> tuple[FileReport, ...]:
        """The files that writing would overwrite against somebody's will."""
        return tuple(file for file in self.files if file.state.protected)

    def cell_patch(self, source_map: SourceMap) -> str:
        """A proposed patch of the notebook's cells that would make its scripts what was edited by hand.

        Edited lines that stand for lines of a cell become a unified diff on that cell; others are listed as not
        transferable, because they belong to the frame.
        """
        cells: dict[int, list[str]] = {index: list(lines) for index, lines in source_map.cells.items()}
        replaced: dict[int, dict[int, list[str]]] = {}
        rest: list[str] = []
        for file in self.drifted:
            if file.base is None or file.mine is None:
                continue
            lines = source_map.scripts.get(file.name, {})
            base, mine = file.base.split("\n"), file.mine.split("\n")
            matcher = difflib.SequenceMatcher(a=base, b=mine, autojunk=False)
            for kind, start, end, new_start, new_end in matcher.get_opcodes():
                if kind == "equal":
                    continue
                anchors = [lines.get(number + 1) for number in range(start, end)] or [lines.get(start)]
                first = anchors[0]
                if first is None or any(anchor is None or anchor.cell != first.cell for anchor in anchors):
                    rest += [
                        f"{file.name}:{start + 1}: {text}"
                        for text in mine[new_start:new_end] or base[start:end]
                    ]
                    continue
                source = cells[first.cell][first.line - 1]
                script = base[start if kind != "insert" else start - 1]
                extra = (len(script) - len(script.lstrip())) - (len(source) - len(source.lstrip()))
                texts = [text[extra:] if text[:extra].isspace() else text for text in mine[new_start:new_end]]
                changes = replaced.setdefault(first.cell, {})
                if kind == "insert":
                    changes[first.line] = [source, *texts]
                else:
                    changes[first.line] = texts
                    changes.update({anchor.line: [] for anchor in anchors[1:] if anchor is not None})
        return "".join(_cell_diffs(source_map, cells, replaced)) + "".join(
            f"not in a cell: {text}\n" for text in rest
        )


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What writing did, by file name; ``kept`` are copies of edited files that ``force`` replaced."""

    folder: Path
    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...] = ()
    kept: tuple[Path, ...] = ()


def report(folder: Path, scripts: GeneratedScripts) -> DriftReport:
    """Compare a folder with what was generated last and with what is generated now. Writes nothing."""
    known = _manifest(folder)
    names = sorted({*scripts.files, *known})
    return DriftReport(
        folder, tuple(_compare(folder, name, scripts.files.get(name), known) for name in names)
    )


def write_scripts(scripts: GeneratedScripts, folder: Path, force: bool = False) -> WriteReport:
    """Put scripts into a folder, all or none.

    Args:
        scripts: What was generated.
        folder: Made where it is missing.
        force: Replace files that were edited by hand; they are kept under ``.notebooked/overwritten/``.

    Raises:
        DriftError: Something was edited by hand, or is not ours; nothing was written.
        OSError: The disk is full or the folder is not writable.
    """
    own = folder / _OWN
    own.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(own / "lock", timeout=_LOCK_SECONDS):
        found = report(folder, scripts)
        if found.drifted and not force:
            raise _refusal(found)
        kept = tuple(_keep(own, file) for file in found.drifted if file.mine is not None)
        # The new digests count as ours before the files are there: a crash in between leaves nothing foreign.
        _write_manifest(own, scripts.files, also=_manifest(folder))
        written: list[str] = []
        unchanged: list[str] = []
        for name, text in scripts.files.items():
            path = folder / name
            same = path.is_file() and _read(path) == text
            (unchanged if same else written).append(name)
            if not same:
                write_atomic(path, text)
            if _read(own / "base" / name) != text:
                write_atomic(own / "base" / name, text)
        removed = [file.name for file in found.files if file.state is FileState.REMOVED]
        for name in removed:
            (folder / name).unlink(missing_ok=True)
            (own / "base" / name).unlink(missing_ok=True)
        _write_manifest(own, scripts.files)
    return WriteReport(folder, tuple(written), tuple(unchanged), tuple(removed), kept)


def _compare(folder: Path, name: str, theirs: str | None, known: Mapping[str, list[str]]) -> FileReport:
    mine = _read(folder / name)
    base = _read(folder / _OWN / "base" / name)
    if base is not None and _digest(base) not in known.get(name, ()):
        base = None
    ours = mine is not None and (_digest(mine) in known.get(name, ()) or mine == base)
    if mine is None:
        state = (
            FileState.REMOVED if theirs is None else FileState.NEW if name not in known else FileState.MISSING
        )
    elif mine == theirs:
        state = FileState.UNCHANGED
    elif ours:
        state = FileState.REMOVED if theirs is None else FileState.REGENERATED
    elif name not in known:
        state = FileState.FOREIGN
    else:
        state = FileState.EDITED if theirs == base else FileState.CONFLICT
    return FileReport(name, state, base, mine, theirs)


def _refusal(found: DriftReport) -> DriftError:
    names = ", ".join(file.name for file in found.drifted)
    foreign = all(file.state is FileState.FOREIGN for file in found.drifted)
    what = "is not one of ours" if foreign else "was edited by hand"
    return DriftError(
        f"{names} {what}; nothing was overwritten.",
        path=found.folder,
        hint="`notebooked diff` shows what was edited and proposes a patch of the cells; "
        "--force replaces it and keeps the edited file under .notebooked/overwritten/.",
        details={
            "files": {file.name: file.state.value for file in found.drifted},
            "diff": "".join(file.edits() for file in found.drifted)[:4000],
        },
    )


def _keep(own: Path, file: FileReport) -> Path:
    assert file.mine is not None
    path = own / "overwritten" / f"{file.name}.{_digest(file.mine)[:8]}"
    write_atomic(path, file.mine)
    return path


def _manifest(folder: Path) -> dict[str, list[str]]:
    """Digests of ours by file name. A damaged manifest knows nothing, so that every file counts as somebody's."""
    text = _read(folder / _OWN / "manifest.json")
    try:
        files = json.loads(text or "{}").get("files", {})
        return {
            name: [digest for digest in digests if isinstance(digest, str)] for name, digests in files.items()
        }
    except (ValueError, AttributeError, TypeError):
        return {}


def _write_manifest(own: Path, files: Mapping[str, str], also: Mapping[str, list[str]] | None = None) -> None:
    digests = {name: [_digest(text)] for name, text in files.items()}
    for name, known in (also or {}).items():
        digests[name] = sorted({*digests.get(name, ()), *known})
    document = {"format": 1, "files": dict(sorted(digests.items()))}
    write_atomic(own / "manifest.json", json.dumps(document, indent=1) + "\n")


def _cell_diffs(
    source_map: SourceMap, cells: Mapping[int, list[str]], replaced: Mapping[int, Mapping[int, list[str]]]
) -> Iterator[str]:
    for cell, changes in sorted(replaced.items()):
        new = [text for number, old in enumerate(cells[cell], 1) for text in changes.get(number, [old])]
        name = f"{source_map.notebook} cell {cell + 1}"
        yield _diff("\n".join(cells[cell]) + "\n", "\n".join(new) + "\n", name, name)


def _diff(before: str, after: str, old: str, new: str) -> str:
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), old, new))


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()
