"""No string hangs equality or makes it fail: every pattern of the package, and mutations of real answers."""

from __future__ import annotations

import importlib
import pkgutil
import re
import threading
import time
from collections.abc import Iterable, Iterator

import pytest

import arrol_tts
from arrol_tts.answers import key_function
from arrol_tts.answers.canonical import MAX_CHARACTERS, answer_key
from arrol_tts.answers.evaluation import Work
from arrol_tts.answers.expression import tree_key, tree_of
from arrol_tts.answers.parser import RefusedError
from arrol_tts.answers.tokens import tokenise
from tests.arrol_tts.answers.hostile import mutations

# --- patterns ---------------------------------------------------------------------------------------


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every compiled pattern that a module of the package keeps, alone or in a list, tuple or dict."""
    for info in pkgutil.walk_packages(arrol_tts.__path__, "arrol_tts."):
        if ".engine" in info.name:  # imports vLLM
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            for found in _compiled(value):
                yield f"{info.name}.{name}", found


def _compiled(value: object) -> Iterable[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        return [value] if isinstance(value.pattern, str) else []
    if isinstance(value, (list, tuple, set, frozenset)):
        return [found for item in value for found in _compiled(item)]
    return [found for item in value.values() for found in _compiled(item)] if isinstance(value, dict) else []


PATTERNS = dict(patterns())
UNITS = [
    *(
        "a",
        "a ",
        "cm ",
        "day ",
        " per",
        "*/",
        "/",
        "1",
        "1 ",
        "1,",
        "123,",
        " 123",
        "1.",
        ".",
        "0.1",
        "-",
        "(",
        "((",
        ")",
        "[",
        "{",
        "}",
    ),
    *(
        "^{2}",
        "^2 ",
        "_1",
        "\\",
        "\\\\",
        "\\text{m} ",
        "\\frac{",
        "\\frac12",
        "\\dot{1}",
        "$",
        "$$",
        "**",
        "#",
        "####",
        "`",
        '"',
    ),
    *(
        "\n",
        " \n",
        "\t",
        "~",
        ",",
        ", ",
        ";",
        ":",
        "and ",
        "or ",
        "answer ",
        "answer is ",
        "the ",
        "boxed{",
        "\\boxed{",
        "e1",
        "1e1",
    ),
    *(
        "x=",
        "(a,",
        "a_1,",
        "A) ",
        "(A) ",
        "A, ",
        "²",
        "₂",
        "元",
        "<think>",
        "</think>",
        "<|",
        "|",
        "%",
        "\\%",
        "\\overline{1}",
        "...",
    ),
]
STARTS = ("", "5 ", "5", "(", "{", "\\text{", "\\frac{1}{", "answer is ", "0.", "1,", "x=", "A ", "$")
ENDS = ("", "x", "!", "1", "\n", "}", ")", " \x00", "= 5")


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_no_pattern_backtracks_without_bound(name: str) -> None:
    pattern = PATTERNS[name]
    slow = []
    for unit in UNITS:
        for count in (30, 300):
            body = unit * count
            for start in STARTS:
                for end in ENDS[:: 1 if count == 30 else 4]:
                    text = start + body + end
                    began = time.thread_time()
                    pattern.fullmatch(text)
                    pattern.match(text)
                    pattern.search(text)
                    if time.thread_time() - began > 0.5:
                        slow.append(text[:60])
                        break
    assert slow == []


def test_patterns_are_found_in_all_of_the_package() -> None:
    modules = {name.rsplit(".", 1)[0] for name in PATTERNS}
    assert {"arrol_tts.answers.tokens", "arrol_tts.answers.numbers", "arrol_tts.answers.extract"} <= modules


# --- bounds -----------------------------------------------------------------------------------------

REPORTED = [
    "5 " + "cm " * 24 + "1",
    "5 " + "cm " * 300 + "1",
    "5 " + "day " * 240,
    "5" + "*/" * 26 + "x",
    "5" + "*/" * 400 + "x",
    "(" + "a " * 26 + "1) = 5",
    "(" + "a " * 480 + "1) = 5",
    "(" + "a," * 480 + "1)=5",
    "1e5000, 2",
    "1e5000;2",
    "1e99999",
    r"\sqrt3.1e99799",
    "9^{9^{9^9}}",
    "((((9!)!)!)!)!",
    "5!!!!!!",
    r"\binom{1000000}{500000}",
    "4000!*" * 60 + "1",
    "x!" * 100,
    "+".join(rf"\sin({i})" for i in range(90)),
    ",".join(rf"\sqrt{{{i}}}\pi" for i in range(60)),
    r"x^{20000}+x^{20001}",
    r"\pm 1" * 150,
    "x>1 and " * 60 + "x>2",
    "|x|<" * 100 + "3",
    r"\{x|x>" * 12 + "1" + r"\}" * 12,
    "x=(y=(" * 30 + "1" + "))" * 30,
    "{" * 900,
    "(" * 400 + "1" + ")" * 400,
    "0." + "3" * 900 + "+\\sqrt2",
    "[1,{2]",
    "1" * 4301,
]


@pytest.mark.parametrize("answer", REPORTED, ids=lambda answer: answer[:20])
def test_hostile_answers_are_read_within_a_second(answer: str) -> None:
    began = time.thread_time()
    answer_key(answer)
    assert time.thread_time() - began < 1


def test_a_number_of_5000_digits_in_a_list_does_not_stop_a_vote() -> None:
    keys = [answer_key(answer) for answer in ("1e5000, 2", "2, 1e5000", "3", "1e5001, 2")]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_longer_answers_are_compared_as_text() -> None:
    digits = "1" * MAX_CHARACTERS
    assert answer_key(digits + ".0") == ("text", digits + ".0")
    assert answer_key(digits[:-2] + ".0") == answer_key(digits[:-2])


def test_work_beyond_the_bound_is_refused() -> None:
    work = Work(units=3)
    with pytest.raises(RefusedError):
        tree_key(work, tree_of(tokenise("2^{40000}+1")))


def test_a_key_does_not_depend_on_what_was_read_before() -> None:
    costly = ",".join(rf"\sin({i}x)\cos({i}y)" for i in range(40))
    first = answer_key(costly)
    assert answer_key(" " + costly) == first


# --- mutations of real answers ------------------------------------------------------------------------


def fuzz(count: int, seed: int) -> tuple[float, float]:
    """The slowest key of mutated answers and the sum, in seconds of this thread."""
    slowest = total = 0.0
    for text in mutations(count, seed):
        began = time.thread_time()
        hash(answer_key(text))
        taken = time.thread_time() - began
        slowest, total = max(slowest, taken), total + taken
    return slowest, total


def test_five_thousand_mutated_answers_have_keys_soon() -> None:
    slowest, total = fuzz(5000, seed=1)
    assert slowest < 1
    assert total < 30


@pytest.mark.parametrize("name", ["text", "exact", "choice", "json"])
def test_other_equalities_have_keys_for_mutated_answers_soon(name: str) -> None:
    key = key_function(name)  # type: ignore[arg-type]
    began = time.perf_counter()
    for text in mutations(1000, seed=2):
        hash(key(text))
    assert time.perf_counter() - began < 5


@pytest.mark.slow
def test_a_hundred_thousand_mutated_answers_have_keys_soon() -> None:
    slowest, total = fuzz(100_000, seed=3)
    assert slowest < 1
    assert total < 600


@pytest.mark.slow
def test_a_hundred_thousand_mutated_answers_have_keys_soon_in_eight_threads() -> None:
    assert_threads_agree(100_000 // 8)


def test_eight_threads_give_the_keys_of_one() -> None:
    assert_threads_agree(400)


def assert_threads_agree(count: int) -> None:
    expected = {text: answer_key(text) for text in mutations(count, seed=4)}
    found: list[tuple[float, float]] = []
    wrong: list[str] = []
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            found.append(fuzz(count, seed))
            wrong.extend(text for text, key in expected.items() if answer_key(text + " ") != answer_key(text))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(10, 18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert wrong == []
    assert max(slowest for slowest, _ in found) < 1
