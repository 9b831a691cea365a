"""An endpoint that fails again and again is left alone, and asked again when it serves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from notebooked_dagster.core import breaker
from notebooked_dagster.errors import EndpointNotFoundError, InvalidInputError, ProviderError
from notebooked_dagster.providers import circuits
from notebooked_dagster.providers.base import BaseProvider
from notebooked_dagster.providers.local import LocalProvider
from notebooked_dagster.providers.registry import get_provider

REFUSED = "left alone"


class Answers:
    """What stands behind an endpoint: the next answers, an exception or a value each."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def predict(self, name: str, data: Any) -> Any:
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def rollback(self, name: str) -> Any:
        return name


@pytest.fixture(params=["local", "sagemaker", "azure", "vertex", "kubernetes"])
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> BaseProvider:
    return get_provider(request.param, state_dir=tmp_path)


def behind(provider: BaseProvider, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> Answers:
    """Let an endpoint of the provider answer so."""
    found = Answers(*answers)
    name = "_control" if isinstance(provider, LocalProvider) else "_hosting"
    monkeypatch.setattr(type(provider), name, property(lambda self: found))
    monkeypatch.setattr(LocalProvider, "_endpoint", lambda self, state: state)
    return found


def down() -> ProviderError:
    return ProviderError("It cannot be reached.")


def test_five_failures_in_a_row_and_nobody_asks_any_more(
    provider: BaseProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = behind(provider, monkeypatch, *[down() for _ in range(4)], "up", *[down() for _ in range(5)])
    for _ in range(4):
        with pytest.raises(ProviderError, match="cannot be reached"):
            provider.predict("digits", {})
    assert provider.predict("digits", {}) == "up"
    for _ in range(5):
        with pytest.raises(ProviderError, match="cannot be reached"):
            provider.predict("digits", {})
    with pytest.raises(ProviderError, match=REFUSED) as caught:
        provider.predict("digits", {})
    assert found.asked == 10
    assert "5 times in a row" in caught.value.message
    assert caught.value.exit_code == 2
    assert 0 < caught.value.details["retry_after"] <= 5
    # Others are not held to account, and a new provider object of this process knows.
    found.answers = ["other"]
    assert provider.predict("other", {}) == "other"
    again = get_provider(
        provider.name, state_dir=provider.state.parent if provider.name != "local" else provider.state
    )  # type: ignore[attr-defined]
    with pytest.raises(ProviderError, match=REFUSED):
        again.predict("digits", {})


def test_a_rollback_lets_the_next_through(provider: BaseProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    found = behind(provider, monkeypatch, *[down() for _ in range(5)], "up")
    for _ in range(5):
        with pytest.raises(ProviderError):
            provider.predict("digits", {})
    with pytest.raises(ProviderError, match=REFUSED):
        provider.predict("digits", {})
    provider.rollback("digits")
    assert provider.predict("digits", {}) == "up"
    assert found.asked == 6


def test_what_the_caller_does_wrong_is_no_outage(tmp_path: Path) -> None:
    for error in [InvalidInputError("No such column.")] * 9 + [EndpointNotFoundError("None.")] * 9:
        with pytest.raises(type(error)), circuits.guarded(tmp_path, "x"):
            raise error
    with circuits.guarded(tmp_path, "x"):
        pass


def test_after_a_rest_one_request_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(value=0.0)
    made = breaker.CircuitBreaker(clock=lambda: now.value)
    monkeypatch.setitem(circuits._breakers, (tmp_path, "x"), made)
    for _ in range(5):
        with pytest.raises(ProviderError, match="reached"), circuits.guarded(tmp_path, "x"):
            raise down()
    now.value = 5.0
    # While it is out, nobody else is let through.
    with (
        circuits.guarded(tmp_path, "x"),
        pytest.raises(ProviderError, match=REFUSED),
        circuits.guarded(tmp_path, "x"),
    ):
        pass
    with circuits.guarded(tmp_path, "x"):
        pass
    assert made.state is breaker.State.CLOSED
