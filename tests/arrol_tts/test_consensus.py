"""When a question needs no more traces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrol_tts.consensus import Consensus, most_likely
from arrol_tts.trace import Trace


def traces(answers: str) -> list[Trace]:
    return [Trace("q", i, answer=None if a == "." else a, num_tokens=5) for i, a in enumerate(answers)]


def test_share_is_reached_when_the_leader_has_it() -> None:
    consensus = Consensus(share=0.9, min_votes=4)
    assert consensus.reached(traces("777")) == ""
    assert consensus.reached(traces("7777")) == "answer 7 has 100% of the votes of 4 traces"
    assert consensus.reached(traces("77775")) == ""
    assert consensus.reached(traces("7777777775")) == "answer 7 has 90% of the votes of 10 traces"


@pytest.mark.parametrize("answers", ["777.....", "777     ", "        "])
def test_traces_without_an_answer_or_with_a_blank_one_do_not_count(answers: str) -> None:
    assert Consensus(share=0.9, min_votes=4).reached(traces(answers)) == ""


def test_certainty_is_reached_when_the_second_cannot_be_the_likelier() -> None:
    consensus = Consensus(share=None, certainty=0.95, min_votes=3)
    assert consensus.reached(traces("777")) == ""
    assert consensus.reached(traces("7777")).startswith("answer 7 leads with probability 0.96")
    assert consensus.reached(traces("7777577")) == "answer 7 leads with probability 0.965 after 7 traces"
    assert consensus.reached(traces("77755")) == ""


@pytest.mark.parametrize(
    ("leader", "second", "expected"),
    # 1 - 2**-(n+1) for n votes to none; the others by the binomial sum of the Beta distribution.
    [(0, 0, 0.5), (4, 0, 31 / 32), (9, 0, 1023 / 1024), (1, 1, 0.5), (3, 1, 0.8125), (5, 2, 219 / 256)],
)
def test_most_likely_equals_the_beta_distribution(leader: int, second: int, expected: float) -> None:
    assert most_likely(leader, second) == pytest.approx(expected, abs=1e-4)


@given(st.floats(0, 500), st.floats(0, 500))
def test_most_likely_is_a_probability_and_symmetric(a: float, b: float) -> None:
    p = most_likely(a, b)
    assert 0 <= p <= 1
    assert p + most_likely(b, a) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": None}, "needs share= or certainty="),
        ({"share": 0.3}, r"share is 0.3; it must be in \[0.5, 1\)"),
        ({"certainty": 1.0}, "certainty is 1.0"),
        ({"min_votes": 0}, "min_votes is 0"),
    ],
)
def test_bad_values_are_refused(values: dict[str, float | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Consensus(**values)  # type: ignore[arg-type]
