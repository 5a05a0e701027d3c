"""What is known of a head beyond one question: its reliability here, and its last evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from arrol_tts.head_config import ACCURACY_TOKENS_FILE, head_sha256, read_head_config
from arrol_tts.trace import Trace

from .charts import accuracy_chart, reliability_chart

BINS = 10


@dataclass(slots=True)
class LiveReliability:
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


def last_evaluation(folder: Path, runs: Path, model: str | None = None) -> Evaluation | None:
    """The newest ``arrol-eval run`` of a head with a model; else what lies beside the head, of its own model.

    Reports that cannot be read are passed over with a warning.

    Args:
        folder: of the head, which is known by its weights.
        runs: folder of result folders.
        model: in place of the head's own.

    Returns:
        None when the two were never evaluated here.

    Raises:
        HeadError: when the folder holds no config of a head.
        OSError: when it holds no weights.
    """
    ours = {"head_sha256": head_sha256(folder), "model": model or read_head_config(folder).base_model}
    reports = sorted(runs.glob("*/report.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in reports:
        report = _read(path)
        drawn = [entry for entry in report.get("benchmarks", ()) if entry.get("curve")]
        if drawn and all(report.get(name) == value for name, value in ours.items()):
            entry = drawn[0]
            votes = f"votes over 1, 2, 4 .. {entry['n']} traces; from {path.parent.name}/report.json."
            return Evaluation(_series(entry), f"{_described(entry)}, {votes}")
    beside = folder / ACCURACY_TOKENS_FILE
    entry = _read(beside) if beside.exists() and model is None else {}
    if not entry:
        return None
    kept = sorted({point["keep"] for point in entry["curve"] if "keep" in point})
    shares = ", ".join(f"{100 * keep:g}%" for keep in kept)
    return Evaluation(
        _series(entry),
        f"{_described(entry)}, {entry['n']} traces each. From left to right the head kept {shares} of them; "
        "fewer whole traces is the vote over 1, 2, 4 .. of them without pruning, which pruning has to beat.",
    )


def _read(path: Path) -> dict[str, Any]:
    """A report; empty where it cannot be read."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("%s is not a readable report: %s", path, error)
        return {}
    return data if isinstance(data, dict) else {}


def _described(entry: dict[str, Any]) -> str:
    kind = " (synthetic)" if entry.get("synthetic") else ""
    return f"{entry['name']}{kind}, {entry['questions']} questions"


def _series(entry: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """A curve's points by method."""
    series: dict[str, list[tuple[float, float]]] = {}
    for point in entry["curve"]:
        series.setdefault(point["method"], []).append((point["tokens_per_question"], point["accuracy"]))
    return series
