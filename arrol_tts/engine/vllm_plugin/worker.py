"""Worker side of the plug-in: signals of this step's rows. No per-request state, no model changes.

After the forward pass, outside CUDA graphs and torch.compile, the last-layer states and the logits of
all rows that are sampled from pass by where sampling computes them. One pass over all of them gives what the
heads read (a score, or where they pool a weight and a value), DeepConf's confidence and the self-certainty; a
few floats per row leave the device, and the hidden vectors of the rows that may be kept, attached to the step's
output. The rank whose output vLLM reads does this, and no other.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from arrol_tts.engine.base import DEFAULT_TOP_K
from arrol_tts.engine.handover import named_heads
from arrol_tts.engine.signals import HeadReader, self_certainty, token_confidence
from arrol_tts.engine.vllm_plugin import require
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY, Signals, Wanted
from arrol_tts.head import QualityHead

if TYPE_CHECKING or not current_platform.is_cpu():
    from vllm.v1.worker.gpu_worker import Worker as BaseWorker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as BaseWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from vllm.v1.core.sched.output import SchedulerOutput

logger = init_logger(__name__)

SMALL = 1 << 14
"""Numbers in a step's hidden states up to which one CPU thread is faster than several."""


if TYPE_CHECKING:
    Attach = Callable[[ModelRunnerOutput], ModelRunnerOutput]
    """Adds a step's signals to its output, once they have arrived from the device."""


class _OutputWithSignals(AsyncModelRunnerOutput):
    """An output still on its way from the device, to which the signals are attached on arrival."""

    def __init__(self, output: AsyncModelRunnerOutput, attach: Attach) -> None:
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
    _arrol_reports = True

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self._arrol_check_runner()
        # vLLM reads the output of one rank of those that share the layers; with this backend each reads its own.
        alone = self.parallel_config.distributed_executor_backend == "external_launcher"
        self._arrol_reports = alone or get_tp_group().is_first_rank
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
            require(InputBatch, "req_ids", "num_draft_tokens", "cu_num_logits_np", "logits_indices")
            require(self.model_runner, "model", "batch_sharder")
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
        attached: list[Attach] = []
        with self._arrol_reading(wanted, attached), _generators_at_rest(self):
            output = super().sample_tokens(grammar_output)
        if not attached or output is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _OutputWithSignals(output, attached[0])
        return attached[0](output)

    @contextmanager
    def _arrol_reading(self, wanted: Wanted | None, attached: list[Attach]) -> Iterator[None]:
        """Read a step's rows while it is sampled: the runner drops its state then, and may change the logits."""
        runner = self.model_runner
        state = runner.execute_model_state
        if wanted is None or state is None or not isinstance(state.hidden_states, torch.Tensor):
            yield  # not the last pipeline stage: its output carries no tokens either
            return
        try:
            rows = _rows_of_runner_v2(state) if self.use_v2_model_runner else _rows_of_runner_v1(runner, state)
        except Exception as error:
            attached.append(_failing(error))
            yield
            return

        def read(hidden: torch.Tensor, logits: torch.Tensor | None) -> None:
            if self._arrol_reports:
                attached.append(self._arrol_try_to_read(wanted, rows, hidden, logits))

        if not self.use_v2_model_runner:
            read(state.sample_hidden_states, state.logits)
            yield
        elif runner.batch_sharder is None:
            with _first_logits(runner.model, read):
                yield
        else:
            # Each rank samples for some of the requests and has the logits of those only: all compute them again.
            hidden = state.hidden_states[state.input_batch.logits_indices]
            needed = wanted.confidence or wanted.self_certainty
            read(hidden, runner.model.compute_logits(hidden) if needed else None)
            yield

    def _arrol_try_to_read(
        self, wanted: Wanted, rows: _Rows, hidden: torch.Tensor, logits: torch.Tensor | None
    ) -> Attach:
        """As `_arrol_read`; what it raises is attached, and the scheduler refuses who needs what was not read."""
        try:
            attach = self._arrol_read(wanted, rows, hidden, logits)
        except Exception as error:
            return _failing(error)

        def attach_or_say_why(output: ModelRunnerOutput) -> ModelRunnerOutput:
            try:
                return attach(output)
            except Exception as error:
                return _failing(error)(output)

        return attach_or_say_why

    @torch.inference_mode()
    def _arrol_read(
        self, wanted: Wanted, rows: _Rows, hidden: torch.Tensor, logits: torch.Tensor | None
    ) -> Attach:
        """Begin to compute and to copy what is wanted; nothing here waits for the device.

        Args:
            wanted: signals, and whose states.
            rows: whose each row is.
            hidden: ``[rows, hidden_size]``, in the model's data type.
            logits: ``[rows, vocabulary]``, as the model gave them.
        """
        readers = {name: self.arrol_heads[name] for name in wanted.heads if name in self.arrol_heads}
        values = []
        with _single_threaded(hidden):
            if readers:
                states = hidden.float()
                values = [reader(states) for reader in readers.values()]
            if wanted.confidence:
                assert logits is not None
                values.append(token_confidence(logits, self._arrol_top_k)[None])
            if wanted.self_certainty:
                assert logits is not None
                values.append(self_certainty(logits)[None])
        table = torch.cat(values) if values else None
        kept, kept_rows = rows.of(wanted.features, len(hidden)) if wanted.features else ({}, [])
        # A copy: the runner reuses its buffers while this output may still be on its way.
        features = hidden[_on_device(kept_rows, hidden)] if kept_rows else None
        ready = None
        if hidden.is_cuda:
            table = None if table is None else table.to("cpu", non_blocking=True)
            # In the model's own data type, which is two bytes a number on most: widened only here.
            features = None if features is None else features.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()

        def attach(output: ModelRunnerOutput) -> ModelRunnerOutput:
            if ready is not None:
                ready.synchronize()
            output.arrol_signals = Signals(
                None if table is None else table.numpy(),
                heads={name: reader.kind for name, reader in readers.items()},
                confidence=wanted.confidence,
                self_certainty=wanted.self_certainty,
                firsts=rows.firsts,
                features=None if features is None else features.float().numpy(),
                kept=kept,
            )
            return output

        return attach


def _failing(error: Exception) -> Attach:
    """Attaches that a step could not be read."""

    def attach(output: ModelRunnerOutput) -> ModelRunnerOutput:
        logger.error("arrol's worker could not read a step's signals", exc_info=error)
        words = f"the worker could not read scores or confidences ({type(error).__name__}: {error})"
        output.arrol_signals = Signals(error=words)
        return output

    return attach


def _on_device(rows: list[int], like: torch.Tensor) -> torch.Tensor:
    """Row numbers where a tensor is, without waiting for the device."""
    index = torch.tensor(rows, pin_memory=like.is_cuda)
    return index.to(like.device, non_blocking=True)


@contextmanager
def _first_logits(model: Any, read: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Have the first logits that a model computes read, and the states that they are computed from.

    Runner V2 computes them for sampling, then masks and scales them in place; prompts' come after them.
    """
    methods, name = vars(model), "compute_logits"
    compute, before = model.compute_logits, methods.get(name)

    def put_back() -> None:
        methods.pop(name, None)
        if before is not None:
            methods[name] = before

    def compute_and_read(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        put_back()
        logits: torch.Tensor = compute(hidden, *args, **kwargs)
        read(hidden, logits)
        return logits

    methods[name] = compute_and_read
    try:
        yield
    finally:
        put_back()


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


@dataclass(frozen=True, slots=True)
class _Rows:
    """Whose the rows of a step are.

    Attributes:
        request_ids: in the runner's own order, which is the one of the step's output.
        firsts: the first row of each, or None where each has one.
    """

    request_ids: Sequence[str]
    firsts: NDArray[np.int32] | None

    def of(self, wanted: Sequence[str], count: int) -> tuple[dict[str, int], list[int]]:
        """The rows of some of the requests one after the other, and where in them each begins.

        Args:
            wanted: requests, of which others may be in another step.
            count: rows of the step.
        """
        members = set(wanted)
        kept: dict[str, int] = {}
        found: list[int] = []
        for i, request_id in enumerate(self.request_ids):
            if request_id in members:
                kept[request_id] = len(found)
                found += range(*self._span(i, count))
        return kept, found

    def _span(self, i: int, count: int) -> tuple[int, int]:
        if self.firsts is None:
            return i, i + 1
        return int(self.firsts[i]), int(self.firsts[i + 1]) if i + 1 < len(self.firsts) else count


def _rows_of_runner_v1(runner: Any, state: Any) -> _Rows:
    """Rows in the runner's own request order; drafts of speculative decoding take a row each."""
    firsts = None
    if state.spec_decode_metadata is not None:
        drafts = state.spec_decode_metadata.num_draft_tokens
        firsts = np.fromiter(accumulate((1 + n for n in drafts[:-1]), initial=0), dtype=np.int32)
    return _Rows(list(runner.input_batch.req_ids), firsts)


def _rows_of_runner_v2(state: Any) -> _Rows:
    """Likewise, in runner V2's fields."""
    batch = state.input_batch
    firsts = batch.cu_num_logits_np[: len(batch.req_ids)].astype(np.int32) if batch.num_draft_tokens else None
    return _Rows(batch.req_ids, firsts)
