"""Pictures of a page as SVG text: maps of coloured cells with their values on hover, and lines.

Colours are told apart without colour vision: blue to red through white about a middle, white to dark blue from zero on,
and the palette of Okabe and Ito.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from unicodedata import east_asian_width

__all__ = ["BOLD", "STYLE", "Axis", "Grid", "Scale", "cells", "drawing", "lines", "number", "standalone", "widest"]

# Rows of cells; NaN stays blank.
Grid = Sequence[Sequence[float]]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
DIVERGING = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43))
RISING = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
STYLE = (
    "<style>svg text{font:12px system-ui,sans-serif}svg .t{font-weight:600}svg .r{text-anchor:end}"
    "svg .m{text-anchor:middle}svg .u{fill:#555}svg .g{stroke:#e2e2e2}svg .d{stroke:#555;stroke-dasharray:2 3}"
    "svg polyline{fill:none;stroke-width:1.6}svg .b{fill:none;stroke:#555}</style>"
)
"""What a page with pictures says once."""
LETTER = 6.6  # width of a letter of 12 px, on average
BOLD = 1.2  # how much wider titles are


@dataclass(frozen=True)
class Scale:
    """From values to colours: about ``middle`` where there is one, else from ``low`` on."""

    low: float
    high: float
    middle: float | None = None

    @classmethod
    def rising(cls, values: Sequence[float]) -> Scale:
        """From zero to the largest value."""
        return cls(0.0, max((value for value in values if math.isfinite(value)), default=0.0) or 1.0)

    @classmethod
    def about(cls, middle: float, values: Sequence[float], least: float = 0.05) -> Scale:
        """As far to both sides of ``middle`` as the farthest value, and ``least`` at least."""
        far = max((abs(value - middle) for value in values if math.isfinite(value)), default=0.0)
        return cls(middle - max(far, least), middle + max(far, least), middle)

    def colour(self, value: float) -> tuple[int, int, int]:
        stops = RISING if self.middle is None else DIVERGING
        place = min(1.0, max(0.0, (value - self.low) / (self.high - self.low))) * (len(stops) - 1)
        first = min(int(place), len(stops) - 2)
        share = place - first
        red, green, blue = (round(a + share * (b - a)) for a, b in zip(stops[first], stops[first + 1], strict=True))
        return red, green, blue


def cells(
    grid: Grid, rows: Sequence[str], columns: Sequence[str], scale: Scale, title: str, unit: str, written: bool = False
) -> str:
    """Return a map of coloured cells, its names and its scale; ``written`` puts the numbers into them."""
    wide = 44.0 if written else min(22.0, max(5.0, 560 / max(len(columns), 1)))
    high = 26.0 if written else 17.0
    left = 12 + widest(rows)
    slanted = written or any(len(column) > 3 for column in columns)
    below = 14 + (0.72 * widest(columns) if slanted else 6)
    width, height = wide * len(columns), high * len(rows)
    parts = [f'<text class="t" x="0" y="13">{escape(title)}</text>', f'<g transform="translate({left:.0f},24)">']
    for y, (row, values) in enumerate(zip(rows, grid, strict=True)):
        parts.append(f'<text class="r" x="-6" y="{(y + 0.5) * high + 4:.1f}">{escape(row)}</text>')
        for x, value in enumerate(values):
            if not math.isnan(value):
                parts.append(_cell(x * wide, y * high, wide, high, value, scale, f"{row}, {columns[x]}", written))
    # Numbers of layers stand apart; names are slanted.
    step = 1 if slanted else max(1, math.ceil((widest(columns) + 8) / wide))
    for x, column in enumerate(columns):
        if x % step == 0:
            place = f"translate({(x + 0.5) * wide:.1f},{height + 13:.1f})"
            turned = ' rotate(-45)" class="r' if slanted else '" class="m'
            parts.append(f'<text transform="{place}{turned}">{escape(column)}</text>')
    parts.append(_legend(width + 16, max(height, 90), scale, unit) + "</g>")
    wide_enough = max(left + width + 96 + 0.5 * widest([unit]), BOLD * widest([title]))
    return drawing(wide_enough, 24 + max(height, 90) + below, parts)


def _cell(x: float, y: float, wide: float, high: float, value: float, scale: Scale, name: str, written: bool) -> str:
    red, green, blue = scale.colour(value)
    place = f'x="{x:.5g}" y="{y:.5g}" width="{wide:.5g}" height="{high:.5g}"'
    cell = f'<rect {place} fill="#{red:02x}{green:02x}{blue:02x}"><title>{escape(name)}: {number(value)}</title></rect>'
    if written:
        ink = "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "#fff"
        middle = f'x="{x + wide / 2:.5g}" y="{y + high / 2 + 4:.5g}"'
        cell += f'<text class="m" fill="{ink}" {middle}>{round(value, 2) + 0:.2f}</text>'
    return cell


def _legend(x: float, height: float, scale: Scale, unit: str) -> str:
    steps = 30
    tall = min(height, 130.0)
    parts = []
    for step in range(steps):
        red, green, blue = scale.colour(scale.high - (step + 0.5) / steps * (scale.high - scale.low))
        place = f'x="{x:.1f}" y="{step * tall / steps:.2f}" width="12" height="{tall / steps + 0.5:.2f}"'
        parts.append(f'<rect {place} fill="#{red:02x}{green:02x}{blue:02x}"/>')
    middle = (scale.low + scale.high) / 2
    for share, value in ((0, scale.high), (0.5, middle), (1, scale.low)):
        parts.append(f'<text x="{x + 17:.1f}" y="{share * tall + 4:.1f}">{number(value)}</text>')
    return "".join(parts) + f'<text class="u" x="{x + 17:.1f}" y="{0.25 * tall + 4:.1f}">{escape(unit)}</text>'


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, across: str, up: str,
    *, log_x: bool = False, log_y: bool = False, zero: bool = False, mark: float | None = None,
) -> str:  # fmt: skip
    """Return curves of points (x, y); ``mark`` draws a dotted line at that height, ``zero`` starts the scale there.

    What a logarithmic axis lacks, and NaN, is left out.
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y) and not (log_y and y <= 0) and not (log_x and x <= 0)]
        for name, points in series.items()
    }
    points = [point for curve in kept.values() for point in curve] or [(1.0, 1.0)]
    ys = [y for _, y in points] + ([mark] if mark is not None else []) + ([0.0] if zero else [])
    # Below a hundred thousandth of the largest, singular values are rounding.
    whole = all(x == int(x) for x, _ in points)
    across_axis = Axis(min(x for x, _ in points), max(x for x, _ in points), 460, log_x, whole)
    up_axis = Axis(max(min(ys), max(ys) * 1e-5) if log_y else min(ys), max(ys), 220, log_y)
    left, top = 62, 26
    parts = [f'<text class="t" x="0" y="13">{escape(title)}</text>', f'<g transform="translate({left},{top})">']
    for value in up_axis.ticks():
        y = 220 - up_axis(value)
        parts.append(
            f'<path class="g" d="M0 {y:.1f}H460"/><text class="r" x="-6" y="{y + 4:.1f}">{number(value)}</text>'
        )
    for value in across_axis.ticks():
        parts.append(f'<text class="m" x="{across_axis(value):.1f}" y="236">{number(value)}</text>')
    if mark is not None:
        parts.append(f'<path class="d" d="M0 {220 - up_axis(mark):.1f}H460"/>')
    for index, (name, curve) in enumerate(kept.items()):
        colour = COLOURS[index % len(COLOURS)]
        dashed = ' stroke-dasharray="6 3"' if index >= len(COLOURS) else ""
        path = " ".join(f"{across_axis(x):.1f},{220 - up_axis(y):.1f}" for x, y in curve)
        hover = f"<title>{escape(name)}</title>"
        parts.append(f'<polyline points="{path}" stroke="{colour}"{dashed}>{hover}</polyline>')
        if len(curve) <= 64:
            parts += [
                f'<circle cx="{across_axis(x):.1f}" cy="{220 - up_axis(y):.1f}" r="2.6" fill="{colour}">'
                f"<title>{escape(name)}, {number(x)}: {number(y)}</title></circle>"
                for x, y in curve
            ]
        y = 12 + 17 * index
        parts.append(f'<path d="M474 {y - 4}h18" stroke="{colour}" stroke-width="2"{dashed}/>')
        parts.append(f'<text x="497" y="{y}">{escape(name)}</text>')
    parts.append(f'<text class="m" x="230" y="254">{escape(across)}</text></g>')
    parts.append(f'<text class="m" transform="translate(11,{top + 110}) rotate(-90)">{escape(up)}</text>')
    width = max(left + 510 + widest(list(kept)), BOLD * widest([title]))
    return drawing(width, max(top + 262, top + 17 * len(kept) + 8), parts)


class Axis:
    """From values to pixels; marked at whole numbers only where all values are ``whole``."""

    def __init__(self, low: float, high: float, pixels: float, log: bool, whole: bool = False):
        self.log, self.pixels, self.whole = log, pixels, whole
        if high <= low:
            low, high = (low / 2, low * 2) if log else (low - 0.5, low + 0.5)
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        low, high, value = map(math.log, (self.low, self.high, max(value, self.low))) if self.log else (
            self.low, self.high, value,
        )  # fmt: skip
        return self.pixels * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values, six or so."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(powers) <= 3 else (1,)
            return [s * 10.0**p for p in powers for s in steps if self.low <= s * 10.0**p <= self.high * 1.0001]
        rough = max((self.high - self.low) / 5, 1.0 if self.whole else 0.0)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
        return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def widest(texts: Sequence[str]) -> float:
    """Return about how many pixels the longest of the texts takes; letters of East Asia are twice as wide."""
    return LETTER * max((sum(1 + (east_asian_width(c) in "WF") for c in text) for text in texts), default=0)


def standalone(svg: str) -> str:
    """Return a picture as a file of its own."""
    tag, rest = svg.split(">", 1)
    return f'{tag}>{STYLE}<rect width="100%" height="100%" fill="#fff"/>{rest}\n'


def number(value: float) -> str:
    """Return a value with three digits."""
    return f"{value:.3g}" if value else "0"


def drawing(width: float, height: float, parts: Sequence[str]) -> str:
    """Return a picture of these parts, in pixels."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'
