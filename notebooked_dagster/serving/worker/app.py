"""The HTTP side of a worker: ``/invocations`` straight on ASGI because it is hot, the rest as a FastAPI app."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Response

from . import metrics as prometheus
from .engine import Reply
from .request import JSON, RequestError
from .traffic import Peer, session_of

if TYPE_CHECKING:
    from .process import Worker

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_ECHOED = b"x-amzn-sagemaker-custom-attributes"


class Front:
    """The ASGI application on the public port."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._rest = build_app(worker)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] != "/invocations":
            await self._rest(scope, receive, self._closing(send) if self._worker.draining else send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        tracing = self._worker.tracing
        if tracing is None:
            await self._invoked(scope["method"], headers, receive, send)
            return
        span = tracing.begin(scope["method"], headers)
        status, version = None, self._worker.version
        try:
            status, version = await self._invoked(scope["method"], headers, receive, send)
        finally:
            tracing.end(span, status, version)

    async def _invoked(
        self, method: str, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> tuple[int | None, str]:
        """Answer a request to ``/invocations``; returns the status (None where the client has gone) and who answered."""
        version = self._worker.version
        try:
            if method != "POST":
                raise RequestError(405, "/invocations takes POST.")
            body = await self._body(headers, receive)
            reply, version = await self._route(headers, body)
        except RequestError as error:
            self._worker.metrics.failed("input")
            self._worker.metrics.answered(error.status, 0.0)
            reply = Reply(error.status, error.body())
        except _ClientGoneError:
            return None, version
        await self._send(reply, version, headers.get(_ECHOED), send)
        return reply.status, version

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._worker.options.size_limit
        declared = headers.get(b"content-length")
        if declared is not None and int(declared) > limit:
            raise RequestError(413, f"The body has {int(declared)} bytes; the limit is {limit}.")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > limit:
                raise RequestError(413, f"The body has more than {limit} bytes.")
            return bytes(body)
        chunks = [body]
        size = len(body)
        try:
            async with asyncio.timeout(self._worker.options.body_timeout):
                while message.get("more_body", False):
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise RequestError(413, f"The body has more than {limit} bytes.")
        except TimeoutError:
            seconds = self._worker.options.body_timeout
            raise RequestError(408, f"The body did not arrive within {seconds:g} s.") from None
        return b"".join(chunks)

    async def _route(self, headers: dict[bytes, bytes], body: bytes) -> tuple[Reply, str]:
        worker = self._worker
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        accept = headers.get(b"accept", b"").decode("latin-1") or JSON
        if accept == "*/*":
            accept = JSON
        asked = headers.get(b"x-notebooked-version")
        successor = worker.successor
        if asked is not None:
            peer = self._named(asked.decode("latin-1").strip())
            if peer is not None:
                reply = await worker.forward(peer, body, content_type, accept)
                if reply is None:
                    raise RequestError(503, f"Version {peer.version!r} is down.")
                return reply, peer.version
        elif successor is not None:
            # A client on an old connection gets what serves now, too.
            reply = await worker.forward(successor, body, content_type, accept)
            if reply is not None:
                return reply, successor.version
        elif worker.split.peers:
            session = session_of(headers.get(b"x-session-id"), headers.get(b"cookie"))
            peer = worker.split.choose(session)
            if peer is not None:
                reply = await worker.forward(peer, body, content_type, accept)
                if reply is not None and reply.status < 500:
                    return reply, peer.version
                worker.metrics.fell_back(peer.version)
        return await worker.engine.answer(body, content_type, accept), worker.version

    def _named(self, version: str) -> Peer | None:
        """The peer of a version asked for by name; None for this process's own."""
        worker = self._worker
        if version == worker.version:
            return None
        others = [*worker.split.peers, *([worker.successor] if worker.successor is not None else [])]
        for peer in others:
            if peer.version == version:
                return peer
        served = ", ".join(sorted({worker.version, *(peer.version for peer in others)}))
        raise RequestError(404, f"Version {version!r} is not served here; these are: {served}.")

    async def _send(self, reply: Reply, version: str, echoed: bytes | None, send: Send) -> None:
        headers = [
            (b"content-type", reply.content_type.encode("latin-1")),
            (b"content-length", str(len(reply.body)).encode()),
            (b"x-notebooked-version", version.encode()),
        ]
        if echoed is not None:
            headers.append((_ECHOED, echoed))
        # An unread body would be taken for the next request; a draining worker wants the client to reconnect.
        if self._worker.draining or reply.status in (405, 408, 413):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def _closing(self, send: Send) -> Send:
        async def closing(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return closing


class _ClientGoneError(Exception):
    """The client hung up before its request was complete."""


def build_app(worker: Worker) -> FastAPI:
    """Everything but ``/invocations``."""
    app = FastAPI(title=f"{worker.options.endpoint} (notebooked)", version=worker.version, openapi_url=None)

    @app.get("/ping")
    async def ping() -> Response:
        """Liveness, as SageMaker and MLflow ask for it: the process answers."""
        return Response(b"\n", media_type=JSON)

    @app.get("/health")
    @app.get("/ready")
    async def ready() -> Response:
        """Readiness: the model is loaded and has predicted its input example."""
        problem = worker.problem
        body = {"status": "ready" if problem is None else "unready", "version": worker.version}
        if problem is not None:
            body["message"] = problem
        return Response(orjson.dumps(body), 200 if problem is None else 503, media_type=JSON)

    @app.get("/version")
    async def version() -> Response:
        """What is served, and the share of each version."""
        shares = {
            worker.version: worker.split.own_weight,
            **{p.version: p.weight for p in worker.split.peers},
        }
        return Response(
            orjson.dumps(
                {
                    "endpoint": worker.options.endpoint,
                    "version": worker.version,
                    "weights": shares,
                    "labels": worker.options.labels,
                    "framework": worker.metadata.get("framework"),
                    "signature": worker.metadata.get("signature"),
                }
            ),
            media_type=JSON,
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures of all versions that take part in the traffic, in Prometheus's text format."""
        snapshots = [worker.metrics.snapshot(), *await worker.peer_snapshots()]
        return Response(prometheus.render(snapshots), headers={"content-type": prometheus.CONTENT_TYPE})

    return app
