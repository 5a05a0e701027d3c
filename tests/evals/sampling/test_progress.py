"""What a run shows while it samples."""

from __future__ import annotations

import io

from rich.console import Console

from arrol_tts.trace import Trace
from evals.sampling.progress import RunProgress


def test_a_line_counts_questions_speed_pruning_and_accuracy() -> None:
    shown = io.StringIO()
    with RunProgress(Console(file=shown, width=120)) as progress:
        progress.begin("pocket, pruned", questions=2, n=4, stored=4)
        for i in range(4):
            ended = {"finish_reason": "pruned"} if i % 2 else {"answer": "1", "correct": i == 0}
            progress.add("pocket, pruned", Trace("q1", i, num_tokens=10, **ended))  # type: ignore[arg-type]
    line = shown.getvalue()
    assert "pocket, pruned" in line
    assert "2/2 questions" in line
    assert "tokens/s" in line
    assert "50% pruned" in line
    assert "50% of traces right" in line
