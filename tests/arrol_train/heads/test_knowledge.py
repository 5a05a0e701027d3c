"""Figures of scored traces."""

from __future__ import annotations

import pytest

from arrol_train.heads.knowledge import inspect_traces, pruned
from arrol_tts.trace import Trace


def scored_group(question_id: str, rows: list[tuple[bool, float, float]]) -> list[Trace]:
    """Traces of 10 tokens: right or not, score at token 2, score at the finish."""
    return [
        Trace(
            question_id, i, answer="1" if right else f"{2 + i}", num_tokens=10, correct=right, scores={2: a, 9: b}
        )
        for i, (right, a, b) in enumerate(rows)
    ]


GROUPS = [
    scored_group("a", [(True, 0.9, 0.9), (False, 0.8, 0.2), (False, 0.1, 0.1), (True, 0.2, 0.8)]),
    scored_group("b", [(False, 0.1, 0.9), (False, 0.2, 0.1), (True, 0.9, 0.95), (False, 0.3, 0.1)]),
]


def test_what_is_known_equals_a_hand_computation() -> None:
    found = inspect_traces(GROUPS, [2])
    at_two, finish = found.positions
    # Question a at token 2: the right ones score 0.9 and 0.2, the wrong 0.8 and 0.1: 3 of 4 pairs; b: 3 of 3.
    assert at_two.head.within == pytest.approx((3 / 4 + 1) / 2)
    assert finish.head.within == pytest.approx(1.0)
    # Of 15 pairs, a wrong one's 0.9 is above 0.8 and ties with 0.9.
    assert finish.head.auroc == pytest.approx(13.5 / 15)
    assert at_two.confidence is None
    assert found.sample_accuracy == pytest.approx(3 / 8)
    assert [part.name for part in found.difficulty] == ["25% to 50% right", "50% to 75% right"]


def test_what_pruning_saves_equals_a_hand_computation() -> None:
    cut = pruned(GROUPS, 2, 0.5)
    # Two of each four stop after 3 of their 10 tokens.
    assert cut.tokens_saved == pytest.approx(2 * 2 * 7 / 80)
    assert cut.accuracy == 1.0  # kept: in a scores 0.9 (right) and 0.2 (wrong, 0.8 at 2), in b 0.95 and 0.1
