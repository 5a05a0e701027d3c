"""`arrol-eval vote` on small recorded files, from reading to the tables and the JSON it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace
from arrol_tts.waves import Waves
from evals.commands.vote import vote
from evals.reporting.compare_methods import compare_methods
from evals.reporting.recorded_questions import load_questions

app = typer.Typer()
app.command()(vote)

QUESTIONS: dict[str, tuple[str, list[tuple[str, float]]]] = {
    # question: (reference, [(answer, score of the head)])
    "a": ("2", [("1", 0.2), ("1", 0.2), ("2", 0.9)]),  # the best is alone, and outweighs the others
    "b": ("5", [("5", 0.9), ("5", 0.9), ("6", 0.1)]),  # everybody is right
    "c": ("7", [("7", 0.5), ("8", 0.3), ("8", 0.3)]),  # the best is alone, and is outweighed
}


def row(question: str, sample: int, answer: str, score: float, **more: Any) -> dict[str, Any]:
    return {"question_id": question, "sample_id": sample, "answer": answer, "p": score, **more}


def rows(**more: Any) -> list[dict[str, Any]]:
    return [
        row(question, i, answer, score, reference=reference, **more)
        for question, (reference, samples) in QUESTIONS.items()
        for i, (answer, score) in enumerate(samples)
    ]


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return write(tmp_path / "samples.jsonl", rows())


def write(path: Path, contents: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in contents))
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_json(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    comparison: dict[str, Any] = json.loads(result.stdout)
    return comparison


def method(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    (report,) = (report for report in comparison["methods"] if report["method"] == name)
    return dict(report)


# --- what it computes -----------------------------------------------------------------------------


def test_methods_are_scored_against_the_references(samples: Path) -> None:
    comparison = run_json(samples, "--fields", "score=p")
    accuracy = {r["method"]: r["accuracy"] for r in comparison["methods"] if not r["skipped"]}
    assert accuracy["majority"] == pytest.approx(1 / 3)
    assert accuracy["quality"] == pytest.approx(2 / 3)
    assert accuracy["best-of-n"] == 1.0


def test_methods_are_compared_with_majority(samples: Path) -> None:
    best = method(run_json(samples, "--fields", "score=p"), "best-of-n")
    assert (best["gained"], best["lost"], best["p_value"]) == (2, 0, 0.5)
    assert best["interval"] == pytest.approx([0.4385, 1.0], abs=1e-4)


def test_methods_are_replayed_in_waves(samples: Path) -> None:
    asked = ("--fields", "score=p", "--certainty", "0.7", "--start", "1", "--step", "1")
    waves = {r["method"]: r["waves"] for r in run_json(samples, *asked)["methods"] if not r["skipped"]}
    # One vote alone is .75 certain to be the majority's.
    assert waves["majority"] == {
        "accuracy": pytest.approx(1 / 3 + 1 / 3),
        "traces": 1,
        "tokens_share": None,
        "equal_tokens": None,
    }
    assert "Votes in waves" in run(samples, *asked).output
    assert method(run_json(samples), "majority")["waves"] is None


def test_waves_stand_beside_as_many_tokens_in_whole_traces(samples: Path) -> None:
    asked = ("--fields", "score=p", "--certainty", "0.7", "--start", "1", "--step", "1")
    path = write(samples.parent / "tokens.jsonl", rows(num_tokens=10))
    waves = {r["method"]: r["waves"] for r in run_json(path, *asked)["methods"] if not r["skipped"]}
    # One trace of each question, at random: right 1/3, 2/3 and 1/3 of the time.
    assert waves["majority"]["tokens_share"] == pytest.approx(1 / 3)
    assert waves["majority"]["equal_tokens"] == pytest.approx(4 / 9, abs=0.1)
    assert waves["quality-ranks"]["equal_tokens"] is None  # a rank is among all traces
    assert "whole" in run(path, *asked).output


def test_a_question_whose_traces_were_all_stopped_early_counts_as_wrong(samples: Path) -> None:
    easy = [row("easy", i, "1", 0.5, reference="1", num_tokens=50) for i in range(4)]
    stopped = {"reference": "7", "num_tokens": 33, "finish_reason": "pruned"}
    hard = [{"question_id": "hard", "sample_id": i, **stopped} for i in range(4)]
    comparison = run_json(write(samples, [*easy, *hard]), "--methods", "majority", "--certainty", "0.7")
    assert (comparison["questions"], comparison["labelled"]) == (2, 2)
    assert method(comparison, "majority")["accuracy"] == 0.5
    assert method(comparison, "majority")["waves"]["accuracy"] == 0.5


def test_waves_are_right_or_wrong_on_the_questions_that_all_traces_are() -> None:
    # The first wave has pruned traces alone, whose labels are not known.
    pruned = [Trace("a", i, num_tokens=5, finish_reason="pruned") for i in range(4)]
    wrong = [Trace("a", i, answer="2", correct=False, num_tokens=5) for i in range(4, 8)]
    right = [Trace("b", i, answer="1", correct=True, num_tokens=5) for i in range(8)]
    questions = {"a": [*pruned, *wrong], "b": right}
    (report,) = compare_methods(questions, ["majority"], waves=Waves(4, 2, 0.5)).methods
    assert report.accuracy == 0.5
    assert report.waves is not None
    assert report.waves.accuracy == 0.5


def test_waves_that_start_with_more_than_there_is_are_refused(samples: Path) -> None:
    result = run(samples, "--certainty", "0.9")
    assert result.exit_code == 2
    assert "start is 4 and n is 3: start with n traces at most" in result.output


def test_confidences_are_scored_as_probabilities(samples: Path) -> None:
    report = method(run_json(samples, "--fields", "score=p"), "majority")
    # Every vote has a share of 2/3; one of three is right.
    assert report["brier"] == pytest.approx((2 * (2 / 3) ** 2 + (1 / 3) ** 2) / 3)
    assert report["ece"] == pytest.approx(1 / 3)


def test_the_best_method_comes_first(samples: Path) -> None:
    comparison = run_json(samples, "--fields", "score=p", "--methods", "majority,quality,best-of-n")
    assert [report["method"] for report in comparison["methods"]] == ["best-of-n", "quality", "majority"]


def test_verdicts_name_question_answer_and_confidence(samples: Path) -> None:
    report = method(run_json(samples, "--methods", "majority"), "majority")
    assert report["verdicts"][0] == {
        "question_id": "a",
        "answer": "1",
        "confidence": pytest.approx(2 / 3),
        "correct": False,
    }


def test_samples_are_summarised(samples: Path) -> None:
    comparison = run_json(samples, "--methods", "majority")
    assert (comparison["questions"], comparison["traces"], comparison["labelled"]) == (3, 9, 3)
    assert comparison["finish_reasons"] == {"stop": 9}
    assert comparison["sample_accuracy"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)
    assert comparison["pass_at_k"] == pytest.approx({"1": 4 / 9, "2": 7 / 9, "3": 1.0})


def test_signals_are_ranked(samples: Path) -> None:
    comparison = run_json(samples, "--methods", "majority", "--fields", "score=p")
    (score,) = (signal for signal in comparison["signals"] if signal["signal"] == "score")
    # Right: .9 .9 .9 .5; wrong: .3 .3 .2 .2 .1
    assert (score["auroc"], score["within_question_auroc"]) == (1.0, 1.0)


def test_curves_end_at_the_accuracy_of_all_traces(samples: Path) -> None:
    report = method(
        run_json(samples, "--methods", "majority,quality", "--fields", "score=p", "--curve", 50), "quality"
    )
    assert list(report["curve"]) == ["1", "2", "3"]
    assert report["curve"]["1"] == pytest.approx(4 / 9, abs=0.1)
    assert report["curve"]["3"] == report["accuracy"]


def test_answers_are_graded_by_mathematical_equality(samples: Path) -> None:
    write(samples, [{"question_id": "h", "answer": "0.5", "reference": "\\frac{1}{2}"}])
    assert method(run_json(samples, "--methods", "majority"), "majority")["accuracy"] == 1.0


def test_labels_of_the_file_go_before_references(samples: Path) -> None:
    write(samples, [{"question_id": "h", "answer": "x", "reference": "y", "correct": True}])
    assert method(run_json(samples, "--methods", "majority"), "majority")["accuracy"] == 1.0


def test_missing_answers_are_taken_from_the_text(samples: Path) -> None:
    write(samples, [{"question_id": "h", "text": "so it is \\boxed{42}", "reference": "42"}])
    assert method(run_json(samples, "--methods", "majority"), "majority")["accuracy"] == 1.0


def test_a_question_nobody_answered_counts_as_wrong(samples: Path) -> None:
    write(samples, [*rows(), {"question_id": "d", "sample_id": 0, "answer": None, "reference": "1"}])
    report = method(run_json(samples, "--methods", "majority"), "majority")
    assert report["accuracy"] == 1 / 4
    assert report["verdicts"][3]["answer"] is None


def test_only_traces_of_a_finish_reason_may_vote(samples: Path) -> None:
    write(samples, [{**item, "finish_reason": "stop" if item["p"] >= 0.5 else "length"} for item in rows()])
    comparison = run_json(samples, "--methods", "majority", "--only", "stop")
    assert method(comparison, "majority")["accuracy"] == 1.0
    assert comparison["finish_reasons"] == {"stop": 4, "length": 5}


def test_words_for_finish_reasons_are_translated(samples: Path) -> None:
    write(samples, rows(state="eos"))
    mapped = ["--fields", "finish_reason=state", "--finish-reasons", "eos=length"]
    assert run_json(samples, "--methods", "majority", *mapped)["finish_reasons"] == {"length": 9}


def test_a_fitted_method_is_tested_on_questions_it_was_not_fitted_on(samples: Path) -> None:
    many = [
        row(f"{name}{i}", item["sample_id"], item["answer"], item["p"], reference=item["reference"])
        for i in range(5)
        for name in QUESTIONS
        for item in rows()
        if item["question_id"] == name
    ]
    comparison = run_json(write(samples, many), "--fields", "score=p", "--methods", "majority,combined")
    # In every question the trace with the highest score is right, and the other folds say so.
    assert method(comparison, "combined")["accuracy"] == 1.0
    assert method(comparison, "majority")["accuracy"] == pytest.approx(1 / 3)


def test_options_reach_the_methods_that_have_them(samples: Path) -> None:
    write(samples, [item if item["sample_id"] else {**item, "p": None} for item in rows()])
    unscored = run_json(
        samples, "--fields", "score=p", "--methods", "majority,quality", "--option", "unscored=0.0"
    )
    assert method(unscored, "quality")["skipped"] is None


def test_a_trace_store_is_read_as_it_is(samples: Path) -> None:
    folder = samples.parent / "store"
    with TraceStore(folder) as store:
        store.append(Trace("a", 0, answer="1", correct=True))
    assert method(run_json(folder, "--methods", "majority"), "majority")["accuracy"] == 1.0


def test_a_single_question_can_be_compared_from_python() -> None:
    questions = {"a": [Trace("a", 0, answer="1", correct=True), Trace("a", 1, answer="1", correct=True)]}
    (report,) = compare_methods(questions, ["majority"]).methods
    assert (report.accuracy, report.calibrated_brier) == (1.0, None)


def test_loading_keeps_the_order_of_questions(samples: Path) -> None:
    assert list(load_questions(samples)) == ["a", "b", "c"]


# --- what it prints and writes --------------------------------------------------------------------


def test_tables_show_methods_and_accuracies(samples: Path) -> None:
    result = run(samples, "--fields", "score=p")
    assert result.exit_code == 0
    assert "3 questions, 9 traces (9 stop)" in result.stdout
    assert "accuracy of a sample 0.444" in result.stdout
    (line,) = (line for line in result.stdout.splitlines() if "best-of-n" in line)
    assert "1.000" in line


def test_the_table_fits_a_terminal_of_80_columns(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows_shown = [line for line in run(samples, "--fields", "score=p").stdout.splitlines() if "0.33" in line]
    assert any("majority" in line for line in rows_shown)
    assert not any("…" in line for line in rows_shown)


def test_methods_without_their_signal_are_skipped_and_named(samples: Path) -> None:
    result = run(samples, "--fields", "score=p")
    assert "deepconf-mean skipped: voting method 'deepconf-mean' needs Trace.confidence" in result.stdout


def test_what_is_printed_as_json_is_what_is_written(samples: Path) -> None:
    out = samples.parent / "here.json"
    comparison = run_json(samples, "--methods", "majority", "--out", out)
    assert json.loads(out.read_text()) == comparison
    assert comparison["source"] == "samples.jsonl"


def test_the_comparison_is_written_beside_you_by_default(samples: Path) -> None:
    assert "written to samples.votes.json" in run(samples).stdout
    assert json.loads(Path("samples.votes.json").read_text())["questions"] == 3


def test_unknown_figures_are_null(samples: Path) -> None:
    write(samples, [{"question_id": "h", "answer": "1", "reference": "1"}])
    (signal,) = run_json(samples, "--methods", "majority")["signals"]
    assert signal == {"signal": "finished by itself", "auroc": None, "within_question_auroc": None}


def test_a_reliability_plot_is_drawn(samples: Path) -> None:
    picture = samples.parent / "reliability.svg"
    assert run(samples, "--fields", "score=p", "--methods", "majority,quality", "--plot", picture).exit_code == 0
    assert "majority, ECE 0.33" in _labels(picture)


def _labels(picture: Path) -> set[str]:
    """matplotlib draws letters as shapes and leaves the text of each label as a comment."""
    return set(re.findall("<!-- (.*?) -->", picture.read_text()))


def test_a_plot_needs_references(samples: Path) -> None:
    write(samples, [{"question_id": "h", "answer": "1"}])
    result = run(samples, "--methods", "majority", "--plot", samples.parent / "reliability.svg")
    assert result.exit_code == 2
    assert "error: a reliability plot needs questions with reference answers" in result.stderr


def test_samples_without_references_show_answers(samples: Path) -> None:
    write(samples, [{name: item[name] for name in item if name != "reference"} for item in rows()])
    result = run(samples, "--methods", "majority")
    assert "no reference answers: map one with --fields reference=COLUMN" in result.stdout
    assert "1 (0.67)" in result.stdout


def test_brackets_in_ids_and_answers_are_shown_as_they_are(samples: Path) -> None:
    write(samples, [row("[INST]a[/INST]", n, "[a,b]", 0.5) for n in (0, 1)])
    result = run(samples, "--methods", "majority")
    assert result.exit_code == 0, result.output
    assert "[INST]a[/INST]" in result.stdout
    assert "[a,b] (1.00)" in result.stdout


def test_the_standard_input_is_read(samples: Path) -> None:
    result = CliRunner().invoke(app, ["-", "--methods", "majority"], input=samples.read_bytes())
    assert result.exit_code == 0, result.output
    assert "3 questions, 9 traces" in result.stdout
    assert json.loads(Path("stdin.votes.json").read_text())["source"] == "stdin"


def test_several_files_are_one_set_of_samples(samples: Path) -> None:
    more = write(samples.with_name("more.jsonl"), [row("d", 0, "1", 0.5, reference="1")])
    comparison = run_json(samples, more, "--methods", "majority")
    assert (comparison["questions"], comparison["traces"]) == (4, 10)
    assert comparison["source"] == "samples.jsonl, more.jsonl"


def test_what_reads_like_a_mistake_is_a_note(samples: Path) -> None:
    write(samples, [row(str(n), 0, "1", 0.5) for n in range(3)])
    result = run(samples, "--methods", "majority")
    assert result.exit_code == 0
    assert "note: each of the 3 questions of " in result.stderr
    assert "UserWarning" not in result.stderr


def test_the_help_names_fields_and_an_example_for_each_layout() -> None:
    text = " ".join(run("--help").stdout.replace("│", " ").split())
    for words in (
        "question_id, sample_id",
        "logit",
        "CSV",
        "OpenAI batches",
        "lm-evaluation-harness",
        "verl",
        "OpenR1",
    ):
        assert words in text


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "mojority"], "error: unknown voting method 'mojority'; choose from majority, "),
        (["--methods", "quality"], "error: voting method 'quality' needs Trace.scores"),
        (["--fields", "answer"], "error: --fields is 'answer'; write it as NAME=VALUE"),
        (
            ["--fields", "answer=pred"],
            "has no column 'pred', which the field map gives for answer",
        ),
        (["--option", "widow=3"], "has an option 'widow'"),
        (["--only", "length"], "error: no trace ended by 'length', so none would vote; there are 9 stop"),
        (["--only", "done"], "error: --only is 'done'; choose from stop, length, pruned, cancelled"),
        (["--methods", "combined"], "error: folds is 5; it must be from 2 to the number of questions"),
    ],
)
def test_bad_arguments_end_with_a_message(samples: Path, arguments: list[str], message: str) -> None:
    result = run(samples, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_missing_file_ends_with_a_message(samples: Path) -> None:
    result = run("nothing.jsonl")
    assert result.exit_code == 2
    assert "error: there is no file or trace store nothing.jsonl" in result.stderr


def test_a_truncated_file_ends_with_a_message(samples: Path) -> None:
    samples.write_text(samples.read_text()[:-30])
    result = run(samples)
    assert result.exit_code == 2
    assert "row 9 is not valid JSON" in result.stderr


def test_an_empty_store_ends_with_a_message(samples: Path) -> None:
    samples.unlink()
    result = run(samples.parent)
    assert result.exit_code == 2
    assert "is a folder without a trace store" in result.stderr
