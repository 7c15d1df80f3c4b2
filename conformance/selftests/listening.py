"""Servers that play a fault which no real server plays on demand."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["answer", "listener", "raw", "silent"]


@contextmanager
def listener(behaviour: Callable[[socket.socket, str], None]) -> Iterator[str]:
    """Listen on a port, and give each connection with the head of its request to `behaviour`."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            connection.settimeout(0.5)
            try:
                head = b""
                while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                    head += data
                behaviour(connection, head.decode(errors="replace"))
            except OSError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in connections:
            connection.close()
        thread.join()


def raw(answer: bytes) -> Callable[[socket.socket, str], None]:
    """Answer every request with these bytes, and close."""

    def behave(connection: socket.socket, _: str) -> None:
        connection.sendall(answer)
        connection.close()

    return behave


def silent(connection: socket.socket, head: str) -> None:
    """Never answer."""


def answer(body: bytes, status: int = 200, /, **headers: str) -> bytes:
    """Make an HTTP answer whose length is right."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
