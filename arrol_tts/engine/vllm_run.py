"""One call of ``VLLMEngine.sample`` or ``stream``: what it asked vLLM for, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arrol_tts.engine.base import Run
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.errors import EngineError, InputError
from arrol_tts.events import Progress
from arrol_tts.stopping import TraceLog, TraceSpec

if TYPE_CHECKING:
    from concurrent.futures import Future

    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

    from arrol_tts.engine.decoder import Decoder
    from arrol_tts.engine.request import Question, Request
    from arrol_tts.engine.vllm_fields import ChatFields
    from arrol_tts.engine.vllm_loop import VLLMLoop
    from arrol_tts.trace import FinishReason, Trace


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a question comes to for vLLM.

    Attributes:
        prompt: token ids.
        opened: the prompt ends inside a thinking.
        fields: further fields of its requests, None without any.
    """

    prompt: list[int]
    opened: bool
    fields: ChatFields | None


@dataclass(eq=False, slots=True)
class _Running:
    """A trace that vLLM is writing."""

    question: Question
    sample_id: int
    spec: TraceSpec
    internal_id: str
    prepared: Prepared
    token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A trace that has ended, as it left the engine: nothing was decoded or unpacked."""

    trace: _Running
    token_ids: Sequence[int]
    finish_reason: FinishReason
    log: TraceLog | Mapping[str, Any]
    """The log itself where the engine core runs in this process, its wire form otherwise."""
    detail: str = ""
    cached_tokens: int | None = None


class VLLMRun(Run):
    """The requests of one call, and an inbox for who iterates over it.

    What the loop calls (``receive``, ``step_ended``, ``failed``, and ``abort``) runs on its thread, between the
    steps of the engine, and so only sorts and queues.

    Args:
        loop: the engine's.
        decoder: of the engine's model.
        prepare: makes a question ready for vLLM.
        every: seconds between reports of progress, None for none.
        in_process: the engine core runs in this process, where objects need not be serialised.
    """

    _names = itertools.count()

    def __init__(
        self,
        loop: VLLMLoop,
        decoder: Decoder,
        prepare: Callable[[Question], Prepared],
        every: float | None,
        *,
        in_process: bool,
    ) -> None:
        self.loop = loop
        self._inbox: queue.SimpleQueue[Progress | _Ended | Exception | None] = queue.SimpleQueue()
        self._decoder, self._prepare = decoder, prepare
        self._every, self._in_process = every, in_process
        self._pending: dict[str, _Running] = {}
        self._closed = False
        self._news: dict[str, Progress] = {}
        self._reported = 0.0

    def __next__(self) -> Trace | Progress:
        item = self._inbox.get()
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return self._read(item) if isinstance(item, _Ended) else item

    def add(self, request: Request) -> None:
        prepared = [self._prepare(question) for question in request.questions]

        def submit(engine: LLMEngine) -> None:
            try:
                self.submit(engine, request, prepared)
            except Exception as error:
                self.failed(error)

        # Not waited for: with many questions at once every one would wait for a step of its own.
        self.loop.post(submit).add_done_callback(self._note_failure)

    def cancel(self, question_id: str, why: str) -> None:
        self.loop.post(lambda engine: self._cancel(engine, question_id, why))

    def close(self) -> None:
        with contextlib.suppress(EngineError):  # an engine that is gone has aborted everything
            self.loop.call(self.abort)

    def abandon(self) -> None:
        self.loop.post(self.abort)

    def _read(self, ended: _Ended) -> Trace:
        running, log, prepared = ended.trace, ended.log, ended.trace.prepared
        fields = prepared.fields
        if not isinstance(log, TraceLog):
            log = TraceLog.from_wire({"scores": (), **log}, running.spec)
        trace = log.to_trace(
            running.question.id,
            running.sample_id,
            self._decoder(ended.token_ids) if fields is None else fields.text(self._decoder, ended.token_ids),
            ended.token_ids,
            ended.finish_reason,
            ended.detail,
            opened=prepared.opened,
        )
        if fields is not None:
            fields.read_calls(trace)
        trace.prompt_tokens, trace.cached_tokens = len(prepared.prompt), ended.cached_tokens
        return trace

    def submit(self, engine: LLMEngine, request: Request, prepared: Sequence[Prepared]) -> None:
        """Hand all traces of a request to vLLM; on the loop's thread."""
        if self._closed:
            return
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        live, sampling = self._every is not None, request.sampling
        try:
            for question, ready, spec in zip(request.questions, prepared, request.specs, strict=True):
                asked = None
                if spec.asks_anything:
                    asked = {CONFIG_KEY: spec if self._in_process else json.dumps(spec.to_dict())}
                further = {} if ready.fields is None else ready.fields.sampling()
                for sample_id in question.wanted(sampling.n):
                    # One request per trace: with n > 1 only the last-finishing sample's log would survive.
                    params = SamplingParams(
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=sampling.top_k,
                        min_p=sampling.min_p,
                        repetition_penalty=sampling.repetition_penalty,
                        presence_penalty=sampling.presence_penalty,
                        frequency_penalty=sampling.frequency_penalty,
                        max_tokens=sampling.max_tokens,
                        min_tokens=sampling.min_tokens,
                        stop_token_ids=list(sampling.stop_token_ids),
                        seed=sampling.seed_of(question.id, sample_id),
                        logprobs=0 if spec.logprobs else None,
                        detokenize=live,
                        output_kind=RequestOutputKind.DELTA if live else RequestOutputKind.FINAL_ONLY,
                        extra_args=asked,
                        **further,
                    )
                    name = str(next(self._names))
                    internal_id = str(engine.add_request(name, tokens_input(ready.prompt), params))
                    self._pending[name] = _Running(question, sample_id, spec, internal_id, ready)
                    self.loop.listen(name, self)
        except BaseException:
            self._give_up(engine)
            raise

    def receive(self, output: RequestOutput) -> None:
        """A request of this run has news, or has finished."""
        name = output.request_id
        running = self._pending.get(name)
        if running is None:
            return  # it finished in the step in which its run was given up
        completion = output.outputs[0]
        log = (output.kv_transfer_params or {}).get(CONFIG_KEY, {})
        running.token_ids += completion.token_ids
        if not output.finished:
            self._note(name, running, completion.text, log)
            return
        del self._pending[name]
        self._news.pop(name, None)
        if not isinstance(log, TraceLog) and "error" in log:
            self.failed(InputError(log["error"]))
            return
        reason: FinishReason = "length" if completion.finish_reason == "length" else "stop"
        cached = output.num_cached_tokens
        self._inbox.put(_Ended(running, running.token_ids, reason, log, cached_tokens=cached))

    def step_ended(self) -> None:
        """Report progress when it is time."""
        now = time.monotonic()
        if self._news and self._every is not None and now - self._reported >= self._every:
            for progress in self._news.values():
                self._inbox.put(progress)
            self._news.clear()
            self._reported = now

    def failed(self, error: Exception) -> None:
        """Tell who iterates; the rest of the run is given up."""
        self._inbox.put(error)
        self.loop.post(self.abort)

    def _note_failure(self, submitted: Future[None]) -> None:
        """Tell who iterates that the engine is gone."""
        if (error := submitted.exception()) is not None:
            self._inbox.put(error)  # type: ignore[arg-type]  # the loop sets no other

    def abort(self, engine: LLMEngine) -> None:
        """Nobody wants the rest."""
        self._give_up(engine)
        self._inbox.put(None)  # another thread may be waiting for the next item

    def _give_up(self, engine: LLMEngine) -> None:
        self._closed = True
        pending, self._pending = self._pending, {}
        for name in pending:
            self.loop.forget(name)
        self._abort(engine, list(pending.values()))

    def _note(self, name: str, running: _Running, text: str, log: Mapping[str, Any]) -> None:
        news = self._news.get(name)
        if news is None:
            news = self._news[name] = Progress(running.question.id, running.sample_id)
        news.num_tokens = len(running.token_ids)
        news.text += text
        news.scores |= {int(k): score for k, score in log.get("scores", ()) if score is not None}

    def _cancel(self, engine: LLMEngine, question_id: str, why: str) -> None:
        """Abort a question's requests; their traces end where they are."""
        names = [name for name, running in self._pending.items() if running.question.id == question_id]
        if not names:
            return
        traces = [self._pending.pop(name) for name in names]
        states = engine.output_processor.request_states
        found = [states[trace.internal_id] for trace in traces]
        so_far = [(list(state.detokenizer.output_token_ids), state.num_cached_tokens) for state in found]
        for name in names:
            self.loop.forget(name)
            self._news.pop(name, None)
        self._abort(engine, traces)
        for trace, (token_ids, cached) in zip(traces, so_far, strict=True):
            self._inbox.put(_Ended(trace, token_ids, "cancelled", {}, why, cached))

    @staticmethod
    def _abort(engine: LLMEngine, traces: Sequence[_Running]) -> None:
        if traces:
            engine.abort_request([trace.internal_id for trace in traces], internal=True)
