"""Line charts as SVG text: their colours come from the page's style sheet, so they follow light and dark.

Nothing here depends on colour alone: lines differ in dashes, points in shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 24, 46

LIGHT_STYLE = """
svg{font:12px system-ui,sans-serif;color:#1f2937}text{fill:currentColor}
.grid{stroke:currentColor;opacity:.15}.rule{stroke:currentColor;stroke-dasharray:2 3;opacity:.7}
.line,.mark{fill:none;stroke:currentColor;stroke-width:1.5}
.good{color:#15803d}.bad{color:#b91c1c}.cut{color:#6b7280;opacity:.6}.open{color:#2563eb}
"""
"""The style of a picture that leaves the page; inside it ``page.css`` holds one that follows light and dark."""


@dataclass(slots=True)
class Axes:
    """A rectangle of data drawn into an SVG.

    Args:
        x: data limits, left and right.
        y: data limits, bottom and top.
        x_label, y_label: what is measured, with units.
        title: what the picture says, for readers who do not see it.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    title: str
    _parts: list[str] = field(default_factory=list)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Data to picture coordinates."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def ticks(self, x: Iterable[float], y: Iterable[float]) -> None:
        """Grid lines with numbers."""
        for value in x:
            px, py = self.point(value, self.y[0])
            self._parts.append(f'<line class="grid" x1="{px:.1f}" y1="{TOP}" x2="{px:.1f}" y2="{py:.1f}"/>')
            self.text(px, py + 16, f"{value:,.0f}", "middle")
        for value in y:
            px, py = self.point(self.x[0], value)
            self._parts.append(
                f'<line class="grid" x1="{px:.1f}" y1="{py:.1f}" x2="{WIDTH - RIGHT}" y2="{py:.1f}"/>'
            )
            self.text(px - 6, py + 4, f"{value:g}", "end")

    def text(self, px: float, py: float, text: str, anchor: str = "start") -> None:
        """Text at picture coordinates."""
        self._parts.append(f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[tuple[float, float]], *, dash: str = "", css: str = "line") -> None:
        """A line through data points."""
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (self.point(x, y) for x, y in points))
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(f'<polyline class="{css}" points="{path}"{dashes}/>')

    def mark(self, x: float, y: float, shape: str) -> None:
        """A ``ring``, ``cross``, ``bar`` or ``square`` at a data point."""
        px, py = self.point(x, y)
        paths = {
            "ring": f"M{px - 4:.1f},{py:.1f}a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
            "cross": f"M{px - 4:.1f},{py - 4:.1f}l8,8m0,-8l-8,8",
            "bar": f"M{px:.1f},{py - 5:.1f}v10",
            "square": f"M{px - 3.5:.1f},{py - 3.5:.1f}h7v7h-7z",
        }
        self._parts.append(f'<path class="mark" d="{paths[shape]}"/>')

    def begin(self, css: str) -> None:
        """Start a group with a class of its own."""
        self._parts.append(f'<g class="{css}">')

    def end(self) -> None:
        """End the group."""
        self._parts.append("</g>")

    def svg(self) -> str:
        """The picture."""
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, self.x_label, "middle")
        middle = (TOP + HEIGHT - BOTTOM) / 2
        self._parts.append(
            f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
            f"<title>{escape(self.title)}</title>{''.join(self._parts)}</svg>"
        )


def score_chart(traces: Sequence[tuple[Mapping[int, float], str, bool | None]], *, at: int | None) -> str:
    """The head's score of every trace over its position.

    Args:
        traces: ``({position: score}, status, right or wrong)`` of each.
        at: detection position, marked by a vertical line.
    """
    last = max([position for scores, _, _ in traces for position in scores] + [(at or 0) * 2, 16])
    axes = Axes(
        (0, last), (0, 1), "generated tokens", "score", "score of the quality head along each trace, by outcome"
    )
    axes.ticks(range(0, last + 1, _step(last)), (0, 0.5, 1))
    if at is not None:
        axes.line([(at, 0), (at, 1)], css="rule")
        px, _ = axes.point(at, 1)
        axes.text(px, TOP - 8, f"pruned here: token {at}", "middle")
    for scores, status, right in traces:
        points = sorted(scores.items())
        if not points:
            continue
        css, dash, shape = _look(status, right)
        axes.begin(css)
        axes.line(points, dash=dash)
        if shape:
            axes.mark(*points[-1], shape)
        axes.end()
    return axes.svg()


def _look(status: str, right: bool | None) -> tuple[str, str, str]:
    """Class, dashes and end mark of a trace's line."""
    if status == "pruned":
        return "cut", "2 3", "bar"
    if right is not None:
        return ("good", "", "ring") if right else ("bad", "6 3", "cross")
    return "open", "", "square" if status in ("stop", "length") else ""


def reliability_chart(counts: Sequence[int], right: Sequence[int]) -> str:
    """Share of right answers against the head's score, in equal bins of the score.

    Args:
        counts: traces in each bin.
        right: how many of them were right.
    """
    axes = Axes((0, 1), (0, 1), "score of the head", "share right", "reliability: share right against score")
    axes.ticks((0, 1), (0, 0.5, 1))
    axes.line([(0, 0), (1, 1)], css="rule")
    bins = len(counts)
    points = [((i + 0.5) / bins, r / c, c) for i, (c, r) in enumerate(zip(counts, right, strict=True)) if c]
    axes.line([(x, y) for x, y, _ in points])
    for x, y, count in points:
        axes.mark(x, y, "ring")
        px, py = axes.point(x, y)
        axes.text(px, py - 8 if y < 0.9 else py + 18, f"{count}", "middle")
    return axes.svg()


def accuracy_chart(series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Accuracy against generated tokens a question, one line for each method.

    Args:
        series: ``{method: [(tokens, accuracy), ...]}``.
    """
    most = max(tokens for points in series.values() for tokens, _ in points)
    least = min(accuracy for points in series.values() for _, accuracy in points)
    axes = Axes(
        (0, most * 1.02),
        (max(0.0, least // 0.1 / 10 - 0.1), 1),
        "generated tokens a question",
        "accuracy",
        "accuracy against generated tokens by voting method",
    )
    axes.ticks(range(0, int(most) + 1, _step(int(most))), [t / 10 for t in range(11) if t / 10 >= axes.y[0]])
    looks = (("", "ring"), ("6 3", "cross"), ("2 3", "square"), ("8 3 2 3", "bar"))
    for i, (name, points) in enumerate(series.items()):
        dash, shape = looks[i % len(looks)]
        axes.begin(f"series{i % len(looks)}")
        axes.line(sorted(points), dash=dash)
        for x, y in points:
            axes.mark(x, y, shape)
        x, y = axes.x[1] * 0.62, axes.y[0] + (axes.y[1] - axes.y[0]) * (0.08 * (len(series) - i))
        axes.line([(x, y), (x + axes.x[1] * 0.06, y)], dash=dash)
        axes.mark(x + axes.x[1] * 0.03, y, shape)
        px, py = axes.point(x + axes.x[1] * 0.07, y)
        axes.text(px, py + 4, name.replace("_", " "))
        axes.end()
    return axes.svg()


def _step(last: int) -> int:
    """A round distance between ticks that gives at most nine of them."""
    step = 1
    while last / step > 8:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step
