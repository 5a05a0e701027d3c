"""One call of ``VLLMEngine.sample`` or ``stream``: what it asked vLLM for, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from arrol_tts.engine.base import make_trace
from arrol_tts.engine.request import Question, Sampling, StopQuestion
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.events import Progress
from arrol_tts.trace import Trace

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

    from arrol_tts.engine.vllm_loop import VLLMLoop
    from arrol_tts.stopping import TraceSpec
    from arrol_tts.trace import FinishReason

T = TypeVar("T", bound=Trace | Progress)


@dataclass(eq=False, slots=True)
class _Request:
    question: Question
    sample_id: int
    internal_id: str
    stop: tuple[str, ...] = ()
    token_ids: list[int] = field(default_factory=list)
    progress: Progress | None = None


class Run:
    """The requests of one call, and an inbox for who iterates over it.

    Everything but ``inbox`` is touched on the loop's thread only.

    Args:
        loop: the engine's.
        tokenizer: the model's.
        stop_question: see ``Engine.sample``.
        every: seconds between reports of progress, None for none.
    """

    _names = itertools.count()

    def __init__(
        self, loop: VLLMLoop, tokenizer: Any, stop_question: StopQuestion, every: float | None = None
    ) -> None:
        self.loop = loop
        self.inbox: queue.SimpleQueue[Progress | Trace | Exception | None] = queue.SimpleQueue()
        self._tokenizer, self._stop_question, self._every = tokenizer, stop_question, every
        self._pending: dict[str, _Request] = {}
        self._stopped: dict[str, str] = {}
        self._news: dict[str, Progress] = {}
        self._reported = 0.0

    def submit(
        self, engine: LLMEngine, work: Sequence[tuple[Question, list[int], TraceSpec]], sampling: Sampling
    ) -> None:
        """Hand all traces to vLLM: ``sampling.n`` of each question, its prompt's token ids and its spec."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        live = self._every is not None
        try:
            for question, prompt, spec in work:
                for sample_id in question.wanted(sampling.n):
                    # One request per trace: with n > 1 only the last-finishing sample's log would survive.
                    params = SamplingParams(
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=sampling.top_k,
                        max_tokens=sampling.max_tokens,
                        seed=sampling.seed_of(question.id, sample_id),
                        logprobs=0 if spec.logprobs else None,
                        detokenize=live,
                        output_kind=RequestOutputKind.DELTA if live else RequestOutputKind.FINAL_ONLY,
                        extra_args={CONFIG_KEY: spec.to_dict()} if spec.asks_anything else None,
                    )
                    name = str(next(self._names))
                    internal_id = str(engine.add_request(name, tokens_input(prompt), params))
                    self._pending[name] = _Request(question, sample_id, internal_id, spec.stop)
                    self.loop.listen(name, self)
        except BaseException:
            self.abort(engine)
            raise
        if not self._pending:
            self.inbox.put(None)

    def receive(self, output: RequestOutput) -> None:
        """A request of this run has news, or has finished."""
        name = output.request_id
        request = self._pending.get(name)
        if request is None:
            return  # it finished in the step in which its run was given up
        completion = output.outputs[0]
        log = (output.kv_transfer_params or {}).get(CONFIG_KEY, {})
        request.token_ids += completion.token_ids
        if not output.finished:
            self._note(name, request, completion.text, log)
            return
        del self._pending[name]
        self._news.pop(name, None)
        if "error" in log:
            self.failed(ValueError(log["error"]))
            return
        reason: FinishReason = "length" if completion.finish_reason == "length" else "stop"
        trace = self._trace(request, request.token_ids, reason, log)
        try:
            if why := self._stop_question(trace):
                self._stopped.setdefault(request.question.id, why)
        except Exception as error:  # the caller's own: it belongs to the caller
            self.failed(error)
            return
        self.inbox.put(trace)

    def step_ended(self, engine: LLMEngine) -> None:
        """Cancel what is not needed any more, and report progress when it is time."""
        if self._stopped:
            unneeded = [name for name, r in self._pending.items() if r.question.id in self._stopped]
            self._cancel(engine, unneeded, self._stopped)
            self._stopped = {}
        now = time.monotonic()
        if self._news and self._every is not None and now - self._reported >= self._every:
            for progress in self._news.values():
                self.inbox.put(progress)
            self._news.clear()
            self._reported = now
        if not self._pending:
            self.inbox.put(None)

    def failed(self, error: Exception) -> None:
        """Tell who iterates; the rest of the run is given up."""
        self.inbox.put(error)
        self.loop.post(self.abort)

    def abort(self, engine: LLMEngine) -> None:
        """Nobody wants the rest."""
        pending, self._pending = self._pending, {}
        for name in pending:
            self.loop.forget(name)
        self._abort(engine, list(pending.values()))

    def _note(self, name: str, request: _Request, text: str, log: Mapping[str, Any]) -> None:
        news = self._news.get(name)
        if news is None:
            news = self._news[name] = Progress(request.question.id, request.sample_id)
        news.num_tokens = len(request.token_ids)
        news.text += text
        news.scores |= {int(k): score for k, score in log.get("scores", ()) if score is not None}

    def _cancel(self, engine: LLMEngine, names: list[str], why: Mapping[str, str]) -> None:
        """Abort requests; their traces end where they are, for the reason given for their question."""
        requests = [self._pending.pop(name) for name in names]
        states = engine.output_processor.request_states
        so_far = [list(states[request.internal_id].detokenizer.output_token_ids) for request in requests]
        for name in names:
            self.loop.forget(name)
            self._news.pop(name, None)
        self._abort(engine, requests)
        for request, token_ids in zip(requests, so_far, strict=True):
            self.inbox.put(self._trace(request, token_ids, "cancelled", {}, why[request.question.id]))

    @staticmethod
    def _abort(engine: LLMEngine, requests: list[_Request]) -> None:
        if requests:
            engine.abort_request([request.internal_id for request in requests], internal=True)

    def _trace(
        self,
        request: _Request,
        token_ids: Sequence[int],
        reason: FinishReason,
        log: dict[str, Any],
        detail: str = "",
    ) -> Trace:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return make_trace(request.question, request.sample_id, text, token_ids, reason, log, detail, request.stop)


class Sampled(Iterator[T], Generic[T]):
    """What a run brings, as it comes; closing it, or dropping it, aborts the rest."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._ended = False

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item: Any = self._run.inbox.get()
        if item is None or isinstance(item, Exception):
            self._ended = True
            raise item or StopIteration
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Abort what is still being written; it has ended when this returns."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(RuntimeError):  # an engine that is gone has aborted everything
                self._run.loop.call(self._run.abort)

    def __del__(self) -> None:
        if not self._ended:
            self._run.loop.post(self._run.abort)
