"""Azure over HTTP: one pipeline of azure-core for Resource Manager and the workspace's own addresses, and errors in our words.

Credentials are azure-identity's own business: environment, workload identity, managed identity, ``az login``. The requests
are those of the published REST API, of one version; what `azure-ai-ml` would add are uploads and waiting in ways of its own.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from notebooked_dagster.errors import (
    ConfigError,
    CredentialsError,
    NotebookedError,
    ProviderError,
    QuotaError,
)
from notebooked_dagster.providers.cloud.session import sdk
from notebooked_dagster.providers.cloud.waiting import OutOfReachError

API_VERSION = "2025-12-01"
MONITOR_VERSION = "2022-10-01"
MANAGEMENT = "https://management.azure.com"
SCORING_SCOPE = "https://ml.azure.com/.default"
_PROVIDER = "providers/Microsoft.MachineLearningServices"
# Short trouble is waited out here; longer trouble is for whoever waits for the job.
_RETRIES = 3
_NOWHERE = ("ResourceGroupNotFound", "SubscriptionNotFound", "InvalidSubscriptionId", "WorkspaceNotFound")
_QUOTA = re.compile(r"(?i)quota|OutOfCapacity|SkuNotAvailable|AllocationFailed|not enough .*(cores|capacity)")
_MACHINE = re.compile(
    r"(?i)(vm ?size|instance ?type|sku)\b.*(not (supported|available|valid)|invalid|unknown)"
)


class AzureSession:
    """One workspace, with one set of credentials.

    Args:
        subscription_id: ``AZURE_SUBSCRIPTION_ID`` where None.
        resource_group: The resource group.
        workspace: The workspace.
        endpoint_url: Another address of Azure Resource Manager.
    """

    def __init__(
        self,
        subscription_id: str | None,
        resource_group: str | None,
        workspace: str | None,
        endpoint_url: str | None,
    ) -> None:
        self._subscription = subscription_id
        self._group = resource_group
        self._workspace = workspace
        self._management = (endpoint_url or MANAGEMENT).rstrip("/")
        self._pipelines: dict[str, Any] = {}
        self._making = threading.Lock()

    @cached_property
    def credential(self) -> Any:
        """What azure-identity finds."""
        return package("azure.identity").DefaultAzureCredential()

    @property
    def subscription(self) -> str:
        """The subscription's id."""
        return self._named(
            self._subscription or os.environ.get("AZURE_SUBSCRIPTION_ID"), "subscription_id", "subscription"
        )

    @property
    def resource_group(self) -> str:
        """The resource group's name."""
        return self._named(self._group, "resource_group", "resource group")

    @property
    def workspace_name(self) -> str:
        """The workspace's name."""
        return self._named(self._workspace, "workspace", "workspace of Azure Machine Learning")

    @property
    def scope(self) -> str:
        """The resource group's id, which roles are given on."""
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"

    @property
    def workspace_id(self) -> str:
        """The workspace's id in Resource Manager; everything of ours is below it."""
        return f"{self.scope}/{_PROVIDER}/workspaces/{self.workspace_name}"

    @cached_property
    def workspace(self) -> Mapping[str, Any]:
        """The workspace as Azure describes it."""
        found = self.call("GET", "", what=f"The workspace {self.workspace_name!r} cannot be looked at")
        assert found is not None
        return found

    @property
    def location(self) -> str:
        """The workspace's region."""
        return str(self.workspace["location"])

    @cached_property
    def _history(self) -> str:
        """Where the workspace's run history answers."""
        address = str(self.workspace["properties"]["discoveryUrl"])
        found = self._send("GET", address, None, {}, "The workspace's services cannot be found")
        return str(found.json()["api"]).rstrip("/") + "/history/v1.0"

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        what: str,
        query: Mapping[str, str] | None = None,
        missing: bool = False,
    ) -> dict[str, Any] | None:
        """Ask Resource Manager for something below the workspace.

        Args:
            method: The HTTP method.
            path: Below the workspace, or with a leading ``/subscriptions`` from the top.
            body: JSON.
            what: What is tried, as the start of a sentence.
            query: Further parameters.
            missing: Whether None is the answer where there is no such thing; else that is an error.

        Returns:
            The reply; empty where Azure has nothing to say.
        """
        place = path if path.startswith("/subscriptions/") else f"{self.workspace_id}{path}"
        parameters = {"api-version": API_VERSION, **(query or {})}
        reply = self._send(method, f"{self._management}{place}", body, parameters, what, missing=missing)
        if reply is None:
            return None
        found: dict[str, Any] = reply.json() if reply.content else {}
        return found

    def begin(self, method: str, path: str, body: Mapping[str, Any] | None, *, what: str) -> str:
        """Ask for something that takes its time; returns the address of the operation, where Azure names one.

        What is not there need not be deleted, and is no error.
        """
        reply = self._send(
            method,
            f"{self._management}{self.workspace_id}{path}",
            body,
            {"api-version": API_VERSION},
            what,
            missing=method == "DELETE",
        )
        return "" if reply is None else str(reply.headers.get("Azure-AsyncOperation") or "")

    def outcome(self, operation: str, *, what: str) -> str:
        """Why an operation failed; empty where it did not, or where Azure does not say."""
        if not operation:
            return ""
        reply = self._send("GET", operation, None, {}, what, missing=True)
        found = (reply.json() if reply is not None else {}).get("error") or {}
        return " ".join(": ".join(filter(None, (found.get("code"), found.get("message")))).split())

    def pages(
        self, path: str, *, what: str, query: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """All items of a list."""
        found = self.call("GET", path, what=what, query=query)
        while found is not None:
            yield from found.get("value", ())
            following = found.get("nextLink")
            if not following:
                return
            reply = self._send("GET", following, None, {}, what)
            found = reply.json()

    def run_details(self, job_id: str) -> dict[str, Any] | None:
        """What the run history knows of a job; None where it does not know it yet."""
        address = f"{self._history}{self.workspace_id}/runs/{job_id}/details"
        what = f"The history of training job {job_id!r} cannot be read"
        reply = self._send("GET", address, None, {}, what, missing=True)
        return None if reply is None else dict(reply.json())

    def score(self, address: str, body: bytes, headers: Mapping[str, str], token: str, what: str) -> Any:
        """Ask an endpoint for a prediction; the reply, whatever its status."""
        wanted = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        with translated(what):
            if not token:
                token = self.credential.get_token(SCORING_SCOPE).token
            request = package("azure.core.rest").HttpRequest(
                "POST", address, content=body, headers={**wanted, "Authorization": f"Bearer {token}"}
            )
            return self._pipeline("").send_request(request)

    def _send(
        self,
        method: str,
        address: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str],
        what: str,
        *,
        missing: bool = False,
    ) -> Any:
        with translated(what):
            request = package("azure.core.rest").HttpRequest(
                method, address, params=dict(query), json=None if body is None else dict(body)
            )
            reply = self._pipeline(f"{self._management}/.default").send_request(request)
            if reply.status_code < 400:
                return reply
            error = package("azure.core.exceptions").HttpResponseError(response=reply)
            if reply.status_code == 404 and missing and not self._is_nowhere(error):
                return None
            raise error

    def _is_nowhere(self, error: Any) -> bool:
        """Whether it is not the thing that is missing, but the workspace it would be in."""
        return code_of(error) in _NOWHERE or f"workspaces/{self.workspace_name}'" in message_of(error)

    def _pipeline(self, scope: str) -> Any:
        """The way to an audience; an endpoint's is without credentials of Resource Manager."""
        with self._making:
            if scope not in self._pipelines:
                policies = package("azure.core.pipeline.policies")
                chain = [
                    policies.UserAgentPolicy(sdk_moniker="notebooked-dagster"),
                    policies.RetryPolicy(retry_total=_RETRIES),
                ]
                if scope:
                    chain.append(policies.BearerTokenCredentialPolicy(self.credential, scope))
                transport = package("azure.core.pipeline.transport").RequestsTransport(
                    connection_timeout=10, read_timeout=190
                )
                self._pipelines[scope] = package("azure.core").PipelineClient(
                    self._management, policies=chain, transport=transport
                )
            return self._pipelines[scope]

    def _named(self, value: str | None, key: str, what: str) -> str:
        if not value:
            raise ConfigError(
                f"No {what} is named.", key=f"azure.{key}", hint=f"Set azure.{key} in config.yaml."
            )
        return value


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the SDK as ours.

    Args:
        what: What was tried, as the start of a sentence.
    """
    errors = package("azure.core.exceptions")
    try:
        yield
    except errors.ClientAuthenticationError as error:
        if getattr(error, "response", None) is not None and error.response.status_code == 403:
            raise from_http_error(what, error) from error
        raise CredentialsError(
            f"{what}: {_first_line(error)}",
            hint="Log in (`az login`), or run where a managed or workload identity is attached; credentials are never configured here.",
        ) from error
    except (errors.ServiceRequestError, errors.ServiceResponseError) as error:
        raise OutOfReachError(f"{what}: {_first_line(error)}", hint="Check the network.") from error
    except errors.HttpResponseError as error:
        raise from_http_error(what, error) from error
    except errors.AzureError as error:
        raise ProviderError(f"{what}: {_first_line(error)}") from error


def code_of(error: Any) -> str:
    """Azure's code of an error of the SDK."""
    own = getattr(error, "error_code", None) or getattr(getattr(error, "error", None), "code", None)
    return str(getattr(own, "value", own) or "")


def message_of(error: Any) -> str:
    """Azure's words."""
    return str(
        getattr(getattr(error, "error", None), "message", None) or getattr(error, "message", "") or error
    )


def from_http_error(what: str, error: Any) -> NotebookedError:
    """An error that Azure answered with, as ours."""
    code, message = code_of(error), " ".join(message_of(error).split())
    status = int(error.status_code or 0)
    text = f"{what}: {message.rstrip('.')}."
    details = {"code": code, "status": status}
    if code == "MissingSubscriptionRegistration":
        return ConfigError(
            text,
            hint="Register the resource provider: `az provider register --namespace …`.",
            details=details,
        )
    if status == 401:
        return CredentialsError(
            text, hint="The credentials have expired, or are of another tenant: `az login`.", details=details
        )
    if status != 429 and _QUOTA.search(f"{code} {message}"):
        return QuotaError(
            text,
            hint="Ask Azure for more (Quotas in the portal), or choose another instance_type or fewer instances.",
            details=details,
        )
    if status == 403:
        return CredentialsError(
            text, hint="`notebooked plan --policy` prints the role that it takes.", details=details
        )
    if status in (408, 429) or status >= 500:
        return OutOfReachError(text, hint="Try again in a minute.", details=details)
    if status == 404 and (code in _NOWHERE or "Microsoft.MachineLearningServices/workspaces/" in message):
        return ConfigError(text, key="azure.workspace", hint="Correct the section azure.", details=details)
    if status in (400, 422):
        key = "instance_type" if _MACHINE.search(message) else None
        return ConfigError(text, key=key, details=details)
    return ProviderError(text, details=details)


def _first_line(error: Any) -> str:
    """An SDK's message without its pages of advice."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.strip().rstrip(".") + "."


# A module of the SDK. Raises MissingPackageError.
package = partial(sdk, provider="azure", extra="azure")
