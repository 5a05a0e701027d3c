"""Several runs of the same benchmarks: accuracies side by side, with paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arrol_tts.metrics import Floats, bootstrap_interval, paired_permutation_test

from ..sampling.folder import FolderError, RunFolder
from ..sampling.passes import FULL
from .report import JSON_FILE, VERDICTS_FILE, write_report


def compare_runs(folders: list[Path]) -> list[dict[str, Any]]:
    """Accuracy and cost of each method in each run, with the paired difference to the first run.

    ``n`` is what the run asked of each question, ``tokens_per_question`` what the method took on the common ones.

    Raises:
        FolderError: when a folder has no report, or the runs share no questions.
    """
    verdicts = [_verdicts(folder) for folder in folders]
    asked_for = [RunFolder(folder).manifest().sampling["n"] for folder in folders]
    rows: list[dict[str, Any]] = []
    for benchmark in verdicts[0]:
        if not all(benchmark in of_run for of_run in verdicts):
            continue
        asked = [of_run[benchmark]["questions"] for of_run in verdicts]
        common = [question for question in asked[0] if all(question in questions for questions in asked)]
        if not common:
            continue
        methods = [m for m in verdicts[0][benchmark]["right"] if all(m in v[benchmark]["right"] for v in verdicts)]
        for method in methods:
            values = [_values(of_run[benchmark], "right", method, common) for of_run in verdicts]
            tokens = [_values(of_run[benchmark], "tokens", method, common) for of_run in verdicts]
            for folder, n, value, spent in zip(folders, asked_for, values, tokens, strict=True):
                row: dict[str, Any] = {
                    "benchmark": benchmark,
                    "questions": len(common),
                    "method": method,
                    "run": folder.resolve().name,
                    "n": n,
                    "tokens_per_question": float(spent.mean()),
                    "accuracy": float(value.mean()),
                }
                if folder is not folders[0]:
                    difference = value - values[0]
                    row |= {
                        "difference": float(difference.mean()),
                        "interval": list(bootstrap_interval(difference)),
                        "p_value": paired_permutation_test(value, values[0]),
                    }
                rows.append(row)
    if not rows:
        raise FolderError("these runs share no questions: compare runs of the same benchmark")
    return rows


def _verdicts(folder: Path) -> dict[str, Any]:
    path = folder / VERDICTS_FILE
    if not path.exists() or not (folder / JSON_FILE).exists():
        write_report(RunFolder(folder))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _values(verdicts: Mapping[str, Any], what: str, method: str, questions: list[str]) -> Floats:
    """Of each question; methods that stop nothing have the tokens of the full pass."""
    found = verdicts[what]
    by_question = dict(zip(verdicts["questions"], found[method if method in found else FULL], strict=True))
    return np.array([by_question[question] for question in questions], float)
