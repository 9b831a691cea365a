"""Where secrets come from: ``.env``, files, the system's keyring, and the clouds' secret managers.

A reference stands where a value would: ``${aws-secret:prod/db#password}``. What is fetched is fetched once a process, and
masked wherever text of ours goes (``redaction``). Each SDK finds its own credentials.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, MutableMapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from notebooked_dagster.errors import ConfigError, CredentialsError, MissingPackageError

from .redaction import REDACTOR


def load_dotenv(root: Path, environment: MutableMapping[str, str] | None = None) -> list[str]:
    """Add what ``<root>/.env`` sets and the environment does not; returns the names. Dagster's own commands do the same.

    Raises:
        ConfigError: The file cannot be read as text.
    """
    environment = os.environ if environment is None else environment
    path = root / ".env"
    if not path.is_file():
        return []
    try:
        values = import_module("dotenv").dotenv_values(path)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The file is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}.",
            path=path,
            hint="Save it as UTF-8.",
        ) from error
    added = {name: value for name, value in values.items() if value is not None and name not in environment}
    environment.update(added)
    return sorted(added)


@lru_cache(maxsize=256)
def fetch(scheme: str, name: str) -> str:
    """The secret of a reference.

    Args:
        scheme: ``file``, ``keyring``, ``aws-secret``, ``gcp-secret`` or ``azure-secret``.
        name: Its name there; ``#key`` picks one value of a secret that is a JSON object.

    Raises:
        ConfigError: There is no such secret, or no such key in it.
        CredentialsError: It may not be read.
        MissingPackageError: What reads it is not installed.
    """
    place, _, key = name.partition("#")
    value = _SOURCES[scheme](place)
    if key:
        value = _picked(value, key, f"{scheme}:{place}")
    REDACTOR.add(value)
    return value


def _picked(value: str, key: str, name: str) -> str:
    try:
        found = json.loads(value)[key]
    except (ValueError, KeyError, TypeError):
        # Neither the value nor what it holds is told.
        raise ConfigError(
            f"The secret {name} has no key {key!r}.", hint="It has to be a JSON object with that key."
        ) from None
    return found if isinstance(found, str) else json.dumps(found)


def _file(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise ConfigError(f"The secret's file cannot be read: {error.strerror}.", path=name) from error
    except UnicodeDecodeError:
        # Which bytes it could not read is a part of the secret.
        raise ConfigError("The secret's file is not text in UTF-8.", path=name) from None


def _keyring(name: str) -> str:
    service, _, user = name.rpartition("/")
    keyring = _package("keyring", "keyring")
    try:
        found = keyring.get_password(service, user)
    except keyring.errors.KeyringError as error:
        raise CredentialsError(
            f"The keyring cannot be read: {type(error).__name__}: {error}",
            hint="Unlock it. A server without a desktop has none: `${file:…}` reads a file there.",
        ) from error
    if found is None:
        raise ConfigError(
            f"The keyring has no {user!r} of {service!r}.", hint=f"keyring set {service} {user}"
        )
    return str(found)


def _aws(name: str) -> str:
    boto3 = _package("boto3", "notebooked-dagster[aws]")
    return _asked(
        name, lambda: str(boto3.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])
    )


def _gcp(name: str) -> str:
    manager = _package("google.cloud.secretmanager", "google-cloud-secret-manager")
    full = name if "/versions/" in name else f"{name}/versions/latest"

    def ask() -> str:
        client = manager.SecretManagerServiceClient()
        return str(client.access_secret_version(name=full).payload.data.decode())

    return _asked(name, ask)


def _azure(name: str) -> str:
    vault, _, secret = name.partition("/")
    module = _package("azure.keyvault.secrets", "azure-keyvault-secrets")
    identity = _package("azure.identity", "azure-identity")

    def ask() -> str:
        client = module.SecretClient(f"https://{vault}.vault.azure.net", identity.DefaultAzureCredential())
        return str(client.get_secret(secret).value)

    return _asked(name, ask)


def _package(module: str, install: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"A secret is read with {module}, which is not installed.", hint=f"`pip install '{install}'`."
        ) from error


def _asked(name: str, ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception as error:
        # Which classes there are depends on the SDK; their words name the secret and never hold it.
        kind = type(error).__name__
        if "NotFound" in kind or "NotFound" in str(error):
            raise ConfigError(f"There is no secret {name!r}.", hint="Correct its name.") from error
        raise CredentialsError(
            f"The secret {name!r} cannot be read: {kind}: {error}",
            hint="Log in with the cloud's own tool, and let the identity read this secret.",
        ) from error


_SOURCES: dict[str, Callable[[str], str]] = {
    "file": _file,
    "keyring": _keyring,
    "aws-secret": _aws,
    "gcp-secret": _gcp,
    "azure-secret": _azure,
}
SCHEMES = tuple(_SOURCES)
