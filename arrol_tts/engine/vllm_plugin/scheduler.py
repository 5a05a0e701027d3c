"""Scheduler side of the plug-in: the only place with state.

A mixin over vLLM's own schedulers. It knows how many tokens each request has generated, so it is where
the step's rows become scores at positions, where the stopping rules are applied (by the Monitor that
every engine shares), and where a pruned request ends: its KV blocks are free before the next step is
scheduled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from arrol_tts.engine.stop_texts import StopTexts
from arrol_tts.engine.vllm_plugin import require
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY, Signals, Wanted
from arrol_tts.errors import InputError
from arrol_tts.stopping import Monitor, TraceLog, TraceSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    class Base(Scheduler):
        """What the mixin is put on."""
else:
    Base = object

NO_SIGNALS = (
    "vLLM's worker returned no scores or confidences: start vLLM with QualityHeadWorker as its worker class, "
    "and with a head in its additional config if scores are asked for"
)

NOTHING = Signals({}, {}, None)

MAX_CACHED = 1 << 14
"""Characters of a spec up to which it is kept for the next trace of its question."""


class MonitoredScheduler(Base):
    """Mixin: score log, stopping rules and early finish on top of a vLLM scheduler."""

    # What it uses of the scheduler, checked when it starts.
    requests: dict[str, Request]
    running: list[Request]
    max_num_running_reqs: int
    max_num_active_reqs: int
    use_v2_model_runner: bool
    vllm_config: VllmConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(self, *MonitoredScheduler.__annotations__)
        config: Any = self.vllm_config.additional_config or {}
        in_process = config.get(CONFIG_KEY, {}).get("in_process", False)
        self._export: Callable[[TraceLog], Any] = (lambda log: log) if in_process else TraceLog.to_wire
        self._serves = not in_process
        self._monitor = Monitor()
        # While vLLM goes through a step's outputs, the requests that it has freed.
        self._updating = False
        self._freed: set[str] = set()
        self._refused: dict[str, str] = {}
        self._needs: Wanted | None = None
        self._condemned: set[Hashable] = set()
        self._stop_texts: StopTexts | None = None

    def add_request(self, request: Request) -> None:
        spec = (request.sampling_params.extra_args or {}).get(CONFIG_KEY) if request.sampling_params else None
        if spec is not None and request.request_id not in self.requests:
            try:
                short = isinstance(spec, str) and len(spec) <= MAX_CACHED
                parsed = _parse(spec) if short else TraceSpec.parse(spec)
                if parsed.stop:
                    self._load_stop_texts()
                log = self._monitor.add(request.request_id, parsed)
                if self._stop_texts is not None and parsed.stop:
                    prompt = request.prompt_token_ids or ()
                    log.thinking = self._stop_texts.decoder.opens_thinking(prompt) or None
                self._needs = None
            except ValueError as error:
                # Raising here would end the engine core for everybody: the request is ended instead.
                self._refused[request.request_id] = str(error)
        super().add_request(request)

    def _load_stop_texts(self) -> None:
        if self._stop_texts is None:
            tokenizer = cached_tokenizer_from_config(self.vllm_config.model_config)
            if tokenizer is None:
                raise InputError("stop texts need the tokenizer, and vLLM was started with skip_tokenizer_init")
            self._stop_texts = StopTexts(tokenizer)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        output = self._schedule_unheld(*args, **kwargs)
        if not output.total_num_scheduled_tokens and self._monitor.any_held and not self._in_progress():
            # Nothing can run, e.g. because waiting requests hold all KV blocks: let one group go on
            # from the next step. (This step's output must be delivered: it names finished requests.)
            self._monitor.release(stuck=True)
        if self._monitor.logs:
            output.arrol_wanted = self._wanted()
        return output

    def _wanted(self) -> Wanted:
        """What any of the watched requests needs; worked out anew only when others are watched."""
        logs = self._monitor.logs.values()
        if self._needs is None:
            self._needs = Wanted(
                heads=tuple({log.spec.head for log in logs if log.wants_scores}),
                confidence=any(log.wants_confidence for log in logs),
                features=any(log.features_until >= 0 for log in logs),
                self_certainty=any(log.wants_certainty for log in logs),
            )
        if not self._needs.features:
            return self._needs
        return replace(self._needs, features=any(log.wants_features for log in logs))

    def _in_progress(self) -> bool:
        return bool(self._condemned) or any(r.num_in_flight_tokens for r in self.requests.values())

    def _schedule_unheld(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """One scheduling pass that leaves out the requests that wait for their group.

        A request that is left out keeps its KV blocks. With runner V1 it gives up its place in the
        running batch, so that others run meanwhile; when its group has met, as many as fit go back.
        Runner V2 ties a place to a request until it ends, so there a waiting request keeps it.
        """
        if self._monitor.any_held:
            self._monitor.release()
        # Verdicts of an abort or of lost patience: ended with the next outputs, and not computed till then.
        self._condemned |= self._monitor.take_verdicts().keys()
        full = len(self.running) > self.max_num_running_reqs
        if not (full or self._condemned or self._monitor.any_held):
            return super().schedule(*args, **kwargs)
        slots = self.max_num_active_reqs
        active: list[Request] = []
        parked: list[Request] = []
        for request in self.running:
            key = request.request_id
            held = key in self._condemned or self._monitor.is_held(key)
            (parked if held or len(active) == self.max_num_running_reqs else active).append(request)
        self.running = active
        if self.use_v2_model_runner:
            self.max_num_active_reqs = slots - len(parked)
        try:
            return super().schedule(*args, **kwargs)
        finally:
            # Ahead of the others: they came first, so they are the last to be preempted.
            self.running = parked + self.running
            self.max_num_active_reqs = slots

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        self._updating = True
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        self._updating = False
        if self._monitor.logs:
            self._observe(outputs, model_runner_output)
        for key in self._freed:  # what ended without an output
            self._monitor.drop(key)
        self._freed.clear()
        self._end_early(outputs)
        return outputs

    def _update_request_with_output(self, request: Request, *args: Any, **kwargs: Any) -> tuple[list[int], bool]:
        new_token_ids, stopped = super()._update_request_with_output(request, *args, **kwargs)
        log = self._monitor.logs.get(request.request_id)
        if log is None or not log.spec.stop or request.status == RequestStatus.FINISHED_STOPPED:
            return new_token_ids, stopped
        assert self._stop_texts is not None
        assert request.sampling_params is not None
        written = request.output_token_ids
        held_back = request.sampling_params.min_tokens
        # Under speculation several tokens come at once; those after the text stay in the trace.
        for end in range(len(written) - len(new_token_ids) + 1, len(written) + 1):
            if text := self._stop_texts.ending(log, written, end, held_back):
                log.stop_text = text
                request.status = RequestStatus.FINISHED_STOPPED
                return new_token_ids, True
        return new_token_ids, stopped

    def _observe(self, outputs: dict[int, EngineCoreOutputs], model_output: ModelRunnerOutput) -> None:
        """Tell the Monitor of this step's rows, and attach logs and news."""
        logs, observe = self._monitor.logs, self._monitor.observe
        signals: Signals = getattr(model_output, "arrol_signals", None) or NOTHING
        rows, confidence, features = signals.rows, signals.confidence, signals.features
        certainty = signals.self_certainty
        for group in outputs.values():
            for output in group.outputs:
                key = output.request_id
                log = logs.get(key)
                if log is None:
                    continue
                spec, tokens, finished = log.spec, output.new_token_ids, output.finish_reason is not None
                reading = signals.scores.get(spec.head) if log.wants_scores else None
                logprobs = _logprobs_of(output) if spec.logprobs else None
                missing = ""
                if (
                    (log.wants_scores and reading is None)
                    or (log.wants_confidence and confidence is None)
                    or (log.wants_certainty and certainty is None)
                ):
                    missing = NO_SIGNALS if not spec.head else f"{NO_SIGNALS} (head {spec.head!r})"
                elif spec.logprobs and logprobs is None:
                    missing = "the trace spec asks for logprobs, and the request does not: set logprobs=0"
                row, last = rows.get(key, 0), len(tokens) - 1
                for j, token in enumerate(tokens):
                    observe(
                        key,
                        log.length,
                        score=None if reading is None else reading.score(row + j, log.length, log, log.last_token),
                        confidence=None if confidence is None else confidence[row + j],
                        logprob=None if logprobs is None else logprobs[j],
                        token=log.last_token,
                        feature=None if features is None else features[row + j].tobytes,
                        finished=finished and j == last,
                    )
                    log.last_token = token
                if certainty is not None and log.wants_certainty:
                    log.certainty += sum(certainty[row : row + len(tokens)])
                if finished or missing or spec.live:
                    self._report(output, log, finished, missing)

    def _report(self, output: EngineCoreOutput, log: TraceLog, finished: bool, missing: str) -> None:
        """Attach a finished trace's log, or the news of a live one."""
        key = output.request_id
        if finished:
            self._monitor.drop(key)
            self._freed.discard(key)
            report = {"error": missing} if missing else self._export(log)
            output.kv_transfer_params = _with(output.kv_transfer_params, report)
            if log.spec.live and self._serves:
                output.stop_reason = _as_stop_reason(output.kv_transfer_params)
        elif missing:
            # Going on would mean that nothing is ever pruned, and nobody told.
            self._refused[key] = missing
        elif (news := log.take_news()) is not None:
            output.kv_transfer_params = _with(None, news)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        # Every way to end passes here: stop, length, abort, pruned.
        key = request.request_id
        if self._updating:
            self._freed.add(key)  # its last row is yet to be observed
        else:
            self._monitor.drop(key)
        self._refused.pop(key, None)
        self._needs = None
        return super()._free_request(request, *args, **kwargs)

    def _end_early(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Finish the pruned and the refused, and report them with this step's outputs."""
        results: dict[str, Any] = {
            key: {"error": error} for key, error in self._refused.items() if self.requests[key].num_output_tokens
        }
        # The end of one trace may be what another one's group was waiting for.
        while True:
            condemned = (self._condemned | self._monitor.take_verdicts().keys()) & self._monitor.logs.keys()
            self._condemned = set()
            results = {str(key): self._export(self._monitor.logs[key]) for key in condemned} | results
            if not results:
                return
            self._finish(results, outputs)
            results = {}

    def _finish(self, results: dict[str, Any], outputs: dict[int, EngineCoreOutputs]) -> None:
        reasons = {}
        for key, result in results.items():
            log = self._monitor.logs.get(key)
            live = log is not None and log.spec.live and self._serves
            plain = "refused" if key in self._refused else "pruned"
            reasons[key] = _as_stop_reason({CONFIG_KEY: result}) if live else plain
        for request in self.finish_requests(set(results), RequestStatus.FINISHED_STOPPED):
            result = results[request.request_id]
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    stop_reason=reasons[request.request_id],
                    events=request.take_events(),
                    kv_transfer_params=_with(None, result),
                    trace_headers=request.trace_headers,
                )
            )


@lru_cache(maxsize=64)
def _parse(text: str) -> TraceSpec:
    """A spec in its wire form, which all traces of a question share."""
    return TraceSpec.parse(text)


def _logprobs_of(output: EngineCoreOutput) -> list[float] | None:
    """Log-probabilities of the new tokens, which vLLM's sampler was asked for with ``logprobs=0``."""
    found, output.new_logprobs = output.new_logprobs, None  # the front end would take long over each token
    return None if found is None else [float(logprob) for logprob in found.logprobs[:, 0]]


def _with(params: dict[str, Any] | None, log: Any) -> dict[str, Any]:
    return {**(params or {}), CONFIG_KEY: log}


def _as_stop_reason(params: dict[str, Any]) -> str:
    # vLLM's server has no other place for a log in the chunks that it streams.
    return json.dumps({CONFIG_KEY: params[CONFIG_KEY]})


class QualityHeadScheduler(MonitoredScheduler, Scheduler):
    """For synchronous scheduling."""


class QualityHeadAsyncScheduler(MonitoredScheduler, AsyncScheduler):
    """For asynchronous scheduling, vLLM's default on GPUs."""
