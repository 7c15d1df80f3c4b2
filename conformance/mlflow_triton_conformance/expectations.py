"""What an adopter knows of a subject beforehand: the requirements that it fails, the features that it lacks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Expectations", "InvalidExpectations"]

_LINE = re.compile(r"(?:lacks\s+(?P<feature>\S.*?)|(?P<id>[\w.-]+)):\s+(?P<reason>\S.*)")


class InvalidExpectations(Exception):
    """A file of expectations cannot be read; the message says why, line by line."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """What is expected of a subject.

    Attributes:
        failures: Why it fails a requirement, by the requirement's id.
        lacks: Why it lacks a feature, by the feature's name.
    """

    failures: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Expectations:
        """Read a file.

        Each line is ``ID: reason`` or ``lacks FEATURE: reason``; empty lines, and those that begin with #, say nothing.

        Raises:
            InvalidExpectations: It cannot be read, or lines of it are neither, or say the same thing twice.
        """
        failures: dict[str, str] = {}
        lacks: dict[str, str] = {}
        wrong = []
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidExpectations(
                f"{file} cannot be read: {reason}. Name a text file in UTF-8 with lines 'ID: reason'; no test was run."
            ) from None
        for number, line in enumerate(map(str.strip, lines), start=1):
            if not line or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if not found:
                wrong.append(f"{file}:{number}: {line!r} is neither 'ID: reason' nor 'lacks FEATURE: reason'")
                continue
            place, name = (lacks, found["feature"]) if found["feature"] else (failures, found["id"])
            if name in place:
                wrong.append(f"{file}:{number}: {name} stands there twice")
            place[name] = found["reason"]
        if wrong:
            raise InvalidExpectations("; ".join(wrong))
        return cls(failures, lacks)
