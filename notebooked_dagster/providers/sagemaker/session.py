"""The AWS SDK: its clients, made when first used, and its errors in our words.

Credentials are the SDK's own business: environment, profile, SSO, container or instance role, workload identity.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
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

# Short trouble is the SDK's to wait out, in seconds; longer trouble is for whoever waits for the job.
_ATTEMPTS = 4
_DENIED = ("AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation", "403")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_UNKNOWN = (
    "UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "InvalidSignatureException", "MissingAuthenticationToken", "InvalidToken",
)  # fmt: skip
_BUSY = (
    "Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException", "RequestLimitExceeded",
    "SlowDown", "ServiceUnavailable", "ServiceUnavailableException", "InternalFailure", "InternalError",
    "InternalServerError", "InternalDependencyException", "RequestTimeout", "RequestTimeoutException",
)  # fmt: skip
_QUOTA = (
    "ResourceLimitExceeded",
    "LimitExceededException",
    "ServiceQuotaExceededException",
    "InsufficientCapacity",
)


class AwsSession:
    """One set of credentials in one region.

    Args:
        region: The AWS configuration's where None.
        profile: Of the AWS configuration.
        endpoint_url: Another address for every service, for an emulator; the SDK's own ``AWS_ENDPOINT_URL`` works too.
        needed_by: The provider that asks; another one may keep its files in S3 as well.
        extra: What installs the SDK for it.
    """

    def __init__(
        self,
        region: str | None,
        profile: str | None,
        endpoint_url: str | None,
        *,
        needed_by: str = "sagemaker",
        extra: str = "aws",
    ) -> None:
        self._needed = (needed_by, extra)
        self._region = region
        self._profile = profile
        self.endpoint_url = endpoint_url
        self._clients: dict[str, Any] = {}
        # Making a client is not safe in several threads at once; using one is.
        self._making = threading.Lock()

    @cached_property
    def _session(self) -> Any:
        boto3 = sdk("boto3", provider=self._needed[0], extra=self._needed[1])
        from botocore.exceptions import BotoCoreError

        try:
            return boto3.Session(region_name=self._region, profile_name=self._profile)
        except BotoCoreError as error:
            raise ConfigError(
                f"The AWS configuration cannot be used: {error}.", key="aws.profile", hint="Correct it."
            ) from error

    @cached_property
    def region(self) -> str:
        """The region's name."""
        found = self._session.region_name
        if not found:
            key = self._region_key
            raise ConfigError("No AWS region is set.", key=key, hint=f"Set {key}, or AWS_DEFAULT_REGION.")
        return str(found)

    @property
    def _region_key(self) -> str:
        """Where a region is configured: a cluster's object store has a key of its own."""
        provider = self._needed[0]
        return "aws.region" if provider == "sagemaker" else f"{provider}.storage.region"

    @cached_property
    def partition(self) -> str:
        """``aws``, ``aws-cn``, … Raises ConfigError where no partition has regions of such a name."""
        from botocore.exceptions import UnknownRegionError

        try:
            return str(self._session.get_partition_for_region(self.region))
        except UnknownRegionError as error:
            raise ConfigError(
                f"{self.region!r} is no region of AWS.",
                key=self._region_key,
                hint="They are called as AWS calls them: eu-central-1, us-east-2.",
            ) from error

    @cached_property
    def domain(self) -> str:
        """Where the region's services and registries are: ``amazonaws.com``."""
        return "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"

    def client(self, service: str) -> Any:
        """A client of a service, as ``boto3.client``."""
        with self._making:
            if service not in self._clients:
                config = import_module("botocore.config").Config(
                    retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                    connect_timeout=10,
                    read_timeout=70,
                    user_agent_extra="notebooked-dagster",
                )
                with translated(f"{service} cannot be used"):
                    self._clients[service] = self._session.client(
                        service, region_name=self.region, endpoint_url=self.endpoint_url, config=config
                    )
            return self._clients[service]


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the SDK as ours.

    Args:
        what: What was tried, as the start of a sentence.
    """
    from boto3.exceptions import Boto3Error, RetriesExceededError
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        CredentialRetrievalError,
        HTTPClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
        SSOError,
        TokenRetrievalError,
    )

    try:
        yield
    except (
        NoCredentialsError,
        PartialCredentialsError,
        CredentialRetrievalError,
        SSOError,
        TokenRetrievalError,
    ) as error:
        raise CredentialsError(
            f"{what}: {error}.".replace("..", "."),
            hint="Log in (`aws sso login`), set AWS_PROFILE, or run where a role is attached; credentials are never configured here.",
        ) from error
    except ParamValidationError as error:
        raise ConfigError(f"{what}: {' '.join(str(error).split())}.") from error
    except ClientError as error:
        raise from_client_error(what, error) from error
    except Boto3Error as error:
        # A transfer's own; what AWS said is what it was handling then.
        if isinstance(error.__context__, ClientError):
            raise from_client_error(what, error.__context__) from error
        kind = OutOfReachError if isinstance(error, RetriesExceededError) else ProviderError
        raise kind(f"{what}: {error}.".replace("..", ".")) from error
    except (ConnectionError, HTTPClientError) as error:
        raise OutOfReachError(f"{what}: {error}.".replace("..", "."), hint="Check the network.") from error
    except BotoCoreError as error:
        raise ProviderError(f"{what}: {error}.".replace("..", ".")) from error


def code_of(error: Any) -> str:
    """AWS's code of an error of the SDK."""
    return str(error.response.get("Error", {}).get("Code", ""))


def message_of(error: Any) -> str:
    """AWS's words."""
    return str(error.response.get("Error", {}).get("Message", "") or error)


def from_client_error(what: str, error: Any) -> NotebookedError:
    """An error that AWS answered with, as ours."""
    code, message = code_of(error), message_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = f"{what}: {message.rstrip('.')}."
    details = {"code": code, "operation": error.operation_name}
    if code in _EXPIRED:
        return CredentialsError(
            text, hint="The credentials have expired: renew them, then try again.", details=details
        )
    if code in _UNKNOWN:
        return CredentialsError(
            text, hint="AWS does not know these credentials; see AWS_PROFILE.", details=details
        )
    if code in _DENIED:
        needs = (
            f"It takes the permission for {error.operation_name}; `notebooked plan` prints the whole policy."
        )
        return CredentialsError(text, hint=needs, details=details)
    if code in _QUOTA:
        return QuotaError(
            text,
            hint="Ask AWS for more (Service Quotas), or choose another instance_type or fewer instances.",
            details=details,
        )
    if code in _BUSY or status >= 500 or status == 429:
        return OutOfReachError(text, hint="Try again in a minute.", details=details)
    if code in ("ValidationException", "ValidationError", "InvalidParameterValue"):
        place = re.search(r"at '([A-Za-z0-9_.]+)'", message)
        key = {"resourceConfig.instanceType": "instance_type", "roleArn": "aws.role_arn"}.get(
            place[1] if place else ""
        )
        return ConfigError(text, key=key, details=details)
    return ProviderError(text, details=details)
