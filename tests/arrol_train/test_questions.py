"""Files of questions with answers, and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arrol_train.questions import TrainingQuestion, read_prompt, read_questions
from arrol_tts.engine.request import Question
from arrol_tts.prompts import Prompt


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_of_every_usual_form_are_read(tmp_path: Path) -> None:
    answers = ["7", 7, 7.5, ["7"], "3 + 4 = <<3+4=7>>7\n#### 7", r"so \boxed{7}"]
    path = write(tmp_path / "a.jsonl", *({"question": f"q{i}", "answer": a} for i, a in enumerate(answers)))
    assert [problem.answer for problem in read_questions(path)] == ["7", "7", "7.5", "7", "7", "7"]


def test_columns_are_named_and_rows_limited(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"problem": f"p{i}", "gold": i} for i in range(3)))
    assert read_questions(path, question_column="problem", answer_column="gold", limit=2) == [
        TrainingQuestion("row-1", "p0", "0"),
        TrainingQuestion("row-2", "p1", "1"),
    ]


def test_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"1, or 2?",1\n')
    assert read_questions(path) == [TrainingQuestion("row-1", "1, or 2?", "1")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, r"row 2 has no 'answer'; it has 'question'.*--answer-column"),
        ({"question": "", "answer": "1"}, r"row 2 has no 'question'"),
        ({"question": "q", "answer": [1, 2]}, r"row 2: the answer is \[1, 2\]"),
        ({"question": " WHAT  is 1? ", "answer": "1"}, r"row 2 asks the same as row 1.*trained and tested"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "What is 1?", "answer": "1"}, row)
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="no rows"):
        read_questions(write(tmp_path / "a.jsonl"))


def test_a_template_and_worked_examples_make_a_chat(tmp_path: Path) -> None:
    template = tmp_path / "prompt.txt"
    template.write_text("Solve: {question}\n")
    shots = write(tmp_path / "shots.jsonl", {"question": "1+1", "solution": "It is 2."})
    prompt = read_prompt(template, shots)
    asked = prompt.ask("a", "2+2")
    assert [(message["role"], message["content"]) for message in asked.conversation] == [
        ("user", "Solve: 1+1"),
        ("assistant", "It is 2."),
        ("user", "Solve: 2+2"),
    ]
    assert Prompt.from_messages(prompt.to_messages()) == prompt


def test_a_chat_is_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    path.write_text('[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{question}?"}]')
    asked = read_prompt(path).ask("a", "1")
    assert asked.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1?"})


def test_without_a_prompt_the_question_is_asked_as_it_is() -> None:
    assert read_prompt(None) == Prompt()
    assert Prompt().to_messages() == []
    assert Prompt().ask("a", "1+1") == Question("a", "1+1")


def test_a_prompt_without_the_question_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Solve it.")
    with pytest.raises(ValueError, match=r"contain \{question\}"):
        read_prompt(path)
