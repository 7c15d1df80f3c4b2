"""Curves on logarithmic axes, as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Curve", "Plot"]

WIDTH, HEIGHT = 860, 480
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 230, 50
#: Told apart by colour-blind readers, too (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999", "#882255")


@dataclass(frozen=True, slots=True)
class Curve:
    """A name and points, all of whose coordinates are above 0."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot, which is its SVG document as text.

    Attributes:
        file: Its name.
        title: What is shown.
        units: Of the axes.
        curves: In the order of the legend.
    """

    file: str
    title: str
    units: tuple[str, str]
    curves: Sequence[Curve]

    def __str__(self) -> str:
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            f'<text x="{LEFT}" y="24" font-size="15">{escape(self.title)}</text>',
            *self._grid(),
            *(line for place, curve in enumerate(self.curves) for line in self._curve(place, curve)),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _range(self, axis: int) -> tuple[int, int]:
        """Return the powers of ten between which an axis lies."""
        values = [point[axis] for curve in self.curves for point in curve.points]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return low, max(high, low + 1)

    def _place(self, point: tuple[float, float]) -> tuple[float, float]:
        spans = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
        parts = []
        for axis in (0, 1):
            low, high = self._range(axis)
            parts.append(spans[axis] * (math.log10(point[axis]) - low) / (high - low))
        return round(LEFT + parts[0], 1), round(HEIGHT - BOTTOM - parts[1], 1)

    def _grid(self) -> Iterator[str]:
        (left, right), (low, high) = self._range(0), self._range(1)
        for power in range(left, right + 1):
            x, bottom = self._place((10.0**power, 10.0**low))
            yield f'<path d="M{x} {TOP}V{bottom}" stroke="#ddd"/>'
            yield f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{_power(power)}</text>'
        for power in range(low, high + 1):
            x, y = self._place((10.0**left, 10.0**power))
            yield f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            yield f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{_power(power)}</text>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(self.units[0])}</text>'
        yield f'<text transform="translate(20 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(self.units[1])}</text>'

    def _curve(self, place: int, curve: Curve) -> Iterator[str]:
        colour = COLOURS[place % len(COLOURS)]
        points = [self._place(point) for point in curve.points]
        line = " ".join(f"{x},{y}" for x, y in points)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points)
        x, y = WIDTH - RIGHT + 20, TOP + 12 + 20 * place
        yield f'<path d="M{x} {y}h20" stroke="{colour}" stroke-width="2"/>'
        yield f'<text x="{x + 28}" y="{y + 4}">{escape(curve.name)}</text>'


def _power(power: int) -> str:
    """Return a power of ten as people write it."""
    return f"{10**power:g}" if 0 <= power <= 2 else f'10<tspan dy="-5" font-size="9">{power}</tspan>'
