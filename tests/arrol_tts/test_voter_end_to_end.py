"""WeightedVoter with a real language model, as a user calls it."""

from __future__ import annotations

import re

import pytest

from arrol_tts import Trace, WeightedVoter
from arrol_tts.engine.base import Engine
from arrol_tts.head_config import read_head_config, resolve_head
from arrol_tts.pocket import verify
from tests.paths import ROOT

QUESTION = "2+3*4-5*6+7-8"
README = ROOT / "README.md"


@pytest.fixture(params=["vllm_engine", "transformers_engine"])
def voter(request: pytest.FixtureRequest) -> WeightedVoter:
    engine: Engine = request.getfixturevalue(request.param)
    return WeightedVoter(engine, config=read_head_config(resolve_head("pocket")))


def test_solve_prunes_half_by_default_and_accounts_for_every_token(voter: WeightedVoter) -> None:
    result = voter.solve(QUESTION, n=16, seed=1)
    assert len(result.traces) == 16
    assert result.tokens.pruned_traces == 8
    assert result.tokens.generated == sum(trace.num_tokens for trace in result.traces)
    assert result.tokens.saved > 0
    assert sum(row.votes for row in result.table) <= 8
    assert 0 < result.confidence <= 1
    assert result.answer == result.table[0].answer
    assert all(t.answer is None for t in result.traces if t.finish_reason == "pruned")


def test_majority_and_deepconf_prune_nothing_unless_asked(voter: WeightedVoter) -> None:
    for method in ("majority", "deepconf"):
        result = voter.solve(QUESTION, n=4, method=method)
        assert result.tokens.pruned_traces == 0
        assert result.method == method
    assert voter.solve(QUESTION, n=4, method="majority", keep=0.5).tokens.pruned_traces == 2


def test_self_certainty_votes_by_what_the_engine_recorded_for_it(voter: WeightedVoter) -> None:
    result = voter.solve(QUESTION, n=4, method="self-certainty")
    assert result.tokens.pruned_traces == 0
    assert all(trace.meta["self_certainty"] > 0 for trace in result.traces)
    assert all((trace.scores, trace.confidence) == ({}, None) for trace in result.traces)
    assert result.table


def test_self_certainty_is_recorded_for_its_vote(voter: WeightedVoter) -> None:
    result = voter.solve(QUESTION, n=4, method="self-certainty")
    assert sum(row.votes for row in result.table) >= 1
    assert all(trace.meta["self_certainty"] > 0 and trace.confidence is None for trace in result.traces)


def test_solve_many_keeps_order_and_reports_every_trace(voter: WeightedVoter) -> None:
    seen: list[Trace] = []
    questions = {"first": QUESTION, "second": "9-2*3+4*5-6+7", "third": "7+7*7-7+7*7-7"}
    results = voter.solve_many(questions, n=4, on_trace=seen.append)
    assert [r.question_id for r in results] == ["first", "second", "third"]
    assert len(seen) == 12
    assert {t.question_id for t in seen} == set(questions)
    # One sampled trace can be voted on again by any method, without sampling anew.
    again = voter.vote(results[0].traces, "majority")
    assert again.table
    for result in results:
        for trace in result.traces:
            if trace.finish_reason == "stop":
                assert trace.answer is not None
                assert trace.text.endswith(f"answer {trace.answer}")


def test_answers_are_often_right(voter: WeightedVoter) -> None:
    # Four easy questions; a head or an engine that mixed up its rows would not get most of them.
    questions = {q: q for q in ("2+3*4-5+6-7+8", "9-2*3+4-5+6-7", "8+7-6*2+3-4+5", "3*3+4*2-5+6-7")}
    results = voter.solve_many(questions, n=16, seed=5)
    assert sum(verify(r.question_id, r.answer) for r in results) >= 3


def test_the_three_lines_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    code = block.group(1)
    assert code.count("\n") <= 6
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    result = namespace["result"]
    assert verify("2+3*4-5*6+7-8", result.answer)  # type: ignore[attr-defined]
    namespace["voter"].close()  # type: ignore[attr-defined]
    assert result.answer in capsys.readouterr().out  # type: ignore[attr-defined]
