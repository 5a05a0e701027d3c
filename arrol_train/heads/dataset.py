"""Collected traces as arrays: hidden vectors on disk, read in pieces, and everything else in memory."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from arrol_train.heads.collect import TRACES_FOLDER, CollectError, CollectionManifest
from arrol_train.positions import FINISH
from arrol_tts.head import QualityHead
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

Group = list[Trace]
"""The traces of a question."""

FIELDS = (
    "question_id",
    "sample_id",
    "answer",
    "num_tokens",
    "finish_reason",
    "confidence",
    "features",
    "correct",
)
ROWS_AT_ONCE = 4096


class FloatRows(Protocol):
    """Hidden vectors ``[rows, hidden_size]``: an array of any float type, or what is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Collected:
    """A collection. Row i is one hidden vector.

    Attributes:
        manifest: what was collected.
        traces: without text, token ids and features.
        features: float16 ``[rows, hidden_size]``, a file that is mapped into memory.
        trace_of: int64 ``[rows]``, index of the row's trace.
        positions: int64 ``[rows]``, in generated tokens, or `FINISH` for a trace's last vector.
        tokens: int64 ``[rows]``, in generated tokens, at the finish too.
        questions: int64 ``[rows]``, index of the row's question in ``question_ids``.
        question_ids: in the order of their first trace.
    """

    manifest: CollectionManifest
    traces: list[Trace]
    features: NDArray[np.float16]
    trace_of: NDArray[np.int64]
    positions: NDArray[np.int64]
    tokens: NDArray[np.int64]
    questions: NDArray[np.int64]
    question_ids: list[str]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Whether the row's trace is right, bool ``[rows]``."""
        return np.array([bool(trace.correct) for trace in self.traces])[self.trace_of]

    def rows_of(self, question_ids: frozenset[str]) -> NDArray[np.bool_]:
        """The rows of some questions: bool ``[rows]``."""
        chosen = np.array([name in question_ids for name in self.question_ids], dtype=bool)
        return np.asarray(chosen[self.questions])

    def groups_of(self, question_ids: frozenset[str]) -> list[Group]:
        """The traces of some questions, by question, in the order of their sample ids."""
        return _by_question([trace for trace in self.traces if trace.question_id in question_ids])

    @torch.inference_mode()
    def scored(self, head: QualityHead, question_ids: frozenset[str]) -> list[Group]:
        """Copies of the traces of some questions, as in `groups_of`, with a head's scores at all positions."""
        rows = np.flatnonzero(self.rows_of(question_ids))
        scores = np.concatenate([head(piece).numpy() for piece in pieces(self.features, rows)])
        of_trace: dict[int, dict[int, float]] = defaultdict(dict)
        for i, token, score in zip(
            self.trace_of[rows].tolist(), self.tokens[rows].tolist(), scores.tolist(), strict=True
        ):
            of_trace[i][token] = score
        return _by_question([replace(self.traces[i], scores=found) for i, found in of_trace.items()])


def _by_question(traces: Iterable[Trace]) -> list[Group]:
    groups: dict[str, Group] = {}
    for trace in traces:
        groups.setdefault(trace.question_id, []).append(trace)
    return [sorted(group, key=lambda trace: trace.sample_id) for group in groups.values()]


def pieces(features: FloatRows, rows: NDArray[np.int64] | None = None) -> Iterator[torch.Tensor]:
    """Features as float32 tensors ``[up to ROWS_AT_ONCE, hidden_size]``; all rows, or those named, in order."""
    count = len(features) if rows is None else len(rows)
    for first in range(0, count, ROWS_AT_ONCE):
        last = first + ROWS_AT_ONCE
        piece = features[first:last] if rows is None else features[rows[first:last]]
        yield torch.from_numpy(np.asarray(piece, np.float32))


@contextmanager
def open_collected(folder: Path) -> Iterator[Collected]:
    """Read a collection; the file with its vectors lies in the folder and goes when the context ends.

    Raises:
        CollectError: when there is no collection, it has no traces, or vectors of another width or not finite.
    """
    manifest = CollectionManifest.read(folder)
    traces: list[Trace] = []
    trace_of, positions, tokens = [], [], []
    with tempfile.TemporaryFile(dir=folder) as file:
        for trace in TraceStore(folder / TRACES_FOLDER).read(FIELDS):
            last = max(trace.features, default=-1)
            for position, vector in trace.features.items():
                if len(vector) != manifest.hidden_size:
                    raise CollectError(
                        f"{folder}: sample {trace.sample_id} of {trace.question_id!r} has a hidden vector of "
                        f"width {len(vector)}, and the manifest says {manifest.hidden_size}: collect again"
                    )
                half = vector.astype(np.float16)
                if not np.isfinite(half).all():
                    raise CollectError(
                        f"{folder}: the hidden vector of sample {trace.sample_id} of {trace.question_id!r} at "
                        f"token {position} holds NaN, infinite or huge values: collect again, with dtype=float32"
                    )
                file.write(half.tobytes())
                trace_of.append(len(traces))
                tokens.append(position)
                positions.append(FINISH if position == last else position)
            trace.features = {}
            traces.append(trace)
        if not trace_of:
            raise CollectError(f"{folder} has no traces with hidden vectors yet: collect some first")
        file.flush()
        features = np.memmap(file, np.float16, "r", shape=(len(trace_of), manifest.hidden_size))
        names = {name: i for i, name in enumerate(dict.fromkeys(trace.question_id for trace in traces))}
        rows = np.array(trace_of, np.int64)
        yield Collected(
            manifest,
            traces,
            features,
            rows,
            np.array(positions, np.int64),
            np.array(tokens, np.int64),
            np.array([names[trace.question_id] for trace in traces], np.int64)[rows],
            list(names),
        )
