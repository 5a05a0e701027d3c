"""Easy word problems from templates, with worked answers: ``python -m evals.word_problems OUT``.

Made by a program, so synthetic, and called so wherever a figure rests on them. They are for real models that are
too small for the usual sets: one or two steps of arithmetic with small numbers, in everyday words.
"""

from __future__ import annotations

import json
import operator
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

# fmt: off
NAMES = ("Anna", "Ben", "Clara", "David", "Ella", "Finn", "Grace", "Henry", "Iris",
         "Jack", "Kate", "Leo", "Maya", "Noah", "Olga", "Paul", "Rosa", "Sam")
THINGS = ("apples", "books", "cards", "coins", "cookies", "flowers", "marbles", "pencils", "shells",
          "stamps", "stickers", "toys")
# fmt: on
BOXES = ("bags", "boxes", "baskets", "jars", "packs", "shelves")
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}

ONE_STEP = (
    (
        "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?",
        "{n} gets more, so add",
        "{a} + {b}",
    ),
    (
        "There are {a} {t} on the table and {b} {t} on the floor. How many {t} are there in all?",
        "Count all of them, so add",
        "{a} + {b}",
    ),
    (
        "{n} has {c} {t}. {n} gives {b} of them to {m}. How many {t} does {n} have left?",
        "{n} gives some away, so subtract",
        "{c} - {b}",
    ),
    (
        "{n} has {c} {t} and {m} has {b} {t}. How many more {t} does {n} have than {m}?",
        "Compare the two, so subtract",
        "{c} - {b}",
    ),
    (
        "{n} has {s} {x}. There are {k} {t} in each of them. How many {t} does {n} have?",
        "All {x} hold the same, so multiply",
        "{s} * {k}",
    ),
    (
        "{n} buys {s} {t}. Each of them costs {k} dollars. How many dollars does {n} pay?",
        "All {t} cost the same, so multiply",
        "{s} * {k}",
    ),
)
TWO_STEPS = (
    (
        "{n} has {a} {t}. {m} gives {n} {b} more, and then {n} loses {k}. How many {t} does {n} have now?",
        "{n} gets more, so add, and loses some, so subtract",
        "{a} + {b}",
        "- {k}",
    ),
    (
        "{n} has {s} {x} with {k} {t} in each, and {b} more {t}. How many {t} does {n} have?",
        "All {x} hold the same, so multiply, and there are more, so add",
        "{s} * {k}",
        "+ {b}",
    ),
    (
        "{n} has {c} {t}. {n} gives {b} to {m} and finds {a} new ones. How many {t} does {n} have now?",
        "{n} gives some away, so subtract, and finds some, so add",
        "{c} - {b}",
        "+ {a}",
    ),
    (
        "{n} has {a} {t}, {m} has {b} {t}, and {p} has {k} {t}. How many {t} do they have together?",
        "Count all of them, so add twice",
        "{a} + {b}",
        "+ {k}",
    ),
)
"""Question, how to go about it, and the steps."""


def problems(seed: int, steps: tuple[int, ...] = (1, 2), largest: int = 20) -> Iterator[dict[str, str]]:
    """Endless distinct problems: ``question``, ``solution`` (ends with the answer) and ``answer``.

    Args:
        seed: of the draw.
        steps: steps of arithmetic of the problems, 1 and 2 at most.
        largest: largest number of a sum's terms; factors go up to half of it.
    """
    rng = random.Random(seed)
    templates = [t for number, some in ((1, ONE_STEP), (2, TWO_STEPS)) if number in steps for t in some]
    seen = set()
    while True:
        text, reason, *terms = rng.choice(templates)
        a, b = rng.randint(2, largest), rng.randint(2, largest)
        n, m, p = rng.sample(NAMES, 3)
        values = {
            "a": a, "b": b, "c": a + b, "k": rng.randint(2, min(a + b - 1, largest // 2)), "s": rng.randint(2, 9),
            "n": n, "m": m, "p": p, "t": rng.choice(THINGS), "x": rng.choice(BOXES),
        }  # fmt: skip
        question = text.format(**values)
        if question in seen:
            continue
        seen.add(question)
        lines, value = [], ""
        for term in terms:
            left, sign, right = f"{value} {term.format(**values)}".split()
            value = str(OPERATORS[sign](int(left), int(right)))
            lines.append(f"{left} {sign} {right} = {value}")
        solution = f"{reason.format(**values)}. {', '.join(lines)}. The answer is {value}."
        yield {"question": question, "solution": solution, "answer": value}


def main(
    out: Annotated[Path, typer.Argument(help="JSONL file to write")],
    count: Annotated[int, typer.Option(help="problems")] = 400,
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
    steps: Annotated[list[int] | None, typer.Option(help="of arithmetic, 1 or 2; repeatable")] = None,
    largest: Annotated[int, typer.Option(help="largest term of a sum")] = 20,
) -> None:
    """Write a file of problems."""
    rows = problems(seed, tuple(steps or (1, 2)), largest)
    out.write_text("".join(json.dumps(next(rows)) + "\n" for _ in range(count)))
    typer.echo(f"wrote {out}: {count} problems")


if __name__ == "__main__":
    typer.run(main)
