"""What reaching a cloud has in common, whatever its SDK: short trouble is waited out, and the SDK is imported when it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from notebooked_dagster.core import retrying
from notebooked_dagster.errors import MissingPackageError

T = TypeVar("T")
# Longer trouble is for whoever waits for the job.
_ATTEMPTS = 4


class CloudSession:
    """Calls to a cloud that are made again.

    Args:
        provider: Whose budget of retries it is.
        transient: Whether a call that failed so may well work in a moment.
        pause: Seconds before the second try of a call.
    """

    def __init__(self, provider: str, transient: Callable[[Exception], bool], pause: float) -> None:
        self.budget = retrying.budget_of(provider)
        self._transient = transient
        self._pause = pause

    def again(
        self,
        call: Callable[[], T],
        *,
        attempts: int = _ATTEMPTS,
        unless: Callable[[Exception], object] = lambda error: False,
    ) -> T:
        """Make a call that may be made twice; short trouble is waited out.

        Args:
            call: The call.
            attempts: How often it is made at most.
            unless: Whether a failure is final all the same.
        """
        return retrying.again(
            call,
            when=lambda error: isinstance(error, Exception) and self._transient(error) and not unless(error),
            budget=self.budget,
            attempts=attempts,
            base=2 * self._pause,
        )

    def is_worth_another(self, error: Exception) -> bool:
        """Whether a call that failed so may be made once more; that takes a retry of the budget."""
        return self._transient(error) and self.budget.take()

    def back_off(self, attempt: int) -> None:
        """Wait before a call is made once more, ``attempt`` times having failed."""
        time.sleep(retrying.wait(attempt, 2 * self._pause))


def sdk(name: str, *, provider: str, extra: str) -> Any:
    """A module of a cloud's SDK. Raises MissingPackageError with the extra that installs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"Provider {provider!r} needs the package {error.name!r}, which is not installed.",
            hint=f"`pip install 'notebooked-dagster[{extra}]'`.",
        ) from error


def sentence(what: str, said: str) -> str:
    """What was tried, as the start of a sentence, and what the cloud said of it."""
    return f"{what}: {' '.join(said.split()).rstrip('.')}."
