"""How a question or a conversation, a system prompt and a head's own prompt become what the model is asked."""

from __future__ import annotations

from typing import Any

import pytest

from arrol_tts.errors import InputError
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.messages import check_conversation
from arrol_tts.prompts import Prompt

HEAD = Prompt((("system", "Be exact."), ("user", "1+1"), ("assistant", "2"), ("user", "Q: {question}\nBox it.")))


def roles_and_texts(question: Any, prompt: Prompt = HEAD, **options: Any) -> list[tuple[str, Any]]:
    return [(m["role"], m["content"]) for m in prompt.ask("q", question, **options).conversation]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


SHOTS = [("user", "1+1"), ("assistant", "2")]


def test_a_text_takes_the_place_of_the_question() -> None:
    assert roles_and_texts("2+3") == [("system", "Be exact."), *SHOTS, ("user", "Q: 2+3\nBox it.")]


def test_a_system_prompt_replaces_the_heads() -> None:
    asked = [("system", "Be kind."), *SHOTS, ("user", "Q: 2+3\nBox it.")]
    assert roles_and_texts("2+3", system="Be kind.") == asked
    assert roles_and_texts([{"role": "system", "content": "Be kind."}, user("2+3")]) == asked


def test_what_the_user_said_last_takes_the_place_of_the_question() -> None:
    said = [user("Hello"), {"role": "assistant", "content": "Hi"}, user("2+3")]
    assert roles_and_texts(said) == [
        ("system", "Be exact."),
        *SHOTS,
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Q: 2+3\nBox it."),
    ]


def test_the_words_around_the_question_go_around_its_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    text = {"type": "text", "text": "2+3"}
    (*_, last) = roles_and_texts([user([image, text])])
    assert last[1] == [{"type": "text", "text": "Q:"}, image, text, {"type": "text", "text": "Box it."}]


def test_a_tools_reply_stays_last_and_its_question_is_still_the_heads() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    said = [user("2+3"), {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "5"}]
    asked = Prompt((("user", "Q: {question}"),)).ask("q", said).conversation
    assert asked == [user("Q: 2+3"), said[1], said[2]]


def test_without_a_prompt_of_its_own_a_conversation_is_asked_as_it_is() -> None:
    said = [
        {"role": "developer", "content": "Be kind."},
        user("a"),
        {"role": "assistant", "content": "b"},
        user("c"),
    ]
    assert Prompt().ask("q", said).conversation == said


def test_two_system_prompts_are_one_too_many() -> None:
    with pytest.raises(InputError, match="question 'q' begins with a system prompt, and system= is another"):
        HEAD.ask("q", [{"role": "system", "content": "a"}, user("b")], system="c")


@pytest.mark.parametrize("system", ["", "  ", 7])
def test_a_system_prompt_is_a_text(system: Any) -> None:
    with pytest.raises(InputError, match="system is .*; it must be a text, or left out"):
        HEAD.ask("q", "2+3", system=system)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "is empty: ask something"),
        ({"role": "user"}, "it must be a text or a list of messages"),
        (7, "it must be a text or a list of messages"),
        (["2+3"], r"messages\[0\] is '2\+3'; it must be"),
        ([{"content": "2+3"}], r"messages\[0\].role is None; it must be one of system, developer, user"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\].role is 'robot'"),
        ([user(7)], r"messages\[0\].content is 7; it must be text or a list of parts"),
        ([{"role": "user"}], r"messages\[0\].content is None"),
        ([user([7])], r"messages\[0\].content\[0\] is 7; it must be a part"),
        ([user([{"type": "text"}])], r"messages\[0\].content\[0\].text is None"),
        ([user(" ")], "is empty: ask something in its last message"),
        ([user([])], "is empty: ask something in its last message"),
        ([user("half \ud800")], r"content has .*, which is no character"),
        ([user("a"), {"role": "assistant", "content": "b"}], "ends with a message of the role 'assistant'"),
        ([{"role": "system", "content": "a"}], "ends with a message of the role 'system'"),
        ([user("a") | {"tool_calls": []}], "only the assistant calls tools"),
        ([{"role": "assistant", "tool_calls": 7}, user("a")], "tool_calls is 7; it must be a list"),
        ([{"role": "assistant", "tool_calls": [{}]}, user("a")], r"tool_calls\[0\] is \{\}; it must be"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, user("a")],
            r"tool_calls\[0\].function.arguments must be JSON in a text",
        ),
    ],
)
def test_what_no_model_could_answer_is_refused_and_the_message_is_named(messages: Any, error: str) -> None:
    with pytest.raises(InputError, match=error):
        check_conversation(messages)


def test_half_a_surrogate_pair_is_no_question() -> None:
    with pytest.raises(InputError, match="question 'q' has .*, which is no character: leave it out"):
        HEAD.ask("q", "2+3 \ud800")


def test_a_heads_template_variables_are_used_and_a_call_goes_over_them() -> None:
    config = QualityHeadConfig("m", 8, chat_template_kwargs={"enable_thinking": False, "effort": "low"})
    prompt = Prompt.of_head(config)
    assert prompt.ask("q", "2+3").chat_template_kwargs == {"enable_thinking": False, "effort": "low"}
    asked = prompt.ask("q", "2+3", chat_template_kwargs={"effort": "high"})
    assert asked.chat_template_kwargs == {"enable_thinking": False, "effort": "high"}
    assert prompt.ask("q", "2+3", chat=False).chat_template_kwargs == {}
