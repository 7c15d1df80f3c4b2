"""A load and an unload that Triton has done, and of which no answer ever arrives."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.deployments import get_deploy_client

from mlflow_triton import flavor
from mlflow_triton.errors import ServerTimeout
from mlflow_triton.serving.watch import watched
from mlflow_triton_conformance import models
from worlds import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


class Forgetful:
    """A proxy that hands requests on, and from a given word in one on, no answer; as a router that has lost a connection."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.word = b"never said"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                lost = threading.Event()
                for pair in ((client, server, lost), (server, client, lost)):
                    threading.Thread(
                        target=self._hand_on, args=(*pair, pair[0] is client), daemon=True
                    ).start()

    def _hand_on(
        self, source: socket.socket, target: socket.socket, lost: threading.Event, asks: bool
    ) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(1 << 16):
                if asks and self.word in data:
                    lost.set()
                if asks or not lost.is_set():
                    target.sendall(data)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server of this module's own."""
    world = World(tmp_path_factory.mktemp("lost"), {})
    world.start()
    yield world
    world.stop()


def test_lost_answers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operation ends when the server shows that it has loaded or unloaded, long before the time for the answer is over."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for value in (1, 2):
        flavor.save_model(
            models.write_python(tmp_path / f"source-{value}", {1: value}), tmp_path / str(value)
        )
    proxy = Forgetful(world.server.grpc_url)
    target = world.target.replace(
        f"grpc_url={world.server.grpc_url.replace(':', '%3A')}", f"grpc_url={proxy.address}"
    )
    client: Any = get_deploy_client(f"{target}&load_timeout=300")
    started = time.monotonic()
    proxy.word = b"mlflow.deployment_id"
    created = client.create_deployment("m", tmp_path / "1")
    assert created["state"] == "READY"
    updated = client.update_deployment("m", tmp_path / "2")
    assert client.get_deployment("m")["serving_id"] == updated["deployment_id"] != created["deployment_id"]
    proxy.word = b"\x12\x01m"  # the model's name in an unload, as protobuf writes it
    client.delete_deployment("m")
    assert client.list_deployments() == []
    assert time.monotonic() - started < 200
    lost = [record.getMessage() for record in caplog.records if "answer is lost" in record.getMessage()]
    assert [line.partition("(")[2].partition(" ")[0] for line in lost] == ["load", "load", "unload"]
    assert [record.levelno for record in caplog.records if "answer is lost" in record.getMessage()] == [
        logging.WARNING
    ] * 3
    proxy.close()


def test_an_answer_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server has not done ends with the call's own error, and what it only seems to have done for a moment too."""
    monkeypatch.setattr("mlflow_triton.serving.watch.PAUSE", 0.02)
    looks = iter([True, False, True])

    def call() -> None:
        time.sleep(0.5)
        raise ServerTimeout("not within 0.5 s")

    with pytest.raises(ServerTimeout, match=r"not within 0\.5 s"):
        watched(call, lambda _: next(looks, False), what="load", seconds=0.5)
