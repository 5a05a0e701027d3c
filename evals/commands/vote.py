"""`arrol-eval vote`: compare voting methods on recorded samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from arrol_tts.answers import key_function
from arrol_tts.errors import InputError
from arrol_tts.recorded import MAPPABLE_FIELDS
from arrol_tts.rows import STDIN
from arrol_tts.trace import FINISH_REASONS
from arrol_tts.waves import Waves

from ..reporting.compare_methods import Comparison, MethodReport, compare_methods, method_names
from ..reporting.json_ready import finite
from ..reporting.plots import plot_reliability
from ..reporting.recorded_questions import load_questions
from .shared import errors_in_words, notes_in_words, pairs, parsed


def vote(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="Recorded samples: trace stores, files of JSON lines, a JSON array, CSV or Parquet (also "
            "gzipped), folders of such files, or - for the standard input.",
        ),
    ],
    methods: Annotated[str, typer.Option(help="Voting methods, separated by commas, or all.")] = "all",
    fields: Annotated[
        list[str] | None,
        typer.Option(
            help="FIELD=COLUMN: which column gives a field of a trace; repeat, or use commas. A column inside "
            "others is named by its path (a.b.0.c), and a star takes all entries of a list (a.*.c). "
            f"Fields: {', '.join(MAPPABLE_FIELDS)}."
        ),
    ] = None,
    finish_reasons: Annotated[
        list[str] | None,
        typer.Option(help="WORD=REASON: what the file calls stop, length, pruned or cancelled."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE: an option of the voting methods, such as window=512."),
    ] = None,
    equality: Annotated[
        str, typer.Option(help="What makes two answers one: math, text, exact, choice or json.")
    ] = "math",
    percent: Annotated[str, typer.Option(help="What 50% is in math: fraction (0.5) or unit (50).")] = "fraction",
    only: Annotated[
        str | None, typer.Option(help="Let only traces of this finish reason vote, such as stop.")
    ] = None,
    curve: Annotated[
        int, typer.Option(min=0, help="Draw accuracy curves from this many random subsets per point.")
    ] = 0,
    certainty: Annotated[
        float | None,
        typer.Option(help="Replay every method in waves, too: more traces only while its vote is less sure."),
    ] = None,
    start: Annotated[int, typer.Option(help="Traces of the first wave.")] = 4,
    step: Annotated[int, typer.Option(help="Traces of each further one.")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the comparison; by default NAME.votes.json here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the reliability of every method's confidence to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare voting methods on recorded samples.

    A row is one sample, or one question with lists of samples. Where there is no column of answers, they are
    extracted from the texts.

    \b
    Files as other programs write them:
      OpenAI batches and vllm run-batch, a question a request, n choices:
        --fields question_id=custom_id
        --fields text=response.body.choices.*.message.content
      lm-evaluation-harness --log_samples:
        --fields question_id=doc_id,text=resps,reference=target
      verl, rollout_data_dir and validation_data_dir:
        --fields question_id=input,text=output,reference=gts
      OpenR1-Math, a question a row:
        --fields question_id=problem,text=generations,reference=answer
    """
    with errors_in_words(), notes_in_words():
        if only is not None and only not in FINISH_REASONS:
            raise InputError(f"--only is {only!r}; choose from {', '.join(FINISH_REASONS)}")
        waves = None if certainty is None else Waves(start, step, certainty)
        names = None if methods == "all" else [name.strip() for name in methods.split(",")]
        options = {name: parsed(value) for name, value in pairs("--option", option).items()}
        key_function(equality, percent)  # type: ignore[arg-type]
        same: dict[str, Any] = {"equality": equality, "percent": percent}
        named = ", ".join("stdin" if path == STDIN else path.name for path in traces)
        errors = Console(stderr=True, markup=False)
        with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
            task = progress.add_task("reading", total=None)
            questions = load_questions(
                traces, pairs("--fields", fields), pairs("--finish-reasons", finish_reasons), only, **same
            )
            if not questions:
                raise InputError(f"{named} has no traces")
            progress.update(task, description="voting", total=len(names or method_names()))
            comparison = compare_methods(
                questions,
                names,
                options=options,
                **same,
                curve_subsets=curve,
                waves=waves,
                on_step=lambda: progress.advance(task),
            )
        first = "stdin" if traces[0] == STDIN else traces[0].absolute().name
        out = out or Path(f"{first.split('.')[0]}.votes.json")
        text = json.dumps(finite({"source": named, **asdict(comparison)}), indent=1)
        out.write_text(text + "\n")
        if plot is not None:
            plot_reliability(comparison, plot)
    if as_json:
        typer.echo(text)
    else:
        print_comparison(comparison, Console(markup=False))
        typer.echo(f"written to {out}")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a comparison as tables."""
    reasons = ", ".join(f"{count} {name}" for name, count in comparison.finish_reasons.items())
    console.print(f"{comparison.questions} questions, {comparison.traces} traces ({reasons})")
    if 0 < comparison.labelled < comparison.questions:
        console.print(f"figures are over the {comparison.labelled} questions with reference answers")
    if comparison.sample_accuracy is not None and comparison.sample_interval is not None:
        low, high = comparison.sample_interval
        console.print(f"accuracy of a sample {comparison.sample_accuracy:.3f} [{low:.3f}, {high:.3f}]")
        console.print("pass@k " + ", ".join(f"{k}: {value:.3f}" for k, value in comparison.pass_at_k.items()))
        console.print(_method_table(comparison.methods))
        if any(report.curve for report in comparison.methods):
            console.print(_curve_table(comparison.methods))
        if any(report.waves for report in comparison.methods):
            console.print(_waves_table(comparison.methods))
    else:
        console.print("no reference answers: map one with --fields reference=COLUMN to see accuracies")
        console.print(_answer_table(comparison.methods))
    if comparison.signals:
        table = Table(
            "signal", "AUROC", "within questions", title="What tells right from wrong traces", box=SIMPLE_HEAD
        )
        for signal in comparison.signals:
            table.add_row(signal.signal, f"{signal.auroc:.3f}", f"{signal.within_question_auroc:.3f}")
        console.print(table)
    for report in comparison.methods:
        if report.skipped:
            line = Text(f"{report.method} skipped: {report.skipped}", style="dim")
            console.print(line, no_wrap=True, overflow="ellipsis")


def _method_table(reports: Sequence[MethodReport]) -> Table:
    table = Table(
        title="Votes, compared with majority",
        caption="+ and -: questions gained and lost against majority; p: exact McNemar.\n"
        "Brier, ECE: of the confidence; cal.: Brier, calibrated on other questions.",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # fits 80 columns
    )
    table.add_column("method", no_wrap=True)
    for heading in ("right", "95%", "+", "-", "p", "Brier", "ECE", "cal."):
        table.add_column(heading, justify="right")
    for report in reports:
        if report.interval is not None:
            table.add_row(
                report.method,
                _shown(report.accuracy),
                "-".join(f"{end:.2f}" for end in report.interval),
                str(report.gained),
                str(report.lost),
                *map(_shown, (report.p_value, report.brier, report.ece, report.calibrated_brier)),
            )
    return table


def _curve_table(reports: Sequence[MethodReport]) -> Table:
    drawn = [report for report in reports if report.curve]
    sizes = list(drawn[0].curve)
    table = Table("method", title="Accuracy of votes over k traces", box=SIMPLE_HEAD)
    for k in sizes:
        table.add_column(f"k={k}", justify="right", no_wrap=True)
    for report in drawn:
        table.add_row(report.method, *(_shown(report.curve[k]) for k in sizes))
    return table


def _waves_table(reports: Sequence[MethodReport]) -> Table:
    table = Table(
        "method",
        title="Votes in waves",
        caption="Replayed in the order of the samples: traces started a question, share of all tokens;\n"
        "whole: right, by the same vote over as many tokens in fewer whole traces.",
        box=SIMPLE_HEAD,
    )
    for heading in ("right", "traces", "tokens", "whole"):
        table.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        if (waves := report.waves) is not None:
            share = "" if waves.tokens_share is None else f"{waves.tokens_share:.1%}"
            cells = _shown(waves.accuracy), f"{waves.traces:.1f}", share, _shown(waves.equal_tokens)
            table.add_row(report.method, *cells)
    return table


def _answer_table(reports: Sequence[MethodReport]) -> Table:
    """Each method's answers, for samples without references; a row per question."""
    voted = [report for report in reports if not report.skipped]
    table = Table("question", *(report.method for report in voted), box=SIMPLE_HEAD)
    for verdicts in zip(*(report.verdicts for report in voted), strict=True):
        table.add_row(verdicts[0].question_id, *(f"{v.answer or 'none'} ({v.confidence:.2f})" for v in verdicts))
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
