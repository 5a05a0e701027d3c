"""The result of a run as one SVG that needs no style sheet, to be saved."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from arrol_tts.voter import WeightedVoter

from .charts import HEIGHT, LIGHT_STYLE, WIDTH
from .recording import Recording

MARGIN, LINE = 24, 20
_MARKS = {True: " ✓ right", False: " ✗ wrong", None: ""}


def picture(recording: Recording, voter: WeightedVoter) -> str:
    """Question, votes, tokens and scores of a recording's runs, one below the other."""
    parts: list[str] = []
    y = MARGIN + 8
    parts.append(_text(y, recording.question, size=18, bold=True))
    for run in recording.runs:
        state = run.state_at(run.num_tokens, voter.vote).payload()
        for text, bold in _lines(state):
            y += LINE
            parts.append(_text(y, text, bold=bold))
        parts.append(f'<g transform="translate({MARGIN} {y + 8})">{_inner(state["chart"])}</g>')
        y += HEIGHT + 16
    width, height = WIDTH + 2 * MARGIN, y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
        f"<style>{LIGHT_STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>'
    )


def _lines(state: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    yield state["label"], False
    for tally in state["tally"]:
        first = tally["rows"][0]
        votes = f"{first['share']:.0%} of the weight, {first['votes']} votes"
        yield f"{tally['method']}: {tally['answer']}{_MARKS[tally['right']]} ({votes})", True
    counts = ", ".join(f"{count} {name}" for name, count in state["counts"].items() if count)
    yield f"{state['tokens']:,} tokens spent, about {state['saved']:,} saved; {counts}", False


def _text(y: int, text: str, *, size: int = 14, bold: bool = False) -> str:
    text = "".join(c for c in text if c.isprintable())  # XML knows no control characters
    text = text if len(text) <= 80 else text[:77] + "..."
    weight = ' font-weight="700"' if bold else ""
    return f'<text x="{MARGIN}" y="{y}" font-size="{size}"{weight}>{escape(text)}</text>'


def _inner(svg: str) -> str:
    """What is inside an ``<svg>`` element."""
    return svg[svg.index(">") + 1 : svg.rindex("</svg>")]
