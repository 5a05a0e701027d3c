"""How often equality errs: 200 judged pairs of answers to the same question, beside math-verify.

``make bench-equality`` compares `tests/arrol_tts/answers/judged_pairs.jsonl` with what `answers_equal` and
math-verify say. The pairs were drawn from recorded samples with a fixed seed (``draw``; caps and sizes were
settled over three draws) and judged one by one from the two strings: same, different, or unclear without the
question. The judging was not blind: neither program's verdict stood beside a pair, but the sizes of the strata
were known, so the agreement is rather an upper estimate. Three strata show both kinds of error: pairs that
equality merged when they were drawn; pairs that it kept apart though the same numbers occur in both; and other
pairs that it kept apart. So shares are of these strata, not of all pairs that occur; and pairs of one question
resemble each other, more than the interval knows.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import typer

from arrol_tts.answers import answers_equal, extract_answer
from arrol_tts.metrics import wilson_interval

from . import write_result

SEED = 0
SIZES = {"merged": 80, "near": 40, "apart": 80}
MAX_OF_A_QUESTION = 20
MAX_LENGTH = 150
JUDGED = Path(__file__).parents[2] / "tests" / "arrol_tts" / "answers" / "judged_pairs.jsonl"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


def answers_by_question(data: Path) -> dict[str, set[str]]:
    """The distinct answers to each question of the two files of samples, right ones included."""
    groups: dict[str, set[str]] = defaultdict(set)
    for row in _rows(data / "math_cot_100_8samples_rm.jsonl"):
        answers = [*map(extract_answer, row["code"]), *row["pred"], row["answer"]]
        groups[f"math-{row['idx']}"].update(filter(None, answers))
    for row in _rows(data / "brumo25_r1_qwen3_8b_traces128.jsonl"):
        groups[f"brumo-{row['qid']}"].update(filter(None, (row["answer"], row["truth"])))
    return groups


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def drawn(groups: dict[str, set[str]]) -> list[dict[str, str]]:
    """Pairs of distinct answers by stratum, a bounded number of each question, in a random order."""
    strata: dict[str, list[tuple[str, str, str]]] = {name: [] for name in SIZES}
    for question, answers in sorted(groups.items()):
        short = sorted(answer for answer in answers if len(answer) <= MAX_LENGTH)
        for a, b in combinations(short, 2):
            near = sorted(re.findall("[0-9]+", a)) == sorted(re.findall("[0-9]+", b))
            strata["merged" if answers_equal(a, b) else "near" if near else "apart"].append((question, a, b))
    rng = random.Random(SEED)
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for name, size in SIZES.items():
        rng.shuffle(strata[name])
        taken: dict[str, int] = defaultdict(int)
        for question, a, b in strata[name]:
            if size and taken[question] < MAX_OF_A_QUESTION and (a, b) not in pairs:
                taken[question] += 1
                size -= 1
                pairs[a, b] = {"stratum": name, "question": question, "a": a, "b": b}
    shuffled = list(pairs.values())
    rng.shuffle(shuffled)
    return shuffled


@app.command()
def draw(data: Path, out: Path) -> None:
    """Draw pairs to judge from the folder of recorded samples; ``verdict`` is to be filled in."""
    pairs = drawn(answers_by_question(data))
    out.write_text("".join(json.dumps(pair | {"verdict": None}, ensure_ascii=False) + "\n" for pair in pairs))
    typer.echo(f"{len(pairs)} pairs in {out}")


@app.command()
def compare() -> None:
    """Compare the verdicts with answers_equal and math-verify, and write evals/results/equality.json."""
    pairs = list(_rows(JUDGED))
    results = {
        "answers_equal": agreement(pairs, answers_equal),
        "math_verify": agreement(pairs, math_verify_equal),
    }
    for name, result in results.items():
        for kind in ("false_merges", "missed_merges"):
            for a, b in result[kind]:
                typer.echo(f"{name}, {kind}: {a}  |  {b}")
            result[kind] = len(result[kind])
    figures = {
        "pairs": len(pairs),
        "unclear": sum(pair["verdict"] == "unclear" for pair in pairs),
        **results,
    }
    typer.echo(f"written to {write_result('equality', figures, [SEED], 'python -m evals.bench.equality compare')}")


def math_verify_equal(a: str, b: str) -> bool:
    """math-verify's own judgement of two answers, each read as a formula."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${a}$"), parse(f"${b}$")))


def agreement(pairs: list[dict[str, str]], equal: Callable[[str, str], bool]) -> dict[str, Any]:
    """How often a program agrees with the verdicts, by stratum, and where it does not."""
    merges: list[list[str]] = []
    misses: list[list[str]] = []
    agree: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for pair in pairs:
        if pair["verdict"] == "unclear":
            continue
        says, same = equal(pair["a"], pair["b"]), pair["verdict"] == "same"
        total[pair["stratum"]] += 1
        agree[pair["stratum"]] += says == same
        if says != same:
            (merges if says else misses).append([pair["a"], pair["b"]])
    right, judged = sum(agree.values()), sum(total.values())
    return {
        "agreement": right / judged,
        "interval": wilson_interval(right, judged),
        "by_stratum": {name: {"agree": agree[name], "judged": total[name]} for name in SIZES},
        "false_merges": merges,
        "missed_merges": misses,
    }


if __name__ == "__main__":
    app()
