"""Votes with the heads that came out of the reinforcement benchmark's runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arrol_tts.head_config import read_head_config
from arrol_tts.metrics import bootstrap_interval
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.voter import WeightedVoter

from ..benchmarks import pocket
from ..reporting.figures import rows_of
from ..sampling.seed_samples import sample_seed

KEEP = 0.5


def votes_file(run: Path, questions: int, n: int = 16) -> Path:
    """Where the votes with a run's head are kept."""
    return run / f"votes-{questions}x{n}.json"


def voting(runs: Sequence[Path], questions: int, n: int = 16) -> dict[str, Any]:
    """Votes with the head that came out of each pruned run, on test questions, sampled with its policy."""
    votes = [_votes(run, seed, questions, n) for seed, run in enumerate(runs)]
    right = {name: np.array([vote[name]["right"] for vote in votes]) for name in votes[0]}
    means = {name: values.mean(axis=0) for name, values in right.items()}
    return {
        "questions": questions,
        "traces_per_question": n,
        "accuracy": {name: float(values.mean()) for name, values in means.items()},
        "accuracy_per_seed": {name: values.mean(axis=1).tolist() for name, values in right.items()},
        "intervals": {name: list(bootstrap_interval(values)) for name, values in means.items()},
        **{
            f"above_{rival}_intervals": {
                name: list(bootstrap_interval(means[name] - means[rival]))
                for name in ("quality", "quality_pruned")
            }
            for rival in ("majority", "deepconf")
        },
        "tokens_per_question": {name: float(np.mean([vote[name]["tokens"] for vote in votes])) for name in means},
    }


def _votes(run: Path, seed: int, questions: int, n: int) -> dict[str, Any]:
    """By method, whether each question's vote is right, and mean tokens; kept in the run's folder."""
    path = votes_file(run, questions, n)
    if not path.exists():
        print(f"votes with the head of {run}", flush=True)
        voter = WeightedVoter.from_pretrained(run / "head", engine="vllm")
        assert voter.config is not None
        # DeepConf keeps the windows that were chosen for it on training questions.
        chosen = read_head_config(POCKET_HEAD).voting
        voter.config.voting = {name: options for name, options in chosen.items() if name.startswith("deepconf")}
        with tempfile.TemporaryDirectory() as folder:
            sampled = sample_seed(pocket.load(questions), voter, n=n, seed=seed, keep=KEEP, out=Path(folder))
        votes = {
            row.name: {"right": row.right.astype(int).tolist(), "tokens": float(row.tokens.mean())}
            for row in rows_of(sampled, voter)
        }
        voter.close()
        path.write_text(json.dumps(votes))
    found: dict[str, Any] = json.loads(path.read_text())
    return found
