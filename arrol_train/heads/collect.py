"""Collect what a head learns from: samples of the user's questions, graded, with hidden vectors on the way.

A folder holds ``manifest.json`` (what was sampled, and how) and ``traces/``, a `TraceStore` that every trace is
appended to as it ends, hidden vectors included. Collecting into the same folder goes on with the traces that are
missing; another model, other settings or another data file are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrol_train.questions import TrainingQuestion
from arrol_train.rewards import Reward
from arrol_tts.answers import extract_answer
from arrol_tts.answers.of_trace import answer_of
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
MOST_ROWS = 512
"""Of hidden vectors of a trace, where nobody says how many to keep."""
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
        prompt: messages that put a question to the model; ``chat`` whether they go through its chat template, and
            ``chat_template_kwargs`` the variables of that.
        sampling: options of `Sampling` (its ``record``), with the ``seed``.
        positions: to detect at, in generated tokens: of hidden vectors that are kept whatever the stride; the
            finish's is always there too.
        top_k: candidates of the token confidence.
        engine: options that the engine ran with.
        synthetic: whether questions or model are made up; carried into every figure.
        stride: hidden vectors are kept at every multiple of this many tokens; 0: at the positions alone.
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
    stride: int = 0
    chat: bool = True
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
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
    longest = int(manifest.sampling["max_tokens"])
    every = manifest.stride
    others = [position for position in manifest.positions if not every or position % every]
    vectors = len(others) + 1 + (1 + longest // every if every else 0)
    return traces * (vectors * (manifest.hidden_size * 2 + 12) + 16 * longest)


def default_stride(manifest: CollectionManifest, traces: int, out: Path) -> int:
    """Of the manifest, for so many traces into a folder: what the folder has, or what fits.

    Every token, unless a trace may be longer than ``MOST_ROWS``, or all would fill more than half of the disk that
    is free: then every second, fourth ...
    """
    if (out / MANIFEST_FILE).exists():
        return CollectionManifest.read(out).stride
    longest, stride = int(manifest.sampling["max_tokens"]), 1
    disk = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    room = shutil.disk_usage(disk).free / 2
    while longest > stride * MOST_ROWS or (
        stride < longest and predicted_bytes(replace(manifest, stride=stride), traces) > room
    ):
        stride *= 2
    return stride


class Collection:
    """A folder of traces of some questions: what it has, and what it lacks.

    Args:
        manifest: of the collection.
        questions: with ids that stay the same from call to call.
        out: the folder, which is taken for this collection.
        n: traces of each question.

    Attributes:
        missing: the numbers of the traces that each question lacked when the folder was opened.

    Raises:
        CollectError: when the folder holds another collection, or the disk is too small.
    """

    def __init__(
        self, manifest: CollectionManifest, questions: Sequence[TrainingQuestion], out: Path, *, n: int
    ) -> None:
        self.manifest, self.out, self.n = manifest, out, n
        self.sampling = Sampling(n=n, **manifest.sampling)
        self.questions = {question.id: question for question in questions}
        manifest.claim(out)
        self.missing = TraceStore(out / TRACES_FOLDER).missing(self.questions, n)
        _check_disk(manifest, self.lacking, out)

    @property
    def total(self) -> int:
        """How many traces it is to have."""
        return len(self.questions) * self.n

    @property
    def lacking(self) -> int:
        """How many of them were missing."""
        return sum(map(len, self.missing.values()))

    def sample(self, engine: Engine, reward: Reward) -> Generator[Trace]:
        """Sample what is missing.

        Args:
            engine: with the manifest's model.
            reward: grades a finished trace's text; called with ``{"question", "answer"}`` of its question.

        Yields:
            Every trace, graded, once it is stored.

        Raises:
            CollectError: when hidden vectors are missing or not finite.
        """
        spec = TraceSpec(
            features_at=tuple(self.manifest.positions),
            features_every=self.manifest.stride,
            features_finish=True,
            confidence=True,
            self_certainty=True,
        )
        variables = self.manifest.chat_template_kwargs
        prompt = Prompt.from_messages(
            self.manifest.prompt, chat=self.manifest.chat, chat_template_kwargs=variables
        )
        asked = [
            prompt.ask(name, self.questions[name].question, samples=numbers)
            for name, numbers in self.missing.items()
        ]
        at_once = max(1, TRACES_AT_ONCE // self.n)
        with TraceStore(self.out / TRACES_FOLDER) as store:
            for first in range(0, len(asked), at_once):
                batch = asked[first : first + at_once]
                with closing(engine.sample(batch, self.sampling, spec)) as traces:
                    for trace in traces:
                        _grade(trace, self.questions[trace.question_id], reward)
                        store.append(_checked(trace))
                        yield trace

    def outcomes(self) -> dict[str, list[bool]]:
        """Which of each question's stored traces are right."""
        found: dict[str, list[bool]] = {}
        for trace in TraceStore(self.out / TRACES_FOLDER).read(["question_id", "sample_id", "correct"]):
            if trace.question_id in self.questions and trace.sample_id < self.n:
                found.setdefault(trace.question_id, []).append(bool(trace.correct))
        return found


def collect(
    engine: Engine,
    manifest: CollectionManifest,
    questions: Sequence[TrainingQuestion],
    reward: Reward,
    out: Path,
    *,
    n: int,
    on_trace: Callable[[Trace], None] = lambda _: None,
) -> int:
    """Sample n traces of every question, or those that the folder lacks.

    Args:
        engine: with the manifest's model.
        manifest: of the collection.
        questions: with ids that stay the same from call to call.
        reward: grades a finished trace's text; called with ``{"question", "answer"}`` of its question.
        out: the folder.
        n: traces of each question.
        on_trace: called with every trace once it is stored.

    Returns:
        How many traces were sampled now.

    Raises:
        CollectError: as `Collection`.
    """
    sampled = 0
    with closing(Collection(manifest, questions, out, n=n).sample(engine, reward)) as traces:
        for trace in traces:
            sampled += 1
            on_trace(trace)
    return sampled


def _grade(trace: Trace, question: TrainingQuestion, reward: Reward) -> None:
    """A trace that was cut off has no answer and is wrong."""
    ended = trace.finish_reason == "stop"
    trace.answer = answer_of(trace, extract_answer) if ended else None
    trace.correct = ended and reward({"question": question.question, "answer": question.answer}, trace.text) >= 1


def _checked(trace: Trace) -> Trace:
    if not trace.features:
        raise CollectError("the engine gave no hidden vectors: a server must be started with the plug-in")
    vectors, faulty = as_float16(trace)
    if faulty is not None:
        raise CollectError(
            f"the hidden vector of sample {trace.sample_id} of {trace.question_id!r} at token {faulty} is NaN or "
            "infinite in float16, in which it is stored: the model overflows in this precision; try --set "
            "dtype=bfloat16 or dtype=float32"
        )
    trace.features = dict(zip(trace.features, vectors, strict=True))
    return trace


def as_float16(trace: Trace) -> tuple[NDArray[np.float16], int | None]:
    """A trace's hidden vectors, float16 ``[kept, hidden_size]``, and the token of the first that is not finite."""
    with np.errstate(over="ignore"):
        vectors = np.stack(list(trace.features.values())).astype(np.float16)
    finite = np.isfinite(vectors).all(axis=1)
    return vectors, None if finite.all() else list(trace.features)[int(finite.argmin())]


def _check_disk(manifest: CollectionManifest, traces: int, out: Path) -> None:
    needed, free = predicted_bytes(manifest, traces), shutil.disk_usage(out).free
    if needed > free:
        raise CollectError(
            f"{traces:,} traces may take {needed / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB free: choose "
            "a larger --stride, fewer questions or samples, or another disk"
        )
