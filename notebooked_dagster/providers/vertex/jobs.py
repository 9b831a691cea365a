"""Which job of Vertex AI a name of ours is.

Vertex AI gives a job its id only when it is made, and takes any number of jobs of one display name. So that a name is one
job all the same, who submits takes a mark in the bucket first, which only one can take; it holds the job's resource name
afterwards. The job carries our name as a label: that is how one is found whose submitter died in between (docs/decisions/0008).
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from notebooked_dagster.errors import NotebookedError
from notebooked_dagster.providers.cloud.waiting import OutOfReachError

from .session import TIMEOUT, GcpSession, api_message, code_of, translated, unclear
from .storage import Storage
from .training import LABEL

_LISTED = 1000
_SUMMARY = ("name", "labels", "state", "create_time", "start_time", "end_time", "update_time", "error")
# How often and how far apart a job is looked for whose submission ended without an answer.
_LOOKS = 3


class Jobs:
    """The training jobs of one project and region.

    Args:
        session: Credentials.
        storage: Our folder.
        claim: Seconds that a submitter has between taking the mark and writing down what it submitted.
        poll: Seconds between two looks.
    """

    def __init__(self, session: GcpSession, storage: Storage, *, claim: float, poll: float) -> None:
        self._session = session
        self._storage = storage
        self._claim = claim
        self._poll = poll
        self._resources: dict[str, str] = {}
        self._created: dict[str, datetime] = {}
        self._ended: set[str] = set()

    @property
    def _client(self) -> Any:
        return self._session.client("jobs")

    # Asking

    def resource(self, name: str) -> str | None:
        """The resource name of a job of ours; None where there is none."""
        if name not in self._resources:
            found = self._marked(name) or self._labelled(name)
            if found is None:
                return None
            self._resources[name] = found
        return self._resources[name]

    def find(self, name: str) -> Any:
        """A job as it is now; None where there is none."""
        resource = self.resource(name)
        if resource is None:
            return None
        with translated(f"Training job {name!r} cannot be looked at"):
            try:
                found = self._session.again(
                    lambda: self._client.get_custom_job(name=resource, timeout=TIMEOUT)
                )
            except Exception as error:
                if code_of(error) == 404:
                    self._resources.pop(name, None)
                    self._ended.discard(name)
                    return None
                raise
        self._created[name] = found.create_time
        if found.end_time:
            self._ended.add(name)
        return found

    def has_ended(self, name: str) -> bool:
        """Whether a job had ended when it was last looked at."""
        return name in self._ended

    def created(self, name: str) -> datetime | None:
        """When a job was made; None where there is none."""
        if name not in self._created:
            self.find(name)
        return self._created.get(name)

    def all(self, since: datetime | None = None) -> dict[str, Any]:
        """All jobs of ours by our names, newest first, without what they were asked to do."""
        found: dict[str, Any] = {}
        made = f' AND create_time>="{since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"' if since is not None else ""
        for job in self._list(f"labels.{LABEL}:*{made}", _SUMMARY):
            found.setdefault(job.labels[LABEL], job)
            self._resources.setdefault(job.labels[LABEL], job.name)
        return found

    def cancel(self, name: str) -> None:
        """Ask a job to end."""
        resource = self.resource(name)
        if resource is None:
            return
        with translated(f"Training job {name!r} cannot be stopped"):
            try:
                self._session.again(lambda: self._client.cancel_custom_job(name=resource, timeout=TIMEOUT))
            except Exception as error:
                # It has ended by itself.
                if code_of(error) not in (400, 404):
                    raise

    # Submitting

    def submit(self, name: str, request: Mapping[str, Any]) -> None:
        """Start a job; one of that name that is there already is left alone."""
        api_message("CustomJob", request, "options.training")
        generation = self._take(name)
        if generation is None:
            return
        began = time.monotonic()
        try:
            resource = self._create(name, request, began)
        except Exception as error:
            if not isinstance(error, OutOfReachError) or error.details.get("code") == 429:
                # It was refused: the same run may try again at once when that is mended.
                with contextlib.suppress(NotebookedError):
                    self._storage.remove(self._mark(name), generation)
            raise
        self._resources[name] = resource
        self._storage.write(self._mark(name), _document(job=resource), generation=generation)

    def _take(self, name: str) -> int | None:
        """The mark's generation, once it is ours; None where the job is there already."""
        waited_since, watched = time.monotonic(), 0
        while True:
            found = self._storage.versioned(self._mark(name))
            if found is None:
                generation = self._storage.write(self._mark(name), _document(), generation=0)
                if generation is not None:
                    return generation
                continue
            document, generation = _parsed(found[0]), found[1]
            if document.get("job"):
                if self.find(name) is not None:
                    return None
                # Somebody has deleted the job in Vertex AI; its name is free again.
                if (
                    mine := self._storage.write(self._mark(name), _document(), generation=generation)
                ) is not None:
                    return mine
                continue
            resource = self._labelled(name)
            if resource is not None:
                self._resources[name] = resource
                self._storage.write(self._mark(name), _document(job=resource), generation=generation)
                return None
            if generation != watched:
                waited_since, watched = time.monotonic(), generation
            age = (
                time.time()
                - datetime.fromisoformat(document.get("at", "1970-01-01T00:00:00+00:00")).timestamp()
            )
            # Clocks differ from machine to machine; a mark is old when it is old by any of them, or by our own patience.
            if age > 10 * self._claim or time.monotonic() - waited_since > self._claim:
                mine = self._storage.write(self._mark(name), _document(), generation=generation)
                if mine is not None:
                    return mine
            time.sleep(min(self._poll, 1.0))

    def _create(self, name: str, request: Mapping[str, Any], began: float) -> str:
        """Create the job; where an answer is missing, look for the job before another is asked for."""

        def late() -> bool:
            return time.monotonic() - began > self._claim / 2

        with translated("The training job cannot be started"):
            for attempt in range(1, 5):
                try:
                    made = self._client.create_custom_job(
                        parent=self._session.parent, custom_job=dict(request), timeout=self._claim / 4
                    )
                    return str(made.name)
                except Exception as error:
                    if attempt == 4 or late() or not self._session.is_worth_another(error):
                        raise
                    if not unclear(error):
                        self._session.back_off(attempt)
                    elif (found := self._looked_for(name, attempt)) is not None:
                        return found
                    if late():
                        # That took its time too; whoever waits for the mark may have it before a second job is made.
                        raise
        raise AssertionError  # the last attempt raises

    def _looked_for(self, name: str, attempt: int) -> str | None:
        """The job that an unanswered call may have made."""
        for _ in range(_LOOKS):
            self._session.pause(attempt)
            if (found := self._labelled(name, leave_one=True)) is not None:
                return found
        return None

    # The mark and the label

    def _mark(self, name: str) -> str:
        return self._storage.uri("jobs", name, "job.json")

    def _marked(self, name: str) -> str | None:
        found = self._storage.versioned(self._mark(name))
        return _parsed(found[0]).get("job") if found is not None else None

    def _labelled(self, name: str, *, leave_one: bool = False) -> str | None:
        """The oldest job that carries a name; with ``leave_one`` any other is stopped."""
        found = list(self._list(f'labels.{LABEL}="{name}"', ("name", "create_time", "state")))
        found.sort(key=lambda job: (job.create_time, job.name))
        for extra in found[1:] if leave_one else ():
            with contextlib.suppress(Exception):
                self._client.cancel_custom_job(name=extra.name, timeout=TIMEOUT)
        return str(found[0].name) if found else None

    def _list(self, wanted: str, mask: tuple[str, ...]) -> list[Any]:
        with translated("Training jobs cannot be listed"):
            found: list[Any] = []
            token = ""
            while True:
                query = {
                    "parent": self._session.parent,
                    "filter": wanted,
                    "page_size": 100,
                    "page_token": token,
                    "read_mask": {"paths": list(mask)},
                }
                page = self._session.again(
                    lambda query=query: next(  # type: ignore[misc]
                        self._client.list_custom_jobs(request=query, timeout=TIMEOUT).pages
                    )
                )
                found.extend(page.custom_jobs)
                token = page.next_page_token
                if not token or len(found) >= _LISTED:
                    break
        return sorted(found, key=lambda job: job.create_time, reverse=True)


def _document(job: str | None = None) -> bytes:
    now = datetime.now(UTC).isoformat()
    # The nonce makes every mark's bytes its own, so that a submitter knows its mark again.
    return json.dumps({"at": now, "nonce": secrets.token_hex(8), **({"job": job} if job else {})}).encode()


def _parsed(content: bytes) -> dict[str, str]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
