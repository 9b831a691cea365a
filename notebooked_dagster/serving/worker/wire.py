"""Frames between supervisor, workers and control: a JSON header and a body, over a Unix socket.

A frame is two big-endian 32-bit lengths, the header as a JSON object, and the body as it is. A request's header
names its ``op``; a reply's header carries ``error`` where it failed. One connection carries any number of exchanges.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

Header = dict[str, Any]
Handler = Callable[[Header, bytes], Awaitable[tuple[Header, bytes]]]

_LENGTHS = struct.Struct("!II")
_HEADER_LIMIT = 16 * 1024 * 1024
_OPTIONS = orjson.OPT_NON_STR_KEYS


class WireError(OSError):
    """The other side went away in the middle of an exchange, or does not speak this protocol."""


def encode(header: Header, body: bytes = b"") -> bytes:
    """One frame as bytes."""
    head = orjson.dumps(header, option=_OPTIONS)
    return b"".join((_LENGTHS.pack(len(head), len(body)), head, body))


async def read(reader: asyncio.StreamReader) -> tuple[Header, bytes]:
    """The next frame of a stream. Raises WireError where the stream ends inside or before it."""
    try:
        head_size, body_size = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if head_size > _HEADER_LIMIT:
            raise WireError("The other side does not speak this protocol.")
        head = await reader.readexactly(head_size)
        body = await reader.readexactly(body_size) if body_size else b""
    except asyncio.IncompleteReadError as error:
        raise WireError("The other side closed the connection.") from error
    return orjson.loads(head), body


async def listen(path: Path, handler: Handler) -> asyncio.Server:
    """Answer exchanges on a Unix socket that only this user may connect to."""
    path.unlink(missing_ok=True)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                header, body = await read(reader)
                reply, reply_body = await handler(header, body)
                writer.write(encode(reply, reply_body))
                await writer.drain()
        except (OSError, orjson.JSONDecodeError):
            pass  # The other side hung up, or is a stranger: either way there is nobody to tell.
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path=str(path))
    path.chmod(0o600)
    return server


def call(path: Path, header: Header, body: bytes = b"", *, timeout: float) -> tuple[Header, bytes]:
    """One exchange, blocking. Raises OSError (refused, timed out, hung up)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(encode(header, body))
        with connection.makefile("rb") as stream:
            lengths = stream.read(_LENGTHS.size)
            if len(lengths) < _LENGTHS.size:
                raise WireError("The other side closed the connection.")
            head_size, body_size = _LENGTHS.unpack(lengths)
            head, reply_body = stream.read(head_size), stream.read(body_size)
            if len(head) < head_size or len(reply_body) < body_size:
                raise WireError("The other side closed the connection.")
    return orjson.loads(head), reply_body


async def exchange(path: Path, header: Header, body: bytes = b"", *, timeout: float) -> tuple[Header, bytes]:
    """One exchange on a connection of its own. Raises OSError (TimeoutError is one)."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_unix_connection(str(path))
        try:
            writer.write(encode(header, body))
            return await read(reader)
        finally:
            writer.close()


class Pool:
    """Exchanges with one socket over connections that are kept open between them."""

    def __init__(self, path: Path, *, idle_limit: int = 16) -> None:
        self._path = path
        self._idle_limit = idle_limit
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def exchange(self, header: Header, body: bytes, *, timeout: float) -> tuple[Header, bytes]:
        """One exchange. Raises OSError; a connection that failed is not used again."""
        async with asyncio.timeout(timeout):
            reader, writer = await self._connection()
            try:
                writer.write(encode(header, body))
                answer = await read(reader)
            except BaseException:
                writer.close()
                raise
        if len(self._idle) < self._idle_limit:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not writer.is_closing() and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_unix_connection(str(self._path))

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop()[1].close()


def hand_over(path: Path, sock: socket.socket, *, timeout: float) -> None:
    """Give a worker a listening socket. Raises OSError."""
    with _descriptor_connection(path, b"T", timeout) as connection:
        socket.send_fds(connection, [b"S"], [sock.fileno()])
        if connection.recv(1) != b"K":
            raise WireError("The worker did not take the socket.")


def take_over(path: Path, *, timeout: float) -> socket.socket | None:
    """The listening socket a worker holds; None where it holds none. Raises OSError."""
    with _descriptor_connection(path, b"G", timeout) as connection:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    return socket.socket(fileno=descriptors[0]) if descriptors else None


def _descriptor_connection(path: Path, op: bytes, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(op)
    except BaseException:
        connection.close()
        raise
    return connection


def listen_descriptor(path: Path) -> socket.socket:
    """The socket that ``serve_descriptor`` answers on; whoever finds it can connect. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    return listener


def serve_descriptor(
    listener: socket.socket, take: Callable[[socket.socket], None], held: Callable[[], socket.socket | None]
) -> None:
    """Answer ``hand_over`` and ``take_over``, blocking, one at a time; runs in a thread of its own.

    The event loop's transports cannot pass descriptors, hence blocking sockets.
    """
    with listener:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                op = connection.recv(1)
                if op == b"T":
                    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
                    take(socket.socket(fileno=descriptors[0]))
                    connection.sendall(b"K")
                elif op == b"G":
                    sock = held()
                    socket.send_fds(connection, [b"S"], [sock.fileno()] if sock is not None else [])
