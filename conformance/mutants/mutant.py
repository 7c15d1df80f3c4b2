"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from mutants.proxy import Http, Rpc

__all__ = ["Mutant"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A subject with one defect.

    Attributes:
        defect: What it does wrong: a sentence, which names it.
        breaks: The requirements that it does not meet; a test of each must fail.
        http: What its server does over HTTP.
        rpc: What its server does over gRPC.
        plugin: What makes the plugin under test have the defect, while it is entered.
    """

    defect: str
    breaks: tuple[str, ...]
    http: Http | None = None
    rpc: Rpc | None = None
    plugin: Callable[[], AbstractContextManager[Any]] | None = None
