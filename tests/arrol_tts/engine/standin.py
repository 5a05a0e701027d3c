"""A stand-in for the model: the real engine core, scheduler and worker class over a runner without one.

``runner_v2`` runs vLLM's second model runner for real, a step a second. What takes thousands of steps runs here:
vLLM's own engine core steps with two batches in flight, our scheduler sits on its own AsyncScheduler, our worker
reads the rows; only the model runner is made up. What it makes up can be checked to the last digit: tokens, scores
and confidences are functions of a request's name and position, and a KV cache is kept that knows which
text each slot belongs to, so that a block lost, freed too early or given out twice is seen at once.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from queue import Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from arrol_tts.engine.signals import HeadKind, HeadReader
from arrol_tts.engine.vllm_plugin.allowed import SIGNALS
from arrol_tts.engine.vllm_plugin.messages import CONFIG_KEY
from arrol_tts.engine.vllm_plugin.scheduler import QualityHeadAutoScheduler
from arrol_tts.engine.vllm_plugin.worker import QualityHeadWorker
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.pocket import POCKET_MODEL
from arrol_tts.stopping import TraceSpec

BLOCK = 4
VOCABULARY = 1000
TOP_K = 2
POOLED = "pooled"
"""Name of the stand-in's second head, a real one that pools every third row."""


def _draw(kind: str, request_id: str, position: int) -> int:
    return int.from_bytes(blake2b(f"{kind} {request_id} {position}".encode(), digest_size=4).digest())


def token_of(request_id: str, position: int) -> int:
    """The token that the stand-in samples from the row at a position."""
    return _draw("token", request_id, position) % VOCABULARY


def score_of(request_id: str, position: int) -> float:
    """The score that the stand-in's head reads from the row at a position: the row's only number."""
    return _draw("score", request_id, position) / 2**32


class StandinHead(HeadReader):
    """A head whose score is whatever a function makes of the rows."""

    def __init__(self, read: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._read, self.kind = read, HeadKind()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._read(hidden)[None]


def pooled_head(*, stride: int = 3) -> QualityHead:
    """A linear head of gated pooling over states of one number."""
    head = QualityHead(QualityHeadConfig("m", hidden_size=1, inner_size=0, pooling="gated", stride=stride))
    with torch.no_grad():
        head.outer.weight.copy_(torch.tensor([[4.0], [2.0]]))  # of the value, and of the gate's logarithm
        head.outer.bias.copy_(torch.tensor([-2.0, -1.0]))
    return head


@torch.inference_mode()
def pooled_score_of(request_id: str, position: int) -> float:
    """The score of the head named ``POOLED`` up to a position, by its forward pass."""
    rows = [[score_of(request_id, k)] for k in range(0, position + 1, 3)]
    return float(pooled_head()(torch.tensor(rows))[-1])


SCORES = {"": score_of, POOLED: pooled_score_of}
"""What each head makes of a request up to a position."""


def confidence_of(request_id: str, position: int) -> float:
    """DeepConf's confidence, over two candidates, of the stand-in's logits [score, 0]."""
    score = score_of(request_id, position)
    return math.log(math.exp(score) + 1) - score / 2


@dataclass
class _Text:
    """A request as the runner knows it."""

    prompt_length: int
    tokens: list[int]
    blocks: list[int]
    computed: int = 0


class _Late(AsyncModelRunnerOutput):
    """A step's output that is still on its way from the device."""

    def __init__(self, output: ModelRunnerOutput) -> None:
        self._output = output

    def get_output(self) -> ModelRunnerOutput:
        return self._output


class StandinRunner:
    """Keeps requests and KV blocks as vLLM's runners do, in the fields that the worker reads.

    Args:
        slots: requests it can hold; runner V2 ties one to each request until it ends or is preempted.
        v2: lay the fields out as runner V2 does, else as runner V1 does.
    """

    def __init__(self, *, slots: int, v2: bool) -> None:
        self.slots, self.v2, self.dtype = slots, v2, torch.float32
        self.texts: dict[str, _Text] = {}
        self.kv: dict[tuple[int, int], int] = {}
        self.execute_model_state: Any = None
        self.input_batch: Any = None
        self.model, self.batch_sharder = SimpleNamespace(compute_logits=self._logits), None
        self.is_pooling_model = False
        self._buffer = torch.empty(2 * slots + 1, 1)
        self.most_held = 0
        self.preemptions = self.wiped = 0
        self.sampled: Counter[str] = Counter()

    @staticmethod
    def _logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack([hidden[:, 0], torch.zeros_like(hidden[:, 0])], dim=1)

    def execute_model(self, scheduled: Any, _: Any = None) -> ModelRunnerOutput | None:
        self._update_requests(scheduled)
        if not scheduled.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        # Not in the scheduler's order: whoever reads rows by that order reads the wrong ones.
        order = sorted(scheduled.num_scheduled_tokens, key=lambda r: zlib.crc32(r.encode()))
        ends = {r: self.texts[r].computed + scheduled.num_scheduled_tokens[r] for r in order}
        for request_id, end in ends.items():
            self._write_kv(self.texts[request_id], end)
        rows, self._tokens = [], []
        for request_id, end in ends.items():
            text = self.texts[request_id]
            self._read_kv(text, end)
            position = end - text.prompt_length
            rows.append(score_of(request_id, position) if position >= 0 else math.nan)
            sampled = end == len(text.tokens)
            self._tokens.append([token_of(request_id, position)] if sampled else [])
            text.tokens += self._tokens[-1]
            self.sampled[request_id] += sampled
        hidden = torch.tensor(rows, dtype=self.dtype).unsqueeze(1)
        self._order = order
        if self.v2:
            # As with CUDA graphs, the states lie in one buffer that the next step writes over. Rows that
            # are not sampled from lie between: the prompt's other tokens, and padding.
            self._buffer = self._buffer.to(self.dtype).fill_(math.nan)
            self._buffer[1 : 2 * len(rows) : 2] = hidden
            batch = SimpleNamespace(
                req_ids=order,
                num_draft_tokens=0,
                cu_num_logits_np=np.arange(len(order) + 1),
                logits_indices=torch.arange(1, 2 * len(rows), 2),
            )
            self.execute_model_state = SimpleNamespace(input_batch=batch, hidden_states=self._buffer)
        else:
            self.input_batch = SimpleNamespace(req_ids=order)
            self.execute_model_state = SimpleNamespace(
                hidden_states=hidden,
                sample_hidden_states=hidden,
                logits=self._logits(hidden),
                spec_decode_metadata=None,
            )
        return None

    def sample_tokens(self, _: Any) -> AsyncModelRunnerOutput:
        if self.v2:
            state = self.execute_model_state
            self.model.compute_logits(state.hidden_states[state.input_batch.logits_indices])
        # Sampling works in place on what it was given, and a graph's next replay may begin at once.
        for tensor in vars(self.execute_model_state).values():
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(math.nan)
        self.wiped += 1
        self.execute_model_state = None
        index = {request_id: i for i, request_id in enumerate(self._order)}
        return _Late(ModelRunnerOutput(self._order, index, self._tokens))

    def _update_requests(self, scheduled: Any) -> None:
        gone = set(scheduled.finished_req_ids)
        preempted = scheduled.preempted_req_ids or set()
        self.preemptions += len(preempted)
        for request_id in gone | preempted if self.v2 else gone:
            self.texts.pop(request_id, None)
        for new in scheduled.scheduled_new_reqs:
            tokens = list(new.prefill_token_ids if self.v2 else new.prompt_token_ids)
            self._check_tokens(new.req_id, tokens, len(new.prompt_token_ids))
            assert new.req_id not in self.texts
            self.texts[new.req_id] = _Text(
                len(new.prompt_token_ids), tokens, list(new.block_ids[0]), new.num_computed_tokens
            )
        cached = scheduled.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            text, blocks = self.texts[request_id], cached.new_block_ids[i]
            text.computed = cached.num_computed_tokens[i]
            if request_id in cached.resumed_req_ids:
                text.blocks = []
            text.blocks += blocks[0] if blocks else []
            if (tokens := cached.all_token_ids.get(request_id)) is not None:
                assert tokens == text.tokens, "the scheduler and the runner disagree about the text"
        held = len(self.texts) if self.v2 else len(scheduled.num_scheduled_tokens)
        self.most_held = max(self.most_held, held)
        assert held <= self.slots, "more requests than slots"

    @staticmethod
    def _check_tokens(request_id: str, tokens: list[int], prompt_length: int) -> None:
        generated = tokens[prompt_length:]
        assert generated == [token_of(request_id, i) for i in range(len(generated))]

    @staticmethod
    def _slots(text: _Text, end: int) -> Iterator[tuple[tuple[int, int], int]]:
        """The KV slots of a request's first ``end`` tokens, each with what belongs there."""
        assert end <= len(text.tokens), "scheduled beyond the text"
        prefix = 0
        for i, token in enumerate(text.tokens[:end]):
            prefix = zlib.crc32(f"{prefix} {token}".encode())
            yield (text.blocks[i // BLOCK], i % BLOCK), prefix

    def _write_kv(self, text: _Text, end: int) -> None:
        self.kv.update(list(self._slots(text, end))[text.computed :])

    def _read_kv(self, text: _Text, end: int) -> None:
        for slot, prefix in self._slots(text, end):
            assert self.kv.get(slot) == prefix, "a KV block holds another request's text"


@dataclass
class Ended:
    """How a request left the engine, and in which step."""

    tokens: list[int] = field(default_factory=list)
    stop_reason: Any = None
    log: dict[str, Any] = field(default_factory=dict)
    step: int = 0


class StandinEngine:
    """vLLM's engine core with our scheduler and worker over a StandinRunner.

    Args:
        blocks: KV blocks of ``BLOCK`` tokens.
        slots: as ``max_num_seqs``.
        budget: tokens a step.
        v2: which model runner to stand in for.
        asynchronous: two batches in flight, or one.
    """

    def __init__(
        self,
        *,
        blocks: int = 400,
        slots: int = 8,
        budget: int = 64,
        v2: bool = True,
        asynchronous: bool = True,
    ) -> None:
        config = _config()
        config.scheduler_config.async_scheduling = asynchronous
        config.cache_config.num_gpu_blocks = blocks + 1  # vLLM keeps one for itself
        init_none_hash(sha256)
        shape = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
        self.scheduler: Any = QualityHeadAutoScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(blocks + 1, [], [KVCacheGroupSpec(["layer"], shape)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
        )
        self.scheduler.use_v2_model_runner = v2
        self.scheduler.max_num_running_reqs = self.scheduler.max_num_active_reqs = slots
        self.scheduler.max_num_scheduled_tokens = budget
        self.blocks, self._hasher = blocks, get_request_block_hasher(BLOCK, sha256)
        self.runner = StandinRunner(slots=slots, v2=v2)
        self.worker = _StandinWorker(config, self.runner)
        self._core = self._make_core(config, self.worker)
        self._step = self._core.step_with_batch_queue if asynchronous else self._core.step
        self.ended: dict[str, Ended] = {}
        self._alive: dict[str, Ended] = {}
        self.most_batches = self.steps = 0

    def _make_core(self, config: Any, worker: QualityHeadWorker) -> Any:
        core: Any = object.__new__(EngineCore)
        core.vllm_config, core.scheduler, core.model_executor = config, self.scheduler, _Executor(worker)
        core.batch_queue_size, core.batch_queue = 2, deque(maxlen=2)
        core.is_mm_encoder_only = core.is_pooling_model = core.log_stats = core.check_for_draft_tokens = False
        core.async_scheduling, core.aborts_queue = True, Queue()
        core._attach_weight_version = lambda outputs: None
        return core

    def submit(self, request_id: str, prompt: Sequence[int], max_tokens: int, spec: TraceSpec | None) -> None:
        """Queue a request."""
        params = SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=True,
            extra_args={CONFIG_KEY: spec.to_dict()} if spec is not None else None,
        )
        self._alive[request_id] = Ended()
        self.scheduler.add_request(Request(request_id, list(prompt), params, None, block_hasher=self._hasher))

    def abort(self, request_id: str) -> None:
        """Cancel a request, as a client that disconnects does."""
        if self._alive.pop(request_id, None) is not None:
            self._core.abort_requests([request_id])

    @property
    def busy(self) -> bool:
        """Whether anything is left to schedule or to take in."""
        return bool(self._core.batch_queue) or self.scheduler.has_requests()

    def step(self) -> None:
        """One step of the engine core."""
        self.steps += 1
        self.most_batches = max(self.most_batches, len(self._core.batch_queue) + 1)
        outputs, _ = self._step()
        for output in (o for group in (outputs or {}).values() for o in group.outputs):
            if output.request_id not in self._alive:
                assert output.finish_reason is not None, "tokens of a request that has ended"
                continue
            request = self._alive[output.request_id]
            request.tokens += output.new_token_ids
            if output.finish_reason is not None:
                request.stop_reason, request.step = output.stop_reason, self.steps
                request.log = (output.kv_transfer_params or {}).get(CONFIG_KEY, {})
                self.ended[output.request_id] = self._alive.pop(output.request_id)

    def run(self, *, limit: int = 3000, between: Callable[[int], None] = lambda step: None) -> dict[str, Ended]:
        """Step until all have ended; check that nothing is left anywhere."""
        for step in range(limit):
            if not self.busy:
                break
            between(step)
            self.step()
        else:
            raise AssertionError(f"not done after {limit} steps")
        assert self._alive == {}
        for request_id, ended in self.ended.items():
            assert ended.tokens == [token_of(request_id, i) for i in range(len(ended.tokens))]
        assert self.free_blocks == self.blocks
        assert (self.scheduler.requests, self.scheduler.running) == ({}, [])
        assert (self.scheduler._monitor.logs, len(self.scheduler._coasting)) == ({}, 0)
        assert not self.scheduler._monitor.any_held
        return self.ended

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


class _Executor:
    """Runs a step when it is submitted and hands its output over when it is asked for."""

    def __init__(self, worker: QualityHeadWorker) -> None:
        self._worker = worker

    def execute_model(self, scheduled: Any, non_block: bool = False) -> Any:
        return _Future(self._worker.execute_model(scheduled))

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Any:
        future = _Future(self._worker.sample_tokens(grammar))
        return future if non_block else future.result()


class _Future:
    def __init__(self, output: Any) -> None:
        self._output = output

    def result(self) -> Any:
        if isinstance(self._output, AsyncModelRunnerOutput):
            return self._output.get_output()
        return self._output


class _StandinWorker(QualityHeadWorker):
    """Our worker without the set-up of a device."""

    def __init__(self, config: Any, runner: StandinRunner) -> None:
        self.vllm_config, self.model_runner, self.use_v2_model_runner = config, runner, runner.v2
        self.device = torch.device("cuda")
        self._pp_send_work, self.profiler = [], None
        self.arrol_heads = {"": StandinHead(lambda hidden: hidden[:, 0]), POOLED: HeadReader(pooled_head())}
        self._arrol_top_k = TOP_K


_made: list[Any] = []


def _config() -> Any:
    if not _made:
        config = EngineArgs(
            str(POCKET_MODEL), dtype="float32", max_model_len=256, enforce_eager=True
        ).create_engine_config()
        config.additional_config = {CONFIG_KEY: {"allow": SIGNALS}}
        _made.append(config)
    return _made[0]
