"""What every engine offers: questions in, traces out, scored and stopped on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from arrol_tts.engine.request import Question, Request, Sampling, StopQuestion, check_request, never_stop
from arrol_tts.events import Progress
from arrol_tts.stopping import TraceSpec
from arrol_tts.trace import Trace

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from arrol_tts.engine.handover import HeadSource

DEFAULT_TOP_K = 20
"""Candidates of a token confidence: DeepConf's."""

T = TypeVar("T", bound=Trace | Progress)


class Run(ABC):
    """A request at work in an engine; everything here is called by who iterates over the traces."""

    @abstractmethod
    def __next__(self) -> Trace | Progress:
        """Wait for the next trace that ended, or for progress where the request asked for it.

        Every trace that was asked for comes once, however it ended; nobody waits for more than there are.

        Raises:
            StopIteration: when the run was closed.
        """

    @abstractmethod
    def add(self, request: Request) -> None:
        """Set more of the same call to work, without waiting for it; nothing happens once the run is closed."""

    @abstractmethod
    def cancel(self, question_id: str, why: str) -> None:
        """End what a question still has running, without waiting for it.

        Its traces come as cancelled ones, with the reason; those that end before the engine hears of it come as
        what they are.
        """

    @abstractmethod
    def close(self) -> None:
        """Abort what is still being written; it has ended when this returns."""

    def abandon(self) -> None:
        """As ``close``, without waiting: nobody is left who would."""
        self.close()


class Sampled(Iterator[T], Generic[T]):
    """What a run brings, as it comes; closing it, or dropping it, aborts the rest."""

    def __init__(self, run: Run, request: Request, stop_question: StopQuestion) -> None:
        self._run, self._request, self._stop_question = run, request, stop_question
        self._left = request.traces
        self._ended = False

    def __next__(self) -> T:
        if not self._left and not self._ended:
            self._ended = True
            self._run.abandon()
        if self._ended:
            raise StopIteration
        try:
            item = next(self._run)
            if isinstance(item, Trace):
                self._left -= 1
                if item.finish_reason != "cancelled" and (why := self._stop_question(item)):
                    self._run.cancel(item.question_id, why)
        except StopIteration:
            self._ended = True
            raise
        except Exception:
            self.close()
            raise
        return item  # type: ignore[return-value]  # progress comes to those who asked for it only

    def add(self, question_id: str, samples: Sequence[int]) -> None:
        """Ask for more traces of one of the questions, beside what is still being written.

        To be called by who iterates, at the latest when the last trace was taken. The new traces are a group of
        their own: rules compare them with each other.

        Args:
            question_id: of a question of this call that was not cancelled.
            samples: the numbers of the new traces; their seeds are those that they have in any call.

        Raises:
            KeyError: when there is no such question.
        """
        request = self._request.more(question_id, samples)
        self._left += len(samples)
        self._run.add(request)

    def close(self) -> None:
        """Abort what is still being written; it has ended when this returns."""
        if not self._ended:
            self._run.close()
            self._ended = True

    def __del__(self) -> None:
        if not self._ended:
            self._run.abandon()


class Engine(ABC):
    """Samples questions with a language model, scoring and stopping traces while they are written.

    Several threads may sample at once.

    Attributes:
        model: path or hub id of the language model.
        hidden_size: width of its hidden states.
    """

    model: str
    hidden_size: int

    @property
    @abstractmethod
    def heads(self) -> Collection[str]:
        """Names of the heads that it can score with; "" is the default one."""

    def sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
    ) -> Sampled[Trace]:
        """Sample ``sampling.n`` traces of every question.

        The engine's own threads only hand over a trace that has ended. It is decoded where it is taken from the
        iterator, and ``stop_question`` is called there, so that slow answer parsing and votes hold up their caller
        and nobody else; a question that needs no more is cancelled from there too.

        Args:
            questions: with distinct ids.
            sampling: how to sample.
            spec: what to record and when to stop; its group and size are set for each question.
            stop_question: called with every trace that ends other than by being cancelled; when it gives a reason,
                the question's other traces are cancelled at once, and carry the reason. Those that had ended by
                then come as what they are.

        Returns:
            An iterator of traces as they end, without ``answer``; all of them, the pruned ones too. Closing it, or
            dropping it, aborts the rest.

        Raises:
            InputError: before anything is generated, when questions, sampling and spec do not fit each other or
                the engine.
            EngineError: here or while iterating, when the engine is gone.
        """
        self.check(questions, sampling, spec or TraceSpec())
        request = Request.of(questions, sampling, spec, cancels=stop_question is not never_stop)
        return Sampled(self._start(request), request, stop_question)

    def stream(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
        every: float = 0.1,
    ) -> Sampled[Progress | Trace]:
        """As ``sample``, with reports of progress between the traces.

        Args:
            questions: as in ``sample``.
            sampling: as in ``sample``.
            spec: as in ``sample``; scores are reported when they are known (``score_every`` for more of them).
            stop_question: as in ``sample``.
            every: seconds between reports; a trace that wrote nothing since the last is left out.

        Returns:
            An iterator of traces as they end, and of what the others wrote meanwhile. What a trace wrote after its
            last Progress is in the Trace.
        """
        self.check(questions, sampling, spec or TraceSpec())
        request = Request.of(questions, sampling, spec, every, cancels=stop_question is not never_stop)
        return Sampled(self._start(request), request, stop_question)

    def check(self, questions: Sequence[Question], sampling: Sampling, spec: TraceSpec) -> None:
        """Refuse what cannot work, before anything is generated.

        Raises:
            InputError: saying what to change.
        """
        check_request(questions, sampling, spec, has_head=spec.head in self.heads)

    def trouble(self) -> str:
        """Why nothing can be sampled now, in words; "" while it can. May wait for a server."""
        return ""

    @abstractmethod
    def _start(self, request: Request) -> Run:
        """Set a checked request to work."""

    def takes_head(self, name: str = "") -> bool:
        """Whether `load_head` can give it a head of that name."""
        return True

    @abstractmethod
    def load_head(self, head: HeadSource, name: str = "") -> None:
        """Load a quality head, or replace the one of that name, while the engine runs.

        Traces are scored by the head that their spec names; the weights take effect between two steps. A trace
        that is being written keeps what the head before has read of it: where both pool in the same way, its
        scores are the mean over both. For scores of one head alone, load it while nothing is being sampled.

        Args:
            head: folder or hub id of a head, ``"pocket"``, or the head itself.
            name: ``spec.head`` names it.

        Raises:
            HeadError: when the head is for another hidden size, or cannot be read.
            EngineError: when the engine takes none.
        """

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]] | str | Path) -> None:
        """Replace the language model's weights while the engine is idle.

        Args:
            weights: all of them: names, as in the checkpoint, and tensors; or a safetensors file of them.

        Raises:
            InputError: when they are not this model's; the engine cannot be used afterwards.
            EngineError: while traces are being sampled, whose tokens would come from two models, or when the
                engine takes none.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model; the engine cannot be used afterwards."""


def hidden_size_of(model: str | Path) -> int:
    """Width of a model's hidden states, read from its config alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model))
    return int(config.get_text_config().hidden_size)
