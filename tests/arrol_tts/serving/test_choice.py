"""How a request is voted on: its fields, the model's name, the server's defaults and limits."""

from __future__ import annotations

from typing import Any

import pytest

from arrol_tts import Consensus, QualityHeadConfig
from arrol_tts.answers import group_answers
from arrol_tts.serving.choice import Choice, choose, extractor, models_of
from arrol_tts.serving.errors import ApiError
from arrol_tts.serving.requests import ChatFields, TextFields
from arrol_tts.serving.settings import Settings, VoteDefaults

HEAD = QualityHeadConfig("m", 8, positions=[32], keep=0.5, sampling={"max_tokens": 256})
SETTINGS = Settings(model="pocket", max_n=64, max_tokens=1024)
MESSAGES = [{"role": "user", "content": "2+3*4"}]


def chosen(
    arrol: dict[str, Any] | None = None,
    *,
    settings: Settings = SETTINGS,
    config: QualityHeadConfig | None = HEAD,
    **fields: Any,
) -> Choice:
    request = ChatFields.model_validate({"messages": MESSAGES, "arrol": arrol or {}, **fields})
    return choose(request, settings, config, seed=7)


def refused(*args: Any, **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as error:
        chosen(*args, **fields)
    assert error.value.status == 400
    return error.value.param, error.value.message


def test_without_a_word_the_server_and_the_head_say_how() -> None:
    choice = chosen()
    assert (choice.n, choice.method, choice.options) == (32, "quality", {"max_tokens": 256, "seed": 7})
    assert (choice.equality, choice.percent, choice.min_confidence) == ("math", None, None)


def test_the_servers_defaults_fill_in_what_a_request_leaves_out() -> None:
    defaults = VoteDefaults(n=8, method="majority", keep=0.25, start=16, certainty=0.9, min_confidence=0.5)
    settings = Settings(model="pocket", vote=defaults)
    choice = chosen(settings=settings)
    assert (choice.n, choice.method, choice.min_confidence) == (8, "majority", 0.5)
    assert choice.options == {"max_tokens": 256, "seed": 7, "keep": 0.25, "start": 8, "certainty": 0.9}
    own = chosen({"n": 16, "keep": 1.0, "certainty": 0.8, "min_confidence": 0.0}, settings=settings)
    assert (own.n, own.options["keep"], own.options["certainty"], own.min_confidence) == (16, 1.0, 0.8, 0.0)


@pytest.mark.parametrize(
    ("model", "method", "n"),
    [
        ("pocket", "quality", 32),
        ("pocket@majority", "majority", 32),
        ("pocket@8", "quality", 8),
        ("pocket@deepconf-top10", "deepconf-top10", 32),
        ("pocket@deepconf-top10-4", "deepconf-top10", 4),
        ("pocket@best-of-n-16", "best-of-n", 16),
    ],
)
def test_the_name_of_the_model_says_how_to_vote(model: str, method: str, n: int) -> None:
    choice = chosen(model=model)
    assert (choice.method, choice.n) == (method, n)


@pytest.mark.parametrize(
    "model", ["gpt-4", "", "pocket@", "pocket@magic", "pocket@quality-", "pocket@quality-x", "@8"]
)
def test_a_model_that_there_is_not_is_a_404_that_says_what_there_is(model: str) -> None:
    with pytest.raises(ApiError, match="does not exist") as error:
        chosen(model=model)
    assert (error.value.status, error.value.param) == (404, "model")


def test_the_list_of_models_has_one_a_method() -> None:
    assert models_of(SETTINGS, ["majority", "quality"]) == ["pocket", "pocket@majority-32", "pocket@quality-32"]


def test_without_a_head_answers_are_as_long_as_by_default_and_within_the_limit() -> None:
    assert chosen(config=None).options["max_tokens"] == 1024
    assert chosen(config=None, settings=Settings(model="pocket", max_tokens=99)).options["max_tokens"] == 99


def test_without_a_head_the_majority_votes() -> None:
    assert chosen(config=None).method == "majority"


def test_sampling_parameters_are_passed_on() -> None:
    choice = chosen(temperature=0.5, top_p=0.9, stop=["\n"], max_completion_tokens=64, seed=3, min_p=0.1)
    assert choice.options == {
        "temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "max_tokens": 64, "seed": 3, "min_p": 0.1,
    }  # fmt: skip


def test_an_answer_too_short_to_be_pruned_is_not_pruned() -> None:
    assert chosen(max_tokens=16).options["keep"] == 1.0
    assert chosen(max_tokens=33).options.get("keep") is None


def test_a_consensus_is_of_the_votes_method_and_1_is_none() -> None:
    assert chosen({"consensus": 0.9}).options["consensus"] == Consensus(0.9, method="quality")
    given = {"certainty": 0.95, "min_votes": 4}
    assert chosen({"consensus": given, "method": "majority"}).options["consensus"] == Consensus(
        None, certainty=0.95, min_votes=4
    )
    assert "consensus" not in chosen({"consensus": 1}).options
    by_certainty = Consensus(None, 0.9, method="quality")
    assert chosen({"consensus": {"share": 1, "certainty": 0.9}}).options["consensus"] == by_certainty


def test_structures_are_compared_as_structures() -> None:
    assert chosen(response_format={"type": "json_object"}).equality == "json"
    assert chosen(response_format={"type": "text"}).equality == "math"
    assert chosen({"equality": "text"}, response_format={"type": "json_object"}).equality == "text"


def test_calls_of_tools_are_compared_as_structures_and_texts_beside_them_as_ever() -> None:
    choice = chosen(tools=[{"type": "function", "function": {"name": "add"}}])
    calls = [
        '[{"name": "add", "arguments": {"a": 1, "b": 2}}]',
        '[{"name": "add", "arguments": {"b": 2.0, "a": 1}}]',
    ]
    assert group_answers([*calls, "1/2", "0.5"], equality=choice.equality) == [1, 1, 0, 0]
    assert choice.extract("so the answer is 7") == "7"


@pytest.mark.parametrize(
    ("arrol", "fields", "param", "message"),
    [
        ({"n": 65}, {}, "arrol.n", "it is 65; this server takes from 1 to 64 samples"),
        ({"n": 0}, {}, "arrol.n", "from 1 to 64"),
        ({"n": 8}, {"model": "pocket@quality-16"}, "arrol.n", "the model's name says 16"),
        ({"method": "majority"}, {"model": "pocket@quality"}, "arrol.method", "the model's name says 'quality'"),
        ({"method": "magic"}, {}, "arrol.method", "there is no method 'magic': it has majority"),
        (
            {"method": "quality"},
            {"config": None},
            "arrol.method",
            "needs a quality head, and this server has none",
        ),
        ({"keep": 0.5}, {"config": None}, "arrol.keep", "pruning needs a quality head"),
        ({"at": 8}, {"config": None}, "arrol.at", "pruning needs a quality head"),
        ({"keep": 0.0}, {}, "arrol.keep", "it must be in (0, 1]"),
        ({"at": 0}, {}, "arrol.at", "from 1 to 255"),
        ({"at": 16}, {"max_tokens": 16}, "arrol.at", "from 1 to 15, below max_tokens"),
        ({"keep": 0.5}, {"max_tokens": 16}, "arrol.keep", "the head prunes at token 32, and max_tokens is 16"),
        ({"score_every": 0}, {}, "arrol.score_every", "at least 1"),
        ({"score_every": 8}, {"config": None}, "arrol.score_every", "scores need a quality head"),
        ({"start": 40}, {}, "arrol.start", "start is 40 and n is 32"),
        ({"start": 0}, {}, "arrol.start", "at least 1"),
        ({"certainty": 0.2}, {}, "arrol.certainty", "from 0.5"),
        ({"consensus": 0.2}, {}, "arrol.consensus.share", "[0.5, 1)"),
        ({"consensus": {"share": 0.9, "min_votes": 0}}, {}, "arrol.consensus.min_votes", "at least 1"),
        ({"min_confidence": 1.5}, {}, "arrol.min_confidence", "[0, 1]"),
        ({}, {"n": 0}, "n", "from 1 to 8 different answers"),
        ({}, {"n": 9}, "n", "from 1 to 8 different answers"),
        ({}, {"temperature": -1}, "temperature", "from 0 to 100"),
        ({}, {"top_p": 0}, "top_p", "(0, 1]"),
        ({}, {"presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
        ({}, {"max_tokens": 0}, "max_tokens", "1 to 1024"),
        ({}, {"max_tokens": 1025}, "max_tokens", "1 to 1024"),
        ({}, {"max_completion_tokens": 1025}, "max_completion_tokens", "1 to 1024"),
        ({}, {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "max_completion_tokens says otherwise"),
        ({}, {"min_tokens": 300}, "min_tokens", "is more than max_tokens=256"),
        ({}, {"seed": -1}, "seed", "at least 0"),
        ({}, {"seed": 1 << 31}, "seed", "below 2147483648"),
        ({}, {"stop": [""]}, "stop", "none of them empty"),
        ({}, {"stop_token_ids": [-1]}, "stop_token_ids", "token ids"),
    ],
)
def test_what_contradicts_itself_or_the_server_is_named(
    arrol: dict[str, Any], fields: dict[str, Any], param: str, message: str
) -> None:
    found = refused(arrol, **fields)
    assert found[0] == param
    assert message in found[1]


@pytest.mark.parametrize(
    ("equality", "answer"),
    [
        ("math", "3"),
        ("choice", None),
        ("text", "Positive, in 2 of 3 cases"),
        ("exact", "Positive, in 2 of 3 cases"),
    ],
)
def test_answers_are_read_as_their_equality_needs(equality: Any, answer: str | None) -> None:
    assert extractor(equality)(" Positive, in 2 of 3 cases") == answer


def test_text_that_marks_its_answer_is_read_there() -> None:
    assert extractor("text")("It is bad. The answer is negative.") == "negative"
    assert extractor("exact")("The answer is negative.") == "The answer is negative."
    assert extractor("json")('{"a": 1}\n') == '{"a": 1}'
    assert extractor("choice")("The answer is (B).") == "B"
    assert extractor("text")("  ") is None


def test_a_plain_completion_is_chosen_in_the_same_way() -> None:
    request = TextFields.model_validate({"prompt": ["a"], "max_tokens": 5})
    assert choose(request, SETTINGS, HEAD, seed=1).options == {"max_tokens": 5, "seed": 1, "keep": 1.0}
