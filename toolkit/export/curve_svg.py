"""A calibration's curve as SVG: what leaving early costs, drawn without any plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from toolkit.bundle.manifest import Calibration, CurvePoint

_WIDTH, _HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 64, 88
_N_TICKS = 6
"""About so many lines across."""
_SHOWN_TARGETS = 3
"""The picture ends at so many times what was allowed: what lies above matters to nobody."""
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-size:15px}.axis{stroke:#666}.grid{stroke:#e2e2e2}"
    ".band{fill:#1f77b4;fill-opacity:.14}.drop{fill:none;stroke:#1f77b4;stroke-width:2.2}"
    ".bound{fill:none;stroke:#1f77b4;stroke-width:1.2;stroke-dasharray:1.5 3}"
    ".target{stroke:#b2182b;stroke-width:1.4;stroke-dasharray:7 4}"
    ".chosen{fill:#fff;stroke:#222;stroke-width:2}.at{stroke:#222;stroke-width:.8;stroke-dasharray:2 2}"
)


class _Frame:
    """Where a value stands in the picture: exit rate to the right, points of drop upwards, between round numbers."""

    def __init__(self, lowest: float, highest: float) -> None:
        rough = (highest - lowest) / _N_TICKS
        magnitude = 10.0 ** math.floor(math.log10(rough))
        self.step = next(f * magnitude for f in (1, 2, 5, 10) if f * magnitude >= rough * (1 - 1e-9))
        self.low = math.floor(lowest / self.step + 1e-9) * self.step
        self.high = math.ceil(highest / self.step - 1e-9) * self.step

    @property
    def ticks(self) -> list[float]:
        """Round numbers of points, from the lowest to the highest."""
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def x(self, share: float) -> float:
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, points: float) -> float:
        return _TOP + (self.high - points) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)

    def path(self, at: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(share):.1f},{self.y(points):.1f}" for share, points in at)


def curve_svg(record: Calibration) -> str:
    """Draw drop and its upper bound over the exit rate, the target, and the point that was chosen.

    Args:
        record: of the calibration.
    Returns: an SVG document, 640 x 420, with no script and nothing from outside; without colours it says the same.
    """
    curve = record.curve
    target, point = record.target_drop, curve[record.chosen]
    enough = max(_SHOWN_TARGETS * target, 1.2 * point.drop_upper)
    frame = _Frame(
        min(0.0, *(p.drop for p in curve)), max(min(max(p.drop_upper for p in curve), enough), target)
    )
    upper = [(p.exit_rate, p.drop_upper) for p in curve]
    drop = [(p.exit_rate, p.drop) for p in curve]
    at_target, at_x, at_y = frame.y(target), frame.x(point.exit_rate), frame.y(point.drop)
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<style>{_STYLE}</style>",
        f'<clipPath id="inside"><rect x="{_LEFT - 2}" y="{_TOP}" width="{right - _LEFT + 4}" height="{bottom - _TOP + 2}"/></clipPath>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text class="title" x="{_LEFT}" y="24">What leaving early costs, on {record.n_samples} samples</text>',
        *_legend(target),
        *_axes(frame),
        '<g clip-path="url(#inside)">',
        f'<polygon class="band" points="{frame.path([*drop, *reversed(upper)])}"/>',
        f'<polyline class="bound" points="{frame.path(upper)}"/>',
        f'<polyline class="drop" points="{frame.path(drop)}"/>',
        "</g>",
        f'<line class="target" x1="{_LEFT}" x2="{right}" y1="{at_target:.1f}" y2="{at_target:.1f}"/>',
        f'<line class="at" x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{at_y:.1f}" y2="{bottom}"/>',
        f'<circle class="chosen" cx="{at_x:.1f}" cy="{at_y:.1f}" r="4.5"/>',
        _text(_LEFT, _HEIGHT - 26, _told(point)),
        _text(_LEFT, _HEIGHT - 9, _against(record, curve)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _told(point: CurvePoint) -> str:
    return (
        f"chosen: threshold {point.threshold:.3g}; {point.exit_rate:.0%} leave early, drop {point.drop:.2f} points, "
        f"at most {point.drop_upper:.2f}"
    )


def _against(record: Calibration, curve: Sequence[CurvePoint]) -> str:
    accuracy = curve[record.chosen].accuracy
    reference = record.reference.partition(":")[0]
    return f"against {reference}" + ("" if accuracy is None else f"; accuracy there {accuracy:.1%}")


def _legend(target: float) -> list[str]:
    """A key beside each line's name, in one row under the title."""
    y = 46
    keys = (
        (_LEFT, "drop", f'<line class="drop" x1="0" x2="24" y1="{y - 4}" y2="{y - 4}"/>'),
        (132, "its upper 95 % bound", f'<line class="bound" x1="0" x2="24" y1="{y - 4}" y2="{y - 4}"/>'),
        (306, f"allowed: {target:g}", f'<line class="target" x1="0" x2="24" y1="{y - 4}" y2="{y - 4}"/>'),
        (412, "chosen", f'<circle class="chosen" cx="14" cy="{y - 4}" r="4.5"/>'),
    )
    return [
        part
        for x, name, key in keys
        for part in (f'<g transform="translate({x})">{key}', _text(30, y, name), "</g>")
    ]


def _axes(frame: _Frame) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    middle = (_TOP + bottom) / 2
    decimals = max(0, -math.floor(math.log10(frame.step) + 1e-9))
    parts = []
    for tenths in range(0, 11, 2):
        x = frame.x(tenths / 10)
        parts += [
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>',
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tenths * 10} %</text>',
        ]
    for points in frame.ticks:
        y = frame.y(points)
        kind = "axis" if abs(points) < frame.step / 2 else "grid"
        parts += [
            f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{abs(points) if kind == "axis" else points:.{decimals}f}</text>',
        ]
    return [
        *parts,
        f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{bottom}"/>',
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{bottom + 36}" text-anchor="middle">share of samples that leave early</text>',
        (
            f'<text x="18" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 18 {middle:.0f})">'
            "accuracy lost, percentage points</text>"
        ),
    ]


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'
