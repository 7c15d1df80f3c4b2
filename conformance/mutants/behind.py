"""Puts the proxies before the server that the suite starts: a plugin of pytest, registered last, so that its fixture counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mutants.proxy import Proxies, proxies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mlflow_triton.handles import TritonServer

__all__ = ["PROXIES"]

PROXIES = pytest.StashKey[Proxies]()


@pytest.fixture(scope="session")
def triton_server(triton_server: TritonServer, pytestconfig: pytest.Config) -> Iterator[TritonServer]:
    """The server behind proxies."""
    server = triton_server
    with proxies(server.http_url, str(server.grpc_url), str(server.metrics_url)) as (owner, *urls):
        pytestconfig.stash[PROXIES] = owner
        yield replace(server, http_url=urls[0], grpc_url=urls[1], metrics_url=urls[2])
