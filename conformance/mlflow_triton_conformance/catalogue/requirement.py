"""What a requirement is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Chapter", "Level", "Requirement", "Source"]

Level = Literal["MUST", "SHOULD"]


@dataclass(frozen=True, slots=True)
class Source:
    """The document that a requirement follows from.

    Attributes:
        title: What it is called.
        url: Where it is.
    """

    title: str
    url: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a subject must or should do.

    Attributes:
        id: Its name in tests, reports and files of expectations, such as ``MLF-CREATE-004``; it never changes its meaning.
        chapter: The id of its `Chapter`.
        level: MUST follows from the source's own words; SHOULD from what they are there for.
        sentence: What is required.
        source: Where it is written.
        needs: The capabilities without which it does not apply; see `mlflow_triton_conformance.capabilities`.
    """

    id: str
    chapter: str
    level: Level
    sentence: str
    source: Source
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chapter:
    """A part of the catalogue.

    Attributes:
        id: Its name in reports.
        title: What it is about.
        needs: What each of its requirements needs.
    """

    id: str
    title: str
    needs: tuple[str, ...] = ()

    def must(self, identifier: str, sentence: str, source: Source, *needs: str) -> Requirement:
        """Make a requirement of this chapter that has to be met."""
        return Requirement(identifier, self.id, "MUST", sentence, source, (*self.needs, *needs))

    def should(self, identifier: str, sentence: str, source: Source, *needs: str) -> Requirement:
        """Make a requirement of this chapter that ought to be met."""
        return Requirement(identifier, self.id, "SHOULD", sentence, source, (*self.needs, *needs))
