"""Equalities that users choose: by name or by a function, wherever answers are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arrol_tts.answers import EqualityName, answers_equal, group_answers, key_function
from arrol_tts.combined import CombinedVoter, fit_combined
from arrol_tts.consensus import Consensus
from arrol_tts.errors import HeadError, InputError
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import vote


@pytest.mark.parametrize(
    ("equality", "a", "b", "equal"),
    [
        ("math", "1/2", "0.5", True),
        ("text", "1/2", "0.5", False),
        ("text", " New  York", "new york", True),
        ("text", "New York", "York", False),
        ("exact", "Paris", " Paris\n", True),
        ("exact", "Paris", "paris", False),
        ("choice", "B", "(b)", True),
        ("choice", r"\textbf{(B)}\ 12", "B) 13", True),
        ("choice", "The correct answer is (C).", "c", True),
        ("choice", "A, C", "C and A", True),
        ("choice", "A, C", "A", False),
        ("choice", "B", "D", False),
        ("choice", "a cat", "A", False),
        ("choice", "I do not know", "I", False),
        ("json", '{"a": 1, "b": [1, 2.0]}', '{"b":[1.0,2],"a":1}', True),
        ("json", "[1, 2]", "[2, 1]", False),
        ("json", "true", "1", False),
        ("json", '"1"', "1", False),
        ("json", '```json\n{"a": null}\n```', '{"a":null}', True),
        ("json", "{not json", " {not json ", True),
        ("json", "[0.1]", "[1e-1]", True),
    ],
)
def test_answers_are_equal_as_the_equality_says(equality: EqualityName, a: str, b: str, equal: bool) -> None:
    assert answers_equal(a, b, equality=equality) is equal


def test_a_function_gives_the_keys() -> None:
    assert group_answers(["abc", "xyz", "a", None], equality=len) == [1, 1, 0, -1]


def test_json_that_is_too_deep_is_compared_as_text() -> None:
    deep = "[" * 200 + "]" * 200
    assert key_function("json")(deep) == ("text", deep)


def test_an_unknown_equality_is_refused() -> None:
    with pytest.raises(InputError, match="equality is 'fuzzy'; it must be math, text, exact, choice, json, or a"):
        answers_equal("1", "2", equality="fuzzy")  # type: ignore[arg-type]


# --- where it can be chosen -----------------------------------------------------------------------


def traces(*answers: str) -> list[Trace]:
    return [Trace(question_id="q", sample_id=i, answer=answer) for i, answer in enumerate(answers)]


def test_a_vote_groups_by_the_equality() -> None:
    answers = traces("A) 3", "B", "(b)", "a", "b")
    assert [row.votes for row in vote(answers, equality="choice").table] == [3, 2]
    assert len(vote(answers, equality="exact").table) == 5


def test_a_vote_reads_percent_signs_as_units() -> None:
    answers = traces("50%", "50", "0.5")
    assert [row.votes for row in vote(answers, percent="unit").table] == [2, 1]
    assert vote(answers).answer == "0.5"


def test_a_vote_refuses_an_unknown_equality() -> None:
    with pytest.raises(InputError, match="equality is 'fuzzy'"):
        vote(traces("1"), equality="fuzzy")  # type: ignore[arg-type]


def test_a_consensus_has_an_equality_of_its_own() -> None:
    answers = traces(*(["yes", "YES", " Yes"] * 3))
    assert Consensus(equality="text").reached(answers) == "answer YES has 100% of the votes of 9 traces"
    assert Consensus(equality="exact").reached(answers, equality="text") == ""


def test_a_consensus_takes_the_vote_s_equality() -> None:
    assert Consensus().reached(traces(*(["50%", "50"] * 4))) == ""
    assert Consensus().reached(traces(*(["50%", "50"] * 4)), percent="unit") != ""


def test_a_consensus_refuses_an_unknown_equality() -> None:
    with pytest.raises(InputError, match="percent is 'maybe'"):
        Consensus(percent="maybe")  # type: ignore[arg-type]


def labelled(question: int) -> list[Trace]:
    rows = [("b", True), ("(B)", True), ("B.", True), ("a", False), ("C", False)]
    return [
        Trace(question_id=str(question), sample_id=i, answer=answer, correct=correct)
        for i, (answer, correct) in enumerate(rows)
    ]


def test_the_combined_method_agrees_by_its_equality() -> None:
    questions = [labelled(i) for i in range(4)]
    voter = fit_combined(questions, signals=["agreement"], folds=2, equality="choice")
    weights = voter(labelled(0))
    assert weights[0] == weights[1] == weights[2] > weights[3]
    assert voter.cross_validation["accuracy"] == 1


def test_the_combined_method_keeps_its_equality_when_it_is_stored() -> None:
    stored = json.loads(
        json.dumps(CombinedVoter(("agreement",), (1.0,), equality="text", percent="unit").to_dict())
    )
    restored = CombinedVoter.from_dict(stored)
    assert (restored.equality, restored.percent) == ("text", "unit")


def test_a_function_cannot_be_stored_with_the_combined_method() -> None:
    with pytest.raises(InputError, match="equality is a function, which cannot be stored"):
        CombinedVoter(("agreement",), (1.0,), equality=str.lower).to_dict()


def test_a_voter_votes_by_its_equality() -> None:
    voter = WeightedVoter(method="majority", equality="text")
    assert voter.vote(traces("Yes", "yes", "1/2", "0.5", "0.50")).table[0].votes == 2
    assert voter.vote(traces("1/2", "0.5", "Yes"), equality="math").table[0].votes == 2


def test_a_voter_takes_its_equality_from_the_head() -> None:
    config = QualityHeadConfig(base_model="m", hidden_size=8, equality="choice", percent="unit")
    voter = WeightedVoter(config=config, method="majority")
    assert voter.vote(traces("A", "(a)", "B")).table[0].votes == 2
    assert WeightedVoter(config=config, equality="exact").equality == "exact"
    assert voter.percent == "unit"


def test_a_voter_refuses_an_unknown_equality() -> None:
    with pytest.raises(InputError, match="equality is 'fuzzy'"):
        WeightedVoter(equality="fuzzy")  # type: ignore[arg-type]


def test_a_head_s_config_refuses_an_unknown_equality() -> None:
    with pytest.raises(HeadError, match="head_config.json: equality is 'fuzzy'"):
        QualityHeadConfig(base_model="m", hidden_size=8, equality="fuzzy")  # type: ignore[arg-type]


def test_heads_without_an_equality_mean_mathematics() -> None:
    config = QualityHeadConfig.from_dict({"base_model": "m", "hidden_size": 8})
    assert (config.equality, config.percent) == ("math", "fraction")


def test_a_benchmark_grades_by_its_equality(tmp_path: Path) -> None:
    from evals.benchmarks.table import Hub, Table

    (tmp_path / "capitals.jsonl").write_text('{"question": "Capital of France?", "answer": "Paris"}\n')
    table = Table("capitals", Hub("owner/name", "0", "test"), rows=(1,), equality="text")
    benchmark = table.load(data=tmp_path / "capitals.jsonl")
    (problem,) = benchmark.problems
    assert benchmark.is_right(problem, "PARIS")
    assert not table.load(data=tmp_path / "capitals.jsonl", equality="exact").is_right(problem, "PARIS")


def test_a_results_folder_remembers_the_equality(tmp_path: Path) -> None:
    from evals.benchmarks import load
    from evals.sampling.folder import RunFolder

    folder = RunFolder(tmp_path)
    folder.add(load("pocket", 2, equality="exact", percent="unit"))
    (benchmark,) = folder.benchmarks()
    assert (benchmark.equality, benchmark.percent) == ("exact", "unit")
    assert not benchmark.is_right(benchmark.problems[0], benchmark.problems[0].answer + ".0")


def test_the_vote_command_takes_an_equality(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from evals.cli import app

    rows = [
        {"question_id": "1", "sample_id": i, "answer": a, "reference": "50"}
        for i, a in enumerate(("50%", "50", "2"))
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["vote", str(tmp_path / "samples.jsonl"), "--methods", "majority", "--json"]
    arguments += ["--out", str(tmp_path / "out.json"), "--fields", "reference=reference"]
    accuracy = {}
    for percent in ("fraction", "unit"):
        done = CliRunner().invoke(app, [*arguments, "--percent", percent])
        assert done.exit_code == 0, done.output
        accuracy[percent] = json.loads((tmp_path / "out.json").read_text())["sample_accuracy"]
    assert accuracy == {"fraction": pytest.approx(1 / 3), "unit": pytest.approx(2 / 3)}
    done = CliRunner().invoke(app, [*arguments, "--equality", "fuzzy"])
    assert done.exit_code != 0
