from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_mlflow_triton.fixtures.servers import Isolation


@pytest.fixture(scope="session")
def triton_isolation() -> Isolation:
    """As in the suite: tests look at all that a server has."""
    return "worker"
