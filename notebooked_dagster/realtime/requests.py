"""Runs that Dagster is to be asked for: kept on the disk until the webserver has answered, however long it is away.

Each request carries a mark of its own, as a tag of its run. Whoever asks looks for the mark first, so a request whose answer
was lost, or whose file outlived a power cut, is still one run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import ValidationError

from notebooked_dagster.core.files import write_atomic
from notebooked_dagster.errors import NotebookedError

from .messages import Counters
from .outlets import Parcel
from .rules import RunRequest
from .takes import sync_folder

log = logging.getLogger("notebooked.realtime.requests")
_LIMIT = 1000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 60.0


@dataclass
class _Waiting:
    """A request under way.

    Attributes:
        path: Its file.
        rule: Which rule asked.
        request: What for.
        mark: Its own alone.
        kept: Whether the file is there.
        done: Whether it was answered.
    """

    path: Path
    rule: str
    request: RunRequest
    mark: str
    kept: bool = False
    done: bool = False


class RunRequests:
    """The way out of the action ``run``.

    Args:
        folder: Where requests wait.
        launch: Asks for a run of a rule's request, by its mark; an OSError is tried again for ever, an error of ours is not.
        counters: Where answers and refusals are counted.
        limit: How many may wait.
    """

    kind = "run"

    def __init__(
        self,
        folder: Path,
        launch: Callable[[str, RunRequest, str], Awaitable[None]],
        counters: Counters,
        limit: int = _LIMIT,
    ) -> None:
        self._folder = folder
        self._launch = launch
        self._counters = counters
        self._limit = limit
        self._waiting: deque[_Waiting] = deque()
        self._number = 0
        self._new = asyncio.Event()
        self._any = asyncio.Event()
        self._told = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, parcel: Parcel) -> None:
        """Take a request; count it as refused where there is no room."""
        if len(self._waiting) >= self._limit:
            self._counters.refused[parcel.rule, "run: queue full"] += 1
            return
        self._number += 1
        path = self._folder / f"{self._number:012}-{parcel.mark}.json"
        self._waiting.append(_Waiting(path, parcel.rule, parcel.what, parcel.mark))
        self._new.set()
        self._any.set()

    async def run(self) -> None:
        """Ask for one run after another, oldest first, until cancelled."""
        try:
            await self._load()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep())
                tasks.create_task(self._deliver())
        finally:
            for one in self._waiting:
                if not one.kept:
                    self._store(one)

    async def _load(self) -> None:
        """What an earlier run left, before what came since this one began."""
        found = await asyncio.to_thread(self._left)
        if found:
            last = int(found[-1].path.name.partition("-")[0])
            for one in self._waiting:
                last += 1
                one.path = self._folder / f"{last:012}-{one.mark}.json"
            self._number = last
        self._waiting.extendleft(reversed(found))
        if self._waiting:
            self._any.set()

    def _left(self) -> list[_Waiting]:
        found = []
        for path in sorted(self._folder.glob("*-*.json")):
            try:
                int(path.name.partition("-")[0])
                told = orjson.loads(path.read_bytes())
                request = RunRequest.model_validate(told["request"])
                found.append(_Waiting(path, told["rule"], request, told["mark"], kept=True))
            except (OSError, ValueError, ValidationError, KeyError, TypeError) as error:
                log.error("%s is no request for a run: %s", path, error)
        return found

    async def _keep(self) -> None:
        """Have what is new on the disk, whatever the network does meanwhile."""
        while True:
            await self._new.wait()
            self._new.clear()
            for one in [one for one in self._waiting if not one.kept]:
                await asyncio.to_thread(self._store, one)
                if one.done:
                    await asyncio.to_thread(_remove, one.path)

    def _store(self, one: _Waiting) -> None:
        told = {"rule": one.rule, "request": one.request.model_dump(), "mark": one.mark}
        try:
            write_atomic(one.path, orjson.dumps(told))
            sync_folder(self._folder)
        except OSError as error:
            # It is asked for all the same, from memory.
            self._tell(f"a request cannot be kept in {self._folder}: {error.strerror or error}")
        else:
            one.kept = True

    async def _deliver(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._any.wait()
            one = self._waiting[0]
            try:
                await self._launch(one.rule, one.request, one.mark)
            except (OSError, TimeoutError) as error:
                self._tell(f"{len(self)} requests for runs wait: {error}")
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            except NotebookedError as error:
                self._refuse(one, str(error))
            except Exception as error:  # one request that nobody foresaw must not hold up the others
                log.exception("the request of rule %r", one.rule)
                self._refuse(one, type(error).__name__)
            else:
                self._counters.actions[one.rule, self.kind] += 1
                self._told = ""
            pause = _FIRST_PAUSE
            self._waiting.popleft()
            one.done = True
            if not self._waiting:
                self._any.clear()
            await asyncio.to_thread(_remove, one.path)

    def _refuse(self, one: _Waiting, reason: str) -> None:
        self._counters.refused[one.rule, f"{self.kind}: failed"] += 1
        self._tell(f"the run of rule {one.rule!r}: {reason}")

    def _tell(self, text: str) -> None:
        if text != self._told:
            log.warning("%s", text)
            self._told = text


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # It is found again at the next start, and so is its run.
        log.warning("%s cannot be removed: %s", path, error.strerror or error)
