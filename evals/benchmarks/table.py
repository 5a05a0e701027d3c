"""Benchmarks that are a table of problems: on the Hugging Face hub, at a fixed revision, or in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrol_tts.answers import EqualityName, PercentSign, answers_equal
from arrol_tts.errors import MissingPackageError
from arrol_tts.files import file_sha256
from arrol_tts.recorded import numbered_rows

from .base import Benchmark, BenchmarkError, Problem, Shot
from .shots import MATH_SHOTS

Row = Mapping[str, Any]

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The instruction of Qwen's and DeepSeek's own evaluations."""

QUESTION_COLUMNS = ("problem", "question")
ID_COLUMNS = ("id", "unique_id", "problem_idx", "idx")


@dataclass(frozen=True, slots=True)
class Hub:
    """A dataset on the Hugging Face hub.

    Attributes:
        id: ``owner/name``.
        revision: commit that is loaded, so that the problems never change under a result.
        split: of the dataset.
        config: its configuration, where it has several.
    """

    id: str
    revision: str
    split: str
    config: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision[:12]}"


def answer_column(row: Row) -> str:
    """The column ``answer`` as text; a whole number that is stored as a float is written as one."""
    value = row.get("answer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def question_column(row: Row) -> str:
    """The first of ``problem`` and ``question`` that the row has."""
    return next((str(row[name]) for name in QUESTION_COLUMNS if row.get(name)), "")


def by_equality(equality: EqualityName, percent: PercentSign) -> Callable[[Problem, str], bool]:
    """Grading by whether an answer equals the reference."""
    return lambda problem, answer: answers_equal(answer, problem.answer, equality=equality, percent=percent)


@dataclass(frozen=True, slots=True)
class Table:
    """A benchmark as a table, before it is read.

    Attributes:
        name: of the benchmark.
        hub: where it is published.
        rows: how many problems a complete copy has; several numbers where copies differ.
        answer: ``row -> reference answer``, empty where the row has none.
        question: ``row -> question``.
        instruction, shots, equality, percent: see ``Benchmark``.
    """

    name: str
    hub: Hub
    rows: tuple[int, ...]
    answer: Callable[[Row], str] = answer_column
    question: Callable[[Row], str] = question_column
    instruction: str = BOXED
    shots: tuple[Shot, ...] = MATH_SHOTS
    equality: EqualityName = "math"
    percent: PercentSign = "fraction"

    def load(
        self,
        limit: int | None = None,
        data: Path | None = None,
        *,
        partial: bool = False,
        equality: EqualityName | None = None,
        percent: PercentSign | None = None,
    ) -> Benchmark:
        """Read the problems.

        Args:
            limit: only so many, the first ones.
            data: a local copy, as JSON lines, a JSON array or Parquet; by default the hub's.
            partial: accept a copy that is incomplete.
            equality, percent: in place of the benchmark's own.

        Raises:
            BenchmarkError: when the hub cannot be reached, or for missing columns or answers, repeated ids and
                incomplete copies.
            MissingPackageError: when they are the hub's, and ``datasets`` is not installed.
        """
        if data is None:
            where, source = str(self.hub), str(self.hub)
            rows: Iterable[tuple[int, Row]] = enumerate(download_rows(self.hub, self.name), start=1)
        elif not data.is_file():
            raise BenchmarkError(f"--data {data}: there is no such file")
        else:
            where, rows = str(data), _read(data)
            source = f"{data.name}, sha256 {file_sha256(data)[:12]}"
        problems: dict[str, Problem] = {}
        for number, row in rows:
            problem = self._problem(row, f"{where}, row {number}", number)
            if problem.id in problems:
                raise BenchmarkError(
                    f"{where}, row {number}: the id {problem.id!r} is there already: give every problem its own, "
                    "or drop the column and rows are numbered"
                )
            problems[problem.id] = problem
        if len(problems) not in self.rows and not partial:
            expected = " or ".join(map(str, self.rows))
            raise BenchmarkError(
                f"{where} has {len(problems)} problems and {self.name} has {expected}: use a complete copy (with "
                "--limit for the first ones), or say --partial and figures count for this part only"
            )
        return Benchmark(
            self.name,
            tuple(problems.values())[:limit],
            is_right=by_equality(equality or self.equality, percent or self.percent),
            instruction=self.instruction,
            shots=self.shots,
            source=source,
            equality=equality or self.equality,
            percent=percent or self.percent,
        )

    def _problem(self, row: Row, where: str, number: int) -> Problem:
        question, answer = self.question(row), self.answer(row)
        if not question.strip():
            raise BenchmarkError(
                f"{where} has no question: {self.name} has it in the column {' or '.join(QUESTION_COLUMNS)}, and "
                f"this row has {', '.join(row) or 'none'}"
            )
        if not answer:
            raise BenchmarkError(
                f"{where} has no answer that {self.name} can read (columns: {', '.join(row)}): without it nothing "
                "can be graded; complete or remove the row"
            )
        name = next((str(row[column]) for column in ID_COLUMNS if row.get(column) is not None), str(number))
        return Problem(f"{self.name}-{name}", question.strip(), answer)


def _read(path: Path) -> Iterable[tuple[int, Row]]:
    try:
        yield from numbered_rows(path)
    except ValueError as error:
        raise BenchmarkError(str(error)) from error


def download_rows(hub: Hub, name: str) -> Iterable[Row]:
    """The rows of a dataset on the hub.

    Args:
        hub: where it is.
        name: what messages call it.

    Raises:
        BenchmarkError: when the hub cannot be reached.
        MissingPackageError: when ``datasets`` is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingPackageError(
            f"{name} comes from the hub, which needs datasets: pip install 'arrol[benchmarks]', or give a local "
            f"copy with --data {name}=FILE"
        ) from None
    try:
        rows: Iterable[Row] = load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:  # what the network raises is not datasets' own
        raise BenchmarkError(
            f"{name} cannot be loaded from the hub ({hub}: {type(error).__name__}: {str(error)[:200]}): check the "
            f"connection, or give a local copy with --data {name}=FILE"
        ) from error
    return rows
