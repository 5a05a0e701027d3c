"""Runs questions on one shared engine and turns their events into what pages show."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from arrol_tts.answers import answers_equal
from arrol_tts.errors import ServerError
from arrol_tts.voter import WeightedVoter

from .recording import RecordedRun, Recording, Recordings
from .run_state import RunState
from .settings import Request, Settings

UPDATE_SECONDS = 0.1
"""Time between two updates of a page."""
CHART_EVERY = 5
"""The chart is drawn anew with every so many updates."""
PLAY_FRAMES = 80
"""Updates of a recording that is played."""

Frame = dict[str, Any]


@dataclass(slots=True)
class Stop:
    """Set by a user's stop button."""

    pressed: bool = False


@dataclass(slots=True)
class Runner:
    """Answers questions, one engine for all.

    Args:
        voter: with a head; its engine loads on first use.
        recordings: where runs that are over are kept.
        max_tokens: limit on a trace.
        score_every: tokens between two live scores.
        reference: the right answer of a question where it can be known.
        on_end: called with the traces of every run that is over.
    """

    voter: WeightedVoter
    recordings: Recordings
    max_tokens: int
    score_every: int
    reference: Callable[[str], str | None] = lambda _question: None
    on_end: Callable[[RunState], None] = lambda _state: None

    ready: threading.Event = field(default_factory=threading.Event)
    failure: str = ""

    def warm_up(self) -> None:
        """Load the engine and the answer parser, and run both once: the first time is slow."""
        try:
            answers_equal("1/2", "0.5")
            self.voter.sample(["2+3*4-5*6+7-8"], 8, keep=0.5, at=1, max_tokens=8)
        except ServerError as error:
            # It may be back when somebody asks, who is told if it is not.
            logging.getLogger(__name__).warning("%s", error)
        except Exception as error:
            self.failure = f"The language model could not be loaded: {error}"
            raise
        finally:
            self.ready.set()

    @property
    def window(self) -> int:
        """DeepConf's window: the head's, where it names one."""
        options = self.voter.config.voting.get("deepconf", {}) if self.voter.config else {}
        return int(options.get("window", 2048))

    async def run(self, request: Request, stop: Stop) -> AsyncGenerator[Frame, None]:
        """Sample a request's runs at the same time; yields frames until all are over.

        Closing the iterator cancels what is still being generated.

        Raises:
            ValueError: for settings that cannot work, before anything is generated.
            ServerError: when no server is left that answers.
        """
        reference = self.reference(request.question)
        options = [s.options(window=self.window, max_tokens=self.max_tokens) for s in request.settings]
        states = [
            RunState(range(s.n), label=s.label, vote=self.voter.vote, at=s.prunes_at, reference=reference)
            for s in request.settings
        ]
        frames = _Frames(request.question, request.link, states)
        yield frames.next()
        while not self.ready.is_set():
            await asyncio.sleep(UPDATE_SECONDS)
        if self.failure:
            raise ValueError(self.failure)
        runs = [
            asyncio.create_task(self._run(request.question, s, o, state))
            for s, o, state in zip(request.settings, options, states, strict=True)
        ]
        try:
            pending = set(runs)
            while pending and not stop.pressed:
                done, pending = await asyncio.wait(pending, timeout=UPDATE_SECONDS)
                for run in done:
                    run.result()  # raises what it raised
                if pending:
                    yield frames.next()
        finally:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
        for state in states:
            state.finish("stopped by you" if stop.pressed else "")
            self.on_end(state)
        recorded = tuple(
            RecordedRun(state.label, tuple(state.traces), state.at, state.reference) for state in states
        )
        (identity,) = self.recordings.add([Recording(request.question, recorded)])
        yield frames.next(id=identity)

    async def _run(self, question: str, settings: Settings, options: dict[str, Any], state: RunState) -> None:
        async for event in self.voter.astream(
            [question], settings.n, every=UPDATE_SECONDS, score_every=self.score_every, confidence=True, **options
        ):
            state.apply(event)
        state.finish()


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


class _Frames:
    """Numbers the frames of a request, and draws its charts now and then."""

    def __init__(self, question: str, link: str, states: list[RunState]) -> None:
        self._question, self._link, self._states = question, link, states
        self._numbers = itertools.count()

    def next(self, **more: Any) -> Frame:
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
