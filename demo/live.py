"""Live runs: questions are sampled on one shared engine, and every tenth of a second the page gets a frame."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from arrol_tts.answers import answers_equal
from arrol_tts.confidence import WINDOW
from arrol_tts.errors import EngineError, InputError, ServerError
from arrol_tts.events import Event
from arrol_tts.voter import WeightedVoter

from .choices import RULES, Ask, Choices
from .endpoint import Endpoint
from .frames import UPDATE_SECONDS, Frame, Frames, Stop
from .recording import RecordedRun, Recording, Recordings
from .request import Served, request_of
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
        endpoint: an ``arrol-serve`` that samples, in place of the voter's engine.
        system: system prompt of requests to an endpoint, in place of the head's own; None: that.
        served: where an app would ask for the same answers; None: nothing is said of it.
    """

    voter: WeightedVoter
    recordings: Recordings
    max_tokens: int
    score_every: int
    reference: Callable[[str], str | None] = lambda _question: None
    on_end: Callable[[RunState], None] = lambda _state: None
    endpoint: Endpoint | None = None
    system: str | None = None
    served: Served | None = None

    ready: threading.Event = field(default_factory=threading.Event)
    failure: str = ""

    def warm_up(self) -> None:
        """Load the engine and the answer parser, and run both once: the first time is slow."""
        try:
            answers_equal("1/2", "0.5")
            if self.endpoint is not None:
                return
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
        """DeepConf's window: the head's own, else the published one, but an eighth of the longest trace at most.

        No trace is stopped before its first whole window.
        """
        own = self.voter.config.voting.get("deepconf", {}) if self.voter.config else {}
        return min(int(own.get("window", WINDOW)), max(1, self.max_tokens // 8))

    async def run(self, ask: Ask, stop: Stop) -> AsyncGenerator[Frame, None]:
        """Sample an ask's runs at the same time; yields frames until all are over.

        Closing the iterator cancels what is still being generated.

        Raises:
            InputError: for choices that cannot work, before anything is generated.
            EngineError: when the language model could not be loaded, or no server is left that answers.
        """
        reference = self.reference(ask.question)
        sources = [self._source(ask.question, one) for one in ask.choices]
        states = [
            RunState(
                range(one.n),
                label=one.label,
                vote=self.voter.vote,
                at=one.prunes_at,
                reference=reference,
                request=self._words(ask.question, one),
            )
            for one in ask.choices
        ]
        frames = Frames(ask.question, ask.link, states)
        yield frames.next()
        while not self.ready.is_set():
            await asyncio.sleep(UPDATE_SECONDS)
        if self.failure:
            raise EngineError(self.failure)
        runs = [
            asyncio.create_task(_follow(source(), state)) for source, state in zip(sources, states, strict=True)
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

    def _source(self, question: str, one: Choices) -> Callable[[], AsyncIterator[Event]]:
        """What starts the sampling of a run.

        Raises:
            InputError: for choices that cannot work.
        """
        options = one.options(window=self.window, max_tokens=self.max_tokens)
        if self.endpoint is None:
            more: dict[str, Any] = {"every": UPDATE_SECONDS, "score_every": self.score_every, "confidence": True}
            return partial(self.voter.astream, [question], one.n, **options, **more)
        request = self._request(question, one)
        if request is None:
            raise InputError(
                f"the endpoint has no rule {RULES[one.rule]!r}: choose {RULES['share']!r} or {RULES['none']!r}"
            )
        return partial(self.endpoint.astream, request)

    def _request(self, question: str, one: Choices) -> dict[str, Any] | None:
        limits = {"max_tokens": self.max_tokens, "score_every": self.score_every}
        return request_of(question, one, **limits, system=self.system)

    def _words(self, question: str, one: Choices) -> str:
        request = self._request(question, one)
        return "" if self.served is None or request is None else self.served.words(request)


async def _follow(events: AsyncIterator[Event], state: RunState) -> None:
    async for event in events:
        state.apply(event)
    state.finish()
