"""The Google SDK: its clients, made when first used, and its errors in our words.

Credentials are google.auth's own business: GOOGLE_APPLICATION_CREDENTIALS, gcloud, workload identity, the metadata server.
The clients speak REST, not gRPC: one transport less to let through a proxy, and an emulator can be asked with plain HTTP.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar

from notebooked_dagster.core import tracing
from notebooked_dagster.errors import (
    ConfigError,
    CredentialsError,
    NotebookedError,
    ProviderError,
    QuotaError,
)
from notebooked_dagster.providers.cloud.session import CloudSession, sdk, sentence
from notebooked_dagster.providers.cloud.waiting import OutOfReachError, until

log = logging.getLogger("notebooked.providers.vertex")
T = TypeVar("T")
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
TIMEOUT = 60.0
_SERVICES = {"jobs": "JobServiceClient", "models": "ModelServiceClient", "endpoints": "EndpointServiceClient"}
# Google answers 429 both for what may be asked again in a minute and for what is not allowed to this project at all.
_RATE = re.compile(r"(?i)per minute|per second|per day|requests? rate|rate limit")
_QUOTA = re.compile(r"(?i)quota|insufficient|exhausted|stockout|capacity")


class GcpSession(CloudSession):
    """One set of credentials, one project, one region.

    Args:
        project: The credentials' own where None.
        region: For instance ``europe-west4``.
        endpoint_url: Another address for every service, for an emulator.
        pause: Seconds before the second try of a call.
    """

    def __init__(
        self, project: str | None, region: str | None, endpoint_url: str | None, pause: float = 0.5
    ) -> None:
        super().__init__("vertex", transient, pause)
        self._project = project
        self._region = region
        self._endpoint_url = endpoint_url.rstrip("/") if endpoint_url else None
        self._clients: dict[str, Any] = {}
        self._making = threading.RLock()

    @cached_property
    def _default(self) -> tuple[Any, str | None]:
        auth = package("google.auth")
        with translated("Google's credentials cannot be used"):
            credentials, project = auth.default(scopes=_SCOPES)
        return credentials, project

    @property
    def credentials(self) -> Any:
        """As google.auth found them."""
        return self._default[0]

    @cached_property
    def project(self) -> str:
        """The project's id."""
        found = self._project or self._default[1]
        if not found:
            raise ConfigError(
                "No Google Cloud project is named.",
                key="gcp.project",
                hint="Set gcp.project, or GOOGLE_CLOUD_PROJECT.",
            )
        return found

    @property
    def region(self) -> str:
        """The region's name."""
        if not self._region:
            raise ConfigError(
                "No region is named.", key="gcp.region", hint="Set gcp.region, for instance europe-west4."
            )
        return self._region

    @property
    def parent(self) -> str:
        """What everything of ours in Vertex AI is named below."""
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def vertex_url(self) -> str:
        """Where the region's Vertex AI is."""
        return self._endpoint_url or f"https://{self.region}-aiplatform.googleapis.com"

    def url(self, service: str) -> str:
        """Where a service is that has one address for all regions: ``logging``."""
        return self._endpoint_url or f"https://{service}.googleapis.com"

    def client(self, kind: str) -> Any:
        """A client of Vertex AI: ``jobs``, ``models``, ``endpoints``."""
        with self._making:
            if kind not in self._clients:
                module = package("google.cloud.aiplatform_v1")
                host = self.vertex_url.removeprefix("https://")
                self._clients[kind] = getattr(module, _SERVICES[kind])(
                    credentials=self.credentials, transport="rest", client_options={"api_endpoint": host}
                )
            return self._clients[kind]

    @cached_property
    def storage(self) -> Any:
        """A client of Cloud Storage."""
        with self._making:
            options = {"api_endpoint": self._endpoint_url} if self._endpoint_url else None
            return package("google.cloud.storage").Client(
                project=self.project, credentials=self.credentials, client_options=options
            )

    @cached_property
    def _http(self) -> Any:
        with self._making:
            return package("google.auth.transport.requests").AuthorizedSession(self.credentials)

    def send(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None = None,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """The reply of an API that has no client here. Raises google.api_core's exceptions."""
        reply = self._http.request(
            method,
            url,
            params=params,
            timeout=timeout,
            **({"json": body} if content is None else {"data": content}),
            headers={
                **tracing.headers(),
                **({} if content is None else {"Content-Type": "application/json"}),
            },
        )
        if reply.status_code >= 400:
            raise _refusal(reply)
        return reply

    def patiently(self, call: Callable[[], T]) -> T:
        """Make a call that may be made twice and whose errors are ours; long trouble is waited out."""
        return until(
            call, lambda _: True, budget=self.budget, poll=2 * self._pause, timeout=None, say=log.warning
        )

    def pause(self, attempt: int) -> None:
        """Wait before something is looked for again that takes a while to be seen, longer each time."""
        time.sleep(self._pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))


# A module of the SDK. Raises MissingPackageError.
package = partial(sdk, provider="vertex", extra="gcp")


def api_message(kind: str, fields: Mapping[str, Any], key: str) -> Any:
    """A message of the API. Raises ConfigError where the API has no such value: of GPUs it knows only its own list."""
    try:
        return getattr(package("google.cloud.aiplatform_v1"), kind)(dict(fields))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"Vertex AI takes no such value: {' '.join(str(error).split())}.",
            key=key,
            hint="GPUs are called as in the API: NVIDIA_TESLA_T4, NVIDIA_L4.",
        ) from error


def _refusal(reply: Any) -> Exception:
    """A reply that is an error, as an exception of google.api_core."""
    exceptions = package("google.api_core.exceptions")
    try:
        made: Exception = exceptions.from_http_response(reply)
    except AttributeError:
        # `{"error": "text"}` of a container; the SDK knows only Google's own form.
        made = exceptions.from_http_status(reply.status_code, reply.text[:2000], response=reply)
    return made


def transient(error: Exception) -> bool:
    """Whether the same call may well work in a moment."""
    from google.auth.exceptions import TransportError
    from requests.exceptions import ChunkedEncodingError, ConnectionError, Timeout

    # Who gives out tokens may be out of reach, too.
    if isinstance(error, ConnectionError | Timeout | ChunkedEncodingError | TransportError):
        return True
    code = code_of(error)
    return code >= 500 or (code == 429 and not is_quota(error))


def unclear(error: Exception) -> bool:
    """Whether a call may have done what it was asked, although it failed."""
    return transient(error) and code_of(error) != 429


def is_quota(error: Exception) -> bool:
    """Whether it is the project that may have no more, and not this minute."""
    text = message_of(error)
    return code_of(error) in (403, 429) and bool(_QUOTA.search(text)) and not _RATE.search(text)


def code_of(error: Exception) -> int:
    """The HTTP status that Google answered with; 0 where there was no answer."""
    found = getattr(error, "code", 0)
    return int(found) if isinstance(found, int) else 0


def message_of(error: Exception) -> str:
    """Google's words."""
    found = getattr(error, "message", None)
    text = str(found if isinstance(found, str) and found else error)
    # `POST http://…: what it said`, where the exception was made from a reply.
    return re.sub(r"^(GET|POST|PATCH|PUT|DELETE) https?://\S+: ", "", text)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the SDK as ours.

    Args:
        what: What was tried, as the start of a sentence.
    """
    # Packages of others bring google.auth along, and nothing else of the SDK.
    api = package("google.api_core.exceptions")
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests.exceptions import RequestException

    try:
        yield
    except TransportError as error:
        raise OutOfReachError(sentence(what, str(error)), hint="Check the network.") from error
    except GoogleAuthError as error:
        raise CredentialsError(
            sentence(what, str(error.args[0] if error.args else error)),
            hint="Log in (`gcloud auth application-default login`), set GOOGLE_APPLICATION_CREDENTIALS, or run where a "
            "service account is attached; credentials are never configured here.",
        ) from error
    except api.GoogleAPICallError as error:
        raise from_api_error(what, error) from error
    except RequestException as error:
        raise OutOfReachError(sentence(what, str(error)), hint="Check the network.") from error
    except api.GoogleAPIError as error:
        raise ProviderError(sentence(what, str(error))) from error


def from_api_error(what: str, error: Exception) -> NotebookedError:
    """An error that Google answered with, as ours."""
    code, message = code_of(error), message_of(error)
    text = sentence(what, message)
    details = {"code": code}
    if is_quota(error):
        return QuotaError(
            text,
            hint="Ask Google for more (IAM & Admin, Quotas), or choose another instance_type, region or fewer machines.",
            details=details,
        )
    if code == 401:
        return CredentialsError(
            text, hint="The credentials have expired or are not known: renew them.", details=details
        )
    if code == 403:
        needs = re.search(r"[Pp]ermission '([\w.]+)'", message)
        named = f"It takes the permission {needs[1]}; " if needs else "It takes a permission; "
        return CredentialsError(text, hint=f"{named}`notebooked plan --policy` prints all.", details=details)
    if code >= 500 or code == 429:
        return OutOfReachError(text, hint="Try again in a minute.", details=details)
    if code == 400:
        key = "instance_type" if re.search(r"(?i)machine.?type|accelerator", message) else None
        if re.search(r"(?i)service account", message):
            key = "gcp.service_account"
        return ConfigError(text, key=key, details=details)
    return ProviderError(text, details=details)
