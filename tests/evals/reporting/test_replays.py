"""Ways of spending fewer tokens, replayed over traces whose votes are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from evals.benchmarks import Benchmark, Problem
from evals.reporting.replays import Way, cheapest, in_random_orders, row_of, spent, ways, windows_below
from evals.sampling.seed_samples import SeedSamples

CONFIG = QualityHeadConfig(
    base_model="m",
    hidden_size=4,
    positions=[2],
    voting={"quality": {"odds_power": 1.0}, "deepconf": {"window": 2}},
)
VOTER = WeightedVoter(config=CONFIG)


def samples_of(*questions: str, score: float = 0.9, seed: int = 0) -> SeedSamples:
    """A trace of ten tokens a letter; "r" is right and scored so, the others score the rest of 1."""
    problems = tuple(Problem(f"q{i}", "?", "r") for i in range(len(questions)))
    full = {
        problem.id: [
            Trace(
                problem.id,
                i,
                answer=answer,
                num_tokens=10,
                scores={9: score if answer == "r" else 1 - score},
                confidence=np.full(10, 5.0, np.float32),
                correct=answer == "r",
            )
            for i, answer in enumerate(letters)
        ]
        for problem, letters in zip(problems, questions, strict=True)
    }
    benchmark = Benchmark("made", problems, lambda p, a: a == p.answer)
    return SeedSamples(benchmark, len(questions[0]), seed, 0.5, {"full": full})


def first(k: int, name: str = "first") -> Way:
    """Samples the first k traces, whatever they say."""
    return Way(name, "majority", {"k": k}, lambda traces: traces[:k])


def test_a_replay_is_the_mean_over_orders_and_seeds() -> None:
    samples = [samples_of("rrrr", "rwww", seed=seed) for seed in (0, 1)]
    right, tokens = spent(first(1), samples, VOTER, orders=400)
    assert right.tolist() == pytest.approx([1, 0.25], abs=0.05)
    assert tokens.tolist() == [10, 10]


def test_orders_are_of_all_traces_and_those_of_a_seed_are_the_same_again() -> None:
    group = samples_of("rstuvw").full["q0"]

    def answers(seed: int) -> list[str]:
        return ["".join(t.answer or "" for t in order) for order in in_random_orders(group, 3, seed)]

    assert answers(0) == answers(0) != answers(1)
    assert all(sorted(letters) == list("rstuvw") for letters in answers(0))
    assert [[t.sample_id for t in order] for order in in_random_orders(group, 1, 0)] == [[0, 1, 2, 3, 4, 5]]


def test_a_row_has_the_control_of_as_many_tokens() -> None:
    # Whatever stops after two traces is what the control is: two whole traces.
    row = row_of(first(2), [samples_of("rrww", "rrrr")], VOTER, orders=50)
    assert row.control is not None
    assert row.control.traces == 2
    assert row.control.accuracy.tolist() == pytest.approx([0.5, 1], abs=0.1)


def test_the_cheapest_setting_that_loses_nothing_is_chosen() -> None:
    # Three of five right: the vote over all five is right, that over three sometimes not.
    samples = [samples_of(*["rrrww"] * 20)]
    settings = [first(k) for k in (5, 1, 3)]
    assert cheapest(settings, samples, VOTER).setting == {"k": 5}
    assert cheapest(settings, [samples_of("rrrrr", "wwwww")], VOTER).setting == {"k": 1}


def test_without_such_a_setting_the_best_one_is_chosen() -> None:
    assert cheapest([first(1), first(3)], [samples_of(*["rrrww"] * 20)], VOTER, orders=20).setting == {"k": 3}


def tokens_of(way: Way, samples: SeedSamples) -> list[float]:
    tokens: Sequence[float] = spent(way, [samples], VOTER, orders=1)[1].tolist()
    return list(tokens)


def chosen(name: str, **setting: float) -> Way:
    return next(way for way in ways(VOTER, 8)[name] if way.setting == setting)


def test_the_published_ways_stop_where_they_should() -> None:
    sure = samples_of("rrrrrrrr")
    assert tokens_of(chosen("adaptive_consistency", certainty=0.95), sure) == [40]
    assert tokens_of(chosen("esc", window=5), sure) == [50]
    # Two votes of odds 9, against one unit, are .947 sure, three .964.
    assert tokens_of(chosen("waves", start=2, step=1, certainty=0.95), sure) == [30]
    # Equal confidences everywhere: nothing falls below the floor; the vote is clear after the warm-up.
    assert tokens_of(chosen("deepconf_online", warmup=2, keep=0.1, window=8), sure) == [80]
    assert tokens_of(chosen("deepconf_online", warmup=2, keep=0.1, window=8, consensus=0.95), sure) == [20]


def test_deepconf_online_has_windows_that_can_stop_a_trace() -> None:
    samples = samples_of("rw")
    first, second = samples.full["q0"]
    first.confidence = np.full(10, 9.0, np.float32)
    assert windows_below(samples) == [8]
    way = next(way for way in ways(VOTER, 8, windows_below(samples))["deepconf_online"])
    assert way.setting == {"warmup": 1, "keep": 0.1, "window": 8}
    assert [trace.num_tokens for trace in way.spend([first, second])] == [10, 8]
    second.num_tokens = 3000
    assert windows_below(samples)[-1] == 2048


def test_waves_by_the_head_need_one() -> None:
    assert "waves" not in ways(WeightedVoter(), 8)
    assert "esc" in ways(WeightedVoter(), 8)
