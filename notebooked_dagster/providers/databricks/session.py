"""The Databricks SDK: its client, made when first used, and its errors in our words.

Credentials are the SDK's own business: environment, profile, OAuth of a person or a service principal, the identity of the
machine in Azure or Google Cloud, a token exchanged for that of a CI system.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from notebooked_dagster.errors import (
    ConfigError,
    CredentialsError,
    NotebookedError,
    ProviderError,
    QuotaError,
)
from notebooked_dagster.providers.cloud.session import CloudSession, sdk, sentence
from notebooked_dagster.providers.cloud.waiting import OutOfReachError

T = TypeVar("T")
TIMEOUT = 60
# A workspace answers 429 both for what may be asked again in a moment and for what it has no room for.
_QUOTA = re.compile(r"(?i)quota|maximum (number|concurren)|exceed\w* the (limit|maximum)|workspace limit")
_CODES = {
    "Unauthenticated": 401,
    "PermissionDenied": 403,
    "NotFound": 404,
    "ResourceConflict": 409,
    "TooManyRequests": 429,
    "NotImplemented": 501,
    "TemporarilyUnavailable": 503,
    "DeadlineExceeded": 504,
    "InternalError": 500,
    "BadRequest": 400,
}


class _OneTry:
    """A clock by which the SDK's patience is over after its first try: how often is asked again is decided here."""

    def __init__(self) -> None:
        self._now = time.monotonic()

    def time(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += 86_400 + seconds


class DatabricksSession(CloudSession):
    """One set of credentials, one workspace.

    Args:
        host: The workspace; the SDK's own choice where None.
        profile: A profile of ``.databrickscfg``.
        pause: Seconds before the second try of a call.
    """

    def __init__(self, host: str | None, profile: str | None, pause: float = 0.5) -> None:
        super().__init__("databricks", transient, pause)
        self._host = host
        self._profile = profile
        self._client: Any = None
        self._making = threading.Lock()

    @property
    def client(self) -> Any:
        """The SDK's ``WorkspaceClient``."""
        with self._making:
            if self._client is None:
                self._client = self._made()
            return self._client

    def _made(self) -> Any:
        sdk = package("databricks.sdk")
        given = {"host": self._host, "profile": self._profile}
        try:
            config = sdk.core.Config(
                **{key: value for key, value in given.items() if value},
                http_timeout_seconds=TIMEOUT,
                clock=_OneTry(),
                # What it asks a host of itself at first does not know our clock, and would be asked for five minutes.
                retry_timeout_seconds=1,
                product="notebooked-dagster",
            )
            return sdk.WorkspaceClient(config=config)
        except ValueError as error:
            raise CredentialsError(
                sentence("Databricks' credentials cannot be used", str(error).partition(". Config:")[0]),
                hint="Log in (`databricks auth login`), set DATABRICKS_HOST with the variables of a service principal, or name "
                "a profile: databricks.profile; credentials are never configured here.",
            ) from error

    @property
    def host(self) -> str:
        """The workspace's address."""
        return str(self.client.config.host).rstrip("/")

    @property
    def cloud(self) -> str:
        """Whose machines the workspace has: ``aws``, ``azure``, ``gcp``."""
        config = self.client.config
        return "azure" if config.is_azure else "gcp" if config.is_gcp else "aws"

    def again(self, call: Callable[[], T], **more: Any) -> T:
        """As the base has it, and what the SDK's own patience hid is seen."""
        return super().again(lambda: once(call), **more)


def once(call: Callable[[], T]) -> T:
    """Make a call; what the SDK's own patience hid is raised as it was."""
    try:
        return call()
    except TimeoutError as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise


# A module of the SDK. Raises MissingPackageError.
package = partial(sdk, provider="databricks", extra="databricks")


def transient(error: Exception) -> bool:
    """Whether the same call may well work in a moment."""
    import requests

    if isinstance(error, requests.ConnectionError | requests.Timeout | TimeoutError):
        return True
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return True
    code = code_of(error)
    return (code >= 500 and code != 501) or (code == 429 and not is_quota(error))


def is_quota(error: Exception) -> bool:
    """Whether the workspace has no more room, and not this moment only."""
    return code_of(error) in (400, 403, 429) and bool(
        _QUOTA.search(str(error))
        or getattr(error, "error_code", "") in ("QUOTA_EXCEEDED", "RESOURCE_LIMIT_EXCEEDED")
    )


def code_of(error: Exception) -> int:
    """The HTTP status that Databricks answered with, as the SDK's classes have it; 0 where there was no answer."""
    for kind in type(error).__mro__:
        if kind.__module__.startswith("databricks.sdk.errors") and kind.__name__ in _CODES:
            return _CODES[kind.__name__]
    return 0


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the SDK as ours.

    Args:
        what: What was tried, as the start of a sentence.
    """
    from databricks.sdk.errors.base import DatabricksError
    from requests.exceptions import JSONDecodeError, RequestException

    try:
        yield
    except DatabricksError as error:
        raise from_api_error(what, error) from error
    except JSONDecodeError as error:
        raise ProviderError(sentence(what, f"the answer is no JSON: {error}")) from error
    except (RequestException, TimeoutError) as error:
        raise OutOfReachError(sentence(what, str(error)), hint="Check the network.") from error
    except ValueError as error:
        # What the SDK says of credentials that it finds wanting only when they are used.
        raise CredentialsError(
            sentence(what, str(error)), hint="Log in again: `databricks auth login`."
        ) from error


def from_api_error(what: str, error: Exception) -> NotebookedError:
    """An error that Databricks answered with, as ours."""
    code, text = code_of(error), sentence(what, str(error))
    details = {"code": code, "error_code": str(getattr(error, "error_code", "") or "")}
    if is_quota(error):
        return QuotaError(
            text,
            hint="Wait until something else has ended, or ask the workspace's administrators for a higher limit.",
            details=details,
        )
    if code == 401:
        return CredentialsError(
            text,
            hint="The credentials have expired or are not known: `databricks auth login`.",
            details=details,
        )
    if code == 403:
        return CredentialsError(
            text, hint="It takes a grant; `notebooked plan --policy` prints all.", details=details
        )
    if code >= 500 or code == 429:
        return OutOfReachError(text, hint="Try again in a minute.", details=details)
    if code == 400:
        key = "instance_type" if re.search(r"(?i)node.?type", str(error)) else None
        if re.search(r"(?i)spark.?version", str(error)):
            key = "options.training.spark_version"
        return ConfigError(text, key=key, details=details)
    return ProviderError(text, details=details)
