"""KeepSubset: a training policy as a stopping rule, without any model."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from arrol_tts.stopping import KeepSubset, Monitor, TraceLog, TraceSpec

SCORES = {"a": 0.1, "b": 0.2, "c": 0.5, "d": 0.6, "e": 0.8, "f": 0.9}
TAILS = KeepSubset(5, 4, "tails", exploration=0.0)


def group_of(*rules: KeepSubset, size: int = 6) -> Monitor:
    monitor = Monitor()
    spec = TraceSpec("g", size, score_at=tuple(rule.at for rule in rules), rules=rules)
    for key in list(SCORES)[:size]:
        monitor.add(key, spec)
    return monitor


def arrive(monitor: Monitor, keys: str, position: int = 5) -> None:
    for key in keys:
        monitor.observe(key, position, score=SCORES[key])


def chosen(monitor: Monitor) -> dict[Any, bool]:
    """Whether each trace that is stopped was chosen."""
    return {key: verdict.chosen for key, verdict in monitor.take_verdicts().items()}


def test_the_policy_chooses_when_the_last_member_has_arrived() -> None:
    monitor = group_of(TAILS)
    arrive(monitor, "fbdac")
    assert monitor.take_verdicts() == {}
    assert [monitor.is_held(key) for key in "abcdef"] == [True, True, True, True, False, True]
    arrive(monitor, "e")
    verdicts = monitor.take_verdicts()
    assert set(verdicts) == {"c", "d"}
    assert verdicts["c"].chosen
    assert verdicts["c"].detail == "score 0.500 at token 5 is not among the 4 of 6 chosen"
    assert not monitor.any_held


@pytest.mark.parametrize("policy", ["random", "published", "group_signed", "max_variance", "tails"])
def test_who_goes_on_is_what_select_says_in_whatever_order_they_arrive(policy: str) -> None:
    for seed in range(5):
        rule = KeepSubset(5, 3, policy, ((0.0, 0.4, 1.0), (0.1, 0.7, 0.8)), 0.5, 0.3, seed)
        kept = {"abcdef"[i] for i in rule.select(list(SCORES.values())).kept}
        assert len(kept) == 3
        for order in ("abcdef", "fdbeca"):
            monitor = group_of(rule)
            arrive(monitor, order)
            assert set("abcdef") - set(monitor.take_verdicts()) == kept
            permuted = rule.select([SCORES[key] for key in order])
            inclusion = dict(zip(order, permuted.inclusion.tolist(), strict=True))
            assert [inclusion[key] for key in "abcdef"] == rule.select(list(SCORES.values())).inclusion.tolist()


def test_seeds_alone_decide_over_chance() -> None:
    kept = [
        KeepSubset(5, 3, "random", seed=seed).select(list(SCORES.values())).kept.tolist() for seed in (0, 0, 1)
    ]
    assert kept[0] == kept[1] != kept[2]


def test_inclusion_probabilities_are_how_often_a_trace_is_kept() -> None:
    scores = [0.1, 0.3, 0.3, 0.6, 0.9]
    rewards = [math.nan, math.nan, math.nan, math.nan, 1.0]
    count, draws = np.zeros(5), 1000
    for seed in range(draws):
        rule = KeepSubset(5, 2, "published", ((0.0, 1.0), (0.2, 0.8)), exploration=0.25, seed=seed)
        selection = rule.select(scores, rewards)
        count[selection.kept] += 1
    error = np.sqrt(selection.inclusion * (1 - selection.inclusion) / draws)
    assert (abs(count / draws - selection.inclusion) < 4 * error).all()
    assert np.ptp(selection.inclusion) > 0.1


def test_the_posterior_is_linear_between_its_corners() -> None:
    # Largest variance: with one right for sure, its opposite is the one that is most likely wrong by the curve.
    rule = KeepSubset(5, 2, "max_variance", ((0.2, 0.4, 0.6), (0.5, 0.1, 0.9)), exploration=0.0)
    assert rule.select([0.2, 0.4, 0.59, 0.0], [math.nan, math.nan, math.nan, 1.0]).kept.tolist() == [1, 3]


def test_known_rewards_count_and_not_their_scores() -> None:
    rewards = [1.0, math.nan, math.nan, 0.0]
    assert TAILS.select([0.1, 0.2, 0.9, 0.95], rewards).kept.tolist() == [0, 1, 2, 3]
    rule = KeepSubset(5, 2, "tails", exploration=0.0)
    assert rule.select([0.1, 0.2, 0.9, 0.95], rewards).kept.tolist() == [0, 3]


def test_a_group_with_an_early_end_is_handed_back_at_the_position() -> None:
    monitor = group_of(TAILS)
    monitor.observe("a", 3, score=0.1, finished=True)
    monitor.drop("a")
    arrive(monitor, "bcdef")
    verdicts = monitor.take_verdicts()
    assert set(verdicts) == set("bcdef")
    assert not any(verdict.chosen for verdict in verdicts.values())
    assert verdicts["b"].detail == "its group was not whole at token 5, and nothing was chosen"
    assert verdicts["b"].position == 5
    assert not monitor.any_held


def test_an_end_at_the_position_itself_is_an_early_one() -> None:
    monitor = group_of(TAILS)
    arrive(monitor, "bcdef")
    monitor.observe("a", 5, score=0.1, finished=True)
    assert chosen(monitor) == dict.fromkeys("bcdef", False)


@pytest.mark.parametrize("arrived", [True, False])
def test_a_group_that_lost_a_member_is_handed_back(arrived: bool) -> None:
    monitor = group_of(TAILS)
    if arrived:
        arrive(monitor, "a")
    monitor.drop("a")  # cancelled
    arrive(monitor, "bcdef")
    assert chosen(monitor) == dict.fromkeys("bcdef", False)


def test_a_stuck_group_is_handed_back_and_the_late_with_it() -> None:
    monitor = group_of(TAILS)
    arrive(monitor, "abc")
    monitor.release(stuck=True)
    assert chosen(monitor) == dict.fromkeys("abc", False)
    arrive(monitor, "def")
    assert chosen(monitor) == dict.fromkeys("def", False)


def test_nobody_is_stopped_where_as_many_are_left_as_go_on() -> None:
    monitor = group_of(TAILS, size=4)
    arrive(monitor, "abcd")
    assert monitor.take_verdicts() == {}
    assert not monitor.any_held


def test_two_positions_choose_in_sequence() -> None:
    monitor = group_of(TAILS, KeepSubset(8, 2, "tails", exploration=0.0))
    arrive(monitor, "abcdef")
    for key in monitor.take_verdicts():
        monitor.drop(key)
    arrive(monitor, "abef", 8)
    verdicts = monitor.take_verdicts()
    assert set(verdicts) == {"b", "e"}
    assert verdicts["b"].chosen


def test_a_score_that_is_not_a_number_is_the_lowest() -> None:
    monitor = group_of(KeepSubset(5, 2, "tails", exploration=0.0), size=4)
    for key, score in zip("abcd", (0.2, math.nan, 0.4, 0.6), strict=True):
        monitor.observe(key, 5, score=score)
    assert set(monitor.take_verdicts()) == {"a", "c"}
    rule = KeepSubset(5, 2, "tails", exploration=0.0)
    assert rule.select([0.2, math.nan, 0.4, 0.6]).kept.tolist() == [1, 3]


def test_a_policy_that_cannot_keep_so_many_fails_its_group() -> None:
    monitor = group_of(KeepSubset(5, 5, "published", p_max=0.6))
    arrive(monitor, "abcdef")
    failures = monitor.take_failures()
    assert failures.keys() == set("abcdef")
    assert "outside the bounds p_min 0.1 and p_max 0.6" in str(failures["a"])
    assert not monitor.any_held


def test_no_head_is_needed_after_the_last_position() -> None:
    monitor = group_of(TAILS, KeepSubset(8, 2, "tails", exploration=0.0))
    arrive(monitor, "a", 5)
    assert monitor.logs["a"].wants_scores
    arrive(monitor, "a", 8)
    assert not monitor.logs["a"].wants_scores
    assert list(monitor.logs["a"].scores) == [5, 8]


def test_a_head_is_needed_to_the_end_where_the_finish_is_scored() -> None:
    monitor = Monitor()
    monitor.add("a", TraceSpec("g", 1, score_at=(5,), score_finish=True, rules=(KeepSubset(5, 1, "random"),)))
    arrive(monitor, "a", 5)
    monitor.observe("a", 9, score=0.25, finished=True)
    assert monitor.logs["a"].scores == {5: 0.1, 9: 0.25}


def test_rule_and_verdict_survive_the_wire() -> None:
    rule = KeepSubset(5, 2, "max_variance", ((0.0, 0.5), (0.25, 0.75)), 1.5, 0.2, (1 << 64) - 1, strength=-1.0)
    spec = TraceSpec("g", 4, rules=(rule,))
    assert TraceSpec.parse(json.dumps(spec.to_dict())) == spec
    monitor = group_of(TAILS)
    arrive(monitor, "abc")
    monitor.release(stuck=True)
    monitor.take_verdicts()
    log = monitor.logs["a"]
    again = TraceLog.from_wire(json.loads(json.dumps(log.to_wire())), log.spec)
    trace = again.to_trace("q", 0, "", [1] * 6, "stop")
    assert trace.finish_reason == "pruned"
    assert trace.meta["verdict"] == {"rule": "keep_subset", "position": 5, "chosen": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at": 0}, "keep_subset.at is 0"),
        ({"keep": 0}, "keep_subset.keep is 0"),
        ({"policy": "best"}, "keep_subset.policy is 'best'; choose one of none, random"),
        ({"policy": ["tails"]}, "keep_subset.policy is"),
        ({"seed": -1}, "keep_subset.seed is -1"),
        ({"seed": 1 << 64}, "keep_subset.seed is"),
        ({"tau": math.inf}, "keep_subset.tau is inf"),
        ({"exploration": 1.5}, "keep_subset.exploration is 1.5"),
        ({"posterior": 3}, "keep_subset.posterior must be two lists: 1 to 4096 scores that ascend"),
        ({"posterior": [[0.1], 2]}, "must be two lists"),
        ({"posterior": [[0.1, 0.2], [0.5]]}, "keep_subset.posterior has 2 and 1"),
        ({"posterior": [[], []]}, "keep_subset.posterior has 0 and 0"),
        ({"posterior": [[0.1, "x"], [0.5, 0.5]]}, "keep_subset.posterior is 'x'"),
        ({"posterior": [[0.1, math.nan], [0.5, 0.5]]}, "keep_subset.posterior is nan"),
        ({"posterior": [[0.2, 0.2], [0.5, 0.6]]}, "do not ascend"),
    ],
)
def test_a_malformed_rule_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    rule = {"rule": "keep_subset", "at": 5, "keep": 2, "policy": "tails"} | changes
    with pytest.raises(ValueError, match=message):
        TraceSpec.parse({"group": "g", "size": 4, "rules": [rule]})


def test_a_rule_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="a keep_subset rule compares the traces of a group: set group and size"):
        TraceSpec.parse({"rules": [{"rule": "keep_subset", "at": 5, "keep": 2, "policy": "tails"}]})
