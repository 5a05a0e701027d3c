"""The fast engine: stock vLLM with our worker and scheduler, in this process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrol_tts.engine.base import DEFAULT_TOP_K, group_specs, hidden_size_of
from arrol_tts.engine.handover import head_folder, weights_file
from arrol_tts.engine.request import Question, Sampling, StopQuestion, check_request, never_stop
from arrol_tts.engine.vllm_loop import VLLMLoop
from arrol_tts.engine.vllm_plugin import CPU_OPTIONS, check_vllm, vllm_options
from arrol_tts.engine.vllm_run import Run, Sampled
from arrol_tts.prompts import prompt_ids
from arrol_tts.stopping import TraceSpec

if TYPE_CHECKING:
    import torch
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.llm_engine import LLMEngine

    from arrol_tts.events import Progress
    from arrol_tts.head import QualityHead
    from arrol_tts.trace import Trace

CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache on CPU unless the caller sets one: vLLM would take most of the machine's memory."""


class VLLMEngine:
    """Samples with vLLM; scores, confidences and pruning happen inside its scheduler and worker.

    Args:
        model: path or hub id of a model that vLLM serves.
        head: local folder of a quality head, or of several by name (a spec's ``head`` says which one scores,
            "" is the default); None for sampling without scores.
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
        head: str | Path | Mapping[str, str | Path] | None = None,
        top_k: int = DEFAULT_TOP_K,
        in_process: bool | None = None,
        **options: Any,
    ) -> None:
        self.model = str(model)
        self.hidden_size = hidden_size_of(model)
        heads = {"": head} if isinstance(head, (str, Path)) else dict(head or {})
        for path in heads.values():
            from arrol_tts.head_config import read_head_config

            read_head_config(Path(path)).check_model(hidden_size=self.hidden_size, model=self.model)
        self._heads = set(heads)
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
        asynchronous = bool(options.setdefault("async_scheduling", True))
        # Log-probabilities of the distribution that is sampled from, temperature included.
        options.setdefault("logprobs_mode", "processed_logprobs")
        paths = {name: str(path) for name, path in heads.items()}
        options |= vllm_options(head=paths, top_k=top_k, asynchronous=asynchronous)
        self._loop = VLLMLoop(partial(_build, self.model, options, in_process), _tear_down)
        weakref.finalize(self, self._loop.stop)
        engine = self._loop.engine
        self._tokenizer: Any = engine.get_tokenizer()
        self._max_model_len = engine.model_config.max_model_len

    def sample(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
    ) -> Sampled[Trace]:
        """See ``Engine.sample``."""
        return Sampled(self._start(questions, sampling, spec or TraceSpec(), stop_question))

    def stream(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec | None = None,
        *,
        stop_question: StopQuestion = never_stop,
        every: float = 0.1,
    ) -> Sampled[Progress | Trace]:
        """See ``Engine.stream``."""
        spec = replace(spec or TraceSpec(), live=True)
        return Sampled(self._start(questions, sampling, spec, stop_question, every))

    def load_head(self, head: QualityHead | str | Path, name: str = "") -> None:
        """Load a quality head, or replace the one of that name, while the engine runs.

        Traces are scored by the head that their spec names; the weights take effect between two steps.

        Raises:
            HeadError: when the head is for another hidden size, or cannot be read.
        """
        with head_folder(head, hidden_size=self.hidden_size, model=self.model) as path:
            self._loop.call(lambda engine: engine.collective_rpc("arrol_load_head", args=(path, name)))
        self._heads.add(name)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]] | str | Path) -> None:
        """Replace the language model's weights while the engine is idle, and forget its prefix cache.

        Args:
            weights: names, as in the checkpoint, and tensors; or a safetensors file of them.

        Raises:
            RuntimeError: while traces are being sampled, whose tokens would come from two models.
        """
        with weights_file(weights) as path:
            self._loop.call(partial(_load_weights, path=path))

    def close(self) -> None:
        """See ``Engine.close``."""
        self._loop.stop()

    def _start(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        spec: TraceSpec,
        stop_question: StopQuestion,
        every: float | None = None,
    ) -> Run:
        check_request(questions, sampling, spec, has_head=spec.head in self._heads)
        prompts = [prompt_ids(self._tokenizer, question) for question in questions]
        for question, prompt in zip(questions, prompts, strict=True):
            if len(prompt) + sampling.max_tokens > self._max_model_len:
                raise ValueError(
                    f"question {question.id!r} has {len(prompt)} prompt tokens; with max_tokens="
                    f"{sampling.max_tokens} it exceeds the model's {self._max_model_len}: lower max_tokens"
                )
        run = Run(self._loop, self._tokenizer, stop_question, every)
        specs = group_specs(questions, sampling, spec)
        work = list(zip(questions, prompts, specs, strict=True))
        self._loop.call(lambda engine: run.submit(engine, work, sampling))
        return run


_sharing = threading.RLock()
_in_process: set[EngineCore] = set()
"""Engine cores that run in this process: they share vLLM's parallel groups, which are global to it."""


def _build(model: str, options: dict[str, Any], in_process: bool) -> LLMEngine:
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    config = EngineArgs(model=model, **options).create_engine_config()
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
        raise RuntimeError("traces are being sampled: load new weights when they have ended")
    engine.collective_rpc("arrol_load_weights", args=(path,))
    engine.reset_prefix_cache()
