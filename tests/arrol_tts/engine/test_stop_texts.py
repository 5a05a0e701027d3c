"""Texts that end a trace, with a real byte-level tokenizer whose tokens straddle words and characters."""

from __future__ import annotations

import pytest
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
    texts = StopTexts(tokenizer)
    found = [end for end in range(1, len(token_ids) + 1) if texts.written(token_ids, stop, end)]
    completes = [
        end
        for end in range(1, len(token_ids) + 1)
        if any(each in tokenizer.decode(token_ids[:end]) for each in stop)
    ]
    assert found[0] == completes[0]
    assert texts.written(token_ids[: found[0]], stop)


def test_a_text_that_never_comes_is_never_found(tokenizer: ByteLevelBPETokenizer) -> None:
    token_ids = tokenizer.encode(TEXT).ids
    texts = StopTexts(tokenizer)
    assert not any(texts.written(token_ids, ["\n\nQuestion:"], end) for end in range(1, len(token_ids) + 1))


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
