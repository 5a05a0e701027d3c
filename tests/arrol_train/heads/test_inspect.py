"""What `arrol-train inspect` shows, and of which questions."""

from __future__ import annotations

import json
from pathlib import Path

from tests.arrol_train.heads.made import invoke, write_collection


def test_inspect_writes_figures_of_the_test_questions(head: Path) -> None:
    output = invoke("inspect", head)
    assert "12 questions, 96 samples" in output
    found = json.loads((head / "inspection" / "inspection.json").read_text())
    assert found["positions"] == json.loads((head / "evaluation.json").read_text())["test"]["positions"]
    assert found["difficulty"][0]["name"] == "0% to 25% right"
    assert (head / "inspection" / "auroc_by_position.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_looks_at_all_of_another_collection(head: Path, tmp_path: Path) -> None:
    other = write_collection(tmp_path / "other", questions=9, signal=0.0)
    assert "9 questions, 72 samples" in invoke(
        "inspect", head, "--collection", other, "--out", tmp_path / "figures"
    )
    found = json.loads((tmp_path / "figures" / "inspection.json").read_text())
    assert abs(found["positions"][-1]["head"]["within"] - 0.5) < 0.2
