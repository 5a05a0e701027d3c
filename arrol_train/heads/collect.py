"""Collect what a head learns from: samples of the user's questions, graded, with hidden vectors on the way.

A folder holds ``manifest.json`` (what was sampled, and how) and ``traces/``, a `TraceStore` that every trace is
appended to as it ends, hidden vectors included. Collecting into the same folder goes on with the traces that are
missing; another model, other settings or another data file are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arrol_train.questions import TrainingQuestion
from arrol_train.rewards import Reward
from arrol_tts.answers import extract_answer
from arrol_tts.engine.base import DEFAULT_TOP_K, Engine
from arrol_tts.engine.request import Sampling
from arrol_tts.errors import InputError
from arrol_tts.files import claim_folder, differences
from arrol_tts.prompts import Prompt
from arrol_tts.stopping import TraceSpec
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

MANIFEST_FILE = "manifest.json"
TRACES_FOLDER = "traces"
TRACES_AT_ONCE = 4096
"""Handed to the engine together: many batches, so that it seldom runs empty, and a bounded queue."""


class CollectError(InputError):
    """A collection that cannot be started or gone on with."""


@dataclass(frozen=True, slots=True)
class CollectionManifest:
    """What is in a folder of collected traces.

    Attributes:
        model: path or hub id; on a server, the name it is served under.
        revision: which weights (see ``arrol_tts.revision``), None when unknown.
        hidden_size: width of the hidden vectors.
        data: name of the file of questions, and ``data_sha256`` of its content.
        prompt: chat messages that put a question to the model.
        sampling: options of `Sampling` (its ``record``), with the ``seed``.
        positions: of the hidden vectors, in generated tokens; the finish is always there too.
        top_k: candidates of the token confidence.
        engine: options that the engine ran with.
        synthetic: whether questions or model are made up; carried into every figure.
        version: of this format.
    """

    model: str
    revision: str | None
    hidden_size: int
    data: str
    data_sha256: str
    prompt: list[dict[str, str]]
    sampling: dict[str, Any]
    positions: list[int]
    top_k: int = DEFAULT_TOP_K
    engine: dict[str, Any] | None = None
    synthetic: bool = False
    version: int = 1

    @classmethod
    def read(cls, folder: Path) -> CollectionManifest:
        """The manifest of a collection.

        Raises:
            CollectError: when the folder holds none.
        """
        try:
            return cls(**json.loads((folder / MANIFEST_FILE).read_text()))
        except FileNotFoundError:
            raise CollectError(
                f"{folder} holds no collection: make one with arrol-train collect --out {folder}"
            ) from None
        except (ValueError, TypeError) as error:
            raise CollectError(f"{folder / MANIFEST_FILE} cannot be read: {error}") from None

    def claim(self, folder: Path) -> None:
        """Make the folder this collection's, or see that it is.

        Raises:
            CollectError: when it holds another one; naming the first thing that differs.
        """
        if claim_folder(folder, MANIFEST_FILE, asdict(self), error=CollectError) is None:
            return
        for name, before, now in differences(asdict(CollectionManifest.read(folder)), asdict(self)):
            if name.partition(".")[0] not in ("data", "engine"):
                changed = " (the model has changed under its name)" if name == "revision" else ""
                raise CollectError(
                    f"{folder} was collected with {name} {before!r}, and this is {now!r}{changed}: choose another "
                    "--out, or the same settings"
                )


def default_positions(max_tokens: int) -> list[int]:
    """16, 32, 64 ... below the token limit; below 32 tokens, its half."""
    return [16 << i for i in range(24) if 16 << i < max_tokens] or [max(1, max_tokens // 2)]


def predicted_bytes(manifest: CollectionManifest, traces: int) -> int:
    """Disk that so many traces take at most: vectors, confidences and token ids of full length, uncompressed."""
    vectors = (len(manifest.positions) + 1) * manifest.hidden_size * 4
    return traces * (vectors + 16 * int(manifest.sampling["max_tokens"]))


def collect(
    engine: Engine,
    manifest: CollectionManifest,
    problems: Sequence[TrainingQuestion],
    reward: Reward,
    out: Path,
    *,
    n: int,
    on_trace: Callable[[Trace], None] = lambda _: None,
) -> int:
    """Sample n traces of every problem, or those that the folder lacks.

    Args:
        engine: with the manifest's model.
        manifest: of the collection.
        problems: with ids that stay the same from call to call.
        reward: grades a finished trace's text; called with ``{"question", "answer"}`` of its problem.
        out: the folder.
        n: traces of each problem.
        on_trace: called with every trace once it is stored.

    Returns:
        How many traces were sampled now.

    Raises:
        CollectError: when the folder holds another collection, the disk is too small, or hidden vectors are not
            finite.
    """
    sampling = Sampling(n=n, **manifest.sampling)
    manifest.claim(out)
    spec = TraceSpec(features_at=tuple(manifest.positions), features_finish=True, confidence=True)
    prompt = Prompt.from_messages(manifest.prompt)
    by_id = {problem.id: problem for problem in problems}
    sampled = 0
    with TraceStore(out / TRACES_FOLDER) as store:
        missing = store.missing(by_id, n)
        open_ones = [by_id[question_id] for question_id in missing]
        _check_disk(manifest, sum(map(len, missing.values())), out)
        at_once = max(1, TRACES_AT_ONCE // n)
        for first in range(0, len(open_ones), at_once):
            asked = [prompt.ask(p.id, p.question, samples=missing[p.id]) for p in open_ones[first:][:at_once]]
            with closing(engine.sample(asked, sampling, spec)) as traces:
                for trace in traces:
                    _grade(trace, by_id[trace.question_id], reward)
                    store.append(_checked(trace))
                    sampled += 1
                    on_trace(trace)
    return sampled


def _grade(trace: Trace, question: TrainingQuestion, reward: Reward) -> None:
    """A trace that was cut off has no answer and is wrong."""
    ended = trace.finish_reason == "stop"
    trace.answer = extract_answer(trace.text) if ended else None
    trace.correct = ended and reward({"question": question.question, "answer": question.answer}, trace.text) >= 1


def _checked(trace: Trace) -> Trace:
    if not trace.features:
        raise CollectError("the engine gave no hidden vectors: a server must be started with the plug-in")
    for position, vector in trace.features.items():
        if not np.isfinite(vector).all():
            raise CollectError(
                f"the hidden vector of sample {trace.sample_id} of {trace.question_id!r} at token {position} is "
                "NaN or infinite: the model overflows in this precision; try --set dtype=bfloat16 or dtype=float32"
            )
    return trace


def _check_disk(manifest: CollectionManifest, traces: int, out: Path) -> None:
    needed, free = predicted_bytes(manifest, traces), shutil.disk_usage(out).free
    if needed > free:
        raise CollectError(
            f"{traces:,} traces may take {needed / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB free: choose "
            "fewer --positions, questions or samples, or another disk"
        )
