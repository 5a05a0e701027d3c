"""What can be asked of an engine, and what is refused before anything is generated."""

from __future__ import annotations

from typing import Any

import pytest

from arrol_tts.engine.request import Question, Request, Sampling, check_request
from arrol_tts.errors import InputError
from arrol_tts.stopping import KeepShare, TraceSpec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n is 0; it must be a whole number of at least 1"),
        ({"n": 2.5}, "n is 2.5"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"min_tokens": -1}, "min_tokens is -1; it must be a whole number of at least 0"),
        (
            {"min_tokens": 9, "max_tokens": 8},
            "min_tokens=9 is more than max_tokens=8: lower one",
        ),
        ({"temperature": -1}, "temperature is -1; it must be from 0 to 100"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be a number above 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be from -2 to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty is -3; it must be from -2 to 2"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": "text"}, "stop is 'text'; it must be a list of texts"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop_token_ids": 7}, "stop_token_ids is 7; it must be a list of token ids"),
        ({"stop_token_ids": (-1,)}, r"stop_token_ids is \(-1,\)"),
        ({"stop_token_ids": (True,)}, r"stop_token_ids is \(True,\)"),
    ],
)
def test_sampling_refuses_bad_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**values)


def test_lists_are_kept_as_tuples() -> None:
    sampling = Sampling(stop=["a"], stop_token_ids=[3, 4])  # type: ignore[arg-type]
    assert (sampling.stop, sampling.stop_token_ids) == (("a",), (3, 4))


def test_each_question_of_a_request_is_a_group_of_its_own() -> None:
    spec = TraceSpec(stop=("x",), rules=(KeepShare(3, 0.5),))
    request = Request.of([Question("a", "1"), Question("b", "2")], Sampling(n=6, stop=("y",)), spec)
    assert [each.size for each in request.specs] == [6, 6]
    assert [each.stop for each in request.specs] == [("x", "y")] * 2
    assert len({each.group for each in request.specs}) == 2
    assert all(each.rules == spec.rules for each in request.specs)


@pytest.mark.parametrize("name", ["tools", "self", "conversation", "tokenize", "chat_template"])
def test_what_is_no_variable_of_a_template_is_refused(name: str) -> None:
    question = Question("a", "1", chat_template_kwargs={name: 1})
    with pytest.raises(InputError, match=f"chat_template_kwargs has '{name}', which is no variable of a template"):
        check_request([question], Sampling(), TraceSpec(), has_head=False)


@pytest.mark.parametrize("numbers", [(), (1, 1), (-1,), ("1",)])
def test_samples_are_different_numbers_and_some(numbers: Any) -> None:
    with pytest.raises(InputError, match="samples of question 'a' is .* different numbers of traces"):
        check_request([Question("a", "1", samples=numbers)], Sampling(), TraceSpec(), has_head=False)


def test_two_calls_never_share_a_group() -> None:
    first, second = (Request.of([Question("a", "1")], Sampling()).specs[0] for _ in range(2))
    assert first.group != second.group


@pytest.mark.parametrize(("every", "live"), [(None, False), (0.1, True)])
def test_scores_are_reported_along_the_way_only_where_progress_is(every: float | None, live: bool) -> None:
    (spec,) = Request.of([Question("a", "1")], Sampling(), every=every).specs
    assert spec.live is live


def test_the_usual_three_are_always_written_and_others_where_they_are_on() -> None:
    assert Sampling(n=4, seed=3).record() == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 1024}
    chosen = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, stop=("\n",), stop_token_ids=(5,), n=1)
    record = chosen.record()
    assert record == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.1,
        "max_tokens": 1024,
        "stop": ["\n"],
        "stop_token_ids": [5],
    }
    assert Sampling(n=1, **record) == chosen


def test_an_unseeded_sampling_has_no_seeds() -> None:
    assert Sampling(seed=None).seed_of("q", 0) is None
    assert Sampling(seed=0).seed_of("q", 0) == Sampling().seed_of("q", 0) is not None
