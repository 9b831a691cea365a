"""Serve a model with inference code that is newer than the model."""

from __future__ import annotations

import json
from pathlib import Path

_SOURCE_MAP = "source_map.json"
_TRAINING = ("preprocess", "model", "train")


def newer_code(scripts: Path, model: Path) -> Path | None:
    """The scripts to serve a model with, where they are others than those it was saved with.

    The inference code of a notebook may change without its training: the model is then served with the new code. Where
    the training code has changed as well, the model keeps the scripts it was trained with, because the new ones may
    read what only a newly trained model has.

    Args:
        scripts: The experiment's folder of scripts as they are now.
        model: A model folder.

    Returns:
        ``scripts``, or None where the model's own copies are to be served.
    """
    now, then = _stage_hashes(scripts), _stage_hashes(model)
    if now is None or then is None or now == then:
        return None
    return scripts if all(now.get(stage) == then.get(stage) for stage in _TRAINING) else None


def _stage_hashes(folder: Path) -> dict[str, str] | None:
    try:
        found = json.loads((folder / _SOURCE_MAP).read_text(encoding="utf-8")).get("stage_hashes")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None
