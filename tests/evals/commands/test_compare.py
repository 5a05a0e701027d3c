"""`arrol-eval compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evals.commands.small_run import OPTIONS, invoke, traces


def test_compare_pairs_the_questions(folder: tuple[Path, str], entry: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "one-seed"
    assert (
        invoke(
            *("run", "pocket", *OPTIONS, "--n", "4", "--stopping", "none", "--limit", "3", "--out", str(other))
        ).exit_code
        == 0
    )
    result = invoke("compare", str(folder[0]), str(other), "--json")
    assert result.exit_code == 0, result.output
    rows = [row for row in json.loads(result.stdout) if row["method"] == "majority"]
    assert [row["run"] for row in rows] == ["pocket", "one-seed"]
    assert {row["questions"] for row in rows} == {3}
    # What each spent is beside what it got: the runs have two seeds and one.
    assert [row["n"] for row in rows] == [8, 4]
    asked = {trace.question_id for trace in traces(other, 0, "traces")}
    whole = [t.num_tokens for seed in (0, 1) for t in traces(folder[0], seed, "traces") if t.question_id in asked]
    assert rows[0]["tokens_per_question"] == pytest.approx(sum(whole) / 2 / 3)
    assert rows[1]["tokens_per_question"] < rows[0]["tokens_per_question"]
    assert "whatever each run spent" in invoke("compare", str(folder[0]), str(other)).output
    assert rows[1]["difference"] == pytest.approx(rows[1]["accuracy"] - rows[0]["accuracy"])
    assert 0 < rows[1]["p_value"] <= 1
    assert "quality_pruned" not in {row["method"] for row in json.loads(result.stdout)}
