"""Plans: options of a call, the head's defaults, and what a voting method needs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from arrol_tts import Budget, ConfidenceFloor, KeepShare, QualityHeadConfig, Sampling, Threshold, Waves
from arrol_tts.errors import InputError, OptionError
from arrol_tts.plan import SampleOptions, SamplingOptions, check_options, make_plan
from arrol_tts.prompts import Prompt

HEAD = QualityHeadConfig(
    "m", 8, positions=[64, 16], keep=0.25, sampling={"temperature": 0.6, "top_k": 20, "max_tokens": 128}
)


def plan(options: SampleOptions | None = None, config: QualityHeadConfig | None = HEAD, needs: Any = None) -> Any:
    return make_plan("2+3", 4, options or {}, config=config, prompt=Prompt(), needs=needs)


def test_every_sampling_parameter_is_an_option() -> None:
    assert set(SamplingOptions.__annotations__) == {field.name for field in fields(Sampling)} - {"n"}


def test_the_heads_sampling_is_the_default_and_a_call_goes_over_it() -> None:
    sampling = plan({"temperature": 0.2, "min_p": 0.1}).sampling
    assert sampling == Sampling(n=4, temperature=0.2, top_k=20, min_p=0.1, max_tokens=128)


def test_none_leaves_an_option_to_the_default() -> None:
    assert plan({"temperature": None, "max_tokens": None}).sampling == plan().sampling
    assert plan({"keep": None, "at": None, "scores": None}).spec == plan().spec


def test_without_a_head_the_defaults_are_those_of_sampling() -> None:
    assert plan(config=None).sampling == Sampling(n=4)


def test_a_head_prunes_and_scores_at_its_first_position() -> None:
    spec = plan().spec
    assert spec.rules == (KeepShare(64, 0.25),)
    assert (spec.score_at, spec.score_finish, spec.confidence) == ((64,), True, True)


@pytest.mark.parametrize(
    ("needs", "recorded"),
    [
        ((), (False, False, False)),
        (("confidence",), (True, False, False)),
        (("scores",), (False, True, False)),
        (("self_certainty",), (False, False, True)),
    ],
)
def test_a_method_has_recorded_what_it_needs_and_nothing_else(
    needs: tuple[str, ...], recorded: tuple[bool, bool, bool]
) -> None:
    spec = plan(needs=needs).spec
    assert (spec.confidence, spec.score_finish, spec.self_certainty) == recorded
    assert bool(spec.rules) == ("scores" in needs)  # pruning by a head that does not vote would surprise


def test_windows_take_the_place_of_every_tokens_confidence() -> None:
    spec = plan({"confidence_window": 32}).spec
    assert (spec.confidence, spec.confidence_window) == (False, 32)


@pytest.mark.parametrize("options", [{"keep": 0.5}, {"at": 16}])
def test_pruning_without_a_head_is_refused(options: SampleOptions) -> None:
    with pytest.raises(InputError, match="pruning needs a quality head"):
        plan(options, config=None)


def test_a_misspelt_option_is_named_with_the_nearest_and_the_call() -> None:
    with pytest.raises(OptionError, match=r"solve\(\) has no option 'temprature': did you mean 'temperature'\?"):
        check_options("solve", {"temprature": 1})


def test_an_option_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(OptionError, match=r"sample\(\) has no option 'zzz': it has temperature, .*consensus"):
        check_options("sample", {"zzz": 1})


@pytest.mark.parametrize(
    ("options", "waves"),
    [
        ({}, None),
        ({"start": None}, None),
        ({"start": 2}, Waves(2, 2, 0.95)),
        ({"certainty": 0.8}, Waves(4, 2, 0.8)),
        ({"step": 1, "start": 3, "certainty": 1}, Waves(3, 1, 1)),
    ],
)
def test_any_option_of_waves_asks_for_them(options: SampleOptions, waves: Waves | None) -> None:
    assert plan(options).waves == waves


def test_a_call_of_few_traces_starts_with_all_of_them_unless_told() -> None:
    assert make_plan("2+3", 3, {"certainty": 0.9}, config=None, prompt=Prompt()).waves == Waves(3, 2, 0.9)
    with pytest.raises(InputError, match="start is 4 and n is 3: start with n traces at most, or raise n"):
        make_plan("2+3", 3, {"start": 4}, config=None, prompt=Prompt())


def test_waves_want_all_traces_of_a_question() -> None:
    with pytest.raises(
        InputError, match="samples= asks for some: leave out samples, or start, certainty and step"
    ):
        plan({"certainty": 0.9, "samples": {"q0": [1]}}, config=None)


def test_samples_of_a_question_that_is_not_asked_are_refused() -> None:
    with pytest.raises(InputError, match="samples has 'b', and there is no such question"):
        make_plan({"a": "2+3"}, 4, {"samples": {"a": [1], "b": [1]}}, config=None, prompt=Prompt())


@pytest.mark.parametrize("rule", [ConfidenceFloor(), Budget(16, 500, 60)])
def test_waves_refuse_rules_for_a_whole_question_at_once(rule: Any) -> None:
    with pytest.raises(InputError, match=f"rule {rule.kind} needs all traces of a question at once: leave it out"):
        plan({"certainty": 0.9, "rules": [rule]})


def test_waves_take_a_keep_ratio_and_a_threshold() -> None:
    chosen = plan({"certainty": 0.9, "keep": 0.5, "rules": [Threshold(16, 0.2)]})
    assert chosen.spec.rules == (KeepShare(64, 0.5), Threshold(16, 0.2))
