"""Live runs: questions are sampled on one shared engine, and every tenth of a second the page gets a frame."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from arrol_tts.answers import answers_equal
from arrol_tts.errors import EngineError, ServerError
from arrol_tts.voter import WeightedVoter

from .choices import Ask
from .frames import UPDATE_SECONDS, Frame, Frames, Stop
from .recording import RecordedRun, Recording, Recordings
from .run_state import RunState


@dataclass(slots=True)
class LiveRunner:
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

    async def run(self, ask: Ask, stop: Stop) -> AsyncGenerator[Frame, None]:
        """Sample an ask's runs at the same time; yields frames until all are over.

        Closing the iterator cancels what is still being generated.

        Raises:
            InputError: for choices that cannot work, before anything is generated.
            EngineError: when the language model could not be loaded, or no server is left that answers.
        """
        reference = self.reference(ask.question)
        options = [one.options(window=self.window, max_tokens=self.max_tokens) for one in ask.choices]
        states = [
            RunState(range(one.n), label=one.label, vote=self.voter.vote, at=one.prunes_at, reference=reference)
            for one in ask.choices
        ]
        frames = Frames(ask.question, ask.link, states)
        yield frames.next()
        while not self.ready.is_set():
            await asyncio.sleep(UPDATE_SECONDS)
        if self.failure:
            raise EngineError(self.failure)
        runs = [
            asyncio.create_task(self._run(ask.question, one.n, given, state))
            for one, given, state in zip(ask.choices, options, states, strict=True)
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
        (identity,) = self.recordings.add([Recording(ask.question, recorded)])
        yield frames.next(id=identity)

    async def _run(self, question: str, n: int, options: dict[str, Any], state: RunState) -> None:
        async for event in self.voter.astream(
            [question], n, every=UPDATE_SECONDS, score_every=self.score_every, confidence=True, **options
        ):
            state.apply(event)
        state.finish()
