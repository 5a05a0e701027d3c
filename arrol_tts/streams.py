"""A call under way: traces as they end, grouped by question, and the events that they make."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from arrol_tts.engine.request import never_stop
from arrol_tts.events import Ended, Event, Progress, Voted
from arrol_tts.trace import Trace

if TYPE_CHECKING:
    from arrol_tts.engine.base import Engine, Sampled
    from arrol_tts.plan import Plan
    from arrol_tts.voting import VoteResult

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Closing(Protocol[T_co]):
    """An iterator whose source stops when it is closed; generators are some."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __next__(self) -> T_co: ...

    def close(self) -> None:
        """Stop the source."""


class Asking(Iterator[Progress | Trace]):
    """The questions of a plan on their way through an engine; finished traces have their answers.

    Args:
        engine: samples them.
        plan: what to ask.
        extract: reads the answer off a finished trace's text.
        reached: gives why a question needs no more traces, from those that have ended; "" while it does. Asked
            whenever a trace has ended, where the plan has a consensus.
        more: gives how many traces of a question to start next, from all that were started. Asked whenever they
            have ended, where the plan has waves.
        every: seconds between reports of progress; None for traces alone.

    Raises:
        InputError: when the plan does not fit the engine; before anything is generated.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        plan: Plan,
        *,
        extract: Callable[[str], str | None],
        reached: Callable[[list[Trace]], str],
        more: Callable[[list[Trace]], int],
        every: float | None = None,
    ) -> None:
        self._extract, self._reached, self._more = extract, reached, more
        self._groups: dict[str, dict[int, Trace]] = {question.id: {} for question in plan.questions}
        self.plan = plan
        n = plan.sampling.n if plan.waves is None else plan.waves.start
        self._sizes = {question.id: len(question.wanted(n)) for question in plan.questions}
        self._clear: set[str] = set()
        self._source: Sampled[Trace] | Sampled[Progress | Trace] | None = None
        if not plan.questions:
            return
        asked = (plan.questions, replace(plan.sampling, n=n), plan.spec)
        stop = never_stop if plan.consensus is None else self._stop_question
        if every is None:
            self._source = engine().sample(*asked, stop_question=stop)
        else:
            self._source = engine().stream(*asked, stop_question=stop, every=every)

    def __next__(self) -> Progress | Trace:
        if self._source is None:
            raise StopIteration
        item = next(self._source)
        if isinstance(item, Trace):
            self._take(item)
            if self.plan.waves is not None and self.is_whole(item.question_id):
                self._start_wave(self._source, item.question_id)
        return item

    def close(self) -> None:
        """Abort what is still being sampled."""
        if self._source is not None:
            self._source.close()

    @property
    def question_ids(self) -> list[str]:
        """The questions, in their order."""
        return list(self._groups)

    def group(self, question_id: str) -> list[Trace]:
        """The traces of a question that have ended, by sample id."""
        group = self._groups[question_id]
        return [group[sample_id] for sample_id in sorted(group)]

    def is_whole(self, question_id: str) -> bool:
        """Whether all traces of a question that were started have ended."""
        return len(self._groups[question_id]) == self._sizes[question_id]

    def unstarted(self, question_id: str) -> int:
        """How many of the n traces of a question waves have not started."""
        return 0 if self.plan.waves is None else self.plan.sampling.n - self._sizes[question_id]

    def _take(self, trace: Trace) -> None:
        """Read a trace's answer, and put it to its question; once, whoever sees it first."""
        group = self._groups[trace.question_id]
        if trace.sample_id not in group:
            group[trace.sample_id] = trace
            if trace.finish_reason == "stop" and trace.answer is None:
                from arrol_tts.answers.of_trace import answer_of  # importing arrol_tts is quick

                trace.answer = answer_of(trace, self._extract)

    def _start_wave(self, source: Sampled[Trace] | Sampled[Progress | Trace], question_id: str) -> None:
        """Ask for the next traces of a question, by their numbers, while it needs some."""
        if question_id in self._clear:
            return
        started = self._sizes[question_id]
        try:
            more = self._more(self.group(question_id))
        except Exception:
            self.close()
            raise
        if more:
            self._sizes[question_id] += more
            source.add(question_id, range(started, started + more))

    def _stop_question(self, trace: Trace) -> str:
        self._take(trace)
        why = self._reached(list(self._groups[trace.question_id].values()))
        if why:
            self._clear.add(trace.question_id)
        return why


class Outcome(Iterator[Trace | T], Generic[T]):
    """What comes of a call once its traces have ended; before it the traces, for those who want them.

    Args:
        asking: the call.
        outcome: works it out.
        traces: whether the traces are wanted.
    """

    def __init__(self, asking: Asking, outcome: Callable[[Asking], T], *, traces: bool) -> None:
        self._asking, self._outcome, self._traces = asking, outcome, traces
        self._is_over = False

    def __next__(self) -> Trace | T:
        for item in self._asking:
            if self._traces and isinstance(item, Trace):
                return item
        if self._is_over:
            raise StopIteration
        self._is_over = True
        return self._outcome(self._asking)

    def close(self) -> None:
        """Abort the sampling."""
        self._is_over = True
        self._asking.close()


class EventStream(Iterator[Event]):
    """Progress and traces as events, with the vote so far after every answer.

    Args:
        asking: the call.
        vote: over the traces of the named question that have ended.
    """

    def __init__(self, asking: Asking, vote: Callable[[str], VoteResult]) -> None:
        self._asking, self._vote = asking, vote
        self._next: deque[Event] = deque()

    def __next__(self) -> Event:
        if not self._next:
            item = next(self._asking)
            if isinstance(item, Progress):
                return item
            self._next.append(Ended(item))
            if item.answer is not None or self._asking.is_whole(item.question_id):
                self._next.append(Voted(self._vote(item.question_id)))
        return self._next.popleft()

    def close(self) -> None:
        """Abort the sampling."""
        self._asking.close()
