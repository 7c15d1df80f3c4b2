"""Measured values and the tables that show them, as text and as JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.plot import Plot

__all__ = ["Quantity", "Result", "Table", "percentile", "ratio"]

#: Unit -> factor from the base unit, and how it is written; the first one that gives 1 or more is taken.
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")),
    "x": ((1.0, "x"),),
    "/s": ((1.0, "/s"),),
}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value that was measured, as often as it was.

    Attributes:
        samples: The values, in the order of measuring; not empty.
        unit: ``s``, ``B`` (bytes), ``x`` (a ratio) or ``/s`` (a rate).
    """

    samples: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The middle one, which one slow turn on a busy machine does not move."""
        return statistics.median(self.samples)

    def __str__(self) -> str:
        scale, unit = next(
            (scale for scale in _SCALES[self.unit] if abs(self.median) >= scale[0]), _SCALES[self.unit][-1]
        )
        shown = f"{_digits(self.median / scale)} {unit}"
        if len(self.samples) > 1:
            shown += f" ({_digits(min(self.samples) / scale)}-{_digits(max(self.samples) / scale)})"
        return shown

    def to_json(self) -> dict[str, Any]:
        """Return median, unit and samples."""
        return {"median": self.median, "unit": self.unit, "samples": list(self.samples)}


Cell = str | int | Quantity


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below one title.

    Attributes:
        title: What is shown.
        rows: Column to cell; every row has the same columns. A `Quantity` shows its median, and in brackets its
            lowest and highest value.
        notes: How to read it; one line each.
    """

    title: str
    rows: Sequence[Mapping[str, Cell]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        columns = list(self.rows[0])
        lines = [columns, *([str(row[column]) for column in columns] for row in self.rows)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
        shown = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        shown.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(
            [self.title, *(line.rstrip() for line in shown), *(f"* {note}" for note in self.notes)]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the table with every sample."""
        rows = [
            {key: cell.to_json() if isinstance(cell, Quantity) else cell for key, cell in row.items()}
            for row in self.rows
        ]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found.

    Attributes:
        tables: To be shown.
        problems: Failed requests and wrong answers, which fail the run.
        plots: To be written to files, if the user wants them.
    """

    tables: Sequence[Table]
    problems: Sequence[str] = field(default=())
    plots: Sequence[Plot] = field(default=())


def ratio(value: Quantity, base: Quantity) -> Quantity:
    """Return how many times the base a value is, turn by turn."""
    pairs = zip(value.samples, base.samples, strict=True)
    return Quantity(tuple(one / other for one, other in pairs), "x")


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that a given part of the values does not exceed.

    Args:
        values: At least one.
        percent: 0 to 100; 100 is the largest value.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _digits(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
