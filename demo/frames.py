"""Frames: what the page is sent, of runs under way and of recordings."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from arrol_tts.voter import WeightedVoter

from .recording import Recording
from .run_state import RunState

UPDATE_SECONDS = 0.1
"""Time between two frames."""
CHART_EVERY = 5
"""The chart is drawn anew with every so many frames."""
PLAY_FRAMES = 80
"""Frames of a recording that is played."""

Frame = dict[str, Any]
"""The page's state as plain JSON; docs/demo.md lists its fields."""


@dataclass(slots=True)
class Stop:
    """Set by a user's stop button."""

    pressed: bool = False


async def play(
    recording: Recording, voter: WeightedVoter, stop: Stop, *, identity: str = ""
) -> AsyncIterator[tuple[int, Frame]]:
    """Play a recording from its start; yields the token that it has come to, and the frame."""
    last = recording.num_tokens
    for number in range(PLAY_FRAMES + 1):
        if stop.pressed:
            return
        tick = round(last * number / PLAY_FRAMES)
        yield tick, show(recording, tick, voter, identity=identity, update=number)
        await asyncio.sleep(UPDATE_SECONDS)


def show(recording: Recording, tick: int, voter: WeightedVoter, *, identity: str = "", update: int = 0) -> Frame:
    """One frame of a recording: when every trace has written ``tick`` tokens."""
    states = [run.state_at(tick, voter.vote) for run in recording.runs]
    return _frame(recording.question, states, update=update, id=identity)


class Frames:
    """Numbers the frames of one ask, and draws its charts now and then."""

    def __init__(self, question: str, link: str, states: list[RunState]) -> None:
        self._question, self._link, self._states = question, link, states
        self._numbers = itertools.count()

    def next(self, **more: Any) -> Frame:
        """The next frame; ``id`` names the recording when the runs are over."""
        number = next(self._numbers)
        chart = number % CHART_EVERY == 0
        return _frame(self._question, self._states, chart=chart, update=number, link=self._link, **more)


def _frame(question: str, states: list[RunState], *, chart: bool = True, **more: Any) -> Frame:
    return {
        "question": question,
        "message": "",
        "id": "",
        "link": "",
        **more,
        "runs": [state.payload(chart=chart) for state in states],
    }


def message(text: str) -> Frame:
    """A frame that says something instead of showing runs."""
    return {"question": "", "message": text, "id": "", "link": "", "update": 0, "runs": []}
