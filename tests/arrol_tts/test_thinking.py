"""Thinking and answer: told apart by the delimiters, wherever a text begins and ends."""

from __future__ import annotations

import pytest

from arrol_tts.thinking import opens_thinking, split_thinking

HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("written", "reasoning", "text"),
    [
        ("<think>\nso 7\n</think>\n\n7", "so 7", "7"),
        ("  <think>so 7</think>7\n", "so 7", "7\n"),
        ("so 7</think>7", "so 7", "7"),
        ("<think></think>7", None, "7"),
        ("<think>a</think>\n<think>b</think>7", "a\n\nb", "7"),
        ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
        ("◁think▷a◁/think▷7", "a", "7"),
        ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>7<|end_of_solution|>", "a", "7"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>7<|END_RESPONSE|>", "a", "7"),
        (f"{HARMONY.format('a')}<|channel|>final<|message|>7", "a", "7"),
        (f"{HARMONY.format('a') + HARMONY.format('b')}<|channel|>final<|message|>7", "a\n\nb", "7"),
        ("<|channel|>final<|message|>7", None, "7"),
        ("The tags are <think> and </think>.", None, "The tags are <think> and </think>."),
        ("The <think> tag", None, "The <think> tag"),
        ("  7 ", None, "  7 "),
        ("", None, ""),
    ],
)
def test_a_thinking_stands_at_the_beginning(written: str, reasoning: str | None, text: str) -> None:
    assert split_thinking(written) == (reasoning, text, False)


@pytest.mark.parametrize(
    ("written", "opened", "reasoning"),
    [
        ("<think>so", False, "so"),
        ("<think>", False, None),
        ("so", True, "so"),
        ("", True, None),
        ("<think>a</think><think>b", False, "a\n\nb"),
        (f"{HARMONY.format('a')}<|channel|>analysis<|message|>b", False, "a\n\nb"),
    ],
)
def test_a_text_that_ends_inside_a_thinking_is_open(written: str, opened: bool, reasoning: str | None) -> None:
    assert split_thinking(written, opened=opened) == (reasoning, "", True)


def test_a_thinking_that_the_prompt_began_ends_at_any_delimiter() -> None:
    assert split_thinking("so 7[/THINK]7", opened=True) == ("so 7", "7", False)
    assert split_thinking("<think>so 7</think>7", opened=True) == ("so 7", "7", False)


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("What is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("[INST]2+2[/INST][THINK]", True),
        ("", False),
    ],
)
def test_a_prompt_opens_a_thinking_when_it_ends_with_its_delimiter(prompt: str, opens: bool) -> None:
    assert opens_thinking(prompt) is opens


def test_long_texts_are_split_in_linear_time() -> None:
    text = "<thinking [about] H. " * 50_000
    assert split_thinking(text).text == text
    assert split_thinking(f"<think>{text}", opened=True).is_open
