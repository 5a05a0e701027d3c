"""Speed of the confidence measures, of voting and of answer equality: ``python -m evals.bench.voting``.

The confidence measures are compared with DeepConf's own post-processing, written anew from its published
definitions as it works: Python lists, every group mean summed from its slice (``compute_least_grouped``,
which its online mode runs on every output), a running sum for each of bottom and lowest window. Both sides
start from per-token confidences of traces of the same length. ``deepconf_measures_speedup`` counts all of
that; ``deepconf_measures_speedup_without_groups`` leaves the slice sums out, as its offline mode does.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import numpy as np

from arrol_tts.answers import group_answers
from arrol_tts.confidence import measures
from arrol_tts.trace import Trace
from arrol_tts.voting import vote

from . import write_result

SEED = 0
WINDOW = 2048
NUM_TRACES, NUM_TOKENS = 512, 32_768
REFERENCE_TRACES = 2


def group_means(confidence: list[float], window: int = WINDOW) -> list[float]:
    """DeepConf's group confidences of one trace, each summed from its slice and rounded to 3 digits."""
    if len(confidence) < window:
        return [sum(confidence) / len(confidence)] if confidence else [0.0]
    starts = range(len(confidence) - window + 1)
    return [round(sum(confidence[start : start + window]) / window, 3) for start in starts]


def running_window_means(confidence: list[float], window: int = WINDOW) -> list[float]:
    """Window means of one trace by a running sum, as DeepConf's bottom- and lowest-window measures do it."""
    if len(confidence) < window:
        return [sum(confidence) / len(confidence)] if confidence else [0.0]
    total = sum(confidence[:window])
    means = [total / window]
    for leaving, entering in zip(confidence, confidence[window:], strict=False):
        total += entering - leaving
        means.append(total / window)
    return means


def reference_measures(confidence: list[float], window: int = WINDOW) -> tuple[float, float, float, float]:
    """DeepConf's mean, tail, bottom-window and lowest-window confidence of one trace."""
    if not confidence:
        return 0.0, 0.0, 0.0, 0.0
    # Each of the two window measures walks the trace again, as published.
    bottom = sorted(running_window_means(confidence, window))
    count = max(1, int(len(bottom) * 0.1))
    return (
        float(np.mean(confidence)),
        float(np.mean(confidence[-window:])),
        float(np.mean(bottom[:count])),
        min(running_window_means(confidence, window)),
    )


def bench_measures(rng: np.random.Generator) -> dict[str, float]:
    confidences = rng.gamma(4.0, 4.0, size=(NUM_TRACES, NUM_TOKENS)).astype(np.float32)
    started = time.perf_counter()
    found = measures(confidences, window=WINDOW, tail=WINDOW)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    group_seconds = measure_seconds = 0.0
    for i in range(REFERENCE_TRACES):
        confidence = confidences[i].tolist()
        started = time.perf_counter()
        lowest_group = min(group_means(confidence))
        group_seconds += time.perf_counter() - started
        started = time.perf_counter()
        expected = reference_measures(confidence)
        measure_seconds += time.perf_counter() - started
        ours = (found.mean[i], found.tail[i], found.bottom_window[i], found.lowest_window[i])
        np.testing.assert_allclose(ours, expected, rtol=1e-9)
        np.testing.assert_allclose(found.lowest_window[i], lowest_group, atol=5.1e-4)
    scale = NUM_TRACES / REFERENCE_TRACES
    return {
        "deepconf_measures_seconds": seconds,
        "deepconf_measures_peak_gib": peak,
        "deepconf_measures_speedup": (group_seconds + measure_seconds) * scale / seconds,
        "deepconf_measures_speedup_without_groups": measure_seconds * scale / seconds,
    }


def plain_questions(rng: np.random.Generator, num_questions: int, num_traces: int) -> Iterator[list[Trace]]:
    """Questions whose traces answer with one of up to eight integers, some likelier than others."""
    for question in range(num_questions):
        candidates = [str(n) for n in rng.integers(0, 1000, size=8)]
        picks = rng.choice(8, size=num_traces, p=rng.dirichlet(np.ones(8)))
        yield [
            Trace(question_id=str(question), sample_id=i, answer=candidates[pick]) for i, pick in enumerate(picks)
        ]


def bench_vote(rng: np.random.Generator) -> dict[str, float]:
    seconds = 0.0
    for traces in plain_questions(rng, 10_000, 64):
        started = time.perf_counter()
        vote(traces)
        seconds += time.perf_counter() - started
    return {"vote_10000_seconds": seconds}


def mixed_answers(rng: np.random.Generator, num_answers: int, num_distinct: int) -> list[str]:
    """Answers drawn from distinct spellings: integers, fractions, decimals, roots, tuples, intervals."""
    forms = ("{n}", r"\frac{{{n}}}{{7}}", "{n}.25", r"{n}\sqrt{{2}}", "({n}, {m})", "[{n}, {m})")
    spellings = [forms[n % len(forms)].format(n=n, m=2 * n + 1) for n in range(num_distinct)]
    return [spellings[i] for i in rng.integers(0, num_distinct, size=num_answers)]


def distinct_expressions(count: int) -> list[str]:
    """Expressions that are all different: roots, rational functions, polynomials, powers, functions, equations."""
    forms = (
        r"\frac{{{n}\sqrt{{{m}}}}}{{7}}",
        r"\frac{{{n}x+1}}{{x^2+{m}}}",
        r"x^3 - {n}x^2 + \frac{{x}}{{{m}}}",
        r"{n} + {m}\pi",
        r"\sin\left({n}t + \frac{{\pi}}{{{m}}}\right)",
        r"2^{{n+{n}}} - {m}n",
        r"e^{{-{n}x}}\ln {m}",
        r"{n}x + {m}y = 1",
    )
    return [forms[n % len(forms)].format(n=n, m=2 * n + 3) for n in range(count)]


def bench_expressions() -> dict[str, float]:
    expressions = distinct_expressions(5000)
    group_answers([r"\sqrt{2}", "x+1"])  # imports what evaluates
    started = time.perf_counter()
    groups = group_answers(expressions)
    seconds = time.perf_counter() - started
    return {
        "distinct_expressions_5000_seconds": seconds,
        "distinct_expressions_5000_classes": float(max(groups) + 1),
    }


def bench_equality(rng: np.random.Generator) -> dict[str, float]:
    answers = mixed_answers(rng, 10_000, 500)
    group_answers(["1", r"\sqrt{2}"])  # imports what evaluates
    started = time.perf_counter()
    groups = group_answers(answers)
    seconds = time.perf_counter() - started
    return {"equality_10000_seconds": seconds, "equality_10000_classes": float(max(groups) + 1)}


def main() -> None:
    """Run all of them and write ``evals/results/voting.json``."""
    rng = np.random.default_rng(SEED)
    # Equality before voting, whose answers would already be in the cache of keys.
    figures = bench_measures(rng) | bench_equality(rng) | bench_expressions() | bench_vote(rng)
    for name, value in figures.items():
        print(f"{name:42} {value:12.3f}")
    print(write_result("voting", figures, seeds=[SEED]))


if __name__ == "__main__":
    main()
