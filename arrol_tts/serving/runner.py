"""Requests at work: a voter for each, one engine for all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from arrol_tts.answers import answers_equal
from arrol_tts.engine.request import Sampling
from arrol_tts.errors import EngineError, InputError
from arrol_tts.events import Ended, Event, Voted
from arrol_tts.prompts import Prompt
from arrol_tts.serving.choice import Choice
from arrol_tts.serving.queue import FairQueue
from arrol_tts.serving.replies import Forming
from arrol_tts.serving.settings import Kind
from arrol_tts.stopping import TraceSpec
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import METHODS, VoteResult

if TYPE_CHECKING:
    from arrol_tts.calibration import AnswerCalibration
    from arrol_tts.engine.base import Engine
    from arrol_tts.head_config import QualityHeadConfig
    from arrol_tts.plan import Asked

REPORT_SECONDS = 0.25
"""Between two reports of a vote that is not over."""


@dataclass(slots=True)
class Job:
    """A request on its way.

    Attributes:
        key: name of the API key, "" without keys.
        kind: of the request.
        prompts: by id: what to ask.
        choice: how to vote.
        began: when it came, by `time.perf_counter`.
        waited: seconds until it was its turn.
        results: of the votes, once they are over.
        failure: status of HTTP that would have told of an error, had the stream not begun.
    """

    key: str
    kind: Kind
    prompts: Mapping[str, Asked]
    choice: Choice
    began: float = field(default_factory=time.perf_counter)
    waited: float | None = None
    results: list[VoteResult] = field(default_factory=list)
    failure: int | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """Samples and votes.

    Args:
        engine: of the language model.
        config: of its quality head, None without one.
        queue: who may sample at once.
        calibration: of votes by its method, None for none.
    """

    engine: Engine
    config: QualityHeadConfig | None
    queue: FairQueue
    calibration: AnswerCalibration | None = None

    def warm_up(self) -> None:
        """Ask something once: the first time is slow."""
        answers_equal("1/2", "0.5")
        WeightedVoter(self.engine, config=self.config, method="majority").solve("2+3*4", 2, max_tokens=2, keep=1.0)

    def methods(self) -> list[str]:
        """The voting methods whose signals can be recorded here. May wait for a server."""
        can = {needs: self._can_record(needs) for needs in {info.needs for info in METHODS.values()}}
        return [name for name, info in METHODS.items() if can[info.needs]]

    def _can_record(self, needs: Collection[str]) -> bool:
        if "scores" in needs and self.config is None:
            return False
        spec = TraceSpec(
            confidence="confidence" in needs,
            self_certainty="self_certainty" in needs,
            score_finish="scores" in needs,
        )
        try:
            self.engine.check((), Sampling(), spec)
        except InputError:
            return False
        except EngineError:
            pass  # nobody is left who could say
        return True

    async def solve(self, job: Job) -> list[VoteResult]:
        """The votes on all prompts of a request, in order; cancelling it ends its samples.

        Raises:
            ApiError: a 429 when too many wait.
            InputError: when the engine cannot do what is asked.
            EngineError: when there is no engine any more.
        """
        async with self._turn(job):
            results = await self._voter(job).asolve_many(job.prompts, job.choice.n, **self._options(job.choice))
        job.results = [_judged(result, job.choice) for result in results]
        return job.results

    async def watch(self, job: Job) -> AsyncGenerator[list[Forming], None]:
        """As ``solve``, with the votes as they form; closing it ends the samples."""
        forming = {question_id: Forming(job.choice.n, traces=job.choice.traces) for question_id in job.prompts}
        async with self._turn(job):
            options = self._options(job.choice)
            events = self._voter(job).astream(job.prompts, job.choice.n, every=REPORT_SECONDS, **options)
            tell_at = time.perf_counter() + REPORT_SECONDS
            async with contextlib.aclosing(events):
                async for event in events:
                    forming[_question_of(event)].take(event)
                    if time.perf_counter() >= tell_at:
                        tell_at = time.perf_counter() + REPORT_SECONDS
                        yield list(forming.values())
        job.results = [_judged(vote.result, job.choice) for vote in forming.values() if vote.result is not None]

    @contextlib.asynccontextmanager
    async def _turn(self, job: Job) -> AsyncIterator[None]:
        async with self.queue.join(job.key, job.choice.n * len(job.prompts)):
            job.waited = time.perf_counter() - job.began
            yield

    def _voter(self, job: Job) -> WeightedVoter:
        choice = job.choice
        return WeightedVoter(
            self.engine,
            config=self.config,
            method=choice.method,
            extract=choice.extract,
            prompt=Prompt(chat=False) if job.kind == "text" else None,
            equality=choice.equality,
            percent=choice.percent,
        )

    def _options(self, choice: Choice) -> dict[str, Any]:
        options: dict[str, Any] = dict(choice.options)
        if self.calibration is not None and self.calibration.method == choice.method:
            options["calibration"] = self.calibration
        return options


def _judged(result: VoteResult, choice: Choice) -> VoteResult:
    """The vote, without an answer where it is less sure than was asked for."""
    least = choice.min_confidence
    if least is None or not result.table or result.confidence >= least:
        return result
    return replace(result, answer=None, abstained=True)


def _question_of(event: Event) -> str:
    if isinstance(event, Voted):
        return event.result.question_id
    return event.trace.question_id if isinstance(event, Ended) else event.question_id
