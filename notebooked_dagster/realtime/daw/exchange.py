"""A folder in which standard MIDI files change hands: finished takes go ``out``, what is put ``in`` is taken up once.

It is looked at once a second instead of by inotify, which says nothing of files that another machine writes over SMB or NFS.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.realtime.player import load
from notebooked_dagster.realtime.takes import Take

log = logging.getLogger("notebooked.realtime.exchange")
_LOOK = 1.0
Stamp = tuple[int, int]


class Exchange:
    """Watches the folder.

    Args:
        folder: Holds ``in``, ``out``, ``done`` and ``refused``.
        arrived: What is done with a file that was put in; it is moved to ``done`` afterwards.
    """

    def __init__(self, folder: Path, arrived: Callable[[Path], Awaitable[None]]) -> None:
        self._folder = folder
        self._arrived = arrived
        self._seen: dict[str, Stamp] = {}
        # Taken up, and still there: who may not move them would else play them once a second.
        self._stuck: dict[str, Stamp] = {}
        self.taken: list[str] = []
        self.refused: list[str] = []

    async def run(self) -> None:
        """Look, again and again."""
        while True:
            try:
                for name in ("in", "out", "done", "refused"):
                    (self._folder / name).mkdir(parents=True, exist_ok=True)
                for path in await asyncio.to_thread(self._ready):
                    await self._take(path)
            except OSError as error:
                log.warning("the exchange folder cannot be read: %s", error)
            await asyncio.sleep(_LOOK)

    def export(self, take: Take) -> Path:
        """Put a take where a DAW finds it; under its name only when it is whole."""
        target = self._folder / "out" / f"{take.name}.mid"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        shutil.copyfile(take.midi, temporary)
        os.replace(temporary, target)  # noqa: PTH105
        return target

    def _ready(self) -> list[Path]:
        """Files that look as they did a second ago: who copies them has finished."""
        now: dict[str, Stamp] = {}
        for path in sorted((self._folder / "in").iterdir()):
            if path.name.startswith(".") or path.suffix.lower() not in (".mid", ".midi", ".smf"):
                continue
            if not path.is_file():
                continue
            facts = path.stat()
            now[path.name] = (facts.st_mtime_ns, facts.st_size)
        ready = [
            self._folder / "in" / name
            for name, stamp in now.items()
            if self._seen.get(name) == stamp != self._stuck.get(name)
        ]
        self._seen = now
        return ready

    async def _take(self, path: Path) -> None:
        try:
            await asyncio.to_thread(load, path)
            await self._arrived(path)
        except NotebookedError as error:
            log.warning("%s", error)
            self.refused.append(path.name)
            self._move(path, "refused")
        else:
            self.taken.append(path.name)
            self._move(path, "done")

    def _move(self, path: Path, where: str) -> None:
        target = self._folder / where / path.name
        number = 1
        while target.exists():
            target = self._folder / where / f"{path.stem}-{number}{path.suffix}"
            number += 1
        try:
            path.rename(target)
        except OSError as error:
            self._stuck[path.name] = self._seen[path.name]
            log.warning("%s cannot be moved to %s: %s", path, target.parent, error.strerror or error)
