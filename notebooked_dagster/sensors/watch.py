"""Which notebooks changed since the last look, and in which stages. Plain Python; the sensor around it is in
``notebook_changes``.

A look costs one ``stat`` a notebook; only what changed is read. What was seen is kept in a file beside the state, and
the sensor's cursor names the generation of that file: Dagster stores the cursor with every tick, so it has to be small.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import orjson

from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.resources.code_state import CodeState, Versions, code_state, versions

_FORMAT = 2
Stamp = tuple[int, int, int, str]
_NUMBERS = re.compile(r"\d+")
_LEFT_OUT = ("_templates", ".ipynb_checkpoints", "node_modules", "__pycache__")


@dataclass(frozen=True)
class Watched:
    """An experiment whose notebook is watched."""

    config: ExperimentConfig
    path: Path

    @property
    def name(self) -> str:
        """As Dagster takes it."""
        return self.config.key

    @cached_property
    def stamp_of_declaration(self) -> str:
        """Changes when the declaration changes what is generated."""
        told: list[Any] = [
            self.config.hyperparameters,
            self.config.model,
            self.config.allow_unsupported,
            str(self.path),
        ]
        told += [self.config.tag_prefix, sorted(self.config.extra_tags.items())]
        return hashlib.sha256(orjson.dumps(told, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


@dataclass(frozen=True)
class Seen:
    """What a look found of one notebook.

    Attributes:
        stamp: Time of change, size and number of the file, and the declaration's stamp; zeros where there is none.
        sha256: Of the file.
        stages: Hash of each stage.
        versions: Data versions of notebook, training code and inference code.
        problem: Why it cannot be used; empty where it can.
    """

    stamp: Stamp
    sha256: str = ""
    stages: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[str, str, str] = ("", "", "")
    problem: str = ""


@dataclass(frozen=True)
class Recorded:
    """What Dagster knows of an experiment that no look has seen yet: the versions last generated, and what there is."""

    training: str | None = None
    inference: str | None = None
    has_model: bool = False
    has_endpoint: bool = False


@dataclass(frozen=True)
class Change:
    """What a look has to say about one experiment.

    Attributes:
        experiment: Which.
        state: Its code now.
        versions: Its data versions now.
        stages: The stages that changed; empty for prose, plots and outputs.
        stale: The parts to make again, of ``code``, ``model`` and ``endpoint``.
        first: Whether nothing was ever made of it.
    """

    experiment: Watched
    state: CodeState
    versions: Versions
    stages: tuple[str, ...]
    stale: tuple[str, ...]
    first: bool = False

    @property
    def versions_text(self) -> tuple[str, str, str]:
        """The data versions, in order."""
        return (self.versions.notebook, self.versions.training, self.versions.inference)


@dataclass(frozen=True)
class Look:
    """One look at all notebooks.

    Attributes:
        changes: Notebooks that were read because their file changed.
        problems: Sentences about notebooks that broke, vanished or were renamed since the last look; each once.
        undeclared: Notebooks that no experiment declares and that no look has mentioned.
        generation: What the cursor has to be now.
    """

    changes: tuple[Change, ...] = ()
    problems: tuple[str, ...] = ()
    undeclared: tuple[Path, ...] = ()
    generation: str = ""


@dataclass(frozen=True)
class _Snapshot:
    generation: str
    seen: Mapping[str, Seen]
    folders: Mapping[str, int]
    mentioned: frozenset[str]


class NotebookWatch:
    """Looks at the notebooks of a project.

    Args:
        experiments: Whose notebooks are watched.
        state: The project's state folder.
        folder: Where notebooks that nobody declared are looked for; nowhere where None.
    """

    def __init__(self, experiments: Sequence[Watched], state: Path, folder: Path | None = None) -> None:
        self._experiments = tuple(experiments)
        self._paths = tuple((item, str(item.path)) for item in experiments)
        self._state = state
        self._folder = folder
        self._file = state / "sensors" / "notebook_changes.json"

    def look(self, cursor: str | None, recorded: Callable[[Watched], Recorded]) -> Look:
        """Compare with the last look.

        Args:
            cursor: The generation of the last look; anything else starts anew from what Dagster recorded.
            recorded: Asked of experiments that no look has seen.
        """
        before = _read(self._file, cursor) if cursor else None
        known: Mapping[str, Seen] = before.seen if before is not None else {}
        seen = dict(known)
        changes: list[Change] = []
        problems: list[str] = []
        for item, stamp in self._touched(known):
            last = known.get(item.name)
            found, change = self._judge(item, stamp, last, recorded)
            if change is not None:
                changes.append(change)
            # Once for each problem, however often it is saved with it: where it stands moves with every line typed.
            told = last is not None and _NUMBERS.sub("", last.problem) == _NUMBERS.sub("", found.problem)
            if found.problem and not told:
                problems.append(self._explained(item, found, last))
            seen[item.name] = found
        names = {item.name for item in self._experiments}
        seen = {name: value for name, value in seen.items() if name in names}
        folders, mentioned, undeclared = self._undeclared(before)
        moved = before is None or seen != known or folders != before.folders or undeclared
        if not moved:
            assert before is not None
            return Look(generation=before.generation)
        generation = uuid.uuid4().hex
        _write(self._file, _Snapshot(generation, seen, folders, mentioned))
        return Look(tuple(changes), tuple(problems), undeclared, generation)

    def _touched(self, known: Mapping[str, Seen]) -> Iterator[tuple[Watched, Stamp]]:
        for item, path in self._paths:
            last = known.get(item.name)
            try:
                facts = os.stat(path)  # noqa: PTH116  (ten thousand of them in a tick)
                stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino, item.stamp_of_declaration)
            except OSError:
                stamp = (0, 0, 0, item.stamp_of_declaration)
            if last is None or last.stamp != stamp:
                yield item, stamp

    def _judge(
        self,
        item: Watched,
        stamp: Stamp,
        last: Seen | None,
        recorded: Callable[[Watched], Recorded],
    ) -> tuple[Seen, Change | None]:
        try:
            state = code_state(item.path, item.config, self._state)
        except NotebookedError as error:
            # What was known before it broke is kept: once mended, only what really changed is stale.
            kept = last or Seen(stamp)
            return Seen(stamp, kept.sha256, kept.stages, kept.versions, str(error)), None
        now = versions(state, item.config)
        found = Seen(stamp, state.sha256, state.stages, (now.notebook, now.training, now.inference))
        if last is not None and last.versions[0]:
            stages = tuple(state.changed(last.stages))
            stale = _stale(now, last.versions[1], last.versions[2])
            return found, Change(item, state, now, stages, stale)
        known = recorded(item)
        stale = _stale(now, known.training, known.inference)
        if not stale and not known.has_model:
            stale = ("model", "endpoint")
        elif not stale and not known.has_endpoint:
            stale = ("endpoint",)
        # Where something was made before, this is no first time: an earlier look was lost, and its edit must not be.
        return found, Change(item, state, now, (), stale, first=known.training is None)

    def _explained(self, item: Watched, found: Seen, last: Seen | None) -> str:
        if found.stamp[0] == 0 and last is not None and last.sha256:
            renamed = self._same_content(last.sha256)
            if renamed is not None:
                return (
                    f"{item.path} of experiment {item.name} is now {renamed}: it was renamed. "
                    f"Write `notebook: {renamed}` into its declaration."
                )
            return (
                f"{item.path} of experiment {item.name} was deleted. Put it back, or remove the declaration."
            )
        return found.problem

    def _same_content(self, sha256: str) -> Path | None:
        declared = {str(item.path) for item in self._experiments}
        for path in _notebooks(self._folder):
            if str(path) in declared:
                continue
            try:
                same = hashlib.sha256(path.read_bytes()).hexdigest() == sha256
            except OSError:
                continue  # one file that cannot be read is no reason to miss the others
            if same:
                return path
        return None

    def _undeclared(
        self, before: _Snapshot | None
    ) -> tuple[dict[str, int], frozenset[str], tuple[Path, ...]]:
        """Notebooks nobody declared; folders are read only where something was added or removed."""
        old = before.folders if before is not None else {}
        mentioned = before.mentioned if before is not None else frozenset()
        if self._folder is None or not self._folder.is_dir():
            return {}, mentioned, ()
        if old and all(_folder_stamp(path) == stamp for path, stamp in old.items()):
            return dict(old), mentioned, ()
        folders = {path: _folder_stamp(path) for path in _folders(self._folder)}
        declared = {str(item.path) for item in self._experiments}
        found = [path for path in _notebooks(self._folder) if str(path) not in declared]
        new = tuple(path for path in found if str(path) not in mentioned)
        return folders, frozenset(str(path) for path in found), new


def _stale(now: Versions, training: str | None, inference: str | None) -> tuple[str, ...]:
    if now.training != training:
        return ("code", "model", "endpoint")
    return ("code", "endpoint") if now.inference != inference else ()


def _folder_stamp(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return -1


def _folders(folder: Path) -> Iterator[str]:
    for root, names, _ in os.walk(folder):
        names[:] = [name for name in names if name not in _LEFT_OUT]
        yield root


def _notebooks(folder: Path | None) -> Iterator[Path]:
    if folder is None or not folder.is_dir():
        return
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in _LEFT_OUT)
        for file in sorted(files):
            if file.endswith(".ipynb"):
                yield Path(root) / file


@lru_cache(maxsize=2)
def _read(path: Path, generation: str) -> _Snapshot | None:
    """What a look left. A generation never changes, so one process reads it once."""
    try:
        kind, found, seen, folders, mentioned = orjson.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    if kind != _FORMAT or found != generation:
        return None
    return _Snapshot(
        generation,
        {
            name: Seen((mtime, size, inode, declared), sha256, stages, (a, b, c), problem)
            for name, (mtime, size, inode, declared, sha256, stages, a, b, c, problem) in seen.items()
        },
        folders,
        frozenset(mentioned),
    )


def _write(path: Path, snapshot: _Snapshot) -> None:
    seen: dict[str, list[Any]] = {
        name: [*value.stamp, value.sha256, dict(value.stages), *value.versions, value.problem]
        for name, value in snapshot.seen.items()
    }
    write_atomic(
        path,
        orjson.dumps(
            [_FORMAT, snapshot.generation, seen, dict(snapshot.folders), sorted(snapshot.mentioned)]
        ),
    )
