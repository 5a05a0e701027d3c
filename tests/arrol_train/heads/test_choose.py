"""What is chosen for a head."""

from __future__ import annotations

from arrol_train.heads.choose import choose_position, split_questions
from tests.arrol_train.heads.test_knowledge import scored_group


def test_a_split_is_by_question_and_every_question_is_tested_once() -> None:
    names = [f"q{i}" for i in range(23)]
    splits = [split_questions(names, seed=1, folds=4, fold=fold) for fold in range(4)]
    assert frozenset.union(*(split.test for split in splits)) == frozenset(names)
    assert sum(len(split.test) for split in splits) == 23
    for split in splits:
        assert split.train | split.validation | split.test == frozenset(names)
        assert not split.train & split.test
        assert not split.validation & (split.train | split.test)


def test_the_earliest_of_equal_positions_is_chosen() -> None:
    groups = [scored_group(f"q{i}", [(True, 0.9, 0.9), (False, 0.1, 0.1)]) for i in range(5)]
    for group in groups:
        for trace in group:
            trace.scores = {1: trace.scores[2], **trace.scores}
    assert choose_position(groups, [1, 2], 0.5, {}) == 1
    for group in groups:  # at token 1 the wrong one is kept
        group[0].scores[1], group[1].scores[1] = 0.1, 0.9
    assert choose_position(groups, [1, 2], 0.5, {}) == 2
