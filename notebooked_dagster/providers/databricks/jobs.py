"""Which run of Databricks a name of ours is.

Databricks gives a run its id only when it is submitted, but starts one run for an idempotency token, however often and from
wherever it is asked; our name is the token. The id is written down in the volume. Where that did not happen (the submitter
died, the reply was lost) the run is found by its name in the list, and in any case by submitting again (docs/decisions/0014).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

from notebooked_dagster.errors import ProviderError
from notebooked_dagster.providers.cloud.provider import is_job_name

from .session import DatabricksSession, code_of, package, translated
from .storage import Storage

# Databricks keeps runs for sixty days.
_KEPT = 60 * 86_400
# In a busy workspace a name is one among many; for an overview the newest are enough. A page has at most 24.
_SEARCHED, _LISTED, _PAGE = 2000, 500, 24
_SLACK = 3600
# How many runs of one name somebody may have deleted before we give up to count them.
_MOST_DELETED = 20
_GONE = re.compile(r"(?i)idempotency|\brun\b.*\bdeleted|\bdeleted.*\brun\b")


class Jobs:
    """The training runs of one workspace.

    Args:
        session: Credentials.
        storage: Our folder.
    """

    def __init__(self, session: DatabricksSession, storage: Callable[[], Storage]) -> None:
        self._session = session
        self._storage_of = storage
        self._runs: dict[str, int] = {}

    @property
    def _storage(self) -> Storage:
        return self._storage_of()

    # Asking

    def find(self, name: str) -> Any:
        """A run as it is now; None where there is none."""
        for look in (self._runs.get, self._marked, self._listed):
            if (run_id := look(name)) is None:
                continue
            if (found := self._run(name, run_id)) is not None:
                self._runs[name] = run_id
                return found
            # Somebody has deleted it; one that was submitted since has the same name.
            self._runs.pop(name, None)
        return None

    def _run(self, name: str, run_id: int) -> Any:
        with translated(f"Training job {name!r} cannot be looked at"):
            try:
                return self._session.again(lambda: self._session.client.jobs.get_run(run_id))
            except Exception as error:
                if code_of(error) == 404:
                    return None
                raise

    def all(self, now: datetime, since: datetime | None = None) -> dict[str, Any]:
        """All runs of ours by our names, newest first, without what they were asked to do."""
        found: dict[str, Any] = {}
        oldest = max(now.timestamp() - _KEPT, since.timestamp() if since is not None else 0.0)
        for run in self._list(int(oldest * 1000), _LISTED):
            if is_job_name(run.run_name or ""):
                found.setdefault(run.run_name, run)
                self._runs.setdefault(run.run_name, run.run_id)
        return found

    def output(self, run: Any) -> Any:
        """What Databricks itself kept of a run's output; None where there is nothing."""
        task = run.tasks[0] if run.tasks else None
        if task is None:
            return None
        with translated(f"The output of training job {run.run_name!r} cannot be read"):
            try:
                return self._session.again(lambda: self._session.client.jobs.get_run_output(task.run_id))
            except Exception as error:
                # A run that never began has none; some releases answer with a fault of theirs.
                if code_of(error) in (400, 404, 500):
                    return None
                raise

    def cancel(self, name: str) -> None:
        """Ask a run to end."""
        found = self.find(name)
        if found is None:
            return
        with translated(f"Training job {name!r} cannot be stopped"):
            try:
                self._session.again(lambda: self._session.client.jobs.cancel_run(found.run_id))
            except Exception as error:
                # It has ended by itself.
                if code_of(error) not in (400, 404):
                    raise

    # Submitting

    def submit(self, name: str, request: Mapping[str, Any]) -> None:
        """Start a run; one of that name that is there already is left alone."""
        for token in tokens(name):
            run_id = self._submitted({**request, "idempotency_token": token})
            # A token whose run somebody deleted is used up; whoever asks next goes the same way along the tokens.
            if run_id is None:
                continue
            self._runs[name] = run_id
            self._storage.write(self._mark(name), json.dumps({"run_id": run_id}).encode())
            return
        raise ProviderError(
            f"Training job {name!r} was submitted and deleted {_MOST_DELETED} times.",
            hint="Ask for it by another run.",
        )

    def _submitted(self, request: Mapping[str, Any]) -> int | None:
        given = typed(request)
        with translated("The training job cannot be started"):
            try:
                made = self._session.again(lambda: self._session.client.jobs.submit(**given))
            except Exception as error:
                if code_of(error) in (400, 404, 409) and _GONE.search(str(error)):
                    return None
                raise
        return int(made.run_id)

    # The mark and the list

    def _mark(self, name: str) -> str:
        return self._storage.path("jobs", name, "run.json")

    def _marked(self, name: str) -> int | None:
        found = self._storage.read(self._mark(name))
        try:
            return int(json.loads(found)["run_id"]) if found else None
        except (ValueError, KeyError, TypeError):
            return None

    def _listed(self, name: str) -> int | None:
        # Nothing is submitted before its package lies there; that also says how far back to look.
        sent = self._storage.written_at(self._storage.path("jobs", name, "source", "package.tar.gz"))
        if sent is None:
            return None
        found = (run for run in self._list(int((sent.timestamp() - _SLACK) * 1000)) if run.run_name == name)
        return next((int(run.run_id) for run in found), None)

    def _list(self, since: int, most: int = _SEARCHED) -> Iterator[Any]:
        kind = package("databricks.sdk.service.jobs").RunType.SUBMIT_RUN
        with translated("Training jobs cannot be listed"):
            yield from self._session.again(
                lambda: list(
                    islice(
                        self._session.client.jobs.list_runs(
                            run_type=kind, start_time_from=since, expand_tasks=True, limit=_PAGE
                        ),
                        most,
                    )
                )
            )


def tokens(name: str) -> Iterator[str]:
    """The idempotency tokens of a name, in the order in which they are used up."""
    yield name
    for number in range(1, _MOST_DELETED):
        yield hashlib.sha256(f"{name}/{number}".encode()).hexdigest()


def typed(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as the SDK takes it."""
    jobs = package("databricks.sdk.service.jobs")
    given = dict(request)
    given["tasks"] = [jobs.SubmitTask.from_dict(task) for task in request["tasks"]]
    given["queue"] = jobs.QueueSettings.from_dict(request["queue"])
    if "environments" in request:
        given["environments"] = [jobs.JobEnvironment.from_dict(item) for item in request["environments"]]
    return given
