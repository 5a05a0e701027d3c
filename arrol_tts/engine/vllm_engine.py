"""The fast engine: stock vLLM with our worker and scheduler, in this process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrol_tts.engine.base import (
    Question,
    Sampling,
    check_request,
    encode_prompt,
    group_specs,
    hidden_size_of,
    make_trace,
)
from arrol_tts.engine.vllm_plugin import check_vllm, vllm_options
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    from arrol_tts.trace import Trace

CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache on CPU unless the caller sets one: vLLM would take most of the machine's memory."""


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
        top_k: int = 20,
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
            # Compilation takes minutes on a CPU, and asynchronous scheduling gains nothing there.
            defaults = {
                "enforce_eager": True,
                "async_scheduling": False,
                "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
            }
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
        self, questions: Sequence[Question], sampling: Sampling, spec: TraceSpec | None = None
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
        return self._sample(questions, prompts, sampling, spec)

    def _sample(
        self, questions: Sequence[Question], prompts: list[list[int]], sampling: Sampling, spec: TraceSpec
    ) -> Iterator[Trace]:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        call = next(self._call)
        pending: dict[str, tuple[Question, int]] = {}
        internal_ids: list[str] = []
        for question, prompt, question_spec in zip(
            questions, prompts, group_specs(questions, sampling, spec), strict=True
        ):
            extra_args = {CONFIG_KEY: question_spec.to_dict()}
            for sample_id in range(sampling.n):
                request_id = f"{call}-{len(pending)}"
                pending[request_id] = (question, sample_id)
                # One request per trace: with n > 1 only the last-finishing sample's log would survive.
                params = SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    max_tokens=sampling.max_tokens,
                    seed=sampling.seed_of(question.id, sample_id),
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    extra_args=extra_args,
                )
                internal_ids.append(self._engine.add_request(request_id, tokens_input(prompt), params))
        try:
            while pending:
                for output in self._engine.step():
                    if not output.finished or output.request_id not in pending:
                        continue
                    question, sample_id = pending.pop(output.request_id)
                    completion = output.outputs[0]
                    log = (output.kv_transfer_params or {}).get(CONFIG_KEY, {})
                    if "error" in log:
                        raise ValueError(log["error"])
                    yield make_trace(
                        self._tokenizer,
                        question,
                        sample_id,
                        completion.token_ids,
                        "length" if completion.finish_reason == "length" else "stop",
                        log,
                    )
        finally:
            if pending:  # the caller stopped listening: nobody wants the rest
                self._engine.abort_request(internal_ids, internal=True)

    def close(self) -> None:
        """See ``Engine.close``."""
        self._engine.engine_core.shutdown()
