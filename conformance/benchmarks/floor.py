"""The least that a deployment can cost: the files put in place by hand, and Triton's own load."""

from __future__ import annotations

import os
import shutil
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from benchmarks.bench import Logged, Triton

__all__ = ["ByHand", "fetch"]

TIMEOUT = 300.0
_BLOCK = 1 << 20


def fetch(files: Mapping[str, str], directory: Path) -> None:
    """Link files of this machine, and download others with one request each.

    Args:
        files: Path in the directory to where the file is: a path or an ``http://`` URL.
        directory: To be made.
    """
    for name, source in files.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith("http://"):
            with urllib.request.urlopen(source, timeout=TIMEOUT) as answer, target.open("wb") as file:
                shutil.copyfileobj(answer, file, _BLOCK)
        else:
            os.link(source, target)


class ByHand:
    """Deploys without proof, record, digests, lock or a way back.

    Args:
        server: The server and its repository.
        name: The model.
    """

    def __init__(self, server: Triton, name: str) -> None:
        self._staged = server.model_repository.with_name(f"{server.model_repository.name}-{name}")
        self._old = self._staged.with_name(f"{self._staged.name}-old")
        self._there = server.model_repository / name
        self._server = server
        self._name = name

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep one connection for the block."""
        from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415 - not for those who only fetch

        with InferenceServerClient(self._server.grpc_url) as self._grpc:
            yield

    def create(self, model: Logged) -> None:
        """Fetch a model's files, rename them into the repository, and load."""
        fetch(model.files, self._staged)
        self._staged.rename(self._there)
        self._grpc.load_model(self._name, client_timeout=TIMEOUT)

    def update(self, model: Logged) -> None:
        """Do the same with another model in the place of the old one."""
        fetch(model.files, self._staged)
        self._there.rename(self._old)
        self._staged.rename(self._there)
        self._grpc.load_model(self._name, client_timeout=TIMEOUT)
        shutil.rmtree(self._old)

    def delete(self) -> None:
        """Unload the model and remove its files."""
        self._grpc.unload_model(self._name, client_timeout=TIMEOUT)
        shutil.rmtree(self._there)
