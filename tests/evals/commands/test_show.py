"""`arrol-eval show`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.evals.commands.small_run import invoke


def test_show_lists_a_questions_traces(folder: tuple[Path, str]) -> None:
    result = invoke("show", str(folder[0]), "--question", "pocket-2", "--pass", "pruned")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^ +\d+ +(stop|pruned|length) ", result.output, re.MULTILINE)) == 8
    assert len(re.findall(r"^\d was pruned: score .* at token 32", result.output, re.MULTILINE)) == 4
    assert "right answer: " in result.output
    result = invoke("show", str(folder[0]), "--question", "pocket-99", columns=200)
    assert result.exit_code == 2
    assert "its questions are pocket-0 .. pocket-4" in result.output
