"""The fast engine: stock vLLM with our worker and scheduler, in this process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrol_tts.engine.base import DEFAULT_TOP_K, Engine, hidden_size_of
from arrol_tts.engine.decoder import Decoder
from arrol_tts.engine.handover import head_folder, head_folders, weights_file
from arrol_tts.engine.vllm_fields import ChatFields
from arrol_tts.engine.vllm_loop import VLLMLoop
from arrol_tts.engine.vllm_plugin import CPU_OPTIONS, check_vllm, vllm_options
from arrol_tts.engine.vllm_run import Prepared, VLLMRun
from arrol_tts.errors import EngineError, InputError
from arrol_tts.prompts import prompt_ids

if TYPE_CHECKING:
    import torch
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.llm_engine import LLMEngine

    from arrol_tts.engine.handover import Heads, HeadSource
    from arrol_tts.engine.request import Question, Request

CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache on CPU unless the caller sets one: vLLM would take most of the machine's memory."""


class VLLMEngine(Engine):
    """Samples with vLLM; scores, confidences and pruning happen inside its scheduler and worker.

    Args:
        model: path or hub id of a model that vLLM serves.
        head: folder or hub id of a quality head, ``"pocket"``, or the head itself; or several by name (a spec's
            ``head`` says which one scores, "" is the default); None for sampling without scores.
        top_k: candidates of DeepConf's token confidence.
        in_process: run the engine core in this process (default on CPU, where a process more only
            takes cores away) or in one of its own (vLLM's default, better on GPUs).
        tool_parser: vLLM's name of the parser that reads the model's tool calls, such as ``"hermes"``; without it
            there are no tools.
        **options: vLLM's engine arguments (``tensor_parallel_size``, ``max_num_seqs``,
            ``max_model_len``, ``dtype`` ...), passed on as they are.

    Raises:
        HeadError: when the head is for another hidden size; before the model loads.
        EngineError: when this version of vLLM is not supported.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        head: Heads = None,
        top_k: int = DEFAULT_TOP_K,
        in_process: bool | None = None,
        tool_parser: str | None = None,
        **options: Any,
    ) -> None:
        self.model = str(model)
        self._tool_parser = tool_parser
        self.hidden_size = hidden_size_of(model)
        with head_folders(head, hidden_size=self.hidden_size, model=self.model) as folders:
            self._load(folders, top_k, in_process, options)
        self._heads = set(folders)

    def _load(
        self, heads: Mapping[str, str], top_k: int, in_process: bool | None, options: dict[str, Any]
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm.platforms import current_platform

        check_vllm()
        self._in_process = in_process = current_platform.is_cpu() if in_process is None else in_process
        if current_platform.is_cpu():
            defaults = {**CPU_OPTIONS, "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES}
            options = defaults | options
        if in_process:
            if options.get("tensor_parallel_size", 1) == 1:
                options.setdefault("distributed_executor_backend", "uni")
            # vLLM's CPU platform would otherwise start worker processes all the same, and those need a
            # __main__ guard in the user's script.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # Log-probabilities of the distribution that is sampled from, temperature included.
        options.setdefault("logprobs_mode", "processed_logprobs")
        options |= vllm_options(head=heads, top_k=top_k, in_process=in_process)
        self._loop = VLLMLoop(partial(_build, self.model, options, in_process), _tear_down)
        weakref.finalize(self, self._loop.stop)
        engine = self._loop.engine
        self._tokenizer: Any = engine.get_tokenizer()
        self._decoder = Decoder(self._tokenizer)
        self._max_model_len = engine.model_config.max_model_len

    @property
    def heads(self) -> Collection[str]:
        """See ``Engine.heads``."""
        return self._heads

    def load_head(self, head: HeadSource, name: str = "") -> None:
        """See ``Engine.load_head``."""
        with head_folder(head, hidden_size=self.hidden_size, model=self.model) as path:
            self._loop.call(lambda engine: engine.collective_rpc("arrol_load_head", args=(path, name)))
        self._heads.add(name)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]] | str | Path) -> None:
        """See ``Engine.load_weights``; the prefix cache is forgotten."""
        with weights_file(weights) as path:
            self._loop.call(partial(_load_weights, path=path))

    def trouble(self) -> str:
        """See ``Engine.trouble``."""
        return self._loop.trouble()

    def close(self) -> None:
        """See ``Engine.close``."""
        self._loop.stop()

    def _prepare(self, question: Question) -> Prepared:
        prompt = prompt_ids(self._tokenizer, question)
        fields = None
        if question.request_fields:
            fields = ChatFields(question, self._tokenizer, self._tool_parser)
        return Prepared(prompt, self._decoder.opens_thinking(prompt), fields)

    def _start(self, request: Request) -> VLLMRun:
        prepared = [self._prepare(question) for question in request.questions]
        for question, ready in zip(request.questions, prepared, strict=True):
            if len(ready.prompt) + request.sampling.max_tokens > self._max_model_len:
                raise InputError(
                    f"question {question.id!r} has {len(ready.prompt)} prompt tokens; with max_tokens="
                    f"{request.sampling.max_tokens} it exceeds the model's {self._max_model_len}: lower max_tokens"
                )
        run = VLLMRun(self._loop, self._decoder, self._prepare, request.every, in_process=self._in_process)
        self._loop.call(lambda engine: run.submit(engine, request, prepared))
        return run


_sharing = threading.RLock()
_in_process: set[EngineCore] = set()
"""Engine cores that run in this process: they share vLLM's parallel groups, which are global to it."""


def _build(model: str, options: dict[str, Any], in_process: bool) -> LLMEngine:
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    # Limits that nobody gave are those of vLLM's own LLM class on this device; without a context they would be
    # 128 sequences and 2,048 tokens a step.
    config = EngineArgs(model=model, **options).create_engine_config(UsageContext.LLM_CLASS)
    with _sharing:
        engine = LLMEngine(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            multiprocess_mode=not in_process,
        )
        if in_process:
            # vLLM would shut it down as ``_tear_down`` must not, when it is collected.
            engine.engine_core._finalizer.detach()
            _in_process.add(engine.engine_core.engine_core)
    return engine


def _tear_down(engine: LLMEngine) -> None:
    """Free what an engine holds; what it shares with others in this process goes with the last of them."""
    core = getattr(engine.engine_core, "engine_core", None)
    if core is None:
        engine.engine_core.shutdown()
        return
    with _sharing:
        _in_process.remove(core)
        if _in_process:
            core.model_executor.shutdown()
            core.scheduler.shutdown()
        else:
            core.shutdown()


def _load_weights(engine: LLMEngine, path: str) -> None:
    if engine.has_unfinished_requests():
        raise EngineError("traces are being sampled: load new weights when they have ended")
    engine.collective_rpc("arrol_load_weights", args=(path,))
    engine.reset_prefix_cache()
