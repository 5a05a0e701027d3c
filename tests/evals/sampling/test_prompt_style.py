"""How problems are asked, and read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from arrol_tts.engine.stop_texts import before_stop
from arrol_tts.head_config import QualityHeadConfig
from evals.benchmarks import Benchmark, Problem, Shot
from evals.sampling.prompt_style import PromptStyle, choose_style

PROBLEM = Problem("x-1", "What is 2+2?", "4")
BENCHMARK = Benchmark(
    "x",
    (PROBLEM,),
    lambda p, a: a == p.answer,
    instruction="\n\nBox it.",
    shots=(Shot("1+1?", "It is \\boxed{2}."),),
)
PLAIN, CHATTY = SimpleNamespace(chat_template=None), SimpleNamespace(chat_template="{{ messages }}")


def head(prompt: list[dict[str, str]]) -> QualityHeadConfig:
    return QualityHeadConfig(base_model="m", hidden_size=8, prompt=prompt)


def test_chat_asks_with_the_instruction_and_few_shot_with_examples() -> None:
    assert PromptStyle("chat").text(BENCHMARK, PROBLEM) == "What is 2+2?\n\nBox it."
    assert PromptStyle("few-shot").text(BENCHMARK, PROBLEM) == (
        "Problem: 1+1?\nSolution: It is \\boxed{2}.\n\nProblem: What is 2+2?\nSolution:"
    )
    assert not PromptStyle("few-shot").question(BENCHMARK, PROBLEM, None).chat


def test_the_heads_own_prompt_gets_the_question_alone() -> None:
    config = head([{"role": "system", "content": "Think."}, {"role": "user", "content": "Q: {question}"}])
    question = PromptStyle("head").question(BENCHMARK, PROBLEM, config)
    assert [message["content"] for message in question.messages] == ["Think.", "Q: What is 2+2?"]


def test_a_system_prompt_takes_the_place_of_the_heads_and_comes_before_every_style() -> None:
    config = head([{"role": "system", "content": "Think."}, {"role": "user", "content": "Q: {question}"}])
    for style in ("head", "chat", "few-shot"):
        chosen = choose_style(style, CHATTY, config, system="Be brief.")
        first, last = chosen.question(BENCHMARK, PROBLEM, config).conversation
        assert (first["role"], first["content"]) == ("system", "Be brief.")
        assert "What is 2+2?" in last["content"]


@pytest.mark.parametrize(
    ("name", "tokenizer", "prompt", "chosen"),
    [
        ("auto", CHATTY, [], "chat"),
        ("auto", PLAIN, [], "few-shot"),
        ("auto", None, [], "chat"),
        ("auto", PLAIN, [{"role": "user", "content": "{question}!"}], "head"),
        ("few-shot", CHATTY, [], "few-shot"),
    ],
)
def test_auto_follows_model_and_head(
    name: str, tokenizer: object, prompt: list[dict[str, str]], chosen: str
) -> None:
    assert choose_style(name, tokenizer, head(prompt)).name == chosen


@pytest.mark.parametrize(
    ("name", "message"),
    [("poem", "choose from auto, chat"), ("chat", "no chat template"), ("head", "without a prompt of its own")],
)
def test_styles_that_cannot_work_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_style(name, PLAIN, head([]))


def test_a_base_model_is_stopped_before_a_problem_of_its_own() -> None:
    text = " So \\boxed{4}.\n\nProblem: Now 3+3?\nSolution: \\boxed{6}"
    assert before_stop(text, PromptStyle("few-shot").stop(None)) == " So \\boxed{4}."
    own = QualityHeadConfig(base_model="m", hidden_size=8, sampling={"stop": ["\\n\\n"]})
    assert PromptStyle("chat").stop(own) == ()
    assert PromptStyle("head").stop(own) == ("\\n\\n",)
