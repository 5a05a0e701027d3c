"""Run a benchmark: sample once without pruning, once with pruning in the engine, and keep every trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.benchmarks import Benchmark

Traces = dict[str, list[Trace]]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run sampled.

    Attributes:
        benchmark: the problems.
        n: traces per question.
        seed: of the sampling.
        keep: keep ratio of the pruned pass.
        full: traces sampled without pruning, by question.
        pruned: traces of the same seeds sampled with pruning in the engine, by question.
        seconds: wall-clock time of each pass.
    """

    benchmark: Benchmark
    n: int
    seed: int
    keep: float
    full: Traces
    pruned: Traces
    seconds: Mapping[str, float]


def run_benchmark(
    benchmark: Benchmark,
    voter: WeightedVoter,
    *,
    n: int,
    seed: int,
    keep: float,
    out: Path,
    on_trace: Callable[[str, Trace], None] | None = None,
) -> Run:
    """Sample a benchmark's problems in both ways.

    Args:
        benchmark: what to ask.
        voter: with a head and an engine.
        n: traces per question.
        seed: of the sampling.
        keep: share of a question's traces that the pruned pass keeps at the detection position.
        out: folder; every trace is appended to ``traces/`` or ``traces_pruned/`` in it as it ends.
        on_trace: called with the pass's name and every trace, for progress.
    """
    problems = {problem.id: problem for problem in benchmark.problems}
    texts = {problem.id: problem.question for problem in benchmark.problems}
    sampled: dict[str, Traces] = {}
    seconds = {}
    for name, share, folder in (("full", 1.0, "traces"), ("pruned", keep, "traces_pruned")):
        began = time.perf_counter()
        with TraceStore(out / folder) as store:

            def record(trace: Trace, name: str = name, store: TraceStore = store) -> None:
                if trace.answer is not None:
                    trace.correct = benchmark.is_right(problems[trace.question_id], trace.answer)
                elif trace.finish_reason in ("stop", "length"):
                    trace.correct = False
                store.append(trace)
                if on_trace is not None:
                    on_trace(name, trace)

            sampled[name] = voter.sample(texts, n, keep=share, seed=seed, on_trace=record)
        seconds[name] = time.perf_counter() - began
    return Run(benchmark, n, seed, keep, sampled["full"], sampled["pruned"], seconds)
