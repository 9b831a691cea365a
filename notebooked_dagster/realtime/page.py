"""The local page: connected ports, tempo, the last events, counters, live; ``/metrics`` and ``/healthz`` beside it.

It has no login, so it is bound to this machine unless told otherwise, and answers only to its own names: a page somewhere in
the web must not reach it by a name that resolves to 127.0.0.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .figures import CONTENT_TYPE, Figures

_EVERY = 0.2
_MOST_VIEWERS = 8
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page(snapshot: Callable[[], dict[str, Any]], healthy: Callable[[], bool], host: str) -> FastAPI:
    """The application.

    Args:
        snapshot: The state of the daemon as plain data.
        healthy: Whether it does its work.
        host: What it is bound to.
    """
    app = FastAPI(title="notebooked edge", docs_url=None, redoc_url=None, openapi_url=None)
    if host in _LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))
    figures = Figures(snapshot)
    html = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    viewers = 0

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers=_HEADERS)

    @app.get("/state")
    async def state() -> Response:
        return Response(orjson.dumps(snapshot()), media_type="application/json", headers=_HEADERS)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(figures.text(), media_type=CONTENT_TYPE)

    @app.get("/healthz")
    async def health() -> Response:
        well = healthy()
        return Response("ok\n" if well else "not handling events\n", status_code=200 if well else 503)

    @app.get("/live")
    async def live(request: Request) -> Response:
        nonlocal viewers
        if viewers >= _MOST_VIEWERS:
            return Response("Too many viewers.\n", status_code=503)

        async def stream() -> AsyncIterator[bytes]:
            nonlocal viewers
            viewers += 1
            try:
                # States, not events: a slow browser sees fewer of them and holds up nothing.
                while not await request.is_disconnected():
                    yield b"data: " + orjson.dumps(snapshot()) + b"\n\n"
                    await asyncio.sleep(_EVERY)
            finally:
                viewers -= 1

        return StreamingResponse(stream(), media_type="text/event-stream", headers=_HEADERS)

    return app
