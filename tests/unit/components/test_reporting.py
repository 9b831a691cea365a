"""What a step tells Dagster, which keeps it in a database and shows it to everybody who can open the UI."""

# No `from __future__ import annotations`: Dagster reads the annotation of `context` as it stands.

from collections.abc import Callable

import dagster as dg
import pytest
from dagster._core.events import StepFailureData

from notebooked_dagster.components.reporting import reported
from notebooked_dagster.core.redaction import REDACTOR
from notebooked_dagster.errors import ProviderError

SECRET = "hunter2-hunter2"


def sdk(said: str) -> None:
    raise RuntimeError(f"the service was asked with {said}")


def ours(said: str) -> None:
    try:
        sdk(said)
    except RuntimeError as error:
        raise ProviderError(
            f"Refused {said}.", hint=f"Not {said}.", details={"key": said, "all": {"key": [said]}}
        ) from error


def failed(way: Callable[[str], None], said: str) -> tuple[str, StepFailureData]:
    """All that Dagster keeps of a run that fails so, and the failure."""

    @dg.asset(name="step")
    def step(context: dg.AssetExecutionContext) -> None:
        with reported(context.log):
            context.log.info("asked with %s", said)
            way(said)

    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize([step], instance=instance, raise_on_error=False)
        kept = "\n".join(dg.serialize_value(entry) for entry in instance.all_logs(run.run_id))
    return kept, run.failure_data_for_node("step")


@pytest.mark.parametrize("way", [ours, sdk])
def test_no_secret_is_kept_of_a_step_that_failed(
    way: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REDACTOR, "_values", set())
    monkeypatch.setattr(REDACTOR, "_pattern", None)
    REDACTOR.add(SECRET)
    kept, failure = failed(way, SECRET)
    assert SECRET not in kept
    assert "asked with ***" in kept
    # What is left says what went wrong, and where.
    assert failure.user_failure_data is not None
    assert "the service was asked with ***" in kept


def test_without_a_secret_the_whole_stack_is_kept() -> None:
    _, failure = failed(ours, "a word")
    assert failure.user_failure_data is not None
    assert failure.error is not None
    assert failure.error.cause is not None
    assert failure.error.cause.cause is not None
    assert "RuntimeError: the service was asked with a word" in failure.error.cause.cause.message
    _, failure = failed(sdk, "a word")
    assert failure.user_failure_data is None
