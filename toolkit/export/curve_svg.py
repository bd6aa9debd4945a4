"""A calibration's curve as SVG: what leaving early costs, drawn without any plotting library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from toolkit.bundle.manifest import Calibration, CurvePoint

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 72
_N_TICKS = 5
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-size:14px}.axis{stroke:#999}.grid{stroke:#ddd}"
    ".band{fill:#1f77b4;fill-opacity:.15}.drop{fill:none;stroke:#1f77b4;stroke-width:2}"
    ".target{stroke:#d62728;stroke-dasharray:6 4}.chosen{fill:#d62728}"
)


class _Frame:
    """Where a value stands in the picture: exit rate to the right, points of drop upwards."""

    def __init__(self, lowest: float, highest: float) -> None:
        self.low, self.high = lowest, highest

    def x(self, share: float) -> float:
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, points: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        inside = min(max(points, self.low), self.high)
        return _TOP + (self.high - inside) / (self.high - self.low) * height

    def path(self, at: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(share):.1f},{self.y(points):.1f}" for share, points in at)


def curve_svg(record: Calibration) -> str:
    """Draw drop and its upper bound over the exit rate, the target, and the point that was chosen.

    Args:
        record: of the calibration.
    Returns: an SVG document, 640 x 400, with no script and nothing from outside.
    """
    curve = record.curve
    target, point = record.target_drop, curve[record.chosen]
    frame = _Frame(min(0.0, *(p.drop for p in curve)) - 0.5, max(4 * target, point.drop_upper) * 1.05)
    upper = [(p.exit_rate, p.drop_upper) for p in curve]
    drop = [(p.exit_rate, p.drop) for p in curve]
    at_target, at_x, at_y = frame.y(target), frame.x(point.exit_rate), frame.y(point.drop)
    told = (
        f"chosen: threshold {point.threshold:.3g}, {point.exit_rate:.0%} leave early, drop {point.drop:.2f} points, "
        f"at most {point.drop_upper:.2f}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text class="title" x="{_LEFT}" y="24">What leaving early costs, on {record.n_samples} samples</text>',
        *_axes(frame),
        f'<polygon class="band" points="{frame.path([*drop, *reversed(upper)])}"/>',
        f'<polyline class="drop" points="{frame.path(drop)}"/>',
        f'<line class="target" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at_target:.1f}" y2="{at_target:.1f}"/>',
        f'<text x="{_LEFT + 6}" y="{at_target - 5:.1f}">allowed: {target:g} points</text>',
        f'<circle class="chosen" cx="{at_x:.1f}" cy="{at_y:.1f}" r="5"/>',
        _text(_LEFT, _HEIGHT - 24, told),
        _text(_LEFT, _HEIGHT - 8, _against(record, curve)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _against(record: Calibration, curve: Sequence[CurvePoint]) -> str:
    last = curve[record.chosen]
    reference = record.reference.partition(":")[0]
    accuracy = "" if last.accuracy is None else f"; accuracy {last.accuracy:.1%}"
    return f"against {reference}{accuracy}; shaded: up to the upper 95 % bound"


def _axes(frame: _Frame) -> list[str]:
    parts = []
    for i in range(_N_TICKS + 1):
        share = i / _N_TICKS
        x = frame.x(share)
        points = frame.low + share * (frame.high - frame.low)
        y = frame.y(points)
        parts += [
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>',
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{share:.0%}</text>',
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{points:.1f}</text>',
        ]
    bottom = _HEIGHT - _BOTTOM
    return [
        *parts,
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>',
        f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{bottom}"/>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{bottom + 32}" text-anchor="middle">samples that leave early</text>',
        (
            f'<text x="14" y="{(_TOP + bottom) / 2:.0f}" text-anchor="middle" transform="rotate(-90 14 {(_TOP + bottom) / 2:.0f})">'
            "drop, points</text>"
        ),
    ]


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'
