"""The pocket task: texts, verifier, splits."""

from __future__ import annotations

import itertools

import pytest

from arrol_tts.pocket import questions, verify
from arrol_tts.pocket.task import CHARACTERS, parse, solve, split_of, training_text, write_solution


def test_precedence_and_left_to_right_work_out_as_by_hand() -> None:
    assert solve("2+3*4-5") == (["3*4=12, 2+12-5", "2+12=14, 14-5", "14-5=9"], 9)
    assert solve("2+3*4-5", "left_to_right") == (["2+3=5, 5*4-5", "5*4=20, 20-5", "20-5=15"], 15)
    assert write_solution("2-9*2", "precedence") == "9*2=18, 2-18\n2-18=-16\nanswer -16"


@pytest.mark.parametrize("expression", ["2+3*4-5", "9-8-7", "2*3*4-9*9", "7-9*2+3"])
def test_precedence_agrees_with_python(expression: str) -> None:
    assert solve(expression)[1] == eval(expression)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("9", True), (" 9", True), ("-9", False), ("9.0", False), ("", False), (None, False), ("90", False)],
)
def test_verifier_is_exact(answer: str | None, right: bool) -> None:
    assert verify("2+3*4-5", answer) is right


@pytest.mark.parametrize("text", ["", "2", "2+", "+2", "2+3x", "two", "2**3", "(2+3)", "2+3\n*4"])
def test_what_is_no_question_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a pocket question"):
        parse(text)


def test_train_and_test_questions_are_disjoint_and_reproducible() -> None:
    train = [q.text for q in itertools.islice(questions("train"), 3000)]
    test = [q.text for q in itertools.islice(questions("test"), 500)]
    assert not set(train) & set(test)
    assert len(set(train)) == 3000
    assert test == [q.text for q in itertools.islice(questions("test"), 500)]
    assert all(split_of(text) == "test" for text in test)


def test_training_text_uses_the_vocabulary_and_train_questions_only() -> None:
    for question, solution in itertools.islice(training_text(), 500):
        assert set(question + solution) <= set(CHARACTERS)
        assert split_of(question) == "train"


def test_answers_of_questions_are_their_values() -> None:
    for question in itertools.islice(questions("test"), 200):
        assert int(question.answer) == eval(question.text)
