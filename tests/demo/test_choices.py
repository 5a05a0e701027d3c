"""Choices: what is possible, what the engine gets, and links."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from arrol_tts.errors import InputError
from arrol_tts.stopping import ConfidenceFloor, Threshold
from demo.choices import MAX_QUESTION, Ask, Choices


def parse(link: str) -> Ask | None:
    return Ask.parse(dict(parse_qsl(link.lstrip("?"))), Choices())


@pytest.mark.parametrize(
    "choices",
    [
        (Choices(),),
        (Choices(n=7, temperature=0.3, rule="bar", keep=0.25, at=9, consensus=0.95, seed=11),),
        (Choices(n=4, seed=3), Choices(n=4, seed=3, rule="none", at=40)),
    ],
)
def test_a_link_brings_the_ask_back(choices: tuple[Choices, ...]) -> None:
    ask = Ask("1+2*3 & <b>?#%", choices)
    assert parse(ask.link) == ask


def test_a_link_without_a_question_asks_nothing() -> None:
    assert parse("?n=5") is None


@pytest.mark.parametrize("link", ["?q=1&n=many", "?q=1&rule=<script>", "?q=1&n=100000", "?q=1&keep=nan", "?q=+"])
def test_a_malformed_link_is_refused(link: str) -> None:
    with pytest.raises(InputError, match="number|rule|empty"):
        parse(link)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 0), ("n", 1.5), ("n", True), ("keep", 0), ("keep", "x"), ("temperature", -1), ("seed", -1), ("at", 0)],
)
def test_choices_out_of_range_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        Choices(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("question", ["", " \n", "1" * (MAX_QUESTION + 1)])
def test_empty_and_long_questions_are_refused(question: str) -> None:
    with pytest.raises(InputError, match="empty|limit"):
        Ask(question, (Choices(),))


def test_a_detection_position_beyond_the_last_token_is_refused() -> None:
    with pytest.raises(InputError, match="detect before"):
        Choices(at=64).options(window=8, max_tokens=64)


@pytest.mark.parametrize(
    ("choices", "keep", "rules"),
    [
        (Choices(keep=0.25), 0.25, ()),
        (Choices(rule="none"), 1.0, ()),
        (Choices(rule="bar", keep=0.3, at=20), 1.0, (Threshold(20, 0.3),)),
        (Choices(n=8, rule="deepconf", keep=0.9), 1.0, (ConfidenceFloor(4, 0.9, 8),)),
    ],
)
def test_each_stopping_rule_reaches_the_engine(choices: Choices, keep: float, rules: tuple[object, ...]) -> None:
    options = choices.options(window=8, max_tokens=256)
    assert (options["keep"], options["rules"]) == (keep, rules)


def test_consensus_votes_by_quality() -> None:
    consensus = Choices(consensus=0.9).options(window=8, max_tokens=256)["consensus"]
    assert (consensus.share, consensus.method) == (0.9, "quality")
    assert Choices(consensus=1).options(window=8, max_tokens=256)["consensus"] is None
