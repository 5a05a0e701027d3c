"""What a section is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .parts import Figures


@dataclass(frozen=True, slots=True)
class Section:
    """A benchmark's part of docs/results.md.

    Attributes:
        title: its heading.
        asked: which question the benchmark answers, and on what.
        show: ``figures -> `` tables, pictures, and a paragraph of what they mean.
        once_measured: left out of the page until there are results, instead of saying that there are none.
    """

    title: str
    asked: str
    show: Callable[[Figures], Iterator[str]]
    once_measured: bool = False
