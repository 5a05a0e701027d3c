"""Scheduler side of the plug-in: the only place with state.

A mixin over vLLM's own schedulers. It knows how many tokens each request has generated, so it is where
the step's rows become scores at positions, where the stopping rules are applied (by the Monitor that
every engine shares), and where a pruned request ends: its KV blocks are free before the next step is
scheduled.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from arrol_tts.engine.signals import HeadReading
from arrol_tts.engine.stop_texts import StopTexts, Watched
from arrol_tts.engine.vllm_plugin import check_config, require
from arrol_tts.engine.vllm_plugin.allowed import allowed_signals, check_allowed
from arrol_tts.engine.vllm_plugin.coasting import Coasting
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY, Signals, Wanted
from arrol_tts.errors import EngineError, InputError
from arrol_tts.stopping import Monitor, TraceLog, TraceSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.request_queue import RequestQueue
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    class Base(Scheduler):
        """What the mixin is put on."""
else:
    Base = object

logger = init_logger(__name__)

NO_SIGNALS = (
    "vLLM's worker returned no scores or confidences: start vLLM with QualityHeadWorker as its worker class, "
    "and with a head in its additional config if scores are asked for"
)

NOTHING = Signals()

MAX_CACHED = 1 << 14
"""Characters of a spec up to which it is kept for the next trace of its question."""

MAX_REASON = 1000
"""Characters of a reason for a refusal."""

CROWDED = 0.9
"""Share of the KV blocks in use from which on requests that wait give up theirs, when others could use them."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a request is ended, and whether its client reads the reason in the stream."""

    reason: str
    live: bool = False


class MonitoredScheduler(Base):
    """Mixin: score log, stopping rules and early finish on top of a vLLM scheduler.

    Whatever is raised in here ends the requests that it concerns, with a reason, and never the engine core, which
    belongs to everybody: one request where it can be named, a rule's group, and at worst all that are watched.
    """

    asynchronous: ClassVar[bool]

    # What it uses of the scheduler, checked when it starts.
    requests: dict[str, Request]
    running: list[Request]
    waiting: RequestQueue
    kv_holding_waiting: RequestQueue
    max_num_running_reqs: int
    max_num_active_reqs: int
    use_v2_model_runner: bool
    requires_kv_delivery: bool
    num_spec_tokens: int
    kv_cache_manager: Any
    vllm_config: VllmConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(self, *MonitoredScheduler.__annotations__)
        check_config(self.vllm_config)
        if bool(self.vllm_config.scheduler_config.async_scheduling) != self.asynchronous:
            raise EngineError(
                f"{type(self).__name__} does not fit async_scheduling="
                f"{self.vllm_config.scheduler_config.async_scheduling}: name QualityHeadAutoScheduler, which does"
            )
        config: Any = self.vllm_config.additional_config or {}
        ours = config.get(CONFIG_KEY, {})
        in_process = ours.get("in_process", False)
        self._export: Callable[[TraceLog], Any] = (lambda log: log) if in_process else TraceLog.to_wire
        self._serves = not in_process
        self._allowed = allowed_signals(ours)
        self._monitor = Monitor()
        self._coasting = Coasting()
        # While vLLM goes through a step's outputs, the requests that it has freed.
        self._updating = False
        self._freed: set[str] = set()
        self._refused: dict[str, _Refusal] = {}
        self._needs: Wanted | None = None
        self._featured: list[str] = []  # the requests that may want hidden vectors
        self._condemned: set[Hashable] = set()
        self._stop_texts: StopTexts | None = None
        self._stops: dict[str, Watched] = {}

    def add_request(self, request: Request) -> None:
        spec = (request.sampling_params.extra_args or {}).get(CONFIG_KEY) if request.sampling_params else None
        if spec is not None and request.request_id not in self.requests:
            try:
                self._watch(request, spec)
            except Exception as error:
                self._refuse(request.request_id, error)
        super().add_request(request)

    def _watch(self, request: Request, spec: object) -> None:
        short = isinstance(spec, str) and len(spec) <= MAX_CACHED
        parsed = _parse(spec) if short else TraceSpec.parse(spec)
        check_allowed(parsed, self._allowed)
        if parsed.stop:
            assert request.sampling_params is not None
            stops = self._load_stop_texts().watch(parsed.stop, request.sampling_params.min_tokens)
            self._stops[request.request_id] = stops
            self._look_for_texts()
        log = self._monitor.add(request.request_id, parsed)
        if parsed.stop:
            opened = self._load_stop_texts().decoder.opens_thinking(request.prompt_token_ids or ())
            log.thinking = opened or None
        self._needs = None

    def _load_stop_texts(self) -> StopTexts:
        if self._stop_texts is None:
            tokenizer = cached_tokenizer_from_config(self.vllm_config.model_config)
            if tokenizer is None:
                raise InputError("stop texts need the tokenizer, and vLLM was started with skip_tokenizer_init")
            self._stop_texts = StopTexts(tokenizer)
        return self._stop_texts

    def _refuse(self, key: str, error: Exception | str) -> None:
        """End a request, with a reason, as soon as it has written something."""
        log = self._monitor.logs.get(key)
        reason = _words(error, f"request {key}")
        self._refused.setdefault(key, _Refusal(reason, log is not None and log.spec.live and self._serves))

    def _guarded(self, work: Callable[..., T], *args: Any) -> T | None:
        """Do what concerns more than one request; when it fails, all that are watched are refused."""
        try:
            return work(*args)
        except Exception as error:
            reason = _words(error, "all requests with a spec")
            for key in self._monitor.logs:
                self._refuse(str(key), reason)
            self._monitor, self._coasting = Monitor(), Coasting()
            self._needs, self._condemned = None, set()
            return None

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        slots = self.max_num_active_reqs
        parked, yielding = self._guarded(self._left_out) or ([], [])
        if parked or yielding:
            out = {*parked, *yielding}
            self.running = [request for request in self.running if request not in out]
            self._preempt(yielding)
        if self.use_v2_model_runner:
            self.max_num_active_reqs = slots - len(parked)
        try:
            output = super().schedule(*args, **kwargs)
        finally:
            # Ahead of the others: they came first, so they are the last to be preempted.
            self.running = parked + self.running
            self.max_num_active_reqs = slots
        if self._monitor.logs:
            self._guarded(self._after_schedule, output)
        return output

    def _after_schedule(self, output: SchedulerOutput) -> None:
        if not output.total_num_scheduled_tokens and self._monitor.any_held and not self._in_progress():
            # Nothing can run: what waits yields its memory, or else one group goes on from the next step. (This
            # step's output must be delivered: it names finished requests.)
            held = {request: None for request in self.running if self._is_held(request.request_id)}
            if held and self._runnable():
                self.running = [request for request in self.running if request not in held]
                self._preempt(list(held))
            else:
                self._monitor.release(stuck=True)
        output.arrol_wanted = self._wanted()

    def _wanted(self) -> Wanted:
        """What any of the watched requests needs; worked out anew only when others are watched."""
        logs = self._monitor.logs
        if self._needs is None:
            watched = logs.values()
            self._needs = Wanted(
                heads=tuple({log.spec.head for log in watched if log.wants_scores}),
                confidence=any(log.wants_confidence for log in watched),
                self_certainty=any(log.wants_certainty for log in watched),
            )
            self._featured = [str(key) for key, log in logs.items() if log.features_until >= 0]
        if not self._featured:
            return self._needs
        return replace(self._needs, features=tuple(filter(self._may_keep_features, self._featured)))

    def _may_keep_features(self, key: str) -> bool:
        """Whether the hidden vector of a row that a request has in the step just scheduled may be kept."""
        log, request = self._monitor.logs[key], self.requests[key]
        if log.spec.features_finish or self.num_spec_tokens:
            return log.wants_features  # nobody knows yet which row is the last, or which drafts are accepted
        return log.spec.keeps_features(request.num_computed_tokens - request.num_prompt_tokens, False)

    def _in_progress(self) -> bool:
        return bool(self._condemned) or any(r.num_in_flight_tokens for r in self.requests.values())

    def _is_held(self, key: str) -> bool:
        return key not in self._refused and (key in self._condemned or self._monitor.is_held(key))

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        # Asked of each request that could begin, or go on after a preemption: what would only wait does not.
        if self._monitor.any_held and self._is_held(request.request_id):
            return False
        ready: bool = super()._handle_blocked_waiting_request(request)
        return ready

    def _left_out(self) -> tuple[list[Request], list[Request]]:
        """The running requests that are left out of this step: those that stay parked, and those to be preempted.

        A parked request keeps its KV blocks. With runner V1 it gives up its place in the running batch, so that
        others run meanwhile; when its group has met, as many as fit go back. Runner V2 ties a place to a request
        until it ends or is preempted. So one that waits is preempted where others need its place, or its memory.
        """
        if self._monitor.any_held:
            self._monitor.release()
        # Verdicts of an abort or of lost patience: ended with the next outputs, and not computed till then.
        self._condemned |= self._monitor.take_verdicts().keys()
        full = len(self.running) > self.max_num_running_reqs
        if not (full or self._condemned or self._monitor.any_held):
            return [], []
        active = 0
        parked: list[Request] = []
        held: list[Request] = []
        for request in self.running:
            if self._is_held(request.request_id):
                held.append(request)
            elif active == self.max_num_running_reqs:
                parked.append(request)
            else:
                active += 1
        kept = len(held) - self._in_the_way(len(held), active)
        return parked + held[:kept], held[kept:]

    def _in_the_way(self, held: int, active: int) -> int:
        """How many of the running requests that wait must make room for others."""
        crowded = held > active and self.kv_cache_manager.usage > CROWDED
        short = self.use_v2_model_runner and active + held >= self.max_num_active_reqs
        if not held or not (crowded or short):
            return 0
        others = self._runnable()
        return min(held, max(others if short else 0, held - active if crowded and others else 0))

    def _runnable(self) -> int:
        """How many requests could begin or go on if there were room."""
        waiting = itertools.chain(self.waiting, self.kv_holding_waiting)
        return sum(not self._is_held(request.request_id) for request in waiting)

    def _preempt(self, requests: list[Request]) -> None:
        now = time.monotonic()
        for request in reversed(requests):  # they are put before each other
            self._preempt_request(request, now, drop_stale_output=self.requires_kv_delivery)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        self._updating = True
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        self._updating = False
        if self._monitor.logs:
            self._guarded(self._observe, outputs, model_runner_output)
        for key in self._freed:
            self._guarded(self._drop, key)
        self._freed.clear()
        if self._refused:
            self._tell_refused(outputs)
        # The end of one trace may be what another one's group was waiting for.
        while results := self._results():
            self._finish(results, outputs)
        return outputs

    def _look_for_texts(self) -> None:
        """Put ourselves into vLLM's way while anybody's stop texts are looked for.

        It calls this of every request at every step, which takes a millisecond for a thousand of them.
        """
        hooks, name = self.__dict__, "_update_request_with_output"
        if self._stops:
            hooks[name] = self._update_request_and_stop_at_text
        else:
            hooks.pop(name, None)

    def _update_request_and_stop_at_text(
        self, request: Request, *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        new_token_ids, stopped = super()._update_request_with_output(request, *args, **kwargs)
        stops, log = self._stops.get(request.request_id), self._monitor.logs.get(request.request_id)
        if stops is None or log is None or request.status == RequestStatus.FINISHED_STOPPED:
            return new_token_ids, stopped
        written, earlier = request.output_token_ids, request.num_output_tokens - len(new_token_ids)
        try:
            # Under speculation several tokens come at once; those after the text stay in the trace.
            for end, token in enumerate(new_token_ids, earlier + 1):
                if (text := stops.add(token)) and not self._load_stop_texts().decoder.is_thinking(
                    log, written[:end]
                ):
                    log.stop_text = text
                    request.status = RequestStatus.FINISHED_STOPPED
                    return new_token_ids, True
        except Exception as error:
            self._refuse(request.request_id, error)
        return new_token_ids, stopped

    def _observe(self, outputs: dict[int, EngineCoreOutputs], model_output: ModelRunnerOutput) -> None:
        """Tell the Monitor of this step's rows, and attach logs and news."""
        signals = getattr(model_output, "arrol_signals", None) or NOTHING
        index = model_output.req_id_to_index
        found = list(itertools.chain.from_iterable(group.outputs for group in outputs.values()))
        # Nearly all rows of nearly all traces end here.
        left = self._coasting.advance(found, index, signals)
        if not left:
            return
        rows, logs = _Rows(signals, index), self._monitor.logs
        for output in left:
            key = output.request_id
            log = logs.get(key)
            if log is None or key in self._refused:
                continue
            try:
                self._coasting.land(key)
                scored = log.wants_scores
                missing = self._take_in(output, log, rows)
                if scored and not log.wants_scores:
                    self._needs = None
                if missing:
                    # Going on would mean that nothing is ever pruned, and nobody told.
                    self._refuse(key, missing)
                elif output.finish_reason is None:
                    self._coasting.put(key, log)
                if output.finish_reason is not None or log.spec.live:
                    self._report(output, log)
            except Exception as error:
                self._refuse(key, error)

    def _take_in(self, output: EngineCoreOutput, log: TraceLog, rows: _Rows) -> str:
        """Tell the Monitor of a request's rows; returns what they lack."""
        key, spec, tokens = output.request_id, log.spec, output.new_token_ids
        finished, observe = output.finish_reason is not None, self._monitor.observe
        confidence, certainty = rows.confidence, rows.self_certainty
        reading = rows.readings.get(spec.head) if log.wants_scores else None
        logprobs = _logprobs_of(output) if spec.logprobs else None
        missing = ""
        if (
            (log.wants_scores and reading is None)
            or (log.wants_confidence and confidence is None)
            or (log.wants_certainty and certainty is None)
        ):
            missing = rows.error or (NO_SIGNALS if not spec.head else f"{NO_SIGNALS} (head {spec.head!r})")
        elif spec.logprobs and logprobs is None:
            missing = "the trace spec asks for logprobs, and the request does not: set logprobs=0"
        elif rows.error and log.wants_features:
            missing = rows.error
        row, kept, last = rows.first(key) if tokens else 0, rows.kept.get(key), len(tokens) - 1
        for j, token in enumerate(tokens):
            observe(
                key,
                log.length,
                score=None if reading is None else reading.score(row + j, log.length, log, log.last_token),
                confidence=None if confidence is None else confidence[row + j],
                logprob=None if logprobs is None else logprobs[j],
                token=log.last_token,
                feature=None if kept is None else rows.features[kept + j].tobytes,
                finished=finished and j == last,
            )
            log.last_token = token
        if certainty is not None and log.wants_certainty:
            log.certainty += sum(certainty[row : row + len(tokens)])
        return missing

    def _report(self, output: EngineCoreOutput, log: TraceLog) -> None:
        """Attach a finished trace's log, or the news of a live one."""
        if output.finish_reason is None:
            if (news := log.take_news()) is not None:
                output.kv_transfer_params = _with(None, news)
            return
        output.kv_transfer_params = _with(output.kv_transfer_params, self._export(log))
        if log.spec.live and self._serves:
            output.stop_reason = _as_stop_reason(output.kv_transfer_params)

    def _tell_refused(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Attach the reason to what ended by itself in the step in which it was to be refused."""
        for output in (output for group in outputs.values() for output in group.outputs):
            if output.finish_reason is not None and (refusal := self._refused.pop(output.request_id, None)):
                output.kv_transfer_params = _with(output.kv_transfer_params, {"error": refusal.reason})
                if refusal.live:
                    output.stop_reason = _as_stop_reason(output.kv_transfer_params)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        # Every way to end passes here: stop, length, abort, pruned.
        key = request.request_id
        if self._updating:
            self._freed.add(key)  # its last row is yet to be observed
        else:
            self._guarded(self._drop, key)
            self._refused.pop(key, None)
        if self._stops.pop(key, None):
            self._look_for_texts()
        self._needs = None
        return super()._free_request(request, *args, **kwargs)

    def _drop(self, key: str) -> None:
        self._coasting.forget(key)
        self._monitor.drop(key)

    def _results(self) -> dict[str, Any]:
        """What the pruned and the refused are told, whom this step ends."""
        results: dict[str, Any] = {}
        for key in self._guarded(self._take_condemned) or ():
            try:
                self._coasting.land(key)
                results[key] = self._export(self._monitor.logs[key])
            except Exception as error:
                self._refuse(key, error)
        for key, refusal in list(self._refused.items()):
            request = self.requests.get(key)
            if request is None or request.is_finished():
                del self._refused[key]  # it ended before anybody could be told
            elif request.num_output_tokens:
                results[key] = {"error": refusal.reason}
        return results

    def _take_condemned(self) -> list[str]:
        for key, failure in self._monitor.take_failures().items():
            self._refuse(str(key), failure)
        condemned = (self._condemned | self._monitor.take_verdicts().keys()) & self._monitor.logs.keys()
        self._condemned = set()
        return [str(key) for key in condemned]

    def _finish(self, results: dict[str, Any], outputs: dict[int, EngineCoreOutputs]) -> None:
        """Finish the pruned and the refused, and report them with this step's outputs."""
        reasons = {}
        for key, result in results.items():
            log, refusal = self._monitor.logs.get(key), self._refused.get(key)
            live = refusal.live if refusal else log is not None and log.spec.live and self._serves
            reasons[key] = _as_stop_reason({CONFIG_KEY: result}) if live else "refused" if refusal else "pruned"
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


def _words(error: Exception | str, concerned: str) -> str:
    """An error for who asked: what is wrong with the request, or that we failed, and then the log tells all."""
    if isinstance(error, InputError):
        error = str(error)
    elif isinstance(error, Exception):
        logger.error("arrol's plug-in failed; it refuses %s", concerned, exc_info=error)
        error = f"arrol's plug-in failed ({type(error).__name__}: {error}); the server's log says more"
    # It leaves in msgpack and in JSON, which take no lone surrogate.
    return error[:MAX_REASON].encode(errors="backslashreplace").decode()


class _Rows:
    """A step's signals as they are looked up request by request: numbers of arrays are slow one by one."""

    def __init__(self, signals: Signals, index: Mapping[str, int]) -> None:
        self.readings = {
            name: HeadReading.of(numbers.tolist(), kind) for name, kind, numbers in signals.of_heads()
        }
        self.confidence = _floats(signals.confidences)
        self.self_certainty = _floats(signals.self_certainties)
        self.features: Any = signals.features
        self.kept, self.error = signals.kept, signals.error
        if signals.firsts is None:
            self.first: Callable[[str], int] = index.__getitem__
        else:
            firsts: list[int] = signals.firsts.tolist()
            self.first = lambda key: firsts[index[key]]


def _floats(numbers: NDArray[np.float32] | None) -> list[float] | None:
    return None if numbers is None else numbers.tolist()


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

    asynchronous = False


class QualityHeadAsyncScheduler(MonitoredScheduler, AsyncScheduler):
    """For asynchronous scheduling, vLLM's default on GPUs."""

    asynchronous = True


class QualityHeadAutoScheduler(QualityHeadScheduler):
    """Makes the one of the two that vLLM's finished configuration calls for.

    Whether vLLM schedules asynchronously depends on its platform, executor and kind of speculation, and is not
    known before.
    """

    def __new__(cls, *args: Any, vllm_config: VllmConfig, **kwargs: Any) -> Any:
        chosen = vllm_config.scheduler_config.async_scheduling
        kind = QualityHeadAsyncScheduler if chosen else QualityHeadScheduler
        return kind(*args, vllm_config=vllm_config, **kwargs)
