"""Collected traces as sequences of hidden vectors: these on disk, read in pieces, everything else in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from arrol_train.heads.collect import TRACES_FOLDER, CollectError, CollectionManifest, as_float16
from arrol_train.pooling import pooled_logits
from arrol_tts.calibration import sigmoid
from arrol_tts.errors import InputError
from arrol_tts.head import QualityHead
from arrol_tts.head_config import QualityHeadConfig
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
    "meta",
)
NUMBERS_AT_ONCE = 1 << 24
"""Read from the disk together, 64 MB as float32."""


class FloatRows(Protocol):
    """Hidden vectors ``[rows, hidden_size]``: an array of any float type, or what is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class _Rows:
    """Some rows of an array that is too large to be copied."""

    def __init__(self, features: FloatRows, rows: NDArray[np.int64]) -> None:
        self._features, self._rows = features, rows
        self.shape = (len(rows), features.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._features[self._rows[index]]


@dataclass(frozen=True, slots=True)
class States:
    """Hidden vectors of traces: a trace's rows lie together, in the order of their positions.

    Attributes:
        features: ``[rows, hidden_size]``.
        tokens: int64 ``[rows]``: the row's position, in generated tokens; 0 is the prompt's end.
        starts: int64 ``[traces + 1]``: trace i has the rows from ``starts[i]`` to before ``starts[i + 1]``.
    """

    features: FloatRows
    tokens: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def ends(self) -> NDArray[np.int64]:
        """Position of each trace's last row, int64 ``[traces]``."""
        return self.tokens[self.starts[1:] - 1]

    def read_by(self, config: QualityHeadConfig) -> States:
        """The rows that a head reads: those at multiples of its stride if it pools, else all.

        Raises:
            InputError: when some that it would pool are not there, or a collection cannot tell them.
        """
        if config.pooling == "last":
            return self
        if config.pooling == "steps":
            raise InputError(
                "a head of steps reads the hidden vectors at their ends, and a collection does not say which "
                "these are: measure it on samples, with `arrol-eval run`"
            )
        rows = np.flatnonzero(self.tokens % config.stride == 0)
        starts = np.searchsorted(rows, self.starts)
        if (np.diff(starts) != self.ends // config.stride + 1).any():
            raise InputError(
                f"a head that pools reads the hidden vector of every token, or of every {config.stride}th as this "
                "one, and they were not kept: collect with a --stride that divides it, or train with "
                "--pooling last"
            )
        everything = len(rows) == len(self.tokens)
        return self if everything else States(_Rows(self.features, rows), self.tokens[rows], starts)

    def rows_at(self, traces: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each trace's last row up to a position.

        Args:
            traces: ``[n]``.
            positions: ``[n, k]``.

        Returns:
            Rows, ``[n, k]``; a trace's first row for a position before it.
        """
        lasts = self.starts[traces + 1] - 1
        rows, lengths = self.rows_of(traces)
        # One search among all: the traces are told apart by what is added to their positions.
        apart = int(max(self.tokens[rows].max(), positions.max(initial=0))) + 1
        number = np.arange(len(traces))
        keys = self.tokens[rows] + apart * np.repeat(number, lengths)
        found = np.searchsorted(keys, positions + apart * number[:, None], side="right") - 1
        found -= (np.cumsum(lengths) - lengths)[:, None]
        return np.asarray(np.clip(found, 0, None) + self.starts[traces][:, None]).clip(max=lasts[:, None])

    def rows_of(self, traces: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All rows of some traces, one after the other, and how many each has."""
        starts, lengths = self.starts[traces], self.starts[traces + 1] - self.starts[traces]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(starts, lengths) + within, lengths

    def parts(self, traces: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """The traces in parts of about ``NUMBERS_AT_ONCE``."""
        if not len(traces):
            return
        lengths = self.starts[traces + 1] - self.starts[traces]
        part = np.cumsum(lengths) * self.features.shape[1] // NUMBERS_AT_ONCE
        yield from np.split(traces, np.flatnonzero(np.diff(part)) + 1)


def logits_at(
    head: QualityHead, states: States, traces: NDArray[np.int64], positions: NDArray[np.int64]
) -> torch.Tensor:
    """A head's log-odds of traces up to positions, before calibration.

    Args:
        head: one that pools, or one that reads each row on its own.
        states: what it reads, see `States.read_by`.
        traces: ``[n]``.
        positions: ``[n, k]``; beyond a trace's end its last row counts.

    Returns:
        float32 ``[n, k]``.
    """
    at = states.rows_at(traces, positions)
    if head.config.pooling == "last":
        rows = at.reshape(-1)
        starts = torch.arange(at.size).reshape(at.shape)
        ends = starts + 1
    else:
        rows, lengths = states.rows_of(traces)
        first = (np.cumsum(lengths) - lengths)[:, None]
        starts = torch.from_numpy(first).expand(at.shape)
        ends = torch.from_numpy(at - states.starts[traces][:, None] + first + 1)
    return pooled_logits(head, _floats(states.features[rows]), starts, ends)


def _floats(rows: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rows, np.float32))


@dataclass(frozen=True, slots=True)
class Collected:
    """A collection.

    Attributes:
        manifest: what was collected.
        traces: without text, token ids and features.
        states: their hidden vectors, float16 in a file that is mapped into memory.
        questions: int64 ``[traces]``, index of the trace's question in ``question_ids``.
        question_ids: in the order of their first trace.
    """

    manifest: CollectionManifest
    traces: list[Trace]
    states: States
    questions: NDArray[np.int64]
    question_ids: list[str]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Whether each trace is right, bool ``[traces]``."""
        return np.array([bool(trace.correct) for trace in self.traces])

    @property
    def mean_tokens(self) -> float:
        """Of all traces."""
        return float(np.mean([trace.num_tokens for trace in self.traces]))

    def traces_of(self, question_ids: frozenset[str]) -> NDArray[np.int64]:
        """Indices of the traces of some questions, ascending."""
        chosen = np.array([name in question_ids for name in self.question_ids], dtype=bool)
        return np.flatnonzero(chosen[self.questions])

    def groups_of(self, question_ids: frozenset[str]) -> list[Group]:
        """The traces of some questions, by question, in the order of their sample ids."""
        return _by_question([self.traces[i] for i in self.traces_of(question_ids)])

    @torch.inference_mode()
    def scored(
        self, head: QualityHead, question_ids: frozenset[str], positions: Sequence[int] | None = None
    ) -> list[Group]:
        """Copies of the traces of some questions, as in `groups_of`, with a head's scores.

        Args:
            head: whose scores.
            question_ids: of the questions.
            positions: of the scores, in tokens; the finish has one always. None: wherever a vector was kept.

        Raises:
            InputError: when the vectors that the head reads were not kept.
        """
        states, ends = self.states.read_by(head.config), self.states.ends
        a, b = head.config.calibration
        scored = []
        for part in states.parts(self.traces_of(question_ids)):
            if positions is None:
                grid = np.unique(states.tokens[states.rows_of(part)[0]])
                at = np.broadcast_to(grid[grid > 0], (len(part), int((grid > 0).sum())))
                kept = states.tokens[states.rows_at(part, at)] == at
            else:
                at = np.broadcast_to(np.array(positions, np.int64), (len(part), len(positions)))
                kept = at <= ends[part][:, None]
            asked = np.concatenate([at, ends[part][:, None]], axis=1)
            scores = sigmoid(a * logits_at(head, states, part, asked).double().numpy() + b)
            for i, line, here, there in zip(part.tolist(), scores, kept, at, strict=True):
                found = dict(zip(there[here].tolist(), line[:-1][here].tolist(), strict=True))
                scored.append(replace(self.traces[i], scores=found | {int(ends[i]): float(line[-1])}))
        return _by_question(scored)


def _by_question(traces: Iterable[Trace]) -> list[Group]:
    groups: dict[str, Group] = {}
    for trace in traces:
        groups.setdefault(trace.question_id, []).append(trace)
    return [sorted(group, key=lambda trace: trace.sample_id) for group in groups.values()]


@contextmanager
def open_collected(folder: Path) -> Iterator[Collected]:
    """Read a collection; the file with its vectors lies in the folder and goes when the context ends.

    Raises:
        CollectError: when there is no collection, it has no traces, or vectors of another width or not finite.
    """
    manifest = CollectionManifest.read(folder)
    traces: list[Trace] = []
    tokens: list[NDArray[np.int64]] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for trace in TraceStore(folder / TRACES_FOLDER).read(FIELDS):
            if not trace.features:
                continue
            positions = np.array(list(trace.features), np.int64)
            order = np.argsort(positions)
            file.write(_vectors(folder, manifest, trace)[order].tobytes())
            tokens.append(positions[order])
            trace.features = {}
            traces.append(trace)
        if not traces:
            raise CollectError(f"{folder} has no traces with hidden vectors yet: collect some first")
        file.flush()
        starts = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        features = np.memmap(file, np.float16, "r", shape=(int(starts[-1]), manifest.hidden_size))
        names = {name: i for i, name in enumerate(dict.fromkeys(trace.question_id for trace in traces))}
        questions = np.array([names[trace.question_id] for trace in traces], np.int64)
        yield Collected(manifest, traces, States(features, np.concatenate(tokens), starts), questions, list(names))


def _vectors(folder: Path, manifest: CollectionManifest, trace: Trace) -> NDArray[np.float16]:
    """Those of a trace, float16 ``[kept, hidden_size]``."""
    named = f"sample {trace.sample_id} of {trace.question_id!r}"
    widths = {len(vector) for vector in trace.features.values()} - {manifest.hidden_size}
    if widths:
        raise CollectError(
            f"{folder}: {named} has a hidden vector of width {min(widths)}, and the manifest says "
            f"{manifest.hidden_size}: collect again"
        )
    vectors, faulty = as_float16(trace)
    if faulty is not None:
        raise CollectError(
            f"{folder}: the hidden vector of {named} at token {faulty} holds NaN, infinite or huge values: "
            "collect again, with dtype=float32"
        )
    return vectors
