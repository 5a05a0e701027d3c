"""Scheduler side of the plug-in: the only place with state.

A mixin over vLLM's own schedulers. It knows how many tokens each request has generated, so it is where
the step's rows become scores at positions, where the stopping rules are applied (by the Monitor that
every engine shares), and where a pruned request ends: its KV blocks are free before the next step is
scheduled.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from arrol_tts.engine.vllm_plugin import require
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY, Signals, Wanted
from arrol_tts.stopping import Monitor, TraceLog, TraceSpec

if TYPE_CHECKING:
    from collections.abc import Hashable

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


class MonitoredScheduler(Base):
    """Mixin: score log, stopping rules and early finish on top of a vLLM scheduler."""

    # What it uses of the scheduler, checked when it starts.
    requests: dict[str, Request]
    running: list[Request]
    max_num_running_reqs: int
    max_num_active_reqs: int
    use_v2_model_runner: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require(self, *MonitoredScheduler.__annotations__)
        self._monitor = Monitor()
        self._signals: Signals | None = None
        self._output: ModelRunnerOutput | None = None
        # Requests whose outputs say something at every step, not only at the last.
        self._talking: set[str] = set()
        self._finished_logs: dict[str, TraceLog] = {}
        self._refused: dict[str, str] = {}
        self._condemned: set[Hashable] = set()

    def add_request(self, request: Request) -> None:
        spec = (request.sampling_params.extra_args or {}).get(CONFIG_KEY) if request.sampling_params else None
        if spec is not None and request.request_id not in self.requests:
            try:
                log = self._monitor.add(request.request_id, TraceSpec.parse(spec))
                if log.spec.live or log.spec.logprobs:
                    self._talking.add(request.request_id)
            except ValueError as error:
                # Raising here would end the engine core for everybody: the request is ended instead.
                self._refused[request.request_id] = str(error)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        output = self._schedule_unheld(*args, **kwargs)
        if not output.total_num_scheduled_tokens and self._monitor.any_held and not self._in_progress():
            # Nothing can run, e.g. because waiting requests hold all KV blocks: let one group go on
            # from the next step. (This step's output must be delivered: it names finished requests.)
            self._monitor.release(stuck=True)
        watched = [log for r in output.num_scheduled_tokens if (log := self._monitor.logs.get(r))]
        if watched:
            output.arrol_wanted = Wanted(
                heads=tuple({log.spec.head for log in watched if log.wants_scores}),
                confidence=any(log.wants_confidence for log in watched),
                features=any(log.length <= log.features_until for log in watched),
            )
        return output

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
        self._signals = getattr(model_runner_output, "arrol_signals", None)
        self._output = model_runner_output
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        self._signals = self._output = None
        self._report(outputs)
        self._end_early(outputs)
        self._finished_logs.clear()
        return outputs

    def _report(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Attach the logs of the finished, and the news of the live, to this step's outputs."""
        if not (self._finished_logs or self._talking):
            return
        for group in outputs.values():
            for output in group.outputs:
                key = output.request_id
                log = self._finished_logs.pop(key, None)
                if log is not None:
                    output.kv_transfer_params = _with(output.kv_transfer_params, log.to_dict())
                    if log.spec.live:
                        output.stop_reason = _as_stop_reason(output.kv_transfer_params)
                elif key in self._talking:
                    log = self._monitor.logs[key]
                    if log.spec.live and (news := log.take_news()) is not None:
                        output.kv_transfer_params = _with(None, news)
                if log is not None and log.spec.logprobs:
                    output.new_logprobs = None  # they are in the log; per token they cost the front end dearly

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        position = request.num_output_tokens
        result: tuple[list[int], bool] = super()._update_request_with_output(
            request, new_token_ids, *args, **kwargs
        )
        new_token_ids, stopped = result
        if new_token_ids and (log := self._monitor.logs.get(request.request_id)) is not None:
            self._observe(request, log, position, len(new_token_ids), stopped)
        return result

    def _observe(self, request: Request, log: TraceLog, position: int, new_tokens: int, stopped: bool) -> None:
        """Tell the Monitor of a request's rows of this step; this runs for every token of every request."""
        key, spec, signals = request.request_id, log.spec, self._signals
        if _lacks(signals, log):
            # Going on would mean that nothing is ever pruned, and nobody told.
            self._refused[key] = NO_SIGNALS if not spec.head else f"{NO_SIGNALS} (head {spec.head!r})"
        row = signals.rows[key] if signals is not None else 0
        scores = signals.scores.get(spec.head) if signals is not None else None
        confidence = signals.confidence if signals is not None else None
        features = signals.features if signals is not None else None
        logprobs = self._logprobs_of(key, new_tokens) if spec.logprobs else None
        for j in range(new_tokens):
            self._monitor.observe(
                key,
                position + j,
                score=scores[row + j] if scores else None,
                confidence=confidence[row + j] if confidence else None,
                logprob=logprobs[j] if logprobs else None,
                token=request.output_token_ids[position + j - 1] if spec.score_after and position + j else None,
                feature=features[row + j].tobytes if features is not None else None,
                finished=stopped and j == new_tokens - 1,
            )

    def _logprobs_of(self, key: str, new_tokens: int) -> list[float] | None:
        """Log-probabilities of a request's new tokens, which vLLM's sampler was asked for with ``logprobs=0``."""
        output = self._output
        if output is None or output.logprobs is None:
            self._refused[key] = "the trace spec asks for logprobs, and the request does not: set logprobs=0"
            return None
        rows = output.logprobs.slice_request(output.req_id_to_index[key], new_tokens)
        return [float(logprob) for logprob in rows.logprobs[:, 0]]

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        # Every way to end passes here: stop, length, abort, pruned.
        if (log := self._monitor.drop(request.request_id)) is not None:
            self._finished_logs[request.request_id] = log
        self._refused.pop(request.request_id, None)
        self._talking.discard(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def _end_early(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Finish the pruned and the refused, and report them with this step's outputs."""
        results: dict[str, dict[str, Any]] = {
            key: {"error": error} for key, error in self._refused.items() if self.requests[key].num_output_tokens
        }
        # The end of one trace may be what another one's group was waiting for.
        while True:
            condemned = (self._condemned | self._monitor.take_verdicts().keys()) & self._monitor.logs.keys()
            self._condemned = set()
            results = {str(key): self._monitor.logs[key].to_dict() for key in condemned} | results
            if not results:
                return
            self._finish(results, outputs)
            results = {}

    def _finish(self, results: dict[str, dict[str, Any]], outputs: dict[int, EngineCoreOutputs]) -> None:
        live = self._talking & results.keys()
        for request in self.finish_requests(set(results), RequestStatus.FINISHED_STOPPED):
            result = results[request.request_id]
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    stop_reason=_as_stop_reason(_with(None, result))
                    if request.request_id in live
                    else "refused"
                    if "error" in result
                    else "pruned",
                    events=request.take_events(),
                    kv_transfer_params=_with(None, result),
                    trace_headers=request.trace_headers,
                )
            )


def _lacks(signals: Signals | None, log: TraceLog) -> bool:
    no_scores = signals is None or log.spec.head not in signals.scores
    no_confidence = signals is None or signals.confidence is None
    return (log.wants_scores and no_scores) or (log.wants_confidence and no_confidence)


def _with(params: dict[str, Any] | None, log: dict[str, Any]) -> dict[str, Any]:
    return {**(params or {}), CONFIG_KEY: log}


def _as_stop_reason(params: dict[str, Any]) -> str:
    # vLLM's server has no other place for a log in the chunks that it streams.
    return json.dumps({CONFIG_KEY: params[CONFIG_KEY]})


class QualityHeadScheduler(MonitoredScheduler, Scheduler):
    """For synchronous scheduling."""


class QualityHeadAsyncScheduler(MonitoredScheduler, AsyncScheduler):
    """For asynchronous scheduling, vLLM's default on GPUs."""
