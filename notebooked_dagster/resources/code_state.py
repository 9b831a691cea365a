"""What a notebook's code means now, as versions that drive staleness; cached by what tells the file from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from notebooked_dagster import __version__
from notebooked_dagster.config import ExperimentConfig
from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import NotebookReadError

if TYPE_CHECKING:
    from notebooked_dagster.codegen import GenerateOptions
    from notebooked_dagster.notebook.analysis import AnalysisOptions

_FORMAT = 2
_TRAINING = ("preprocess", "model", "train")
_NONE = "none"


@dataclass(frozen=True, slots=True)
class CodeState:
    """A notebook as the asset graph sees it.

    Attributes:
        path: The file.
        stamp: Time of change in nanoseconds, size in bytes, and number of the file.
        sha256: Of the file.
        stages: Hash of each stage's slice.
        title: First heading.
        description: First Markdown cell.
    """

    path: Path
    stamp: tuple[int, int, int]
    sha256: str
    stages: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    description: str = ""

    def changed(self, before: Mapping[str, str]) -> list[str]:
        """The stages whose code is not what it was, new and removed ones included, in their order."""
        return [name for name in {**self.stages, **before} if self.stages.get(name) != before.get(name)]


@dataclass(frozen=True, slots=True)
class Versions:
    """Data versions of the notebook and of the two halves of its scripts."""

    notebook: str
    training: str
    inference: str


def stamp_of(path: Path) -> tuple[int, int, int]:
    """Time of change, size and number (a file moved over this one may keep both others). Raises NotebookReadError where there is no such file."""
    try:
        facts = path.stat()
    except OSError as error:
        raise NotebookReadError(
            "There is no such notebook."
            if isinstance(error, FileNotFoundError)
            else f"It cannot be read: {error}.",
            path=path,
            hint="Put it back, or correct `notebook:` in the declaration.",
        ) from None
    return (facts.st_mtime_ns, facts.st_size, facts.st_ino)


def code_state(path: Path, config: ExperimentConfig, state: Path) -> CodeState:
    """Analyse a notebook, or take what was found when the file was last seen.

    Args:
        path: The notebook.
        config: For what it tells analysis.
        state: The project's state folder; the cache is under it.

    Raises:
        NotebookError: The notebook cannot be used.
    """
    stamp = stamp_of(path)
    options = (config.model, config.tag_prefix, sorted(config.extra_tags.items()))
    cache = state / "cache" / "code" / f"{_digest([_FORMAT, __version__, str(path), *options], 24)}.json"
    known = _cached(cache, path, stamp)
    if known is not None:
        return known
    from notebooked_dagster.notebook.analysis import analyse_path

    analysis = analyse_path(path, analysis_options(config))
    found = CodeState(
        path=path,
        stamp=stamp,
        sha256=analysis.notebook.file_sha256,
        stages={str(stage): digest for stage, digest in analysis.hashes.items()},
        title=analysis.notebook.title,
        description=analysis.notebook.description,
    )
    write_atomic(
        cache,
        orjson.dumps(
            [_FORMAT, list(stamp), found.sha256, dict(found.stages), found.title, found.description]
        ),
    )
    return found


def analysis_options(config: ExperimentConfig) -> AnalysisOptions:
    """What a declaration tells the analysis."""
    from notebooked_dagster.notebook.analysis import AnalysisOptions
    from notebooked_dagster.notebook.tags import TagVocabulary

    return AnalysisOptions(
        tags=TagVocabulary(config.tag_prefix, tuple(sorted(config.extra_tags.items()))),
        model_name=config.model,
    )


def generate_options(config: ExperimentConfig) -> GenerateOptions:
    """What a declaration tells the generator; a notebook that trains nothing is no experiment."""
    from notebooked_dagster.codegen import GenerateOptions

    return GenerateOptions(
        experiment=config.name,
        hyperparameters=config.hyperparameters,
        model_name=config.model,
        allow_unsupported=config.allow_unsupported,
        strict=True,
    )


def versions(state: CodeState, config: ExperimentConfig) -> Versions:
    """The data versions a state of the code has under a declaration.

    Training code is what preprocesses, defines the model and trains, and the hyperparameters written into it.
    """
    stages = state.stages
    training = _digest([[name, stages.get(name, _NONE)] for name in _TRAINING] + [_settled(config)], 16)
    inference = _digest(["inference", stages.get("inference", _NONE)], 16)
    return Versions(_digest(sorted(stages.items()), 16), training, inference)


def _settled(config: ExperimentConfig) -> list[object]:
    settled: list[object] = [sorted(config.hyperparameters.items()), config.model]
    # Only where it is set: what was made before there was this key stays fresh.
    return [*settled, "allow_unsupported"] if config.allow_unsupported else settled


def _digest(value: object, length: int) -> str:
    return hashlib.sha256(orjson.dumps(value, default=str)).hexdigest()[:length]


def _cached(cache: Path, path: Path, stamp: tuple[int, int, int]) -> CodeState | None:
    try:
        kind, known, sha256, stages, title, description = orjson.loads(cache.read_bytes())
    except (OSError, ValueError, TypeError):
        return None  # never seen, or damaged: a cache may always be made again
    if kind != _FORMAT or tuple(known) != stamp:
        return None
    return CodeState(path, stamp, sha256, stages, title, description)
