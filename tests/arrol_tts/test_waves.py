"""When a question needs more traces: the decision, and its replay over recorded ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from arrol_tts import AnswerCalibration, Trace, Waves, replay_waves, vote
from arrol_tts.errors import InputError
from arrol_tts.waves import sureness


def traces(answers: str, odds: list[float] | None = None) -> list[Trace]:
    """One trace a letter, "." without an answer; of these odds by the head's score."""
    return [
        Trace(
            "q",
            i,
            answer=None if answer == "." else answer,
            num_tokens=10,
            scores={} if odds is None else {9: odds[i] / (1 + odds[i])},
        )
        for i, answer in enumerate(answers)
    ]


def test_the_first_wave_is_start_and_the_next_ones_step() -> None:
    waves = Waves(start=4, step=3)
    assert waves.more([], n=32) == 4
    assert waves.more(traces("1234"), n=32) == 3


def test_a_wave_never_goes_beyond_n() -> None:
    assert Waves(start=4, step=3).more(traces("1234"), n=6) == 2
    assert Waves(start=4, step=3).more(traces("1234"), n=4) == 0


def test_waves_end_at_start_and_every_step_after_it() -> None:
    assert [k for k in range(13) if Waves(start=4, step=3).ends_at(k, n=12)] == [4, 7, 10, 12]


def test_a_majority_without_a_rival_is_enough_with_four_votes() -> None:
    assert Waves().more(traces("7777"), n=32) == 0  # 1 - 2 ** -5 = .969
    assert Waves().more(traces("777."), n=32) == 2
    assert Waves(certainty=0.97).more(traces("7777"), n=32) == 2


def test_nobody_answered_is_no_certainty() -> None:
    assert Waves(certainty=0.5).more(traces("...."), n=32) == 2


def test_scores_need_a_share_of_the_odds_with_one_unit_against_the_leader() -> None:
    assert sureness(vote(traces("77", [19, 0]), "quality", odds_power=1.0)) == pytest.approx(19 / 20, abs=1e-4)
    assert sureness(vote(traces("778", [6, 2, 1]), "quality", odds_power=1.0)) == pytest.approx(8 / 10)
    # What the weights are does not matter: these are probabilities, ranks, and one for the best.
    for method in ("quality", "quality-ranks", "best-of-n"):
        assert sureness(vote(traces("778", [6, 2, 1]), method)) == pytest.approx(8 / 10)
    by_odds = partial(vote, method="quality", odds_power=1.0)
    assert Waves(certainty=0.8).more(traces("778", [6, 2, 1]), 9, by_odds) == 0
    assert Waves(certainty=0.81).more(traces("778", [6, 2, 1]), 9, by_odds) == 2


def test_weights_without_a_unit_count_as_votes() -> None:
    # Whatever the scale of a function's weights: 3 to 1 as Adaptive-Consistency counts it, see test_consensus.
    weights = [1000.0, 1000.0, 1000.0, 1000.0]
    assert sureness(vote(traces("7775"), lambda _: weights)) == pytest.approx(0.8125, abs=1e-4)  # type: ignore[arg-type, return-value]


def test_a_calibration_gives_the_probability_that_the_leader_is_right() -> None:
    known = [vote(traces("7777")), vote(traces("7789"))]
    calibration = AnswerCalibration.fit(known, [True, False])
    sure = calibration.probability(known[0])
    assert 0.5 < sure < 0.9
    assert Waves(certainty=sure).more(traces("7777"), 32, calibration=calibration) == 0
    assert Waves(certainty=sure + 0.01).more(traces("7777"), 32, calibration=calibration) == 2


def test_certainty_one_asks_for_all() -> None:
    assert len(replay_waves(traces("7" * 32), Waves(certainty=1))) == 32


def test_replay_stops_at_the_end_of_the_wave_that_decides() -> None:
    recorded = traces("7577777777")
    # 3 to 1, 5 to 1 (.9375), 7 to 1 (.98).
    assert [trace.sample_id for trace in replay_waves(recorded, Waves())] == list(range(8))
    assert len(replay_waves(recorded, Waves(certainty=0.9))) == 6


def test_replay_takes_traces_by_sample_id_whatever_their_order() -> None:
    recorded = traces("7777555555")
    assert [trace.sample_id for trace in replay_waves(recorded[::-1], Waves())] == [0, 1, 2, 3]


def test_replay_asks_for_n_at_most() -> None:
    assert len(replay_waves(traces("12345678"), Waves(), n=5)) == 5
    assert len(replay_waves(traces("12345678"), Waves(), n=64)) == 8


def test_replay_passes_options_on_to_the_vote() -> None:
    recorded, waves = traces("aAaA5555", [9.0] * 8), Waves(certainty=0.9)
    assert len(replay_waves(recorded, waves, method="quality", odds_power=1.0)) == 8
    assert len(replay_waves(recorded, waves, method="quality", odds_power=1.0, equality="text")) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 0}, "start is 0; it must be a whole number of at least 1"),
        ({"step": 0}, "step is 0; it must be a whole number of at least 1"),
        ({"step": 1.5}, "step is 1.5; it must be a whole number"),
        ({"certainty": 0.4}, "certainty is 0.4; it must be from 0.5"),
        ({"certainty": 1.2}, "certainty is 1.2; it must be from 0.5.*to 1, where all n traces are sampled"),
        ({"certainty": "high"}, "certainty is 'high'"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Waves(**values)


def test_a_first_wave_of_more_than_n_is_refused() -> None:
    with pytest.raises(InputError, match="start is 8 and n is 4: start with n traces at most, or raise n"):
        replay_waves(traces("7777"), Waves(start=8))
