"""Does the plug-in read here what transformers computes? ``python -m arrol_tts.engine.check MODEL HEAD``.

The tests run on CPUs. Streams, pinned copies, CUDA graphs and NCCL are not reached there, so this checks a machine
that has them: traces are sampled by vLLM with scores, confidences, hidden states and a pruning, the same tokens go
through transformers, and the numbers are compared. It takes some minutes, prints a verdict, and exits with 1 when
something is wrong. The model must fit into the device's memory, for transformers after vLLM.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from arrol_tts.engine.request import Question, Sampling
from arrol_tts.errors import InputError
from arrol_tts.head import QualityHead
from arrol_tts.prompts import prompt_ids
from arrol_tts.stopping import KeepShare, TraceSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrol_tts.engine.vllm_engine import VLLMEngine
    from arrol_tts.trace import Trace

QUESTIONS = ("3*2+2+5*4", "7-2-8+2+9", "2+3*4-5*6", "9*5+7-2", "6*7-8+4", "8-3*2+5", "4*4+9-6", "5+5*3-7")
"""Asked unless others are given; short, and in the built-in model's language too."""

PAIRS = 5
"""Rounds in which two kinds of call take turns, after one that is not counted."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """How far 99% of the numbers may lie from transformers'."""

    score: float
    confidence: float
    state: float
    """Relative to the length of the state."""


ALLOWED: Mapping[str, Allowed] = {
    "float32": Allowed(1e-3, 1e-2, 1e-3),
    # Kernels round at other places: what is wrong by a row is further away.
    "float16": Allowed(0.02, 0.1, 0.02),
    "bfloat16": Allowed(0.05, 0.4, 0.1),
}


@dataclass(slots=True)
class Compared:
    """Differences of one signal from transformers', and what they would be if each row were its neighbour."""

    allowed: float
    found: list[float] = field(default_factory=list)
    neighbours: list[float] = field(default_factory=list)

    @property
    def difference(self) -> float:
        """What 99% of the differences are at most; not finite without any."""
        return float(np.quantile(self.found, 0.99)) if self.found else float("nan")

    @property
    def right(self) -> bool:
        """Whether they are small enough."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        neighbour = float(np.median(self.neighbours)) if self.neighbours else float("nan")
        return (
            f"{len(self.found):,} compared, 99% within {self.difference:.2g} (allowed {self.allowed:g}; "
            f"the row beside is {neighbour:.2g} away): {'right' if self.right else 'WRONG'}"
        )


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        setting: versions, runner, scheduling, data type and device.
        scores, confidences, states: the signals.
        groups: how many were pruned to their share.
        pruned: traces that were.
        misjudged: traces that were pruned or kept against transformers' ranking.
        step_ratio: time of a step with scores and confidences at every token, over one without.
    """

    setting: str
    scores: Compared
    confidences: Compared
    states: Compared
    groups: int = 0
    pruned: int = 0
    misjudged: int = 0
    step_ratio: float = float("nan")

    @property
    def right(self) -> bool:
        """The verdict."""
        signals = self.scores.right and self.confidences.right and self.states.right
        return signals and self.pruned > 0 and not self.misjudged

    def __str__(self) -> str:
        prunings = f"{self.pruned} of {self.groups} groups, {self.misjudged} traces against the ranking"
        ranked = "right" if self.pruned and not self.misjudged else "WRONG"
        return "\n".join(
            [
                self.setting,
                f"scores       {self.scores}",
                f"confidences  {self.confidences}",
                f"states       {self.states}",
                f"prunings     {prunings}: {ranked}",
                f"step time    {self.step_ratio:.3f} times that without scores and confidences",
                f"verdict      {'right' if self.right else 'WRONG'}",
            ]
        )


def check(
    model: str,
    head: str,
    *,
    questions: Sequence[str] = QUESTIONS,
    n: int = 8,
    at: int = 24,
    tokens: int = 64,
    **options: Any,
) -> Report:
    """Compare the plug-in with transformers on this machine.

    Args:
        model: path or hub id.
        head: folder or hub id of its quality head.
        questions: to sample.
        n: traces of each.
        at: position at which half of them are pruned.
        tokens: of a trace.
        **options: vLLM's engine arguments.

    Raises:
        InputError: for numbers that do not fit each other.
        EngineError, HeadError: as `arrol_tts.engine.vllm_engine.VLLMEngine`.
    """
    from arrol_tts.engine.vllm_engine import VLLMEngine

    if n < 2 or not 0 < at < tokens:
        raise InputError(
            f"n is {n}, at {at} and tokens {tokens}: at least 2 traces must write beyond the position"
        )
    asked = [Question(f"q{i}", text) for i, text in enumerate(questions)]
    # Hot, so that traces differ soon and half of them have lower scores.
    sampling = Sampling(n=n, max_tokens=tokens, min_tokens=tokens, temperature=1.5, seed=0)
    recorded = TraceSpec(score_every=1, confidence=True, features_at=(at,), features_finish=True)
    rule = KeepShare(at, 0.5)
    engine = VLLMEngine(model, head=head, **options)
    try:
        dtype, setting, top_k = _describe(engine)
        allowed = ALLOWED[dtype]
        traces = list(engine.sample(asked, sampling, recorded))
        pruned = list(engine.sample(asked, sampling, replace(recorded, rules=(rule,))))
        ratio = _step_ratio(engine, asked, sampling)
    finally:
        engine.close()
    del engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    forward = Forward(model, head, dtype, top_k)
    report = Report(
        setting,
        Compared(allowed.score),
        Compared(allowed.confidence),
        Compared(allowed.state),
        groups=len(asked),
        step_ratio=ratio,
    )
    texts = {question.id: question for question in asked}
    for trace in [*traces, *pruned]:
        _compare(report, trace, forward.read(texts[trace.question_id], trace.token_ids or []))
    for question in asked:
        group = [trace for trace in pruned if trace.question_id == question.id]
        # Ranked by what the engine saw, whose scores were compared above.
        scores = [(trace.scores.get(at, float("nan")), trace.finish_reason == "pruned") for trace in group]
        kept = min((score for score, out in scores if not out), default=float("nan"))
        lost = [score for score, out in scores if out]
        report.pruned += bool(lost)
        report.misjudged += sum(not score <= kept for score in lost)
        report.misjudged += abs(len(group) - len(lost) - rule.survivors(len(group)))
    return report


def _describe(engine: VLLMEngine) -> tuple[str, str, int]:
    import vllm
    from vllm.platforms import current_platform

    config: Any = engine._loop.engine.vllm_config
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    scheduling = "asynchronous" if config.scheduler_config.async_scheduling else "synchronous"
    device = "CPU" if current_platform.is_cpu() else str(current_platform.get_device_name())
    runner = f"runner V{2 if config.use_v2_model_runner else 1}"
    return (
        dtype,
        f"vLLM {vllm.__version__}, {runner}, {scheduling} scheduling, {dtype}, {device}",
        config.additional_config["arrol"]["top_k"],
    )


def _step_ratio(engine: VLLMEngine, asked: Sequence[Question], sampling: Sampling) -> float:
    """Seconds of a call with a spec over those of one without, which write as many tokens; the median of pairs."""
    every = TraceSpec(score_every=1, score_finish=True, confidence=True)
    ratios = []
    for i in range(PAIRS + 1):
        seconds: dict[bool, float] = {}
        for on in (True, False) if i % 2 else (False, True):
            start = time.perf_counter()
            for _ in engine.sample(asked, sampling, every if on else None):
                pass
            seconds[on] = time.perf_counter() - start
        ratios.append(seconds[True] / seconds[False])
    return float(np.median(ratios[1:]))


@dataclass(frozen=True, slots=True)
class Read:
    """What transformers makes of a trace: each row's score, confidence and hidden state, all float32."""

    scores: NDArray[np.float32]
    confidences: NDArray[np.float32]
    states: NDArray[np.float32]


class Forward:
    """A plain forward pass over whole traces.

    Args:
        model: path or hub id.
        head: folder or hub id.
        dtype: of the model's weights, as vLLM has them.
        top_k: candidates of the confidence.
    """

    def __init__(self, model: str, head: str, dtype: str, top_k: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(self._device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._head, self._top_k = QualityHead.from_pretrained(head), top_k

    @torch.inference_mode()
    def read(self, question: Question, token_ids: Sequence[int]) -> Read:
        """Row k is the one whose input is the k-th generated token; row 0 is the prompt's end."""
        prompt = prompt_ids(self._tokenizer, question)
        ids = torch.tensor([[*prompt, *token_ids]], device=self._device)
        output = self._model(input_ids=ids, output_hidden_states=True)
        rows = slice(len(prompt) - 1, len(prompt) - 1 + len(token_ids))
        states = output.hidden_states[-1][0, rows].float().cpu()
        logprobs = output.logits[0, rows].float().log_softmax(-1)
        confidences = -logprobs.topk(self._top_k).values.mean(-1).cpu()
        return Read(self._scores(states, token_ids), confidences.numpy(), states.numpy())

    def _scores(self, states: torch.Tensor, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The head's score of the trace up to each row; rows that it does not pool change nothing."""
        config = self._head.config
        if config.pooling == "steps":
            pooled = [k for k in range(1, len(states)) if token_ids[k - 1] in config.pool_after]
        else:
            pooled = list(range(0, len(states), config.stride))
        found = np.full(len(states), 0.5, dtype=np.float32)
        if pooled:
            scores = self._head(states[pooled]).numpy()
            for first, last, score in zip(pooled, [*pooled[1:], len(states)], scores, strict=True):
                found[first:last] = score
        return found


def _compare(report: Report, trace: Trace, read: Read) -> None:
    """Put a trace's numbers beside transformers'."""
    for k, score in trace.scores.items():
        _add(report.scores, score, read.scores, k)
    for k, confidence in enumerate(trace.confidence if trace.confidence is not None else ()):
        _add(report.confidences, float(confidence), read.confidences, k)
    for k, state in trace.features.items():
        length = float(np.linalg.norm(read.states[k]))
        distances = np.linalg.norm(read.states - state, axis=1) / length
        report.states.found.append(float(distances[k]))
        report.states.neighbours += _beside(distances, k)


def _add(compared: Compared, value: float, expected: NDArray[np.float32], k: int) -> None:
    distances = np.abs(expected - value)
    compared.found.append(float(distances[k]))
    compared.neighbours += _beside(distances, k)


def _beside(distances: NDArray[np.floating[Any]], k: int) -> Iterator[float]:
    return (float(distances[j]) for j in (k - 1, k + 1) if 0 <= j < len(distances))


def main(arguments: Iterable[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m arrol_tts.engine.check",
        description="Compare scores, confidences, hidden states and prunings inside vLLM with transformers.",
    )
    parser.add_argument("model", help="path or hub id of a language model that transformers loads too")
    parser.add_argument("head", help="its quality head: folder, hub id, or pocket")
    parser.add_argument("--questions", help="text file of questions, one a line, in place of the built-in ones")
    parser.add_argument("--n", type=int, default=8, help="traces of each question")
    parser.add_argument("--at", type=int, default=24, help="position at which half of them are pruned")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a trace")
    parser.add_argument("--options", type=json.loads, default={}, help="vLLM's engine arguments, as JSON")
    given = parser.parse_args(None if arguments is None else list(arguments))
    questions: Sequence[str] = QUESTIONS
    if given.questions:
        with open(given.questions, encoding="utf-8") as file:
            questions = [line.strip() for line in file if line.strip()]
    report = check(
        given.model,
        given.head,
        questions=questions,
        n=given.n,
        at=given.at,
        tokens=given.tokens,
        **given.options,
    )
    print(report)
    sys.exit(not report.right)


if __name__ == "__main__":
    main()
