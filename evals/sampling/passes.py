"""Run a benchmark: sample it in full, and again under stopping rules, into trace stores that a run can resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from arrol_tts.confidence import WINDOW
from arrol_tts.consensus import Consensus
from arrol_tts.files import write_atomic
from arrol_tts.stopping import Budget, ConfidenceFloor, Threshold
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter

from ..benchmarks import Benchmark, Problem
from .prompt_style import PromptStyle

Traces = dict[str, list[Trace]]

FULL = "full"
FOLDERS = {
    FULL: "traces",
    "pruned": "traces_pruned",
    "threshold": "traces_threshold",
    "budget": "traces_budget",
    "deepconf-online": "traces_deepconf_online",
    "consensus": "traces_consensus",
}
"""``{pass: its trace store in the folder of a benchmark and seed}``."""

STOPPING = tuple(name for name in FOLDERS if name != FULL)
"""Passes with early stopping: ``pruned`` keeps the best share of a question's traces by the head, ``threshold``
those above one score for all questions, ``budget`` spends the same share of the tokens on the best traces first,
``deepconf-online`` stops traces whose confidence falls too low, ``consensus`` stops questions that are clear."""

BY_SCORE = ("pruned", "threshold", "budget")
"""Those that need a quality head."""

FIELDS = (
    "question_id",
    "sample_id",
    "answer",
    "num_tokens",
    "finish_reason",
    "scores",
    "confidence",
    "correct",
    "meta",
)
"""What a report reads of a trace."""

SECONDS_FILE = "seconds.json"
_SAVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one seed of a benchmark sampled.

    Attributes:
        benchmark: the problems.
        n: traces per question.
        seed: of the sampling.
        keep: keep ratio of the pruned pass.
        passes: ``{pass: traces by question}``; all have the same seeds.
        seconds: wall-clock time that each pass has sampled for, over all its sessions.
    """

    benchmark: Benchmark
    n: int
    seed: int
    keep: float
    passes: Mapping[str, Traces]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def full(self) -> Traces:
        """Traces sampled without early stopping, by question."""
        return self.passes[FULL]

    def only(self, question_ids: Collection[str]) -> Run:
        """The same with some of its questions only."""
        return replace(
            self,
            benchmark=replace(
                self.benchmark, problems=tuple(p for p in self.benchmark.problems if p.id in question_ids)
            ),
            passes={
                name: {question_id: group for question_id, group in traces.items() if question_id in question_ids}
                for name, traces in self.passes.items()
            },
        )


def run_benchmark(
    benchmark: Benchmark,
    voter: WeightedVoter,
    *,
    n: int,
    seed: int,
    keep: float,
    out: Path,
    on_trace: Callable[[str, Trace], None] | None = None,
    stopping: Sequence[str] = ("pruned",),
    prompt: PromptStyle | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Run:
    """Sample a benchmark's problems, in full and under stopping rules, or go on where a run was cut.

    Without rules traces are independent: each is stored as it ends, and only missing ones are sampled. Under rules
    a question's traces are compared with each other: they are stored together when all have ended, and a question
    that was cut is sampled again as a whole, from the same seeds.

    Args:
        benchmark: what to ask.
        voter: with an engine, and for ``pruned`` a head.
        n: traces per question.
        seed: of the sampling.
        keep: share of a question's traces that the pruned pass keeps at the detection position.
        out: folder; every pass has a trace store in it.
        on_trace: called with the pass's name and every new trace, for progress.
        stopping: passes besides the full one, of ``STOPPING``.
        prompt: how to ask; by default through the chat template.
        sampling: further options of ``WeightedVoter.sample``, such as ``max_tokens``.

    Raises:
        ValueError: when options do not fit the model, head or each other; before anything is generated.
        OSError: when the disk is full, among others; what was stored stays.
    """
    for name in (FULL, *stopping):
        options = {**(sampling or {}), **_options(name, voter, n, keep, out / FOLDERS[FULL])}
        _sample(benchmark, voter, name, n, seed, options, prompt or PromptStyle(), out, on_trace)
    return read_run(benchmark, n=n, seed=seed, keep=keep, out=out, passes=(FULL, *stopping))


def read_run(benchmark: Benchmark, *, n: int, seed: int, keep: float, out: Path, passes: Iterable[str]) -> Run:
    """What a run has stored, without questions that are incomplete in one of the passes; arguments as above."""
    passes = tuple(passes)
    found = {name: _read(out / FOLDERS[name]) for name in passes}
    complete = [
        problem for problem in benchmark.problems if all(len(found[p].get(problem.id, ())) == n for p in passes)
    ]
    ordered = {
        name: {problem.id: sorted(traces[problem.id], key=lambda t: t.sample_id) for problem in complete}
        for name, traces in found.items()
    }
    whole = replace(benchmark, problems=tuple(complete))
    return Run(whole, n, seed, keep, ordered, _read_seconds(out))


def _options(name: str, voter: WeightedVoter, n: int, keep: float, full: Path) -> dict[str, Any]:
    """Options of ``WeightedVoter.sample`` that make a pass; some follow from what the full pass has stored."""
    if name == "pruned":
        return {"keep": keep}
    whole: dict[str, Any] = {"keep": 1.0} if voter.config is not None else {}
    if name == "threshold":
        return {**whole, "rules": (_threshold(voter, keep, full),)}
    if name == "budget":
        return {**whole, "rules": (_budget(voter, n, keep, full),)}
    if name == "deepconf-online":
        chosen = voter.config.voting.get("deepconf", {}) if voter.config else {}
        # DeepConf warms up with 16 of 512 traces; with few traces, with half of them.
        floor = ConfidenceFloor(warmup=max(1, min(16, n // 2)), window=int(chosen.get("window", WINDOW)))
        return {**whole, "rules": (floor,)}
    if name == "consensus":
        return {**whole, "consensus": Consensus()}
    return whole


def _threshold(voter: WeightedVoter, keep: float, full: Path) -> Threshold:
    """The bound that the share ``keep`` of the full pass's traces reach; no reference answer goes into it."""
    assert voter.config is not None
    position = voter.config.positions[0]
    scores = [
        trace.scores[min(position, trace.num_tokens - 1)]
        for trace in TraceStore(full).read(("question_id", "sample_id", "num_tokens", "scores"))
    ]
    return Threshold(position, float(np.quantile(scores, 1 - keep)))


def _budget(voter: WeightedVoter, n: int, keep: float, full: Path) -> Budget:
    """The share ``keep`` of what a question takes in full on average."""
    assert voter.config is not None
    lengths = [trace.num_tokens for trace in TraceStore(full).read(("question_id", "sample_id", "num_tokens"))]
    mean = float(np.mean(lengths))
    return Budget(voter.config.positions[0], tokens=max(1, round(keep * n * mean)), length=max(1, round(mean)))


def _sample(
    benchmark: Benchmark,
    voter: WeightedVoter,
    name: str,
    n: int,
    seed: int,
    options: dict[str, Any],
    prompt: PromptStyle,
    out: Path,
    on_trace: Callable[[str, Trace], None] | None,
) -> None:
    problems = {problem.id: problem for problem in benchmark.problems}
    together = bool(options.get("rules") or options.get("consensus") or options.get("keep", 1.0) != 1.0)
    began, before = time.monotonic(), _read_seconds(out).get(name, 0.0)
    saved = began
    groups: Traces = {}
    with TraceStore(out / FOLDERS[name]) as store:
        lacking = store.missing(problems, n)
        if not lacking:
            return

        def record(trace: Trace) -> None:
            nonlocal saved
            grade(trace, problems[trace.question_id], benchmark)
            if on_trace is not None:
                on_trace(name, trace)
            ready = [trace]
            if together:
                group = groups.setdefault(trace.question_id, [])
                group.append(trace)
                ready = groups.pop(trace.question_id) if len(group) == n else []
            for done in ready:
                if done.sample_id in lacking[done.question_id]:
                    store.append(done)
                # What is on the disk need not stay in memory until the last trace has ended.
                done.token_ids = done.confidence = None
                done.text = ""
            if time.monotonic() - saved > _SAVE_SECONDS:
                saved = time.monotonic()
                _write_seconds(out, name, before + saved - began)

        texts = {question_id: prompt.text(benchmark, problems[question_id]) for question_id in lacking}
        voter.sample(
            texts,
            n,
            seed=seed,
            on_trace=record,
            chat=prompt.chat,
            stop=prompt.stop,
            samples=None if together else lacking,
            **options,
        )
    _write_seconds(out, name, before + time.monotonic() - began)


def grade(trace: Trace, problem: Problem, benchmark: Benchmark) -> None:
    """Say whether a trace is right; pruned and cancelled ones without an answer stay ungraded."""
    if trace.answer is not None:
        trace.correct = benchmark.is_right(problem, trace.answer)
    elif trace.finish_reason in ("stop", "length"):
        trace.correct = False


def _read(folder: Path) -> Traces:
    traces: Traces = {}
    for trace in TraceStore(folder).read(FIELDS):
        traces.setdefault(trace.question_id, []).append(trace)
    return traces


def _read_seconds(out: Path) -> dict[str, float]:
    try:
        found: dict[str, float] = json.loads((out / SECONDS_FILE).read_text())
    except FileNotFoundError:
        return {}
    return found


def _write_seconds(out: Path, name: str, seconds: float) -> None:
    write_atomic(out / SECONDS_FILE, json.dumps(_read_seconds(out) | {name: seconds}).encode())
