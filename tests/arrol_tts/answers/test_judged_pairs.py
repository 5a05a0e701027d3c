"""Pairs of real answers to the same question that were judged by reading them."""

from __future__ import annotations

import json
from collections import Counter

from arrol_tts.answers import answers_equal
from evals.bench.equality import JUDGED, agreement, drawn

PAIRS = [json.loads(line) for line in JUDGED.read_text(encoding="utf-8").splitlines()]


def test_there_are_200_distinct_pairs_with_verdicts() -> None:
    assert len({(pair["a"], pair["b"]) for pair in PAIRS}) == 200
    assert all(pair["a"] != pair["b"] for pair in PAIRS)
    assert Counter(pair["verdict"] for pair in PAIRS) == {"different": 116, "same": 80, "unclear": 4}


def test_equality_agrees_with_every_verdict() -> None:
    found = agreement(PAIRS, answers_equal)
    assert (found["false_merges"], found["missed_merges"]) == ([], [])


def test_disagreements_are_sorted_by_their_kind() -> None:
    pairs = [
        {"stratum": "near", "a": "1", "b": "2", "verdict": "same"},
        {"stratum": "near", "a": "1", "b": "1.0", "verdict": "different"},
        {"stratum": "near", "a": "3", "b": "4", "verdict": "different"},
        {"stratum": "near", "a": "5", "b": "5%", "verdict": "unclear"},
    ]
    found = agreement(pairs, answers_equal)
    assert found["false_merges"] == [["1", "1.0"]]
    assert found["missed_merges"] == [["1", "2"]]
    assert found["by_stratum"]["near"] == {"agree": 1, "judged": 3}


def test_pairs_are_drawn_of_one_question_in_their_strata() -> None:
    pairs = drawn({"q": {"1/2", "0.5", "2/1"}, "r": {"7", "8"}})
    assert {(pair["stratum"], pair["a"], pair["b"]) for pair in pairs} == {
        ("merged", "0.5", "1/2"),
        ("near", "1/2", "2/1"),
        ("apart", "0.5", "2/1"),
        ("apart", "7", "8"),
    }
