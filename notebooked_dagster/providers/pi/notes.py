"""What this host notes of endpoints on devices: which device, which models, and the deployment whose answer never came.

One file an endpoint, ``<state>/endpoints/<name>.json``. The truth is on the device; these say where to look for it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import StateError


class Pending(BaseModel):
    """A deployment that was asked for and is not known to have ended. ``of`` is what was asked, as a hash."""

    of: str
    token: str


class Note(BaseModel):
    """What is known of an endpoint."""

    device: str
    models: list[str] = []
    pending: Pending | None = None


class Notes:
    """The notes of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, endpoint: str) -> Note | None:
        """The note on an endpoint. Raises StateError where it is damaged."""
        path = self._path(endpoint)
        if path.parent != self._folder:
            return None
        try:
            return Note.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StateError(
                "The note on which device has the endpoint is damaged.",
                path=path,
                hint="Remove it; the endpoint is found again at `pi.device` of config.yaml.",
            ) from error

    def all(self) -> dict[str, Note]:
        """Every note, by endpoint."""
        names = [path.stem for path in sorted(self._folder.glob("*.json"))]
        return {name: note for name in names if (note := self.get(name)) is not None}

    def put(self, endpoint: str, note: Note) -> None:
        """Write a note, whole or not at all."""
        write_atomic(self._path(endpoint), note.model_dump_json())

    def forget(self, endpoint: str) -> None:
        """There is no such endpoint any more."""
        self._path(endpoint).unlink(missing_ok=True)

    def _path(self, endpoint: str) -> Path:
        return self._folder / f"{endpoint}.json"
