"""The fast engine: stock vLLM with our worker and scheduler, in this process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrol_tts.engine.base import (
    DEFAULT_TOP_K,
    Question,
    Sampling,
    StopQuestion,
    check_request,
    encode_prompt,
    group_specs,
    hidden_size_of,
    make_trace,
    never_stop,
)
from arrol_tts.engine.vllm_plugin import CPU_OPTIONS, check_vllm, vllm_options
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    from arrol_tts.trace import FinishReason, Trace

CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache on CPU unless the caller sets one: vLLM would take most of the machine's memory."""


@dataclass(frozen=True, slots=True)
class _Request:
    question: Question
    sample_id: int
    internal_id: str


class VLLMEngine:
    """Samples with vLLM; scores, confidences and pruning happen inside its scheduler and worker.

    Args:
        model: path or hub id of a model that vLLM serves.
        head: local folder of a quality head, None for sampling without scores.
        top_k: candidates of DeepConf's token confidence.
        in_process: run the engine core in this process (default on CPU, where a process more only
            takes cores away) or in one of its own (vLLM's default, better on GPUs).
        **options: vLLM's engine arguments (``tensor_parallel_size``, ``max_num_seqs``,
            ``max_model_len``, ``dtype`` ...), passed on as they are.

    Raises:
        HeadError: when the head is for another hidden size; before the model loads.
        RuntimeError: when this version of vLLM is not supported.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        head: str | Path | None = None,
        top_k: int = DEFAULT_TOP_K,
        in_process: bool | None = None,
        **options: Any,
    ) -> None:
        self.model = str(model)
        self.hidden_size = hidden_size_of(model)
        if head is not None:
            from arrol_tts.head_config import read_head_config

            read_head_config(Path(head)).check_model(hidden_size=self.hidden_size, model=self.model)
        self._has_head = head is not None
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm.platforms import current_platform

        check_vllm()
        in_process = current_platform.is_cpu() if in_process is None else in_process
        if current_platform.is_cpu():
            defaults = {**CPU_OPTIONS, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
            options = defaults | options
        if in_process:
            if options.get("tensor_parallel_size", 1) == 1:
                options.setdefault("distributed_executor_backend", "uni")
            # vLLM's CPU platform would otherwise start worker processes all the same, and those need a
            # __main__ guard in the user's script.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        asynchronous = bool(options.setdefault("async_scheduling", True))
        options |= vllm_options(head=str(head) if head else None, top_k=top_k, asynchronous=asynchronous)
        config = EngineArgs(model=self.model, **options).create_engine_config()
        self._engine = LLMEngine(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            multiprocess_mode=not in_process,
        )
        self._tokenizer: Any = self._engine.get_tokenizer()
        self._max_model_len = self._engine.model_config.max_model_len
        self._call = itertools.count()

    def sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
    ) -> Iterator[Trace]:
        """See ``Engine.sample``."""
        spec = spec or TraceSpec()
        check_request(questions, sampling, spec, has_head=self._has_head)
        prompts = [encode_prompt(self._tokenizer, question.text) for question in questions]
        for question, prompt in zip(questions, prompts, strict=True):
            if len(prompt) + sampling.max_tokens > self._max_model_len:
                raise ValueError(
                    f"question {question.id!r} has {len(prompt)} prompt tokens; with max_tokens="
                    f"{sampling.max_tokens} it exceeds the model's {self._max_model_len}: lower max_tokens"
                )
        return self._sample(questions, prompts, sampling, spec, stop_question)

    def _sample(
        self,
        questions: Sequence[Question],
        prompts: list[list[int]],
        sampling: Sampling,
        spec: TraceSpec,
        stop_question: StopQuestion,
    ) -> Iterator[Trace]:
        pending: dict[str, _Request] = {}
        call = next(self._call)
        for question, prompt, question_spec in zip(
            questions, prompts, group_specs(questions, sampling, spec), strict=True
        ):
            for sample_id in range(sampling.n):
                name = f"{call}-{len(pending)}"
                internal = self._submit(name, prompt, question, sample_id, sampling, question_spec)
                pending[name] = _Request(question, sample_id, internal)
        try:
            while pending:
                stopped: dict[str, str] = {}
                for output in self._engine.step():
                    if not output.finished or output.request_id not in pending:
                        continue
                    request = pending.pop(output.request_id)
                    completion = output.outputs[0]
                    log = (output.kv_transfer_params or {}).get(CONFIG_KEY, {})
                    if "error" in log:
                        raise ValueError(log["error"])
                    reason: FinishReason = "length" if completion.finish_reason == "length" else "stop"
                    trace = self._trace(request, completion.token_ids, reason, log)
                    if why := stop_question(trace):
                        stopped.setdefault(request.question.id, why)
                    yield trace
                unneeded = [name for name, r in pending.items() if r.question.id in stopped]
                yield from self._cancel([pending.pop(name) for name in unneeded], stopped)
        finally:
            if pending:  # the caller stopped listening: nobody wants the rest
                self._engine.abort_request([r.internal_id for r in pending.values()], internal=True)

    def _submit(
        self,
        name: str,
        prompt: list[int],
        question: Question,
        sample_id: int,
        sampling: Sampling,
        spec: TraceSpec,
    ) -> str:
        """Hand one trace to vLLM; returns the id that vLLM knows it by."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        # One request per trace: with n > 1 only the last-finishing sample's log would survive.
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed_of(question.id, sample_id),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={CONFIG_KEY: spec.to_dict()},
        )
        return str(self._engine.add_request(name, tokens_input(prompt), params))

    def _cancel(self, requests: list[_Request], why: Mapping[str, str]) -> Iterator[Trace]:
        """Abort requests; their traces end where they are, for the reason given for their question."""
        states = self._engine.output_processor.request_states
        so_far = [list(states[request.internal_id].detokenizer.output_token_ids) for request in requests]
        self._engine.abort_request([request.internal_id for request in requests], internal=True)
        for request, token_ids in zip(requests, so_far, strict=True):
            yield self._trace(request, token_ids, "cancelled", {}, why[request.question.id])

    def _trace(
        self,
        request: _Request,
        token_ids: Sequence[int],
        reason: FinishReason,
        log: dict[str, Any],
        detail: str = "",
    ) -> Trace:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return make_trace(request.question, request.sample_id, text, token_ids, reason, log, detail)

    def close(self) -> None:
        """See ``Engine.close``. vLLM then tears down what all engines in this process share: close the last
        one only, or run them with ``in_process=False``.
        """
        self._engine.engine_core.shutdown()
