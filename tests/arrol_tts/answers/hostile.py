"""Strings that try to make equality slow or fail: mutations of real answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tests.paths import SHARED_DATA

_PIECES = r"""
\frac \sqrt \text{ \text{cm} { } ( ) [ ] \{ \} ^ _ ! !! \pm \mp \cup \setminus \in \le < > = \ne , ; | \\ &
% \overline{3} \dot{1} ... \ldots ^\circ \begin{pmatrix} \end{pmatrix} \left \log_2 \sin \binom \choose
9 99 1e9 1e5000 0.1 10^{ 10^ 9^{9^{9 999999999 1/ /0 and or for where per cm mol/ N i e \pi \infty x xyz
f( f(x)= k\in\mathbb{Z} ² ⅓ 元 万 ß 🙂 $ * ` " \ ~
"""
PIECES = [*_PIECES.split(), "\u0660", "\ud800", "\x00", "\u200b", "\u202e", "\t", "\n", " "]


def seeds() -> list[str]:
    """Gold answers and cases of the shared folder where it is there, and the table of pairs."""
    pairs = Path(__file__).with_name("answer_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    found = {json.loads(line)[side] for line in pairs for side in "ab"}
    for path in sorted(SHARED_DATA.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                for field in ("answer", "final_answer", "a", "b", "text", "truth"):
                    values = row.get(field)
                    for value in values if isinstance(values, list) else [values]:
                        if value is not None and len(str(value)) <= 400:
                            found.add(str(value).split("#### ")[-1])
    return sorted(found)


def mutations(count: int, seed: int) -> Iterator[str]:
    """Mutated answers: characters and pieces put in, left out, repeated and exchanged, answers joined and cut."""
    rng = random.Random(seed)
    answers = seeds()
    for _ in range(count):
        text = rng.choice(answers)
        for _ in range(rng.randrange(1, 5)):
            i, j = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
            match rng.randrange(7):
                case 0:
                    text = text[:i] + rng.choice(PIECES) + text[i:]
                case 1:
                    text = text[:i] + text[j:]
                case 2:
                    text = text[:i] + text[i : i + 12] * rng.choice((2, 3, 8, 30)) + text[i + 12 :]
                case 3:
                    text = text[:i] + rng.choice(answers)[:80] + text[j:]
                case 4:
                    text = text[:i] + rng.choice(PIECES) * rng.choice((1, 2, 5, 40, 200)) + text[j:]
                case 5:
                    text = rng.choice(PIECES) + text + rng.choice(PIECES)
                case _:
                    text = text[j:] + text[i:j] + text[:i]
        yield text[:3000]
