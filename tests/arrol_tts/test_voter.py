"""WeightedVoter without a language model, and what it refuses before one is loaded."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arrol_tts import AnswerCalibration, HeadError, QualityHead, QualityHeadConfig, Trace, WeightedVoter

TRACES = [
    Trace("q", i, answer=answer, num_tokens=10, scores={9: score})
    for i, (answer, score) in enumerate([("5", 0.1), ("5", 0.2), ("5.0", 0.1), ("7", 0.9), (None, 0.5)])
]

OF_MAJORITY = AnswerCalibration("majority", (0.0, 0.0, 0.0, 0.0), 0.0)


def test_votes_over_traces_made_anywhere() -> None:
    voter = WeightedVoter()
    result = voter.vote(TRACES)
    assert (result.answer, result.method) == ("7", "quality")
    assert voter.vote(TRACES, "majority").answer == "5"


def test_the_heads_options_of_a_method_are_defaults() -> None:
    config = QualityHeadConfig("m", 8, voting={"deepconf-tail": {"tail": 1}})
    import numpy as np

    traces = [
        Trace("q", 0, answer="a", num_tokens=2, confidence=np.array([9, 1], dtype=np.float32)),
        Trace("q", 1, answer="b", num_tokens=2, confidence=np.array([1, 5], dtype=np.float32)),
    ]
    voter = WeightedVoter(config=config, method="deepconf-tail")
    assert voter.vote(traces).answer == "b"
    assert voter.vote(traces, tail=2).answer == "a"


def test_asking_without_a_model_says_how_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"no language model: make it with WeightedVoter.from_pretrained"):
        WeightedVoter().solve("2+3", keep=1)


def test_threads_that_ask_at_once_load_one_engine() -> None:
    voter, loaded = WeightedVoter(), []

    def load() -> Any:
        loaded.append(1)
        time.sleep(0.05)
        return object()

    voter._make_engine = load
    with ThreadPoolExecutor(4) as threads:
        engines = {id(found) for found in threads.map(lambda _: voter.engine, range(4))}
    assert (len(loaded), len(engines)) == (1, 1)


@pytest.fixture
def voter() -> WeightedVoter:
    """The pocket voter; a test that loads its engine has failed."""
    voter = WeightedVoter.from_pretrained("pocket")

    def load() -> None:
        raise AssertionError("the language model was loaded")

    voter._make_engine = load  # type: ignore[assignment]
    return voter


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("2+3*4", {"n": 0}, "n is 0; it must be a whole number of at least 1"),
        ("2+3*4", {"n": -3}, "n is -3"),
        ("", {}, "is empty: ask something"),
        ("  \n", {}, "is empty: ask something"),
        ("2+3*4", {"method": "wisdom"}, "unknown voting method 'wisdom'; choose from .*majority"),
        ("2+3*4", {"at": 256}, "detection position 256 is beyond.*max_tokens=256.*raise max_tokens"),
        ("2+3*4", {"max_tokens": 20}, "detection position 32 is beyond"),
        ("2+3*4", {"keep": 0}, "keep_share.share is 0"),
        ("2+3*4", {"keep": 1.5}, "keep_share.share is 1.5"),
        ("2+3*4", {"at": 0}, "at is 0|score_at is 0"),
        ("2+3*4", {"temperature": -1}, "temperature is -1"),
        ("2+3*4", {"start": 8, "n": 4}, "start is 8 and n is 4"),
        ("2+3*4", {"certainty": 0.3}, "certainty is 0.3; it must be from 0.5"),
        (
            "2+3*4",
            {"start": 2, "scores": False},
            "votes of 'quality', which reads scores: record it with scores=True",
        ),
        ("2+3*4", {"calibration": OF_MAJORITY}, "fitted on votes by 'majority' and does not hold for 'quality'"),
    ],
)
def test_bad_calls_are_refused_before_the_model_is_loaded(
    voter: WeightedVoter, question: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        voter.solve(question, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["solve", "solve_many", "stream", "sample"])
def test_a_misspelt_option_is_an_error_of_the_public_call(voter: WeightedVoter, call: str) -> None:
    with pytest.raises(TypeError, match=rf"^{call}\(\) has no option 'temprature': did you mean 'temperature'"):
        getattr(voter, call)("2+3*4" if call == "solve" else ["2+3*4"], temprature=1)


@pytest.mark.parametrize("call", ["asolve", "asolve_many", "asample"])
def test_so_it_is_in_the_calls_for_asyncio(voter: WeightedVoter, call: str) -> None:
    import asyncio

    with pytest.raises(TypeError, match=rf"^{call}\(\) has no option 'keeep': did you mean 'keep'"):
        asyncio.run(getattr(voter, call)("2+3*4" if call == "asolve" else ["2+3*4"], keeep=1))


def test_a_method_whose_signal_no_engine_records_is_refused_before_the_model_is_loaded(
    voter: WeightedVoter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arrol_tts.voting import registry

    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr("arrol_tts.voter.METHODS", registry._methods)
    monkeypatch.setattr(registry, "METHODS", registry._methods)
    registry.register("psychic", needs=["aura"])(lambda traces: [1.0 for _ in traces])
    with pytest.raises(ValueError, match="method 'psychic' needs 'aura', which no engine records"):
        voter.solve("2+3*4", method="psychic")


def test_a_prompt_of_ones_own_goes_over_the_heads_and_leaves_its_config_as_it_is() -> None:
    from arrol_tts.prompts import Prompt

    own = [{"role": "user", "content": "Compute {question}"}]
    config = QualityHeadConfig("m", 8, prompt=own)
    voter = WeightedVoter(config=config, prompt=Prompt())
    assert voter.prompt == Prompt()
    assert config.prompt == own
    assert WeightedVoter(config=config).prompt.to_messages() == own


def test_no_questions_give_no_results(voter: WeightedVoter) -> None:
    assert voter.solve_many([]) == []


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="engine is 'tpu'; it must be 'auto', 'vllm' or 'transformers'"):
        WeightedVoter.from_pretrained("pocket", engine="tpu")  # type: ignore[arg-type]


def test_head_for_another_model_is_refused_at_once(tmp_path: Path) -> None:
    from arrol_tts.pocket import POCKET_MODEL

    QualityHead(QualityHeadConfig(base_model="owner/other", hidden_size=64)).save_pretrained(tmp_path)
    with pytest.raises(HeadError, match="reads hidden states of width 64.*has width 128"):
        WeightedVoter.from_pretrained(tmp_path, model=str(POCKET_MODEL))


def test_pruning_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="pruning needs a quality head"):
        WeightedVoter(method="majority").sample(["2+3"], keep=0.5)


@pytest.mark.parametrize(("engine", "named"), [("auto", "transformers"), ("vllm", "vllm")])
def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch, engine: str, named: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    voter = WeightedVoter.from_pretrained("pocket", engine=engine)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=f"needs {named}, which is not installed: pip install"):
        voter.solve("2+3*4")
