"""The stopping rules and the Monitor, without any model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrol_tts.stopping import Budget, ConfidenceFloor, KeepShare, Monitor, Threshold, TraceSpec
from arrol_tts.stopping.rules import base

KEEP_HALF = TraceSpec(group="g", size=4, score_at=(5,), score_finish=True, rules=(KeepShare(5, 0.5),))


def monitor_of(spec: TraceSpec, keys: str) -> Monitor:
    monitor = Monitor()
    for key in keys:
        monitor.add(key, spec)
    return monitor


def test_group_is_pruned_to_its_best_half_when_the_last_member_arrives() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    for key, score in (("a", 0.1), ("b", 0.9), ("c", 0.5)):
        monitor.observe(key, 5, score=score)
    assert monitor.take_verdicts() == {}
    assert [monitor.is_held(key) for key in "abcd"] == [True, True, True, False]
    monitor.observe("d", 5, score=0.4)
    verdicts = monitor.take_verdicts()
    assert set(verdicts) == {"a", "d"}
    assert verdicts["a"].detail == "score 0.100 at token 5 is not among the best 2 of 4"
    assert not monitor.any_held


def test_a_trace_that_finished_early_competes_and_is_never_pruned() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    monitor.observe("a", 3, score=0.2, finished=True)
    monitor.drop("a")
    for key, score in (("b", 0.9), ("c", 0.5), ("d", 0.1)):
        monitor.observe(key, 5, score=score)
    # b and c are the best two; a, third, has already finished.
    assert set(monitor.take_verdicts()) == {"d"}


def test_cancelled_members_do_not_block_the_group() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    monitor.observe("a", 5, score=0.1)
    monitor.observe("b", 5, score=0.2)
    monitor.drop("c")
    assert monitor.is_held("a")
    monitor.drop("d")
    assert set(monitor.take_verdicts()) == {"a"}
    assert not monitor.any_held


def test_a_held_member_can_be_cancelled() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    monitor.observe("a", 5, score=0.1)
    monitor.drop("a")
    for key, score in (("b", 0.9), ("c", 0.5), ("d", 0.3)):
        monitor.observe(key, 5, score=score)
    # The cancelled trace's score still counts: b and c are the best two of four.
    assert set(monitor.take_verdicts()) == {"d"}


def test_stuck_engine_decides_with_who_is_there_and_judges_the_late() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    for key, score in (("a", 0.1), ("b", 0.9)):
        monitor.observe(key, 5, score=score)
    monitor.release()
    assert monitor.is_held("a")
    monitor.release(stuck=True)
    assert set(monitor.take_verdicts()) == {"a"}
    monitor.observe("c", 5, score=0.05)
    assert set(monitor.take_verdicts()) == {"c"}
    monitor.observe("d", 5, score=0.95)
    assert not monitor.is_held("d")
    assert monitor.take_verdicts() == {}


def test_group_with_members_that_were_never_submitted_goes_on_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = monitor_of(KEEP_HALF, "abc")
    for key, score in (("a", 0.1), ("b", 0.9), ("c", 0.5)):
        monitor.observe(key, 5, score=score)
    monitor.release()
    assert monitor.any_held
    monkeypatch.setattr(base, "PATIENCE_SECONDS", 0.0)
    monitor.release()
    assert not monitor.any_held
    assert set(monitor.take_verdicts()) == {"a"}


def test_a_group_does_not_lose_patience_while_a_member_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PATIENCE_SECONDS", 0.0)
    monitor = monitor_of(KEEP_HALF, "abcd")
    monitor.observe("a", 5, score=0.1)
    monitor.release()
    assert monitor.is_held("a")


def test_members_that_keep_coming_do_not_hold_the_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(base.time, "monotonic", lambda: clock[0])
    monitor = Monitor()
    spec = TraceSpec("g", 1000, rules=(KeepShare(5, 0.5),))
    held = []
    for i in range(30):
        monitor.add(i, spec)
        monitor.release()
        monitor.observe(i, 5, score=i / 100)
        held.append(sum(monitor.is_held(key) for key in range(i + 1)))
        clock[0] += base.PATIENCE_SECONDS - 1
    # After a minute from the first wait nobody is expected any more; those who come later are judged at once.
    assert held[:15] == list(range(1, 16))
    assert held[-10:] == [0] * 10
    assert len(monitor.take_verdicts()) > 5


def test_a_rule_that_raises_fails_its_group_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    monitor.add("other", TraceSpec(rules=(Threshold(5, 0.5),)))
    broken = ZeroDivisionError("injected")

    def fail(*_: object) -> None:
        raise broken

    monitor.observe("a", 5, score=0.1)
    monkeypatch.setattr(monitor.logs["a"].groups[0], "observe", fail)
    monitor.observe("b", 5, score=0.2)
    monitor.observe("other", 5, score=0.2)
    assert monitor.take_failures() == dict.fromkeys("abcd", broken)
    assert not monitor.any_held
    assert set(monitor.take_verdicts()) == {"other"}


def test_a_score_that_is_not_a_number_is_pruned_first() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    for key, score in (("a", math.nan), ("b", 0.1), ("c", 0.2), ("d", 0.3)):
        monitor.observe(key, 5, score=score)
    assert set(monitor.take_verdicts()) == {"a", "b"}
    alone = monitor_of(TraceSpec(rules=(Threshold(1, 0.0),)), "a")
    alone.observe("a", 1, score=math.nan)
    assert set(alone.take_verdicts()) == {"a"}


def test_ties_go_to_the_earlier_arrival() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    for key in "cabd":
        monitor.observe(key, 5, score=0.5)
    assert set(monitor.take_verdicts()) == {"b", "d"}


def test_two_groups_do_not_mix() -> None:
    monitor = Monitor()
    for group in "xy":
        for i in range(2):
            monitor.add((group, i), TraceSpec(group=group, size=2, rules=(KeepShare(1, 0.5),)))
    monitor.observe(("x", 0), 1, score=0.1)
    monitor.observe(("y", 0), 1, score=0.9)
    monitor.observe(("y", 1), 1, score=0.8)
    assert set(monitor.take_verdicts()) == {("y", 1)}
    assert monitor.is_held(("x", 0))


def test_threshold_prunes_below_and_spares_at_the_bound() -> None:
    monitor = monitor_of(TraceSpec(rules=(Threshold(3, 0.5),)), "ab")
    monitor.observe("a", 2, score=0.1)
    assert monitor.take_verdicts() == {}
    monitor.observe("a", 3, score=0.49)
    monitor.observe("b", 3, score=0.5)
    verdicts = monitor.take_verdicts()
    assert set(verdicts) == {"a"}
    assert (verdicts["a"].rule, verdicts["a"].position) == ("threshold", 3)
    assert verdicts["a"].score == pytest.approx(0.49)


def test_log_holds_scores_at_positions_and_at_the_finish_only() -> None:
    monitor = monitor_of(TraceSpec(score_at=(2,), score_finish=True, confidence=True), "a")
    for position in range(5):
        monitor.observe("a", position, score=position / 10, confidence=float(position), finished=position == 4)
    log = monitor.drop("a")
    assert log is not None
    assert log.scores == {2: 0.2, 4: 0.4}
    assert list(log.confidence) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert log.length == 5


def test_nothing_remains_of_finished_groups() -> None:
    monitor = monitor_of(KEEP_HALF, "abcd")
    for key in "abcd":
        monitor.observe(key, 5, score=0.5)
    monitor.take_verdicts()
    for key in "abcd":
        monitor.drop(key)
    assert (monitor.logs, monitor._groups, monitor._holding) == ({}, {}, {})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 1))
def test_keep_share_keeps_exactly_its_number_and_the_best(scores: list[float], share: float) -> None:
    rule = KeepShare(1, share)
    spec = TraceSpec(group="g", size=len(scores), rules=(rule,))
    monitor = Monitor()
    for i in range(len(scores)):
        monitor.add(i, spec)
    for i, score in enumerate(scores):
        monitor.observe(i, 1, score=score)
    pruned = set(monitor.take_verdicts())
    kept = set(range(len(scores))) - pruned
    assert len(kept) == max(1, math.floor(share * len(scores) + 0.5))
    assert not pruned or max(scores[i] for i in pruned) <= min(scores[i] for i in kept)


def test_spec_survives_the_wire() -> None:
    spec = TraceSpec(
        group="g",
        size=8,
        score_at=(3, 9),
        score_every=5,
        score_after=(7,),
        score_finish=True,
        head="h",
        confidence=True,
        confidence_window=9,
        logprobs=True,
        live=True,
        features_at=(4,),
        features_finish=True,
        rules=(KeepShare(9, 0.25), Threshold(3, 0.1)),
    )
    assert TraceSpec.parse(json.loads(json.dumps(spec.to_dict()))) == spec
    assert TraceSpec.parse(json.dumps(spec.to_dict())) == spec


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a mapping, not list"),
        (7, "must be a mapping, not int"),
        ({"at": 3}, "unknown keys \\['at'\\]; known keys: group, size"),
        ({"score_at": [0]}, "score_at is 0; it must be a whole number from 1"),
        ({"score_at": [1.5]}, "score_at is 1.5"),
        ({"score_at": [True]}, "score_at is True"),
        ({"score_at": 5}, "score_at must be a list"),
        ({"score_at": [1] * 65}, "at most 64"),
        ({"score_finish": "yes"}, "score_finish is 'yes'; it must be true or false"),
        ({"group": 3}, "group must be a string"),
        ({"head": ["h"]}, "head must be a string"),
        ({"live": 1}, "live is 1; it must be true or false"),
        ({"confidence_window": -1}, "confidence_window is -1"),
        ({"group": "g" * 300}, "at most 256"),
        ({"size": 0}, "size is 0"),
        ({"rules": {}}, "rules must be a list"),
        ({"rules": [3]}, "each rule must be a mapping"),
        ({"rules": [{"rule": "threshold", "at": 3, "below": 0.5}] * 9}, "rules must be a list of at most 8"),
        ({"stop": ["\ud8001"]}, "stop has .*lone surrogate"),
        ({"group": "\udfff"}, "group has .*lone surrogate"),
        ({"head": "\ud800"}, "head has .*lone surrogate"),
        ({"rules": [{"rule": "prune"}]}, "one of threshold, keep_share, confidence_floor, budget"),
        ({"rules": [{"rule": ["x"]}]}, "each rule must be a mapping"),
        ({"rules": [{"rule": "threshold", "at": 3}]}, "rule threshold needs at, below"),
        ({"rules": [{"rule": "threshold", "at": 3, "below": 2}]}, "threshold.below is 2"),
        ({"rules": [{"rule": "threshold", "at": 3, "below": math.nan}]}, "threshold.below is nan"),
        ({"rules": [{"rule": "keep_share", "at": 3, "share": 0}], "group": "g"}, "keep_share.share is 0"),
        ({"rules": [{"rule": "keep_share", "at": 3, "share": 0.5}]}, "set group and size"),
        ({"rules": [{"rule": "keep_share", "at": 3, "share": 0.5, "x": 1}]}, "unknown keys \\['x'\\]"),
    ],
)
def test_malformed_spec_is_refused_in_words(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TraceSpec.parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["group", "size", "score_at", "rules", "rule", "at", "share", "below", "confidence"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_parse_raises_nothing_but_value_error(data: object) -> None:
    try:
        spec = TraceSpec.parse(data)
    except ValueError:
        return
    assert TraceSpec.parse(spec.to_dict()) == spec


def test_keep_share_rules_prune_in_sequence_to_shares_of_the_whole_group() -> None:
    monitor = monitor_of(TraceSpec("g", 8, rules=(KeepShare(2, 0.5), KeepShare(4, 0.25))), "abcdefgh")
    for i, key in enumerate("abcdefgh"):
        monitor.observe(key, 2, score=i / 10)
    first = monitor.take_verdicts()
    assert set(first) == set("abcd")
    for key in first:
        monitor.drop(key)
    for i, key in enumerate("efgh"):
        monitor.observe(key, 4, score=1 - i / 10)
    # A quarter of the eight is two, not one of the four that are left.
    assert set(monitor.take_verdicts()) == set("gh")


def test_scores_are_logged_every_so_many_tokens_and_after_given_tokens() -> None:
    monitor = monitor_of(TraceSpec(score_every=3, score_after=(7,)), "a")
    for position, token in enumerate([None, 5, 7, 5, 5, 7, 5]):
        monitor.observe("a", position, score=position / 10, token=token)
    assert list(monitor.logs["a"].scores) == [2, 3, 5, 6]


def floor_monitor(keys: str, **rule: float) -> Monitor:
    settings = {"warmup": 2, "keep": 0.5, "window": 2} | rule
    spec = TraceSpec("g", len(keys), rules=(ConfidenceFloor(**settings),))  # type: ignore[arg-type]
    return monitor_of(spec, keys)


def run_trace(monitor: Monitor, key: str, confidences: list[float], *, finish: bool = True) -> None:
    start = monitor.logs[key].length
    for i, confidence in enumerate(confidences):
        finished = finish and i == len(confidences) - 1
        monitor.observe(key, start + i, confidence=confidence, finished=finished)


def test_confidence_floor_waits_for_the_warm_up_and_stops_the_traces_below_it() -> None:
    monitor = floor_monitor("abcd")
    run_trace(monitor, "c", [9.0], finish=False)
    run_trace(monitor, "d", [9.0], finish=False)
    assert monitor.is_held("c")
    run_trace(monitor, "a", [8.0, 6.0, 4.0, 8.0])  # windows 7, 5, 6: lowest 5
    monitor.drop("a")
    assert monitor.is_held("d")
    run_trace(monitor, "b", [3.0, 3.0])  # lowest 3; the floor that half stay above is 4
    assert not monitor.any_held
    run_trace(monitor, "c", [0.0], finish=False)  # window 4.5
    assert monitor.take_verdicts() == {}
    run_trace(monitor, "c", [7.0], finish=False)  # window 3.5
    verdicts = monitor.take_verdicts()
    assert verdicts["c"].detail == "confidence 3.500 of the last 2 tokens is below 4.000"
    run_trace(monitor, "d", [9.0, 9.0])
    assert monitor.take_verdicts() == {}


def test_traces_that_only_wait_for_the_floor_wait_from_their_beginning() -> None:
    monitor = floor_monitor("abcd")
    assert [monitor.is_held(key) for key in "abcd"] == [False, False, True, True]
    for key in "ab":
        run_trace(monitor, key, [5.0, 5.0])
    assert not monitor.any_held


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_confidences_that_are_not_finite_set_no_floor_and_are_below_it(odd: float) -> None:
    monitor = floor_monitor("abcd")
    run_trace(monitor, "a", [odd, 9.0, 9.0])
    run_trace(monitor, "b", [4.0, 4.0])
    run_trace(monitor, "c", [5.0, 5.0], finish=False)
    assert monitor.take_verdicts() == {}
    run_trace(monitor, "d", [odd, 9.0, 9.0], finish=False)
    assert set(monitor.take_verdicts()) == {"d"}


def test_confidence_floor_of_traces_shorter_than_the_window_is_their_mean() -> None:
    monitor = floor_monitor("abc", window=10)
    run_trace(monitor, "a", [4.0, 2.0])
    run_trace(monitor, "b", [5.0])
    run_trace(monitor, "c", [0.0] * 9, finish=False)
    assert monitor.take_verdicts() == {}
    run_trace(monitor, "c", [0.0], finish=False)
    assert monitor.take_verdicts()["c"].detail.endswith("is below 4.000")


def test_a_cancelled_warm_up_trace_does_not_block_the_others() -> None:
    monitor = floor_monitor("abc")
    run_trace(monitor, "c", [1.0], finish=False)
    run_trace(monitor, "a", [5.0, 5.0])
    monitor.drop("a")
    assert monitor.is_held("c")
    monitor.drop("b")
    assert not monitor.any_held


def test_a_warm_up_that_is_all_cancelled_sets_no_floor() -> None:
    monitor = floor_monitor("abc")
    run_trace(monitor, "c", [1.0], finish=False)
    monitor.drop("a")
    monitor.drop("b")
    assert not monitor.any_held
    run_trace(monitor, "c", [-100.0, -100.0], finish=False)
    assert monitor.take_verdicts() == {}


@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=60), st.integers(1, 12))
def test_the_floor_of_one_warm_up_trace_is_its_lowest_window(confidences: list[float], window: int) -> None:
    from arrol_tts.confidence import lowest_window

    monitor = floor_monitor("ab", warmup=1, window=window)
    run_trace(monitor, "a", confidences)
    (group,) = monitor._groups.values()
    expected = lowest_window(np.array(confidences, dtype=np.float32), window)
    assert group.floor == pytest.approx(expected, abs=1e-5)  # type: ignore[attr-defined]


def test_budget_runs_the_best_first_and_stops_all_when_it_is_spent() -> None:
    # Three traces to position 2 cost 9 tokens; the expected 7 more of the best fit into 20, no other's.
    monitor = monitor_of(TraceSpec("g", 3, rules=(Budget(at=2, tokens=20, length=10),)), "abc")
    for key, score in (("a", 0.2), ("b", 0.9), ("c", 0.5)):
        for position in range(3):
            monitor.observe(key, position, score=score)
    assert [monitor.is_held(key) for key in "abc"] == [True, False, True]
    # b ends after 5 tokens: 11 are spent, a trace is now expected to take 5, so both others fit.
    monitor.observe("b", 3, score=0.9)
    monitor.observe("b", 4, score=0.9, finished=True)
    assert monitor.take_verdicts() == {}
    monitor.drop("b")
    assert [monitor.is_held(key) for key in "ac"] == [False, False]
    for position in range(3, 7):
        monitor.observe("c", position, score=0.5)
        monitor.observe("a", position, score=0.2)
    assert monitor.take_verdicts() == {}
    monitor.observe("c", 7, score=0.5)
    verdicts = monitor.take_verdicts()
    assert set(verdicts) == {"a", "c"}
    assert verdicts["a"].detail == "the group's budget of 20 tokens is spent"


def test_a_budget_spent_before_the_detection_position_stops_the_group() -> None:
    monitor = monitor_of(TraceSpec("g", 2, rules=(Budget(at=50, tokens=4, length=60),)), "ab")
    for position in range(2):
        for key in "ab":
            monitor.observe(key, position, score=0.5)
    assert set(monitor.take_verdicts()) == {"a", "b"}


def test_a_stuck_budget_gives_up_its_least_promising_trace() -> None:
    monitor = monitor_of(TraceSpec("g", 3, rules=(Budget(at=1, tokens=8, length=10),)), "abc")
    for key, score in (("a", 0.2), ("b", 0.9), ("c", 0.5)):
        for position in range(2):
            monitor.observe(key, position, score=score)
    assert [monitor.is_held(key) for key in "abc"] == [True, False, True]
    monitor.release(stuck=True)
    assert set(monitor.take_verdicts()) == {"a"}


def test_rules_combine() -> None:
    spec = TraceSpec("g", 4, rules=(Threshold(1, 0.3), KeepShare(2, 0.5)))
    monitor = monitor_of(spec, "abcd")
    for key, score in (("a", 0.2), ("b", 0.4), ("c", 0.5), ("d", 0.6)):
        monitor.observe(key, 1, score=score)
    assert set(monitor.take_verdicts()) == {"a"}
    monitor.drop("a")
    for key, score in (("b", 0.9), ("c", 0.1), ("d", 0.6)):
        monitor.observe(key, 2, score=score)
    assert set(monitor.take_verdicts()) == {"c"}


def test_hidden_vectors_are_kept_at_their_positions_and_at_the_finish_only() -> None:
    monitor = monitor_of(TraceSpec(features_at=(0, 2), features_finish=True), "a")
    for position in range(5):
        monitor.observe("a", position, feature=f"state {position}".encode, finished=position == 4)
    assert monitor.logs["a"].features == {0: b"state 0", 2: b"state 2", 4: b"state 4"}


def test_hidden_vectors_are_kept_at_every_stride_from_a_position_on() -> None:
    spec = TraceSpec.parse({"features_every": 3, "features_from": 2, "features_at": [1]})
    monitor = monitor_of(spec, "a")
    for position in range(10):
        monitor.observe("a", position, feature=f"state {position}".encode)
    assert list(monitor.logs["a"].features) == [1, 2, 5, 8]


def test_hidden_vectors_are_not_asked_for_once_all_positions_have_passed() -> None:
    monitor = monitor_of(TraceSpec(features_at=(1,)), "a")
    wanted = []
    for position in range(4):
        wanted.append(monitor.logs["a"].wants_features)
        monitor.observe("a", position, feature=bytes)
    assert wanted == [True, True, False, False]
