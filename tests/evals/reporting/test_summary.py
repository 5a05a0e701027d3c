"""The figures of a report, on traces whose figures are known."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrol_tts.head_config import QualityHeadConfig, head_sha256, read_head_config, resolve_head
from arrol_tts.store import TraceStore, encode, trace_schema
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.benchmarks import Benchmark, Problem
from evals.reporting.report import write_report
from evals.reporting.summary import average, benchmark_report
from evals.sampling.folder import RunFolder, RunManifest
from evals.sampling.passes import FOLDERS
from evals.sampling.seed_samples import SeedSamples

CONFIG = QualityHeadConfig(base_model="m", hidden_size=4, positions=[2])


def trace(question: str, sample: int, answer: str, score: float, tokens: int = 10) -> Trace:
    scores = {2: score, tokens - 1: score}
    confidence = np.full(tokens, 5.0, np.float32)
    return Trace(question, sample, answer=answer, num_tokens=tokens, scores=scores, confidence=confidence)


def run_of(answers: list[list[tuple[str, float]]], seed: int = 0, n: int = 4) -> SeedSamples:
    """Questions whose right answer is "1"; for each trace its answer and score."""
    problems = tuple(Problem(f"q{i}", "?", "1") for i in range(len(answers)))
    full = {
        p.id: [trace(p.id, i, *pair) for i, pair in enumerate(g)] for p, g in zip(problems, answers, strict=True)
    }
    for group in full.values():
        for each in group:
            each.correct = each.answer == "1"
    benchmark = Benchmark("made", problems, lambda p, a: a == p.answer)
    return SeedSamples(benchmark, n, seed, 0.5, {"full": full}, {"full": 2.0})


# The head knows: the wrong answers of the second question have low scores.
EASY = [("1", 0.9)] * 4
FOOLED = [("2", 0.1), ("2", 0.1), ("2", 0.1), ("1", 0.9)]
LOST = [("2", 0.1), ("3", 0.1), ("4", 0.1), ("5", 0.1)]


@pytest.fixture(scope="module")
def entry() -> dict[str, Any]:
    return benchmark_report([run_of([EASY, FOOLED, LOST])], WeightedVoter(config=CONFIG))


def test_votes_and_passes(entry: dict[str, Any]) -> None:
    votes = {row["name"]: row for row in entry["votes"]}
    assert votes["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert votes["quality"]["accuracy"] == pytest.approx(2 / 3)
    assert votes["quality"]["above_majority"] == pytest.approx(1 / 3)
    assert entry["verdicts"]["right"]["quality"] == [1.0, 1.0, 0.0]
    assert entry["samples"]["accuracy"] == pytest.approx((4 + 1 + 0) / 12)
    # pass@2 of the second question: 1 - C(3,2) / C(4,2) = 1/2.
    assert entry["samples"]["pass_at"] == pytest.approx({"1": 5 / 12, "2": (1 + 0.5) / 3, "4": 2 / 3})
    assert votes["majority"]["at"]["1"] == pytest.approx(5 / 12, abs=0.06)


def pruned(run: SeedSamples) -> SeedSamples:
    """The same with a pruned pass that keeps each question's last trace and stops the others at token 3 of 10."""
    stopped = {
        question: [
            *(replace(t, answer=None, correct=None, num_tokens=3, finish_reason="pruned") for t in group[:-1]),
            group[-1],
        ]
        for question, group in run.full.items()
    }
    return replace(run, passes={**run.passes, "pruned": stopped})


def test_stopping_early_stands_beside_as_many_tokens_in_whole_traces() -> None:
    # One of four traces kept: 10 + 3 x 3 = 19 tokens a question, which 1.9 whole traces cost.
    entry = benchmark_report([pruned(run_of([EASY, FOOLED]))], WeightedVoter(config=CONFIG))
    rows = {row["name"]: row for row in entry["stopping"]}
    control = rows["quality_pruned"]["equal_tokens"]
    assert control["traces"] == pytest.approx(1.9)
    # FOOLED: one trace is right 1/4 of the time, two 1/2 (the right one outweighs any other); EASY: always.
    assert control["accuracy"] == pytest.approx((1 + 0.1 / 4 + 0.9 / 2) / 2, abs=0.03)
    assert rows["quality_pruned"]["accuracy"] == 1.0
    assert control["above"] == pytest.approx(1 - control["accuracy"])
    low, high = control["above_interval"]
    assert low == 0 <= control["above"] <= high
    # At random two of four are kept, for the tokens of 2.6: majority of FOOLED is right 1/4 of the time with two,
    # by the ties, and never with three.
    assert rows["random_pruned"]["equal_tokens"]["accuracy"] == pytest.approx((1 + 0.4 / 4) / 2, abs=0.03)
    assert rows["quality"]["equal_tokens"] is None


def test_the_average_has_the_control_too() -> None:
    entries = [benchmark_report([pruned(run_of(of))], WeightedVoter(config=CONFIG)) for of in ([EASY], [FOOLED])]
    controls = [entry["verdicts"]["equal_tokens"]["quality_pruned"][0] for entry in entries]
    row = next(row for row in average(entries)["methods"] if row["name"] == "quality_pruned")
    assert row["equal_tokens"]["accuracy"] == pytest.approx(np.mean(controls))
    assert row["equal_tokens"]["above"] == pytest.approx(1 - np.mean(controls))
    assert next(row for row in average(entries)["methods"] if row["name"] == "majority")["equal_tokens"] is None


def test_the_head_is_measured(entry: dict[str, Any]) -> None:
    assert entry["head"]["auroc_within_finish"] == 1.0
    assert entry["head"]["auroc_finish"] == 1.0
    # Scores of 0.9 are all right, scores of 0.1 all wrong.
    assert entry["head"]["ece"] == pytest.approx(0.1)


def test_seeds_are_averaged_inside_a_question() -> None:
    runs = [run_of([EASY, FOOLED]), run_of([EASY, EASY], seed=1)]
    votes = {row["name"]: row for row in benchmark_report(runs, WeightedVoter(config=CONFIG))["votes"]}
    assert votes["majority"]["accuracy"] == pytest.approx(0.75)
    # Two questions, one of them right half of the time: resampled means are 0.5, 0.75 or 1.
    assert votes["majority"]["interval"] == [0.5, 1.0]


def test_without_a_head_quality_does_not_vote() -> None:
    entry = benchmark_report([run_of([EASY, FOOLED])], WeightedVoter())
    assert entry["head"] is None
    assert "majority" in {row["name"] for row in entry["votes"]}


def test_the_average_counts_every_benchmark_once() -> None:
    voter = WeightedVoter(config=CONFIG)
    small, large = run_of([FOOLED]), run_of([EASY] * 9)
    mean = average([benchmark_report([run], voter) for run in (small, large)])
    methods = {row["name"]: row for row in mean["methods"]}
    assert methods["majority"]["accuracy"] == pytest.approx(0.5)
    assert methods["quality"]["accuracy"] == pytest.approx(1.0)
    assert methods["quality"]["above_majority"] == pytest.approx(0.5)
    assert methods["majority"]["interval"] == [0.5, 0.5]  # inside each benchmark all questions agree
    assert mean["pass_at"]["4"] == 1.0


QUESTIONS, TRACES, TOKENS = 500, 64, 400


def make_folder(path: Path) -> RunFolder:
    """500 questions x 64 made-up traces of about 400 tokens, in full and pruned."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, config = RunFolder(path), read_head_config(resolve_head("pocket"))
    folder.open(
        RunManifest(
            model="pocket",
            engine="vllm",
            head="pocket",
            head_sha256=head_sha256(resolve_head("pocket")),
            head_config=asdict(config),
            sampling={"n": TRACES, "temperature": 1.0, "top_p": 1.0, "max_tokens": 512},
            keep=0.5,
            stopping=["pruned"],
            prompt="chat",
            seeds=[0],
        )
    )
    problems = tuple(Problem(f"q{i}", f"question {i}", str(i)) for i in range(QUESTIONS))
    folder.add(Benchmark("made", problems, lambda p, a: a == p.answer, synthetic=True))
    rng = np.random.default_rng(0)
    for name in ("full", "pruned"):
        batches = [
            encode(_made_up(problem, i, skill, name == "pruned" and i % 2 == 1, rng))
            for problem, skill in zip(problems, rng.random(QUESTIONS), strict=True)
            for i in range(TRACES)
        ]
        out = folder.seed("made", 0) / FOLDERS[name]
        out.mkdir(parents=True)
        pq.write_table(pa.Table.from_batches(batches, trace_schema()), out / "traces-00000.parquet")
    return folder


def _made_up(problem: Problem, i: int, skill: float, pruned: bool, rng: np.random.Generator) -> Trace:
    right = bool(rng.random() < skill)
    score = float(np.clip(rng.normal(0.6 if right else 0.4, 0.2), 0.01, 0.99))
    tokens = 33 if pruned else int(rng.integers(TOKENS // 2, 3 * TOKENS // 2))
    return Trace(
        problem.id,
        i,
        answer=None if pruned else problem.answer if right else str(10_000 + rng.integers(6)),
        num_tokens=tokens,
        finish_reason="pruned" if pruned else "stop",
        scores={32: score} if pruned else {32: score, tokens - 1: score},
        confidence=rng.gamma(4.0, 4.0, tokens).astype(np.float32),
        correct=None if pruned else right,
    )


@pytest.mark.slow
def test_a_report_over_500_questions_x_64_traces_takes_less_than_20_seconds(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    assert len(TraceStore(folder.seed("made", 0) / "traces")) == QUESTIONS * TRACES
    began = time.process_time()  # of this process: other work on the machine does not count
    report = write_report(folder)
    assert time.process_time() - began < 20
    assert report["benchmarks"][0]["questions"] == QUESTIONS
