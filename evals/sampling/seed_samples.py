"""What one seed of a benchmark samples: pass by pass, into trace stores that a cut run goes on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arrol_tts.files import write_atomic
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.waves import Waves

from ..benchmarks import Benchmark, Problem
from .passes import FOLDERS, FULL, pass_options
from .prompt_style import PromptStyle

Traces = dict[str, list[Trace]]
"""``{question id: its traces}``."""

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
class SeedSamples:
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

    def only(self, question_ids: Collection[str]) -> SeedSamples:
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


def sample_seed(
    benchmark: Benchmark,
    voter: WeightedVoter,
    *,
    n: int,
    seed: int,
    keep: float,
    out: Path,
    on_trace: Callable[[str, Trace], None] | None = None,
    stopping: Sequence[str] = ("pruned",),
    waves: Waves | None = None,
    prompt: PromptStyle | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> SeedSamples:
    """Sample a benchmark's problems, in full and under stopping rules, or go on where a run was cut.

    Without rules traces are independent: each is stored as it ends, and only missing ones are sampled. Under rules
    a question's traces are compared with each other: they are stored together when all have ended, and a question
    that was cut is sampled again as a whole, from the same seeds. So it is in waves, where traces that were not
    started are stored as cancelled ones without tokens: every question has n.

    Args:
        benchmark: what to ask.
        voter: with an engine, and for ``pruned`` a head.
        n: traces per question.
        seed: of the sampling.
        keep: share of a question's traces that the pruned pass keeps at the detection position.
        out: folder; every pass has a trace store in it.
        on_trace: called with the pass's name and every new trace, for progress.
        stopping: passes besides the full one, of ``STOPPING``.
        waves: of the pass in waves; by default ``Waves()``.
        prompt: how to ask; by default through the chat template.
        sampling: further options of ``WeightedVoter.sample``, such as ``max_tokens``; its ``stop`` is in place of
            the prompt's.

    Raises:
        ValueError: when options do not fit the model, head or each other; before anything is generated.
        OSError: when the disk is full, among others; what was stored stays.
    """
    for name in (FULL, *stopping):
        own = pass_options(name, voter, n, keep, out / FOLDERS[FULL], waves or Waves())
        options = {**(sampling or {}), **own}
        _sample(benchmark, voter, name, n, seed, options, prompt or PromptStyle(), out, on_trace)
    return read_seed(benchmark, n=n, seed=seed, keep=keep, out=out, passes=(FULL, *stopping))


def read_seed(
    benchmark: Benchmark, *, n: int, seed: int, keep: float, out: Path, passes: Iterable[str]
) -> SeedSamples:
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
    return SeedSamples(whole, n, seed, keep, ordered, _read_seconds(out))


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
    waves = Waves(options["start"], options["step"], options["certainty"]) if name == "waves" else None
    together = bool(waves or options.get("rules") or options.get("consensus") or options.get("keep", 1.0) != 1.0)
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
            ready, news = [trace], [trace]
            if together:
                group = groups.setdefault(trace.question_id, [])
                group.append(trace)
                if waves is not None and waves.ends_at(len(group), n) and not waves.more(group, n, voter.vote):
                    left = _unstarted(trace.question_id, len(group), n)
                    group += left
                    news += left
                ready = groups.pop(trace.question_id) if len(group) == n else []
            if on_trace is not None:
                for each in news:
                    on_trace(name, each)
            for done in ready:
                if done.sample_id in lacking[done.question_id]:
                    store.append(done)
                # What is on the disk need not stay in memory until the last trace has ended.
                done.token_ids = done.confidence = None
                done.text, done.reasoning = "", None
            if time.monotonic() - saved > _SAVE_SECONDS:
                saved = time.monotonic()
                _write_seconds(out, name, before + saved - began)

        texts = {question_id: prompt.text(benchmark, problems[question_id]) for question_id in lacking}
        voter.sample(
            texts,
            n,
            seed=seed,
            on_trace=record,
            samples=None if together else lacking,
            **{"stop": prompt.stop(voter.config), **options},
        )
    _write_seconds(out, name, before + time.monotonic() - began)


def _unstarted(question_id: str, started: int, n: int) -> list[Trace]:
    """What stands for the traces that waves did without."""
    why = "not started: the vote was clear"
    return [Trace(question_id, i, finish_reason="cancelled", detail=why) for i in range(started, n)]


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
