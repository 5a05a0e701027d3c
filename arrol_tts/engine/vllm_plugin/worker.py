"""Worker side of the plug-in: signals of this step's rows. No per-request state, no model changes.

After the forward pass, outside CUDA graphs and torch.compile, the last-layer states and the logits of
all rows that are sampled from lie in the model runner. One pass over all of them gives what the heads read
(a score, or where they pool a weight and a value), DeepConf's confidence and the self-certainty; a few
floats per row leave the device, attached to the step's output.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from arrol_tts.engine.base import DEFAULT_TOP_K
from arrol_tts.engine.handover import named_heads
from arrol_tts.engine.signals import HeadReader, HeadReading, self_certainty, token_confidence
from arrol_tts.engine.vllm_plugin import require
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY, Signals, Wanted
from arrol_tts.head import QualityHead

if TYPE_CHECKING or not current_platform.is_cpu():
    from vllm.v1.worker.gpu_worker import Worker as BaseWorker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as BaseWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vllm.v1.core.sched.output import SchedulerOutput

logger = init_logger(__name__)

SMALL = 1 << 17
"""Numbers in a step's hidden states up to which one CPU thread is faster than several."""


class _OutputWithSignals(AsyncModelRunnerOutput):
    """An output still on its way from the device, to which the signals are attached on arrival."""

    def __init__(
        self, output: AsyncModelRunnerOutput, attach: Callable[[ModelRunnerOutput], ModelRunnerOutput]
    ) -> None:
        self._output, self._attach = output, attach

    def get_output(self) -> ModelRunnerOutput:
        return self._attach(self._output.get_output())

    def get_kv_connector_output(self) -> Any:
        """What vLLM 0.33 saves of a step whose output could not be had."""
        return self._output.get_kv_connector_output()


class QualityHeadWorker(BaseWorker):
    """vLLM's own worker, with the signals of each step attached to its output."""

    arrol_heads: dict[str, HeadReader]
    _arrol_wanted: Wanted | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self._arrol_check_runner()
        config = (self.vllm_config.additional_config or {}).get(CONFIG_KEY, {})
        self._arrol_top_k = int(config.get("top_k", DEFAULT_TOP_K))
        self.arrol_heads = {}
        for name, path in named_heads(config.get("head")).items():
            self.arrol_load_head(path, name)

    def _arrol_check_runner(self) -> None:
        """Fail here rather than in the first step when this vLLM's runner is laid out differently."""
        require(self.model_runner, "execute_model_state")
        if self.use_v2_model_runner:
            from vllm.v1.worker.gpu.input_batch import InputBatch
            from vllm.v1.worker.gpu.model_runner import ExecuteModelState

            require(ExecuteModelState, "hidden_states", "input_batch")
            require(InputBatch, "req_ids", "cu_num_logits_np", "logits_indices")
        else:
            from vllm.v1.worker.gpu_model_runner import ExecuteModelState

            fields = ("hidden_states", "sample_hidden_states", "logits", "spec_decode_metadata")
            require(ExecuteModelState, *fields)
            require(self.model_runner, "input_batch", "discard_request_mask")

    def arrol_load_head(self, path: str, name: str = "") -> None:
        """Load a head, or replace the one of that name; reachable through ``collective_rpc``.

        Raises:
            HeadError: when the head is not for a model of this hidden size.
        """
        head = QualityHead.from_pretrained(path)
        head.config.check_model(hidden_size=self.model_config.get_hidden_size())
        self.arrol_heads[name] = HeadReader(head.to(self.device))

    def arrol_load_weights(self, path: str) -> None:
        """Replace the language model's weights by those of a safetensors file, in place.

        Reachable through ``collective_rpc``. The caller then resets the prefix cache.
        """
        from safetensors.torch import load_file

        from arrol_tts.engine.vllm_plugin.weights import load_weights

        load_weights(self, load_file(path).items())

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        self._arrol_wanted = getattr(scheduler_output, "arrol_wanted", None)
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        wanted, self._arrol_wanted = self._arrol_wanted, None
        # The runner drops its state while sampling, and sampling may change the logits in place.
        attach = self._arrol_try_to_read(wanted) if wanted is not None else None
        with _generators_at_rest(self):
            output = super().sample_tokens(grammar_output)
        if attach is None or output is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _OutputWithSignals(output, attach)
        return attach(output)

    def _arrol_try_to_read(self, wanted: Wanted) -> Callable[[ModelRunnerOutput], ModelRunnerOutput] | None:
        """As `_arrol_read`; what it raises is attached, and the scheduler refuses who needs what was not read."""

        def failing(
            read: Callable[[ModelRunnerOutput], ModelRunnerOutput],
        ) -> Callable[[ModelRunnerOutput], ModelRunnerOutput]:
            def attach(output: ModelRunnerOutput) -> ModelRunnerOutput:
                try:
                    return read(output)
                except Exception as error:
                    logger.exception("arrol's worker could not read a step's signals")
                    words = f"the worker could not read scores or confidences ({type(error).__name__}: {error})"
                    output.arrol_signals = Signals({}, {}, None, error=words)
                    return output

            return attach

        try:
            attach = self._arrol_read(wanted)
        except Exception as error:
            failed = error

            def fail(_: ModelRunnerOutput) -> ModelRunnerOutput:
                raise failed

            return failing(fail)
        return None if attach is None else failing(attach)

    @torch.inference_mode()
    def _arrol_read(self, wanted: Wanted) -> Callable[[ModelRunnerOutput], ModelRunnerOutput] | None:
        runner = self.model_runner
        state = runner.execute_model_state
        if state is None or not isinstance(state.hidden_states, torch.Tensor):
            return None  # not the last pipeline stage: its output carries no tokens either
        if self.use_v2_model_runner:
            rows, hidden, logits = _rows_of_runner_v2(runner, state, wanted.confidence or wanted.self_certainty)
        else:
            rows, hidden, logits = _rows_of_runner_v1(runner, state)
        scored = [name for name in wanted.heads if name in self.arrol_heads]
        with _single_threaded(hidden):
            states = hidden.float()
            values = [self.arrol_heads[name](states) for name in scored]
            widths = [len(value) for value in values]
            if wanted.confidence:
                assert logits is not None
                values.append(token_confidence(logits, self._arrol_top_k)[None])
            if wanted.self_certainty:
                assert logits is not None
                values.append(self_certainty(logits)[None])
        if not values and not wanted.features:
            return None
        table = torch.cat(values) if values else hidden.new_zeros(0)
        readers = [self.arrol_heads[name] for name in scored]
        # A copy: the runner reuses its buffers while this output may still be on its way.
        features = hidden.to("cpu", torch.float32, non_blocking=True, copy=True) if wanted.features else None
        ready = None
        if hidden.is_cuda:
            table = table.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()

        def attach(output: ModelRunnerOutput) -> ModelRunnerOutput:
            if ready is not None:
                ready.synchronize()
            lists = iter(table.tolist())
            output.arrol_signals = Signals(
                rows,
                scores={
                    name: HeadReading.of([next(lists) for _ in range(width)], reader)
                    for name, width, reader in zip(scored, widths, readers, strict=True)
                },
                confidence=next(lists) if wanted.confidence else None,
                features=features.numpy() if features is not None else None,
                self_certainty=next(lists) if wanted.self_certainty else None,
            )
            return output

        return attach


@contextmanager
def _single_threaded(hidden: torch.Tensor) -> Iterator[None]:
    """Compute small things on a CPU on this thread: waking the others takes longer than the things.

    vLLM replaces ``torch.set_num_threads`` by nothing when a CPU worker starts, so torch's own is called.
    """
    if hidden.is_cuda or hidden.numel() > SMALL:
        yield
        return
    threads = torch.get_num_threads()
    torch._C.set_num_threads(1)
    try:
        yield
    finally:
        torch._C.set_num_threads(threads)


@contextmanager
def _generators_at_rest(worker: QualityHeadWorker) -> Iterator[None]:
    """Spare a seeded request's generator on the CPU while its prompt is still being read in chunks.

    Runner V1 draws a token for it all the same and takes the draw back by the generator's offset, which
    generators have on GPUs only: on the CPU the engine would die of the first such chunk.
    """
    runner = worker.model_runner
    if worker.use_v2_model_runner or worker.device.type != "cpu" or runner.execute_model_state is None:
        yield
        return
    generators = runner.input_batch.generators
    partial = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist()
    resting = {i: generators.pop(i) for i in partial if i in generators}
    try:
        yield
    finally:
        generators.update(resting)


def _rows_of_runner_v1(runner: Any, state: Any) -> tuple[dict[str, int], torch.Tensor, torch.Tensor]:
    """Rows in the runner's own request order; drafts of speculative decoding take a row each."""
    firsts: Iterable[int] = range(len(runner.input_batch.req_ids))
    if state.spec_decode_metadata is not None:
        drafts = state.spec_decode_metadata.num_draft_tokens
        firsts = accumulate((1 + n for n in drafts[:-1]), initial=0)
    rows = dict(zip(runner.input_batch.req_ids, firsts, strict=True))
    return rows, state.sample_hidden_states, state.logits


def _rows_of_runner_v2(
    runner: Any, state: Any, needs_logits: bool
) -> tuple[dict[str, int], torch.Tensor, torch.Tensor | None]:
    """Runner V2 computes its logits while sampling, so they are computed here when they are needed."""
    batch = state.input_batch
    firsts = batch.cu_num_logits_np[: len(batch.req_ids)].tolist()
    rows = dict(zip(batch.req_ids, firsts, strict=True))
    hidden = state.hidden_states[batch.logits_indices]
    return rows, hidden, runner.model.compute_logits(hidden) if needs_logits else None
