"""Collections that tests make, and the commands that they call; no model is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from arrol_train.cli import app
from arrol_train.heads.collect import TRACES_FOLDER, CollectionManifest
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

WIDTH = 8


POSITIONS = (4, 16)


LENGTH = 40


STRIDE = 4


KEPT = (*range(0, LENGTH, STRIDE), LENGTH - 1)
"""Positions of hidden vectors."""


MANIFEST = CollectionManifest(
    model="owner/model",
    revision="sha256:abc",
    hidden_size=WIDTH,
    data="made-up.jsonl",
    data_sha256="0",
    prompt=[{"role": "user", "content": "Solve {question}"}],
    sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 64, "seed": 0},
    positions=list(POSITIONS),
    top_k=5,
    synthetic=True,
    stride=STRIDE,
)


def write_collection(folder: Path, questions: int = 60, n: int = 8, signal: float = 6.0, **labels: Any) -> Path:
    """Traces whose vectors tell right from wrong from token 16 on, and nothing before."""
    rng = np.random.default_rng(0)
    replace(MANIFEST, **labels.pop("manifest", {})).claim(folder)
    with TraceStore(folder / TRACES_FOLDER) as store:
        for i in range(questions):
            ease = rng.uniform(0.1, 0.5)
            for sample in range(n):
                right = labels.get("all_are", bool(rng.random() < ease))
                vectors = rng.normal(size=(len(KEPT), WIDTH)).astype(np.float32)
                vectors[KEPT.index(16) :, 0] += signal * right
                store.append(
                    Trace(
                        f"row-{i}",
                        sample,
                        answer="1" if right else str(2 + int(rng.integers(2))),
                        num_tokens=LENGTH,
                        correct=right,
                        confidence=rng.random(LENGTH, np.float32),
                        features=dict(zip(KEPT, vectors, strict=True)),
                    )
                )
    return folder


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


FAST = (
    "--sizes",
    "0,16",
    "--weight-decays",
    "0.05",
    "--seeds",
    "2",
    "--cross-fit",
    "3",
    "--epochs",
    "8",
    "--learning-rate",
    "1e-2",
)
