"""Endpoints that fail again and again are not asked for a while. What is known of them is this process's alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from notebooked_dagster.core.breaker import CircuitBreaker
from notebooked_dagster.errors import (
    CapabilityError,
    CredentialsError,
    EndpointNotFoundError,
    ProviderError,
    QuotaError,
    StateError,
)

# Failures that asking less would not mend.
_NO_OUTAGE = (CapabilityError, CredentialsError, QuotaError, StateError)
_breakers: dict[tuple[Path, str], CircuitBreaker] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def guarded(state: Path, endpoint: str) -> Iterator[None]:
    """Around a request to an endpoint.

    Args:
        state: The provider's state folder, which tells endpoints of one name apart.
        endpoint: Its name.

    Raises:
        ProviderError: It has failed again and again; it was not asked.
    """
    with _lock:
        breaker = _breakers.setdefault((state, endpoint), CircuitBreaker())
    ticket = breaker.admit()
    if ticket is None:
        seconds = max(1.0, breaker.wait())
        raise ProviderError(
            f"Endpoint {endpoint!r} failed {breaker.failures} times in a row and is left alone for {seconds:.0f} s.",
            hint="Ask again after that; `notebooked endpoints` shows what it does, its log why it fails.",
            details={"endpoint": endpoint, "circuit": str(breaker.state), "retry_after": round(seconds, 1)},
        )
    try:
        yield
    except EndpointNotFoundError:
        # Any name may be asked for; only of what there is something is kept.
        forget(state, endpoint)
        raise
    except ProviderError as error:
        if isinstance(error, _NO_OUTAGE):
            breaker.untold(ticket)
        else:
            breaker.failed(ticket)
        raise
    except BaseException:
        breaker.untold(ticket)
        raise
    breaker.succeeded(ticket)


def forget(state: Path, endpoint: str) -> None:
    """Something else serves now, or nothing: whoever asks next is let through."""
    with _lock:
        _breakers.pop((state, endpoint), None)
