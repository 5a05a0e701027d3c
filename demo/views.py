"""What is known of a head beyond one question: its reliability here, and its last evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from arrol_tts.trace import Trace

from .charts import accuracy_chart, reliability_chart

BINS = 10
POCKET_RESULTS = Path(__file__).parents[1] / "evals" / "results" / "pocket.json"
"""The committed benchmark of the pocket model, present in a checkout."""


@dataclass(slots=True)
class Reliability:
    """Right and all answers by bin of the head's last score, over every labelled trace that was added."""

    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    right: list[int] = field(default_factory=lambda: [0] * BINS)
    _lock: Lock = field(default_factory=Lock)

    def add(self, traces: Iterable[Trace]) -> None:
        """Count traces that have a score and are known to be right or wrong."""
        with self._lock:
            for trace in traces:
                if trace.correct is not None and trace.score is not None and 0 <= trace.score <= 1:
                    number = min(int(trace.score * BINS), BINS - 1)
                    self.counts[number] += 1
                    self.right[number] += trace.correct

    def view(self) -> tuple[str, str]:
        """Chart and caption."""
        total = sum(self.counts)
        if not total:
            return "", "No trace has been graded yet: ask a question whose answer is known."
        return reliability_chart(self.counts, self.right), (
            f"{total:,} finished traces on this server, all users. A score can be taken at its word where the "
            "line is on the diagonal. Numbers are traces; pruned traces have no answer and are not in it."
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy against tokens of an evaluated head.

    Attributes:
        series: ``{method: [(tokens a question, accuracy), ...]}``.
        caption: what was evaluated, in words.
    """

    series: dict[str, list[tuple[float, float]]]
    caption: str

    def view(self) -> tuple[str, str]:
        """Chart and caption."""
        return accuracy_chart(self.series), self.caption


def last_evaluation(head: str, runs: Path) -> Evaluation | None:
    """The newest ``arrol-eval run`` of a head; for the pocket model else its committed benchmark.

    Args:
        head: as it was named to ``arrol-eval run``.
        runs: folder of result folders.

    Returns:
        None when the head was never evaluated here.
    """
    reports = sorted(runs.glob("*/report.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in reports:
        report = _read(path)
        drawn = [entry for entry in report.get("benchmarks", ()) if entry.get("curve")]
        if report.get("head") == head and drawn:
            return _from_run(drawn[0], path)
    if head == "pocket" and POCKET_RESULTS.exists():
        return _from_benchmark(_read(POCKET_RESULTS)["figures"])
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable report ({error}): move it away, or run arrol-eval again"
        ) from error
    return data if isinstance(data, dict) else {}


def _from_run(entry: dict[str, Any], path: Path) -> Evaluation:
    """The first benchmark of a run."""
    series: dict[str, list[tuple[float, float]]] = {}
    for point in entry["curve"]:
        series.setdefault(point["method"], []).append((point["tokens_per_question"], point["accuracy"]))
    kind = " (synthetic)" if entry.get("synthetic") else ""
    return Evaluation(
        series,
        f"{entry['name']}{kind}, {entry['questions']} questions, votes over 1, 2, 4 .. {entry['n']} "
        f"traces; from {path.parent.name}/report.json.",
    )


def _from_benchmark(figures: dict[str, Any]) -> Evaluation:
    full = figures["tokens_per_question"]["majority"]
    kept = [(full * (1 - row["tokens_saved_share"]), row) for row in figures["keep_ratios_replayed"]]
    kept.append(
        (
            full,
            {"accuracy_quality": figures["accuracy_quality"], "accuracy_majority": figures["accuracy_majority"]},
        )
    )
    return Evaluation(
        {name: [(tokens, row[f"accuracy_{name}"]) for tokens, row in kept] for name in ("quality", "majority")},
        f"The pocket model (synthetic), {figures['questions']} held-out questions, "
        f"{figures['traces_per_question']} traces each. From left to right the head kept 12.5%, 25%, 50%, 75% and "
        "all of them.",
    )
