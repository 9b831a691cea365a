"""An edge device asks a real Dagster webserver for a run."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from notebooked_dagster.errors import ProviderError
from notebooked_dagster.realtime.network import Dagster
from notebooked_dagster.realtime.rules import RunRequest

pytestmark = pytest.mark.slow
TAGS = "query Tags($id: ID!) { runOrError(runId: $id) { ... on Run { jobName tags { key value } } } }"


def test_a_run_is_launched_found_again_and_refused(webserver: str) -> None:
    async def ask() -> tuple[str, str]:
        dagster = Dagster(webserver, "notebooked_dagster")
        request = RunRequest(job="wine_untagged_job", tags={"from": "pi"})
        await dagster.launch("door", request, "mark-1")
        # As after a lost answer: the same mark again is the same run.
        await dagster.launch("door", request, "mark-1")
        with pytest.raises(ProviderError, match="no_such_job"):
            await dagster.launch("door", RunRequest(job="no_such_job"), "mark-2")
        await dagster.close()
        first, second = dagster.launched
        return first, second

    first, second = asyncio.run(ask())
    assert first == second
    answer = httpx.post(f"{webserver}/graphql", json={"query": TAGS, "variables": {"id": first}}).json()
    run = answer["data"]["runOrError"]
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert (run["jobName"], tags["from"], tags["notebooked/edge-rule"]) == ("wine_untagged_job", "pi", "door")
