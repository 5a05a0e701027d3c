"""Recorded samples as ``arrol-eval vote`` takes them: by question, with answers extracted and graded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from arrol_tts.answers import Equality, PercentSign, answers_equal, extract_answer
from arrol_tts.answers.of_trace import answer_of
from arrol_tts.errors import InputError
from arrol_tts.recorded import read_traces
from arrol_tts.trace import Trace

Questions = dict[str, list[Trace]]
"""``{question id: its traces}``."""


def load_questions(
    path: Path | Sequence[Path],
    fields: Mapping[str, str] | None = None,
    finish_reasons: Mapping[str, str] | None = None,
    only: str | None = None,
    *,
    equality: Equality = "math",
    percent: PercentSign = "fraction",
) -> Questions:
    """Recorded traces by question, with answers extracted and graded where the file does not say.

    Args:
        path, fields, finish_reasons: as in :func:`arrol_tts.recorded.read_traces`.
        only: let none but traces of this finish reason vote: the others keep their label and lose
            their answer.
        equality, percent: what makes an answer equal the reference, see `arrol_tts.vote`.

    Raises:
        FileNotFoundError: as ``read_traces``.
        InputError: as ``read_traces``, and when no trace has the reason ``only``.
    """
    questions: Questions = {}
    graded: dict[tuple[str, str], bool] = {}
    reasons: Counter[str] = Counter()
    for trace in read_traces(path, fields, finish_reasons=finish_reasons):
        if trace.answer is None and trace.text and trace.finish_reason == "stop":
            trace.answer = answer_of(trace, extract_answer)
        reference = trace.meta.get("reference")
        ended = trace.answer is not None or trace.finish_reason in ("stop", "length")
        if trace.correct is None and reference is not None and ended:
            pair = (trace.answer or "", str(reference))
            if pair not in graded:
                graded[pair] = trace.answer is not None and answers_equal(
                    *pair, equality=equality, percent=percent
                )
            trace.correct = graded[pair]
        if only is not None and trace.finish_reason != only:
            trace.answer = None
        reasons[trace.finish_reason] += 1
        questions.setdefault(trace.question_id, []).append(trace)
    if only is not None and reasons and not reasons[only]:
        found = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise InputError(f"no trace ended by {only!r}, so none would vote; there are {found}")
    return questions
