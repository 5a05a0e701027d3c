"""Texts that end a trace, with a real byte-level tokenizer whose tokens straddle words and characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from arrol_tts.engine.request import Sampling
from arrol_tts.engine.stop_texts import StopTexts, before_stop
from arrol_tts.stopping import TraceSpec

TEXT = "Solution: 4 €.\n\nProblem: what is 3 + 3? 🙂\nSolution: it is 6.\n\nProblem: what else?"


@pytest.fixture(scope="module")
def tokenizer() -> ByteLevelBPETokenizer:
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT] * 3, vocab_size=300, min_frequency=1)
    return made


@pytest.mark.parametrize(
    "stop", [["\n\nProblem:"], ["€"], ["🙂\n", "never"], [" "], ["Problem: what e", "x"], ["?"]]
)
def test_the_first_token_that_completes_a_text_is_found(tokenizer: ByteLevelBPETokenizer, stop: list[str]) -> None:
    token_ids = tokenizer.encode(TEXT).ids
    assert len(token_ids) < len(TEXT), "tokens of several characters"
    watched = StopTexts(tokenizer).watch(stop)
    found = [end for end, token in enumerate(token_ids, 1) if watched.add(token)]
    completes = [
        end
        for end in range(1, len(token_ids) + 1)
        if any(each in tokenizer.decode(token_ids[:end]) for each in stop)
    ]
    assert found[0] == completes[0]


@pytest.mark.parametrize("after", range(0, 40, 3))
def test_a_text_that_was_written_in_the_first_tokens_ends_nothing(
    tokenizer: ByteLevelBPETokenizer, after: int
) -> None:
    token_ids = tokenizer.encode(TEXT).ids
    watched = StopTexts(tokenizer).watch(["Problem: what"], after)
    found = [end for end, token in enumerate(token_ids, 1) if watched.add(token)]
    counts = [tokenizer.decode(token_ids[:end]).count("Problem: what") for end in range(len(token_ids) + 1)]
    assert found[:1] == [end for end in range(after + 1, len(token_ids) + 1) if counts[end] > counts[end - 1]][:1]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_found_is_what_the_whole_text_has(tokenizer: ByteLevelBPETokenizer, data: st.DataObject) -> None:
    # Any bytes: characters that never become whole, and texts that straddle them.
    token_ids = data.draw(st.lists(st.sampled_from(sorted(set(tokenizer.encode(TEXT).ids))), max_size=60))
    text = tokenizer.decode(token_ids)
    if data.draw(st.booleans()) and len(text) > 3:
        start = data.draw(st.integers(0, len(text) - 2))
        stop = text[start : start + data.draw(st.integers(1, 12))]
    else:
        stop = data.draw(st.text("Prob: €🙂\n3", min_size=1, max_size=4))
    if "\ufffd" in stop:
        return
    watched = StopTexts(tokenizer).watch([stop])
    found = next((end for end, token in enumerate(token_ids, 1) if watched.add(token)), None)
    assert found == next((n for n in range(len(token_ids) + 1) if stop in tokenizer.decode(token_ids[:n])), None)


def test_a_long_text_costs_no_more_than_its_tokens(tokenizer: ByteLevelBPETokenizer) -> None:
    decoded: list[int] = []

    class Counting:
        def decode(self, token_ids: list[int], **options: bool) -> str:
            decoded.append(len(token_ids))
            return str(tokenizer.decode(token_ids, **options))

    token_ids = tokenizer.encode("€ is what it is. " * 40).ids
    watched = StopTexts(Counting()).watch(["€" * 255 + "s"])
    assert {watched.add(token) for token in token_ids} == {""}
    assert sum(decoded) < 20 * len(token_ids)


def test_a_text_that_never_comes_is_never_found(tokenizer: ByteLevelBPETokenizer) -> None:
    token_ids = tokenizer.encode(TEXT).ids
    watched = StopTexts(tokenizer).watch(["\n\nQuestion:"])
    assert {watched.add(token) for token in token_ids} == {""}


def test_the_text_ends_before_the_earliest_stop() -> None:
    assert before_stop(TEXT, ["Problem:", "."]) == "Solution: 4 €"
    assert before_stop(TEXT, ["nowhere"]) == TEXT
    assert before_stop(TEXT, []) == TEXT


@pytest.mark.parametrize("stop", ["\n", [""], [3]])
def test_what_is_no_list_of_texts_is_refused(stop: object) -> None:
    with pytest.raises(ValueError, match="stop is .* list of texts"):
        Sampling(stop=stop)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stop"):
        TraceSpec.parse({"stop": stop})


def test_stop_texts_travel_in_a_spec() -> None:
    spec = TraceSpec(stop=("\n\nProblem:",))
    assert spec.asks_anything
    assert TraceSpec.parse(spec.to_dict()) == spec
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
