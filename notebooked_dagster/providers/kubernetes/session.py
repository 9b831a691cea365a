"""The API server: found and authenticated as kubectl does it, asked over HTTP, and its errors in our words.

The official client reads the kubeconfig (contexts, certificates, exec plugins, OIDC) or the pod's own service account. What
is asked afterwards is plain HTTP and JSON: the API is stable, and generated models would only stand between it and us.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from notebooked_dagster.core import tracing
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
TIMEOUT = 60.0
_PAGE = 500
_GROUPS: Mapping[str, str] = {
    "jobs": "/apis/batch/v1",
    "deployments": "/apis/apps/v1",
    "horizontalpodautoscalers": "/apis/autoscaling/v2",
    "ingresses": "/apis/networking.k8s.io/v1",
    "pytorchjobs": "/apis/kubeflow.org/v1",
    "inferenceservices": "/apis/serving.kserve.io/v1beta1",
}
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_RBAC = re.compile(r"cannot (\w+) resource \"([\w/]+)\"")


class KubeError(Exception):
    """The API server refused.

    Attributes:
        code: The HTTP status.
        reason: In one word: ``AlreadyExists``, ``NotFound``, ``Conflict``.
        message: In its own words.
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class KubeSession(CloudSession):
    """One namespace of one cluster.

    Args:
        context: Of the kubeconfig; its current one where None.
        kubeconfig: The file; where kubectl looks, then the pod's own service account, where None.
        namespace: The context's where None.
        pause: Seconds before the second try of a call.
    """

    def __init__(
        self, context: str | None, kubeconfig: str | None, namespace: str | None, pause: float = 0.5
    ) -> None:
        super().__init__("kubernetes", transient, pause)
        self._context = context
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._making = threading.RLock()
        self._made: tuple[Any, httpx.Client] | None = None

    # Where it is and who we are

    @cached_property
    def in_cluster(self) -> bool:
        """Whether this is a pod of the cluster."""
        if self._context or self._kubeconfig:
            return False
        if any(Path(file).is_file() for file in self._files.split(os.pathsep)):
            return False
        return "KUBERNETES_SERVICE_HOST" in os.environ

    @cached_property
    def namespace(self) -> str:
        """The namespace's name."""
        if self._namespace:
            return self._namespace
        if self.in_cluster:
            return _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
        found = self._chosen.get("context", {}).get("namespace")
        return str(found or "default")

    @cached_property
    def context(self) -> str:
        """The context's name; what says that it is the pod's own account where there is none."""
        return "in the cluster" if self.in_cluster else str(self._chosen.get("name", ""))

    @cached_property
    def _chosen(self) -> dict[str, Any]:
        """Our context, as the kubeconfig has it."""
        with self._found():
            listed, current = package("kubernetes.config").list_kube_config_contexts(config_file=self._files)
            if self._context:
                current = next((item for item in listed if item["name"] == self._context), None)
            if current is None:
                raise ValueError(f"there is no context {self._context!r}")
        return dict(current)

    @property
    def _files(self) -> str:
        # The client looks at KUBECONFIG once, when it is imported.
        named = self._kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        return os.pathsep.join(str(Path(file).expanduser()) for file in named.split(os.pathsep) if file)

    @property
    def host(self) -> str:
        """The API server's address."""
        return str(self._connection()[0].host).rstrip("/")

    def _connection(self) -> tuple[Any, httpx.Client]:
        with self._making:
            if self._made is None:
                self._made = self._connect()
            return self._made

    def _connect(self) -> tuple[Any, httpx.Client]:
        config = package("kubernetes.config")
        found = package("kubernetes.client").Configuration()
        with self._found():
            if self.in_cluster:
                config.load_incluster_config(client_configuration=found)
            else:
                config.load_kube_config(
                    config_file=self._files,
                    context=self._context,
                    client_configuration=found,
                    persist_config=False,
                )
        verify: ssl.SSLContext | bool = False
        if found.verify_ssl:
            verify = ssl.create_default_context(cafile=found.ssl_ca_cert)
        if found.cert_file:
            if verify is False:
                verify = ssl.create_default_context()
                verify.check_hostname, verify.verify_mode = False, ssl.CERT_NONE
            assert isinstance(verify, ssl.SSLContext)
            verify.load_cert_chain(found.cert_file, found.key_file)
        return found, httpx.Client(
            verify=verify, timeout=TIMEOUT, proxy=getattr(found, "proxy", None), follow_redirects=False
        )

    @contextmanager
    def _found(self) -> Iterator[None]:
        problem = package("kubernetes.config").ConfigException
        try:
            yield
        except (problem, OSError, ValueError) as error:
            text = " ".join(str(error).split()).rstrip(".")
            raise CredentialsError(
                f"The cluster cannot be reached as configured: {text}.",
                hint="Set kubernetes.context to one of `kubectl config get-contexts`, or KUBECONFIG; credentials are "
                "never configured here.",
            ) from error

    # Asking

    def path(self, kind: str, name: str | None = None, *more: str) -> str:
        """The path of a kind of our namespace, or of one of them, or of what is below it."""
        start = f"{_GROUPS.get(kind, '/api/v1')}/namespaces/{self.namespace}/{kind}"
        return "/".join([start, *(quote(part, safe=":") for part in ([name] if name else [])), *more])

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        kind: str = "application/json",
        params: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> httpx.Response:
        """The API server's reply. Raises KubeError where it refuses."""
        reply = self._send(method, path, body, content, kind, params, timeout)
        if reply.status_code == 401:
            # A token that has expired: plugins and mounted tokens give a new one to who asks again.
            with self._making:
                self._made = None
            reply = self._send(method, path, body, content, kind, params, timeout)
        if reply.status_code >= 400:
            raise _refusal(reply)
        return reply

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        content: bytes | None,
        kind: str,
        params: Mapping[str, Any] | None,
        timeout: float,
    ) -> httpx.Response:
        configuration, client = self._connection()
        headers = {**tracing.headers(), "Accept": "application/json", "User-Agent": "notebooked-dagster"}
        # Asked each time: the client renews tokens here.
        for item in configuration.auth_settings().values():
            if item.get("in") == "header" and item.get("value"):
                headers[item["key"]] = item["value"]
        if body is not None or content is not None:
            headers["Content-Type"] = kind
        server_name = getattr(configuration, "tls_server_name", None)
        return client.request(
            method,
            f"{str(configuration.host).rstrip('/')}{path}",
            params=params,
            headers=headers,
            timeout=timeout,
            content=json.dumps(body).encode() if body is not None else content,
            extensions={"sni_hostname": server_name} if server_name else None,
        )

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object; None where there is none."""
        try:
            found = self.again(lambda: self.send("GET", self.path(kind, name))).json()
        except KubeError as error:
            if error.code == 404:
                return None
            raise
        return dict(found)

    def serves(self, kind: str) -> bool:
        """Whether the cluster knows a kind that is not Kubernetes' own."""
        try:
            found = self.again(lambda: self.send("GET", _GROUPS[kind])).json()
        except KubeError as error:
            if error.code == 404:
                return False
            raise
        return any(item["name"] == kind for item in found.get("resources") or ())

    def list(self, kind: str, labels: str = "", *, fields: str = "") -> list[dict[str, Any]]:
        """All objects of a kind that selectors let through."""
        query: dict[str, Any] = {"limit": _PAGE}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"fieldSelector": fields} if fields else {}
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            page = self._page(kind, {**query, **({"continue": token} if token else {})})
            found.extend(page.get("items") or ())
            token = (page.get("metadata") or {}).get("continue", "")
            if not token:
                return found

    def _page(self, kind: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.again(lambda: self.send("GET", self.path(kind), params=query)).json())

    def create(self, kind: str, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make an object; None where there is one of that name. It is asked again where the reply was lost."""
        try:
            made = self.again(lambda: self.send("POST", self.path(kind), body=dict(manifest))).json()
        except KubeError as error:
            if error.reason == "AlreadyExists":
                return None
            raise
        return dict(made)

    def patch(self, kind: str, name: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """Merge a change into an object; with a ``resourceVersion`` in it only where nobody changed it meanwhile."""
        return dict(
            self.again(
                lambda: self.send(
                    "PATCH", self.path(kind, name), body=dict(change), kind="application/merge-patch+json"
                )
            ).json()
        )

    def replace(self, kind: str, name: str, thing: Mapping[str, Any]) -> dict[str, Any]:
        """Put an object in the place of the one it was read as, and changed from. Nobody may have changed it meanwhile."""
        return dict(self.again(lambda: self.send("PUT", self.path(kind, name), body=dict(thing))).json())

    def delete(
        self, kind: str, name: str, *, propagation: str = "Background", uid: str | None = None
    ) -> None:
        """Remove an object and what it owns; nothing happens where there is none."""
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            **({"preconditions": {"uid": uid}} if uid else {}),
        }
        try:
            self.again(lambda: self.send("DELETE", self.path(kind, name), body=options))
        except KubeError as error:
            # Gone already, or another of the same name is there by now.
            if error.code != 404 and not (uid and error.code == 409):
                raise


# A module of the official client. Raises MissingPackageError.
package = partial(sdk, provider="kubernetes", extra="kubernetes")


def _refusal(reply: httpx.Response) -> KubeError:
    try:
        document = reply.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and document.get("kind") == "Status":
        return KubeError(reply.status_code, str(document.get("reason", "")), str(document.get("message", "")))
    return KubeError(reply.status_code, "", reply.text[:2000] or reply.reason_phrase)


def transient(error: Exception) -> bool:
    """Whether the same call may well work in a moment."""
    return isinstance(error, httpx.TransportError) or (
        isinstance(error, KubeError) and (error.code >= 500 or error.code == 429)
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the API server as ours.

    Args:
        what: What was tried, as the start of a sentence.
    """
    try:
        yield
    except KubeError as error:
        raise from_kube_error(what, error) from error
    except httpx.TransportError as error:
        raise OutOfReachError(
            sentence(what, str(error) or type(error).__name__),
            hint="Check the network, and kubernetes.context.",
        ) from error


def from_kube_error(what: str, error: KubeError) -> NotebookedError:
    """An error that the API server answered with, as ours."""
    text, code, message = sentence(what, error.message), error.code, error.message
    details = {"code": code, "reason": error.reason}
    if code == 401:
        return CredentialsError(
            text, hint="The credentials have expired or are not known: log in again.", details=details
        )
    if code == 403:
        return _forbidden(text, message, details)
    if code >= 500 or code == 429:
        return OutOfReachError(text, hint="Try again in a minute.", details=details)
    if code == 404 and message.startswith("namespaces "):
        return ConfigError(
            text, key="kubernetes.namespace", hint="Create it: `kubectl create namespace …`.", details=details
        )
    if code in (400, 422):
        return ConfigError(text, details=details)
    return ProviderError(text, details=details)


def _forbidden(text: str, message: str, details: Mapping[str, Any]) -> NotebookedError:
    """403 is said of three things: a quota, a rule of the namespace that an object breaks, and a missing permission."""
    if "exceeded quota" in message:
        return QuotaError(
            text,
            hint="The namespace's ResourceQuota is used up: `kubectl describe quota`. Ask for more, or for less in "
            "options.training.",
            details=details,
        )
    needed = _RBAC.search(message)
    if needed is None and (
        "violates PodSecurity" in message or re.search(r"(?i)(minimum|maximum) ", message)
    ):
        return ConfigError(
            text,
            key="options.training",
            hint="The namespace does not take such pods: see its PodSecurity labels and LimitRange.",
            details=details,
        )
    named = f"It takes `{needed[1]}` on `{needed[2]}`; " if needed else "It takes a permission; "
    return CredentialsError(
        text, hint=f"{named}`notebooked plan --policy` prints the whole role.", details=details
    )
