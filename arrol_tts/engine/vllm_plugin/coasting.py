"""Traces between two positions at which something of theirs is looked at: arrays with a slot for each trace.

Most rows of most traces only add to sums. Here they are added for all traces at once, in a few vector operations a
step. Python code runs for a trace when its next position of interest is due, when its confidence falls below a
rule's bound, and when it ends. Then it lands; until then its log is behind.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from arrol_tts.stopping.log import probabilities_of
from arrol_tts.stopping.rules import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from vllm.v1.engine import EngineCoreOutput

    from arrol_tts.engine.signals import HeadKind
    from arrol_tts.engine.vllm_plugin.messages import Signals
    from arrol_tts.stopping import TraceLog

CHUNK = 128
"""Tokens of a trace whose scores, confidences and log-probabilities are kept here before they go to its log."""

ASIDE = 4
"""Steps whose rows are taken in together while nothing changes."""

NONE = -1
"""No slot, no row, no head, no token."""

COLUMNS: dict[str, Any] = {
    "length": np.int64,
    "due": np.float64,
    "last_token": np.int64,
    "fill": np.int64,  # tokens of the chunk
    # What it needs of a step.
    "head": np.int64,
    "confidence": np.bool_,
    "self_certainty": np.bool_,
    "logprobs": np.bool_,
    "every": np.bool_,  # its score is kept at every token
    # The sums of its log.
    "weight": np.float64,
    "value": np.float64,
    "steps": np.int64,
    "probability": np.float64,
    "certainty": np.float64,
    # The window of its rule, infinite without one.
    "size": np.float64,
    "total": np.float64,
    "lowest": np.float64,
}
"""What a slot holds, each in an array of its own."""

NO_WINDOW = Window(math.inf)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of traces that coast.

    Attributes:
        at: the places of their outputs among the step's.
        slots: of the traces, each once.
        first: the first row of each in the step's signals.
        counts: new tokens, and so rows, of each.
    """

    at: NDArray[np.int64]
    slots: NDArray[np.int64]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> _Rows:
        """Those of some of the traces."""
        if mask.all():
            return self
        return _Rows(self.at[mask], self.slots[mask], self.first[mask], self.counts[mask])


@dataclass(slots=True)
class _Steady:
    """The same traces, step after step, of which nothing is judged: rows are put aside and taken in together.

    One after the other, as they came, so that sums are the same; the arrays that they go to are then at hand. In
    every step the model's own work pushes them out of the processor's caches.

    Attributes:
        keys: of the step's requests.
        index: the number of each among the step's.
        rows: of all of them.
        like: signals of the first step.
        steps: those that may follow before a position of one is due.
        aside: signals that are not taken in yet.
    """

    keys: list[str]
    index: Mapping[str, int]
    rows: _Rows
    like: Signals
    steps: float
    aside: list[Signals] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether it is time to take in what is aside."""
        return len(self.aside) >= ASIDE

    def goes_on(self, outputs: list[EngineCoreOutput], index: Mapping[str, int], signals: Signals) -> bool:
        """Whether a step is one more of this kind; it is counted then."""
        like = self.like
        same = (
            self.steps > 0
            and signals.numbers is not None
            and like.numbers is not None
            and signals.numbers.shape == like.numbers.shape
            and signals.heads == like.heads
            and (signals.confidence, signals.self_certainty) == (like.confidence, like.self_certainty)
            and signals.firsts is None
            and [output.request_id for output in outputs] == self.keys
            and index == self.index
            and not any(output.finish_reason is not None or len(output.new_token_ids) != 1 for output in outputs)
        )
        self.steps -= same
        return same


class Coasting:
    """The traces that coast, by the names of their requests."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._logs: dict[int, TraceLog] = {}
        self._windows: list[Window] = []
        self._heads: dict[str, int] = {}
        self._table: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}
        # What is about to leave the window, then the chunk: what leaves with i lies at i - min(size, CHUNK).
        self._confidence = np.zeros((0, 2 * CHUNK), np.float32)
        self._logprobs = np.zeros((0, CHUNK), np.float32)
        self._scores = np.zeros((0, CHUNK), np.float64)
        self._steady: _Steady | None = None
        # Where the requests of the step before were found; None when slots were given or taken since.
        self._keys: list[str] | None = None
        self._index: Mapping[str, int] = {}
        self._places = (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, key: str, log: TraceLog) -> None:
        """Let a trace coast, unless its next row must be looked at, or a rule of its be told of each."""
        every = log.spec.score_every == 1
        if log.due <= log.length or (every and log.spec.live):
            return
        window = NO_WINDOW
        for group in log.followed:
            found = group.window(key)
            if found is None or window is not NO_WINDOW:
                return
            window = found
        if not self._free:
            self._grow()
        slot = self._slots[key] = self._free.pop()
        self._keys = None
        self._logs[slot], self._windows[slot] = log, window
        values = (
            log.length,
            log.due,
            NONE if log.last_token is None else log.last_token,
            0,
            self._heads.setdefault(log.spec.head, len(self._heads)) if log.wants_scores else NONE,
            log.wants_confidence,
            log.wants_certainty,
            log.spec.logprobs,
            every,
            log.weight,
            log.value,
            log.steps,
            log.probability,
            log.certainty,
            window.size,
            window.total,
            window.lowest,
        )
        for column, value in zip(self._table.values(), values, strict=True):
            column[slot] = value
        self._load_window(slot)

    def land(self, key: str) -> None:
        """Bring a trace's log up to date; its next rows are looked at one by one."""
        slot = self._slots.get(key)
        if slot is None:
            return
        self._catch_up()
        self._empty_chunk(slot)
        log, window = self._logs[slot], self._windows[slot]
        row = {name: column[slot].item() for name, column in self._table.items()}
        log.length, log.weight, log.value = row["length"], row["weight"], row["value"]
        log.last_token = None if row["last_token"] == NONE else row["last_token"]
        log.steps, log.probability, log.certainty = row["steps"], row["probability"], row["certainty"]
        if window is not NO_WINDOW:
            window.total, window.lowest = row["total"], row["lowest"]
        self.forget(key)

    def forget(self, key: str) -> None:
        """Nobody wants a trace's log."""
        self._catch_up()
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._steady = None
            self._keys = None
            del self._logs[slot]
            self._windows[slot] = NO_WINDOW
            self._free.append(slot)

    def advance(
        self, outputs: list[EngineCoreOutput], index: Mapping[str, int], signals: Signals
    ) -> list[EngineCoreOutput]:
        """Take in the rows of a step.

        Args:
            outputs: of the step; they lose the log-probabilities that were asked for by a spec.
            index: the number of each request among the step's, as its signals have it.
            signals: of the step's rows.

        Returns:
            The outputs that must be looked at one by one, in their order; nothing of these is taken in.
        """
        if not self._slots:
            return outputs
        if self._steady is not None and self._steady.goes_on(outputs, index, signals):
            self._steady.aside.append(signals)
            if self._steady.is_full:
                self._catch_up()
            return []
        self._catch_up()
        self._steady = None
        tokens = [output.new_token_ids for output in outputs]
        rows = self._passing(outputs, tokens, index, signals)
        confidence, table = signals.confidences, self._table
        # Only heads of steps ask for the row's input; what else does, does not coast.
        by_token = any(kind.pool_after for kind in signals.heads.values())
        with np.errstate(all="ignore"):  # a model's numbers may be anything
            if confidence is not None:
                rows = rows.where(self._move_windows(rows.slots, confidence[rows.first]))
            takes_logprobs = bool(table["logprobs"][rows.slots].any())
            if takes_logprobs:
                self._take_logprobs(rows, outputs)
            for j in range(int(rows.counts.max(initial=0))):
                part = rows.where(rows.counts > j)
                self._add(part.slots, part.first + j, signals)
                table["last_token"][part.slots] = [tokens[i][j] for i in part.at.tolist()] if by_token else NONE
        if len(rows.at) < len(outputs):
            left = np.ones(len(outputs), np.bool_)
            left[rows.at] = False
            return list(itertools.compress(outputs, left.tolist()))
        judged = by_token or takes_logprobs or not np.isinf(table["size"][rows.slots]).all()
        if not judged and signals.firsts is None and len(rows.at) and self._keys is not None:
            steps = float((table["due"][rows.slots] - table["length"][rows.slots]).min())
            self._steady = _Steady(self._keys, self._index, rows, signals, steps)
        return []

    def _catch_up(self) -> None:
        """Take in what was put aside."""
        steady = self._steady
        if steady is None or not steady.aside:
            return
        with np.errstate(all="ignore"):
            for signals in steady.aside:
                self._add(steady.rows.slots, steady.rows.first, signals)
        steady.aside.clear()

    def _add(self, slots: NDArray[np.int64], row: NDArray[np.int64], signals: Signals) -> None:
        """Add what was read of a row each to the sums of traces, and move on by its token."""
        table, confidence, certainty = self._table, signals.confidences, signals.self_certainties
        for name, kind, numbers in signals.of_heads():
            self._pool(slots, row, self._heads.get(name), kind, numbers)
        if certainty is not None:
            wanted = table["self_certainty"][slots]
            table["certainty"][slots[wanted]] += certainty[row[wanted]]
        if confidence is not None:
            self._confidence[slots, CHUNK + table["fill"][slots]] = confidence[row]
        self._move_on(slots)

    def _passing(
        self,
        outputs: list[EngineCoreOutput],
        tokens: list[Sequence[int]],
        index: Mapping[str, int],
        signals: Signals,
    ) -> _Rows:
        """Those of which nothing is kept or judged, as far as that does not depend on what was read of them."""
        table = self._table
        slots, numbers = self._find_places([output.request_id for output in outputs], index)
        passing = (slots != NONE) & (numbers != NONE)
        lengths = list(map(len, tokens))
        counts = np.ones(len(tokens), np.int64)
        if lengths.count(1) < len(lengths):
            counts[:] = lengths
            # A rule's bound is looked at after each token.
            single = ~np.isinf(table["size"][slots]) | table["logprobs"][slots]
            passing &= (counts == 1) | ((counts > 1) & ~single)
        passing &= table["length"][slots] + counts <= table["due"][slots]
        reasons = [output.finish_reason for output in outputs]
        if reasons.count(None) < len(reasons):
            passing &= np.array([reason is None for reason in reasons])
        # Whatever is missing is for those to find who look at the output.
        present = np.zeros(len(self._heads) + 1, np.bool_)
        present[[self._heads[name] for name in signals.heads if name in self._heads]] = True
        present[NONE] = True
        passing &= present[table["head"][slots]]
        if not signals.confidence:
            passing &= ~table["confidence"][slots]
        if not signals.self_certainty:
            passing &= ~table["self_certainty"][slots]
        wants_logprobs = table["logprobs"][slots]
        if wants_logprobs.any():
            passing &= ~wants_logprobs | np.array([output.new_logprobs is not None for output in outputs])
        first = numbers
        if signals.firsts is not None:
            passing &= numbers < len(signals.firsts)
            first = signals.firsts.take(numbers, mode="clip").astype(np.int64)
        if signals.numbers is not None:
            passing &= first + counts <= signals.numbers.shape[1]
        return _Rows(np.arange(len(outputs)), slots, first, counts).where(passing)

    def _move_windows(self, slots: NDArray[np.int64], confidence: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Move the windows of rules on by a confidence each, but for those of traces that a rule must look at.

        Returns:
            Which were moved.
        """
        table, windows = self._table, self._windows
        size, lowest = table["size"][slots], table["lowest"][slots]
        if np.isinf(size).all():
            return np.ones(len(slots), np.bool_)
        leaving = CHUNK + table["fill"][slots] - np.minimum(size, CHUNK).astype(np.int64)
        total = table["total"][slots] + confidence.astype(np.float64) - self._confidence[slots, leaving]
        mean = total / size
        whole = table["length"][slots] + 1 >= size
        bound = np.array([windows[slot].bound for slot in slots.tolist()])
        # Not a number is below every bound.
        moved: NDArray[np.bool_] = ~whole | (mean >= bound)
        slots = slots[moved]
        table["total"][slots] = total[moved]
        table["lowest"][slots] = np.where(whole & (mean < lowest), mean, lowest)[moved]
        return moved

    def _pool(
        self,
        slots: NDArray[np.int64],
        row: NDArray[np.int64],
        head: int | None,
        kind: HeadKind,
        numbers: NDArray[np.float32],
    ) -> None:
        """Add what a head read to the sums of its traces, and note scores; as `HeadReading.score`."""
        if head is None:
            return
        table = self._table
        mine = table["head"][slots] == head
        slots, row = slots[mine], row[mine]
        if kind.width == 2:
            counted = np.ones(len(slots), np.bool_)
            if kind.stride > 1:
                # A head that comes late begins with the first row that it sees.
                counted = (table["length"][slots] % kind.stride == 0) | (table["weight"][slots] == 0)
            added, at = slots[counted], row[counted]
            weight, value = numbers[0][at].astype(np.float64), numbers[1][at].astype(np.float64)
            table["weight"][added] += weight
            table["value"][added] += weight * value
        elif kind.pool_after:
            counted = np.isin(table["last_token"][slots], list(kind.pool_after))
            added = slots[counted]
            table["steps"][added] += 1
            table["probability"][added] += numbers[0, row[counted]]
        every = table["every"][slots]
        if every.any():
            slots, row = slots[every], row[every]
            self._scores[slots, table["fill"][slots]] = self._scores_of(slots, row, kind, numbers)

    def _scores_of(
        self, slots: NDArray[np.int64], row: NDArray[np.int64], kind: HeadKind, numbers: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Of traces whose sums have what the head read of these rows."""
        table = self._table
        if kind.width == 2:
            return probabilities_of(table["value"][slots] / table["weight"][slots])
        if kind.pool_after:
            steps = table["steps"][slots]
            found: NDArray[np.float64] = np.where(steps > 0, table["probability"][slots] / steps, 0.5)
            return found
        read: NDArray[np.float64] = numbers[0, row].astype(np.float64)
        return read

    def _take_logprobs(self, rows: _Rows, outputs: list[EngineCoreOutput]) -> None:
        """Take the log-probability of each trace's new token that wants it, and of the output all that it has."""
        wanted = rows.where(self._table["logprobs"][rows.slots])
        found = []
        for i in wanted.at.tolist():
            lists: Any = outputs[i].new_logprobs
            found.append(lists.logprobs[0, 0])
            outputs[i].new_logprobs = None
        self._logprobs[wanted.slots, self._table["fill"][wanted.slots]] = found

    def _move_on(self, slots: NDArray[np.int64]) -> None:
        """Traces have written a token each, all of which was taken in."""
        table = self._table
        table["length"][slots] += 1
        fill = table["fill"][slots] + 1
        table["fill"][slots] = fill
        for slot in slots[fill == CHUNK].tolist():
            self._empty_chunk(slot)
            self._load_window(slot)

    def _empty_chunk(self, slot: int) -> None:
        """Give the log what it has not of each token."""
        log, fill = self._logs[slot], int(self._table["fill"][slot])
        if self._table["every"][slot]:
            end = int(self._table["length"][slot])
            found = zip(range(end - fill, end), self._scores[slot, :fill].tolist(), strict=True)
            log.scores.update((position, score) for position, score in found if position)  # 0 is the prompt's end
        if log.wants_confidence:
            log.confidence.frombytes(self._confidence[slot, CHUNK : CHUNK + fill].tobytes())
        if log.spec.logprobs:
            log.logprobs.frombytes(self._logprobs[slot, :fill].tobytes())
        self._table["fill"][slot] = 0

    def _load_window(self, slot: int) -> None:
        """Put before an empty chunk what leaves the window while it fills; zeros where the window only grows."""
        size = self._windows[slot].size
        if size == math.inf:
            return
        confidence, leaving = self._logs[slot].confidence, self._confidence[slot, :CHUNK]
        start = len(confidence) - max(int(size), CHUNK)
        known = confidence[max(start, 0) : max(start + CHUNK, 0)]
        leaving[:] = 0
        leaving[CHUNK - len(known) :] = known

    def _grow(self) -> None:
        old = len(self._windows)
        new = max(old, 64)
        self._free += range(old, old + new)
        self._windows += [NO_WINDOW] * new
        self._table = {
            name: np.concatenate([column, np.zeros(new, COLUMNS[name])]) for name, column in self._table.items()
        }
        self._confidence = np.concatenate([self._confidence, np.zeros((new, 2 * CHUNK), np.float32)])
        self._logprobs = np.concatenate([self._logprobs, np.zeros((new, CHUNK), np.float32)])
        self._scores = np.concatenate([self._scores, np.zeros((new, CHUNK), np.float64)])

    def _find_places(
        self, keys: list[str], index: Mapping[str, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The slots and the numbers of a step's requests: most often those of the step before."""
        if keys != self._keys or index != self._index:
            nothing = itertools.repeat(NONE)
            self._places = (
                np.fromiter(map(self._slots.get, keys, nothing), np.int64, len(keys)),
                np.fromiter(map(index.get, keys, nothing), np.int64, len(keys)),
            )
            self._keys, self._index = keys, dict(index)
        return self._places
