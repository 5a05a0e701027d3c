"""Votes on real samples: a language model's own answers, not ours; skipped where they are absent."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from arrol_tts import metrics
from arrol_tts.trace import Trace
from arrol_tts.voting import vote
from evals.reporting.compare_methods import compare_methods
from evals.reporting.recorded_questions import Questions, load_questions
from tests.paths import SHARED_DATA


def load(name: str, fields: dict[str, str], finish_reasons: dict[str, str] | None = None) -> Questions:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"real samples are absent: {name} is not in {SHARED_DATA} (set ARROL_SHARED_DATA)")
    return load_questions(path, fields, finish_reasons)


@pytest.fixture(scope="module")
def brumo() -> Questions:
    """DeepSeek-R1-0528-Qwen3-8B on 29 BRUMO'25 problems x 128; confidences of the answer's tokens."""
    return load(
        "brumo25_r1_qwen3_8b_traces128.jsonl",
        {"question_id": "qid", "confidence": "conf", "finish_reason": "state", "reference": "truth"},
        {"completed": "stop", "truncated": "pruned"},
    )


@pytest.fixture(scope="module")
def math_rm() -> Questions:
    """100 MATH problems x 8, with a reward model's score."""
    return load(
        "math_cot_100_8samples_rm.jsonl",
        {
            "question_id": "idx",
            "answer": "pred",
            "text": "code",
            "correct": "score",
            "logit": "pred_score",
            "reference": "answer",
        },
    )


def accuracy(questions: Questions, method: object) -> float:
    results = [vote(traces, method) for traces in questions.values()]  # type: ignore[arg-type]
    return sum(bool(result.correct) for result in results) / len(results)


def exp_confidence(traces: list[Trace]) -> NDArray[np.float64]:
    """DeepConf's mean confidence on an exponential scale, the largest 1."""
    mean = np.array([trace.confidence.mean() for trace in traces if trace.confidence is not None])
    return np.asarray(np.exp(mean - mean.max()), np.float64)


def finished(traces: list[Trace]) -> NDArray[np.float64]:
    """Only traces that ended by themselves weigh anything."""
    return np.array([float(trace.finish_reason == "stop") for trace in traces])


def test_brumo_is_read_whole(brumo: Questions) -> None:
    assert len(brumo) == 29
    assert {len(traces) for traces in brumo.values()} == {128}


def test_brumo_majority(brumo: Questions) -> None:
    assert accuracy(brumo, "majority") >= 15 / 29  # 0.517


def test_brumo_mean_confidence(brumo: Questions) -> None:
    assert accuracy(brumo, "deepconf-mean") >= 22 / 29  # 0.759


def test_brumo_most_confident_tenth(brumo: Questions) -> None:
    assert accuracy(brumo, "deepconf-top10") >= 28 / 29


def test_brumo_exponential_confidence(brumo: Questions) -> None:
    assert accuracy(brumo, exp_confidence) >= 28 / 29  # 0.966


def test_brumo_completed_traces_only(brumo: Questions) -> None:
    completed = {name: [t for t in traces if t.finish_reason == "stop"] for name, traces in brumo.items()}
    assert accuracy({name: traces for name, traces in completed.items() if traces}, "majority") >= 28 / 29


def test_brumo_state_as_a_signal(brumo: Questions) -> None:
    assert accuracy(brumo, finished) >= 28 / 29


def test_brumo_combined_beats_majority_on_held_out_questions(brumo: Questions) -> None:
    reports = {report.method: report for report in compare_methods(brumo, ["majority", "combined"]).methods}
    assert reports["combined"].gained is not None
    assert reports["combined"].accuracy is not None
    assert reports["combined"].accuracy >= 28 / 29
    assert reports["combined"].gained >= 10
    assert reports["combined"].lost == 0


def test_brumo_every_method_is_in_one_table(brumo: Questions) -> None:
    voted = {report.method for report in compare_methods(brumo).methods if report.skipped is None}
    assert {
        "majority",
        "deepconf",
        "deepconf-mean",
        "deepconf-tail",
        "deepconf-lowest",
        "deepconf-top10",
        "deepconf-tail-top10",
        "combined",
    } <= voted


def test_math_mean_accuracy_is_as_graded(math_rm: Questions) -> None:
    labels = [bool(trace.correct) for traces in math_rm.values() for trace in traces]
    assert sum(labels) / len(labels) == pytest.approx(0.910, abs=5e-4)


def test_math_pass_at_8(math_rm: Questions) -> None:
    right = [sum(bool(trace.correct) for trace in traces) for traces in math_rm.values()]
    assert metrics.pass_at_k(8, right, 8).mean() == pytest.approx(0.96)


def test_math_majority(math_rm: Questions) -> None:
    assert accuracy(math_rm, "majority") >= 0.93


def test_math_weighted_by_the_reward_model(math_rm: Questions) -> None:
    assert accuracy(math_rm, "quality") >= 0.94
