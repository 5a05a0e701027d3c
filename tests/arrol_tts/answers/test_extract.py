"""Extraction: one habit of models a row, and what hostile texts cost."""

# ruff: noqa: RUF001 - signs and letters of other scripts are meant

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any

import pytest

from arrol_tts.answers import answers_equal, extract_answer
from tests.paths import SHARED_DATA

needs_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"{SHARED_DATA} is absent; set ARROL_SHARED_DATA to the folder of samples"
)


def test_a_text_that_is_no_string_is_refused() -> None:
    with pytest.raises(TypeError, match="text is NoneType; pass the solution as a string"):
        extract_answer(None)  # type: ignore[arg-type]


# --- where the answer stands ----------------------------------------------------------------------

MARKED = [
    (r"First \boxed{1}, no: \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
    (r"So \boxed{\{1,2\}}", r"\{1,2\}"),
    (r"So $\boxed 5$", "5"),
    (r"\fbox{3}", "3"),
    (r"\boxed{7} and then \boxed{\frac{1", "7"),
    (r"\boxed{} is empty, the answer is 4", "4"),
    ("She has 5 - 2 = 3 left.\n#### 1,234", "1,234"),
    (r"\boxed{2} beats #### 3", "2"),
    ("The answer is 42.", "42"),
    ("The answer is 3, since 2+1=3.", "3"),
    ("The final answer is: $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
    ("the answer is $12\\%$", r"12\%"),
    ("The answer is\n\n$$\n42\n$$", "42"),
    ("**Final Answer:** 3/4", "3/4"),
    ("**Final Answer**\n\n3.5", "3.5"),
    ("Answer: $x = 5$", "x = 5"),
    ("The correct answer is **B**.", "B"),
    ("The answer is approximately 3.14 metres per second for the second car", "3.14"),
    ("The answer is 12. Wait, the answer is 13.", "13"),
    ("The answer to the question is 12 apples", "12 apples"),
    ("7*8=56, 2+56\n2+56=58\nanswer 58", "58"),
    ("3-70=-67\nanswer -67", "-67"),
    ("So 10-3=7", "7"),
    ("so it is -3.", "-3"),
    ("It costs $1,234.50 in total", "1,234.50"),
    (r"x = \frac{3}{4}", r"\frac{3}{4}"),
    ("the probability is 50%", "50%"),
    ("I am not sure about the answer.", None),
    ("", None),
]
THINKING = [
    (r"<think>Try \boxed{7}. That fails.</think> The final answer is 9.", "9"),
    (r"Try \boxed{7}, the template took the opening tag.</think> The answer is **9**.", "9"),
    (r"<thinking>\boxed{7}</thinking> Answer: 9", "9"),
    ("[THINK]it may be \\boxed{5}[/THINK]\nThe total is 6.", "6"),
    ("◁think▷\\boxed{8}◁/think▷ 9", "9"),
    (r"<think>\boxed{8}</think>", "8"),  # nothing after it: what was thought last
    (r"<think>The answer is 3</think>I am not sure, but it is $\frac{2}{5}$.", r"\frac{2}{5}"),
    (
        r"<|channel|>analysis<|message|>\boxed{3}?<|end|><|start|>assistant"
        r"<|channel|>final<|message|>It is 4.<|return|>",
        "4",
    ),
    ("<think>5, no</think><answer>The answer is \\(\\boxed{70}\\).</answer>", "70"),
    ("<answer>12</answer> hmm wait.\n<answer>13</answer>", "13"),
    ("<reasoning>3</reasoning>\n<answer> 10 ", "10"),  # generation was stopped at the closing tag
    ("<FINAL_ANSWER>42</FINAL_ANSWER> (computed in 3 steps)", "42"),
]
ENDS = [
    ("The answer is 42<|endoftext|>", "42"),
    ("The answer is 42</s>", "42"),
    ("#### 12<|im_end|>\n<|im_start|>user\nAnd 3 more?", "12"),
    ("So \\boxed{3}.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\\boxed{9}?", "3"),
    ("Answer: 7<｜end▁of▁sentence｜>", "7"),
    ("<s>[INST] What? [/INST] The answer is 5.</s>", "5"),
    ("<|im_start|>assistant\nThe answer is 11<|im_end|>", "11"),
    ("Answer: `$13$`", "13"),
    ("The answer is `x+1`.", "x+1"),
    ('The answer is "42".', "42"),
]
BOXES = [
    (r"\boxed{\text{The answer is 460}}", "460"),
    (r"\boxed{\text{460 dollars}}", "460 dollars"),
    (r"\boxed{\text{The total cost is 45 dollars}}", "45 dollars"),
    (r"\boxed{The value is $\frac{3}{4}$}", r"\frac{3}{4}"),
    (r"\boxed{\text{no solution}}", r"\text{no solution}"),
    (r"\boxed{All odd integers}", "All odd integers"),
    (r"\boxed{$5$}", "5"),
    ("I mark it with \\boxed as asked.\nThe sum is 5+6 = 11.\nThe answer is 11", "11"),
    ("Put it in \\boxed answer form. 5+6=11", "11"),
    ("Write \\boxed{your answer}. The sum is 9.", "9"),
    ("boxed{5} after 3 tries", "5"),  # the backslash was lost
    ("\x08oxed{5} after 3 tries", "5"),  # and here read as a backspace
    (r"\boxed{\boxed{5}}", r"\boxed{5}"),
    (r"So it is $\boxed{34}$ percent.", r"34\%"),
    (r"\boxed{50}\%", r"50\%"),
    (r"Thus $x=\boxed{3}$ or $x=\boxed{-3}$.", "3, -3"),
    (r"$x = \boxed{1}$, $x = \boxed{2}$ and $x = \boxed{3}$.", "1, 2, 3"),
    (r"$m=\boxed{1}$ and $n=\boxed{2}$", "2"),  # not a list of values of one thing
    (r"first \boxed{1}. Second case \boxed{2}", "2"),
]
HASHES = [
    ("#### Final Answer\n\nThe total is 18.", "18"),
    ("#### Step 4: Add\n\nWe get 12 + 6 = 18. The answer is 18.", "18"),
    ("##### Conclusion\nThe answer is 18.", "18"),
    ("#### 1. Setup\nAdd 2 and 3.\n#### 2. Result\nThe answer is 5.", "5"),
    ("#### (a) Compute\nSo we get 14.", "14"),
    ("So 72.\n#### ,", "72"),
    ("#### 72,", "72"),
    ("#### The answer is 18", "18"),
    ("#### Final Answer: 24", "24"),
    ("#### **12**", "12"),
    ("#### Paris", "Paris"),
    ("#### 42\nLet me verify with 3 checks.", "42"),
]
STATED = [
    ("So answer is consistent.\n\nThus the number is **48**.", "48"),
    ("The answer is an integer between 0 and 999. We find 73.", "73"),
    ("Is the answer 5? No. The answer is 6. I hope my answer is right.", "6"),
    ("The answer should be 17, I think.", "17"),
    ("The answer would then be 12, as 3 cases remain.", "12"),
    ("This gives an answer of 12 for 3 people.", "12"),
    ("The answer is not 5 but 12.", "12"),
    ("The final answer, after rounding to 2 places, is 12.35.", "12.35"),
    ("**Answer**\n\n12 apples from 3 trees", "12 apples"),
    ("_Answer:_ 14", "14"),
    (r"\textbf{Answer: } 12 from 3", "12"),
    ("$$\n\\text{ANSWER: } \\$460\n$$", "\\$460"),
    ("The answer is $34$ percent.", r"34\%"),
    ("The answer is $1,200 per month for $3 years.", "1,200"),
    ("The answer is $1$, $2$, and $3$.", "1, 2, 3"),
    ("The answer is $x=1$ or $x=2$.", "x=1, x=2"),
    ("The final answer is $(1,2)$ and $(2,1)$.", "(1,2), (2,1)"),
    ("The answer is $a$ and $b$ is free.", "a"),
    ("The answer is 1 in 6.", "1 in 6"),
    ("Answer: m+n = 256+37 = 293", "293"),
    ("So the answer is 7 and not 8.", "7"),
    ("The answer is 3.14159...", "3.14159..."),
    ("The answer is $12$ dollars and $50$ cents.", "$12$ dollars and $50$ cents"),
    ("The answer is 7 (seven).", "7"),
]
LANGUAGES = [
    ("最终答案是12，共3种情况。", "12"),
    ("因此，答案为：12元。一共3人。", "12"),
    ("答案：$\\frac{1}{2}$。另外3种不可能。", r"\frac{1}{2}"),
    ("【答案】12\n【解析】分3步。", "12"),
    ("答：一共有24个苹果，分给3人。", "24"),
    ("答えは12です。3回", "12"),
    ("Die Antwort ist 42. Es gibt 3 Fälle.", "42"),
    ("Die Antwort lautet: $\\frac{1}{3}$.", r"\frac{1}{3}"),
    ("Insgesamt sind es 4,2 Liter", "4.2"),
    ("La respuesta final es 12, con 3 casos.", "12"),
    ("La réponse est 12. Il y a 3 cas.", "12"),
    ("Ответ: 12. Всего 3 случая", "12"),
]
UNMARKED = [
    ("So she pays $694 in total for the 3 kinds of pastry.", "694"),
    ("Hence the required value equals $\\frac{7}{3}$ after the 2 steps.", r"\frac{7}{3}"),
    ("So x = 2\\sqrt{3}", r"2\sqrt{3}"),
    ("So $x = \\frac{\\pi}{2}$.", r"\frac{\pi}{2}"),
    ("Therefore $y = 3x + 2$.", "3x + 2"),
    ("It is 3.2 \\times 10^{5}", r"3.2 \times 10^{5}"),
    ("It is 3.2 × 10^5 J", "3.2 × 10^5"),
    ("The profit is 9{,}500", "9{,}500"),
    ("So there are 2 602 people", "2 602"),
    ("So the length is 2 1/2 inches", "2 1/2"),
    ("temperature: –3", "-3"),
    ("pages 3-7", "7"),
    ("The meeting is on 5/17/2018", "5/17/2018"),
    ("So it is March 3, 2021.", "March 3, 2021"),
    ("The train arrives at 12:45", "12:45"),
    ("The solutions are x = 1 or x = 2", "x = 1 or x = 2"),
    ("So the solutions are $x=2$ and $x=5$.", "x=2, x=5"),
    ("the solution to the problem is $m \\in [\\sqrt{5}, +\\infty)$", r"m \in [\sqrt{5}, +\infty)"),
    ("Total: $204 (donuts) + $160 (cupcakes) + $330 = $694.", "694"),
    ("There are 12,345 and 6.", "6"),
    ("The minimum value is attained at $x=2$ and equals $7$.", "7"),
    ("x = 1+\\sqrt{2}", "1+\\sqrt{2}"),
    ("so y = 2^{10}", "2^{10}"),
    ("we get \\frac{\\sqrt{2}}{2}", "\\frac{\\sqrt{2}}{2}"),
    ("So 15 percent of them.", "15 percent"),
    ("He pays €1.234,50", "1.234,50"),
    ("the interval is [2,5]", "[2,5]"),
]
RUN_ON = [
    ("#### 18\n\nQuestion: How many bolts?\nAnswer: 2+1=3\n#### 3", "18"),
    ("The answer is 5.\n\nQuestion: What is 2+2?\nAnswer: 4", "5"),
    ("So she has 5 left.\n\nQ: Tom has 3.\nA: 3", "5"),
    ("\\boxed{5}\n\n### Problem 2:\nFind y. \\boxed{6}", "5"),
    ("The answer is 5.\nHuman: and 7?\nAssistant: The answer is 7", "5"),
    ("答案是5。\n问题：3+4?\n答案是7。", "5"),
    ("Question: What is 3+4?\nAnswer: 7", "7"),  # it repeats its own question first
    ("Problem: find x.\nSolution: 2x = 8, the answer is 4.", "4"),
]


HABITS = [*MARKED, *THINKING, *ENDS, *BOXES, *HASHES, *STATED, *LANGUAGES, *UNMARKED, *RUN_ON]


@pytest.mark.parametrize(("text", "answer"), HABITS)
def test_answers_are_extracted_from(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Therefore, the answer is (C).", "C"),
        (r"\boxed{\textbf{(D)}\ 27}", "D"),
        ("The answer is A because I think B is wrong", "A"),
        ("**Answer: (B) 27**", "B"),
        ("Options (A) and (B) fail, so we choose (E).", "E"),
        ("Only the last one fits.\nC", "C"),
        ("I think it is 27", None),
        ("ANSWER: I don't know", None),
        ("Options (A) or (B). Answer: I don't know", None),
        ("Answer: I think it is C", "C"),
        ("The answer is I.", "I"),
        ("Answer: rules out C, leaving D", "D"),
        ("The answer is not A but C", "C"),
        ("The correct answer is d.", "D"),
        ("b. 4", "B"),
        ("The answer is option b.", "B"),
        (r"So \boxed{\langle H\rangle \ll \Delta E} holds.\n\n**Answer: D**", "D"),
        (r"\boxed{E=mc^2}, so the answer is A", "A"),
        (r"\boxed{12}. Answer: D", "D"),
        (r"\boxed{\text{Option (C): 12}}", "C"),
        ("<think>\\boxed{A}?</think>The answer is B", "B"),
        ("<answer>(b) text</answer>", "B"),
        ("我選擇 B", "B"),
        ("故选 C。", "C"),
        ("正确选项是 C", "C"),
        ("答案：D", "D"),
        ("所以错误的是C。答案是C。", "C"),
        ("Antwort: C", "C"),
        ("The best option is C.", "C"),
        ("A is wrong. B is wrong. Therefore C", "C"),
        ("I'd go with B.", "B"),
        ("Answer: C\n\nQuestion: next\nAnswer: A", "C"),
    ],
)
def test_choices_are_extracted_from(text: str, letter: str | None) -> None:
    assert extract_answer(text, choices=True) == letter


def test_the_first_answer_of_a_run_on_text_counts_though_the_second_is_boxed() -> None:
    assert extract_answer("The answer is 5.\n\nQuestion: 3+4?\n\\boxed{7}") == "5"


# --- the table of cases ---------------------------------------------------------------------------


def cases(prefix: str) -> list[dict[str, Any]]:
    lines = (SHARED_DATA / "answer_cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [case for case in map(json.loads, lines) if case["kind"].startswith(prefix)]


@needs_data
def test_of_the_undisputed_cases_at_least_95_percent_are_read_rightly() -> None:
    wrong, undisputed = [], [case for case in cases("extract") if not case["debatable"]]
    for case in undisputed:
        answer, expected = extract_answer(case["text"], choices=bool(case.get("choices"))), case["expected"]
        if answer is None or expected is None or case.get("choices"):
            right = answer == expected
        else:
            right = answers_equal(answer, expected)
        if not right:
            wrong.append((case["text"], expected, answer))
    assert len(wrong) <= 0.05 * len(undisputed), wrong


# --- cost -----------------------------------------------------------------------------------------

PIECES = [
    "answer is ",
    "####",
    "\\boxed{",
    "}",
    "$",
    "\n",
    "</think>",
    "\\(",
    "1,234",
    "\\frac{",
    "答案",
    "\ud800",
    "\x00",
]


def mutated(rng: random.Random) -> str:
    """A text that a model might have garbled: cut, doubled, spliced, repeated, with pieces thrown in."""
    text, other = rng.choice(HABITS)[0], rng.choice(HABITS)[0]
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:at] + rng.choice(PIECES) * rng.choice((1, 1, 2, 50)) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 9) :]
        elif kind == 2:
            text = text[:at] + other[rng.randint(0, len(other)) :]
        elif kind == 3:
            text = text[:at] + text[at : at + rng.randint(1, 6)] * rng.choice((2, 40)) + text[at:]
        else:
            text = text[:at] + chr(rng.randrange(32, 0x3000)) + text[at:]
    return text


def slowest(seed: int, count: int) -> tuple[float, str]:
    """The most processor time that a mutated text took, and the text; a failure raises."""
    rng, worst = random.Random(seed), (0.0, "")
    for _ in range(count):
        text = mutated(rng)
        start = time.thread_time()
        for choices in (False, True):
            answer = extract_answer(text, choices=choices)
            assert answer is None or answer.strip(), text
        worst = max(worst, (time.thread_time() - start, text))
    return worst


def test_no_garbled_text_raises_or_takes_long() -> None:
    seconds, text = slowest(seed=0, count=5_000)
    assert seconds < 1, text


@pytest.mark.slow
def test_no_garbled_text_raises_or_takes_long_in_eight_threads() -> None:
    found: list[tuple[float, str]] = []
    threads = [
        threading.Thread(target=lambda seed=seed: found.append(slowest(seed, 12_500))) for seed in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8  # no thread died of an exception
    assert max(found)[0] < 1, max(found)[1]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "answer is ",
            "answer to ",
            "answer\n",
            "answer is not ",
            "$",
            "#### \t",
            "#### a\n",
            "\n",
            " ",
            "1,",
            "9e",
        ),
        *(
            r"\frac{",
            "-",
            "*",
            "\\",
            r"\boxed{1} and ",
            "<answer>",
            "<think>",
            "a<|im_end|>",
            "\nQuestion: 1",
            r"\[",
        ),
        *("\nQ: 5\nA: ", "答案是", "选A", "not A ", "1 2 ", "1:2 ", "$1 aa bb ", r"2\sqrt{3} ", "$1$, "),
        "the 3 ",
    ],
)
def test_extraction_from_a_quarter_of_a_megabyte_takes_less_than_three_seconds(text: str) -> None:
    long = text * (250_000 // len(text))
    start = time.thread_time()
    extract_answer(long)
    extract_answer(long, choices=True)
    assert time.thread_time() - start < 3
