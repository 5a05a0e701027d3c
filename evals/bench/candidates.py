"""Designs of a head compared on the same traces: ``python -m evals.bench.candidates``.

What a head reads of a token (the last layer's state, earlier layers, the token's confidence and entropy, its
position) and how it pools over the trace so far, all trained by one recipe on the same questions, with three
seeds. Nothing here reads a test question of any benchmark: designs learn from some training questions, choose
their epoch on others, and are compared on yet others.

``pocket``: the built-in model (synthetic).
``smollm2``: SmolLM2-135M-Instruct (``python -m evals.smollm2``) on word problems from templates (the questions are
synthetic, the model is real), others than ``evals.bench.head`` asks.
``real``: a collection of a real model on a real benchmark's training questions, made with ``arrol-train collect
--stride 1``.
``real-layers``: earlier layers on a part of it.

Everything is kept in ``--out`` and goes on where it was cut.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from numpy.typing import NDArray

from arrol_train.heads.collect import CollectionManifest
from arrol_train.questions import read_questions
from arrol_tts.calibration import platt_scale
from arrol_tts.files import write_json
from arrol_tts.metrics import auroc_per_question, bootstrap_interval
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.trace import Trace
from arrol_tts.voting import vote

from ..smollm2 import FOLDER
from ..word_problems import problems
from . import keep_for, write_result
from .candidate_heads import FINISH, Design, GroupSplit, Pooling, Recipe, scores_at, train
from .candidate_states import GroupStates, read_states, with_earlier_layers, with_entropy
from .head import (
    LARGEST,
    POCKET_ENGINE,
    REAL_QUESTIONS,
    SMOLLM2,
    SMOLLM2_ENGINE,
    arrol_train,
    engine_options,
    write_word_problems,
)

Floats = NDArray[np.float64]

REFERENCE = Design("mean")
"""The default, which the others are compared with."""
POOLED = (Design("mean"), Design("gated", inner=0))
"""Designs that further inputs are tried with."""
SHARES = (8 / 15, 2 / 15)
"""Of the questions, to learn from and to choose the epoch on; the rest compares."""
CURVE = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Positions of the curves, as shares of the mean length."""
EARLY = 0.2
"""The position that the tables name."""
SEEDS = 3
MOST_WORDS = 240
POCKET_SEED, WORDS_SEED = 11, 2
"""Of questions that nothing else was trained or measured on."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: traces, and the designs that are compared on them.

    Attributes:
        name: of the part.
        model, task: for readers.
        synthetic: what of it is made up.
        designs: that are compared.
        fixed: positions of designs that learn from fixed ones, beside the early one and the finish.
    """

    name: str
    model: str
    task: str
    synthetic: str
    designs: tuple[Design, ...]
    fixed: tuple[int, ...]


LINEAR = tuple(Design(pooling, inner=0) for pooling in get_args(Pooling))
LAST_AT_FIXED = (Design("last", fixed=True), Design("last", inner=0, fixed=True))
"""What heads were before they pooled."""
MLPS = tuple(Design(pooling) for pooling in get_args(Pooling))
BASE = (*LAST_AT_FIXED, *LINEAR, *MLPS)
"""Every pooling, linear and as an MLP, over the last layer's states."""


def layered() -> tuple[Design, ...]:
    """The same over more layers."""
    return tuple(replace(design, layers=layers) for design in POOLED for layers in (2, 4))


def extended(*extras: str) -> tuple[Design, ...]:
    """The same with further inputs."""
    return tuple(replace(design, extra=extra) for design in POOLED for extra in extras)  # type: ignore[arg-type]


RELATIVE = ("relative states", "relative scores")
PARTS = {
    part.name: part
    for part in (
        Setting(
            "pocket",
            "the pocket model",
            "its expressions",
            "model and questions",
            (*BASE, *extended("confidence", "position", *RELATIVE), *extended("entropy"), *layered()),
            (),
        ),
        Setting(
            "smollm2",
            "SmolLM2-135M-Instruct (Q4_1 weights)",
            "one-step word problems from templates",
            "questions",
            (*BASE, *extended("confidence", "position", *RELATIVE), *extended("entropy"), *layered()),
            (4, 8, 12, 16, 24),
        ),
        Setting(
            "real",
            "Qwen2.5-Coder-0.5B-Instruct (Q4_K_M weights)",
            "GSM8K, training questions",
            "",
            (*LAST_AT_FIXED, *LINEAR, *MLPS[:4], *extended("confidence", "position", *RELATIVE)),
            (16, 32, 64, 128),
        ),
        Setting(
            "real-layers",
            "Qwen2.5-Coder-0.5B-Instruct (Q4_K_M weights)",
            "GSM8K, fewer training questions",
            "",
            (*POOLED, *layered()),
            (16, 32, 64, 128),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a part's states come from.

    Attributes:
        collection: of its traces.
        data: the file of the questions that were asked.
        out: the folder that keeps what is read and computed.
        limit, n: as `read_states` takes them.
    """

    collection: Path
    data: Path
    out: Path
    limit: int | None = None
    n: int | None = None

    def states(self, design: Design | None = None) -> GroupStates:
        """The states, with whatever a design reads beside the collection's.

        Raises:
            InputError: when those that are kept are of other settings.
        """
        out = self.out / "states"
        manifest = CollectionManifest.read(self.collection)
        keep_for(out, {"collection": asdict(manifest), "limit": self.limit, "n": self.n})
        states = read_states(self.collection, out, limit=self.limit, n=self.n)
        if design is not None and design.layers > 1:
            asked = {question.id: question.question for question in read_questions(self.data)}
            states = with_earlier_layers(states, asked, manifest, out)
        if design is not None and design.extra == "entropy":
            states = with_entropy(states, manifest, out)
        return states


def main(
    out: Annotated[Path, typer.Option(help="folder of collections, states and measured heads")] = Path(
        "runs/bench-candidates"
    ),
    smollm2: Annotated[Path, typer.Option(help="SmolLM2's folder")] = FOLDER,
    real: Annotated[Path, typer.Option(help="collection of a real model, with states at every token")] = Path(
        "runs/real/train"
    ),
    real_data: Annotated[Path, typer.Option(help="the file of its questions, for earlier layers")] = Path(
        "runs/real/train.jsonl"
    ),
    pocket_questions: Annotated[int, typer.Option(help="of the pocket model")] = 300,
    smollm2_questions: Annotated[int, typer.Option(help="of SmolLM2")] = 90,
    real_questions: Annotated[int | None, typer.Option(help="of the real model, at most")] = None,
    layer_questions: Annotated[int, typer.Option(help="whose earlier layers are computed")] = 120,
    n: Annotated[int, typer.Option(help="traces per question of the pocket model; half as many of SmolLM2")] = 16,
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(PARTS)}; repeatable; by default what is not measured yet and can be"),
    ] = None,
    measured_only: Annotated[
        bool, typer.Option("--measured-only", help="train nothing: figures of the designs measured so far")
    ] = False,
) -> None:
    """Measure, and write evals/results/candidates.json."""
    if unknown := set(part or ()) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: use {', '.join(PARTS)}", param_hint="--part")

    sources: dict[str, Callable[[], Source]] = {
        "pocket": lambda: sample_pocket(out / "pocket", pocket_questions, n),
        "smollm2": lambda: sample_word_problems(out / "smollm2", smollm2, smollm2_questions, n // 2),
        "real": lambda: Source(real, real_data, out / "real", real_questions),
        "real-layers": lambda: Source(real, real_data, out / "real-layers", layer_questions),
    }
    lacking = [name for name in PARTS if not (out / f"{name}.json").exists()]
    for name in part or [name for name in lacking if real.is_dir() or not name.startswith("real")]:
        figures = compare(PARTS[name], sources[name](), measured_only=measured_only)
        (out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    measured = {name: out / f"{name}.json" for name in PARTS}
    figures = {name: json.loads(path.read_text()) for name, path in measured.items() if path.exists()}
    write_result("candidates", figures, range(SEEDS))


# --- traces ---------------------------------------------------------------------------------------


def sample_pocket(out: Path, count: int, n: int) -> Source:
    """Traces of the pocket model on training questions, with the state of every token."""
    asked = itertools.islice(questions("train", POCKET_SEED), count)
    data = write_rows(out / "asked.jsonl", [{"question": q.text, "answer": q.answer} for q in asked])
    arrol_train(
        *["collect", "--model", POCKET_MODEL, "--data", data, "--out", out / "collection", "--n", n],
        *["--stride", 1, "--max-tokens", 256, "--positions", 32, "--reward", "arrol_train.rewards:pocket_reward"],
        *engine_options(POCKET_ENGINE),
    )
    return Source(out / "collection", data, out, n=n)


def sample_word_problems(out: Path, model: Path, count: int, n: int) -> Source:
    """Traces of SmolLM2 on word problems that ``evals.bench.head`` does not ask."""
    out.mkdir(parents=True, exist_ok=True)
    elsewhere, shots = write_word_problems(out, REAL_QUESTIONS)
    known = {json.loads(line)["question"] for path in (elsewhere, shots) for line in path.read_text().splitlines()}
    others = (row for row in problems(WORDS_SEED, (1,), LARGEST) if row["question"] not in known)
    data = write_rows(out / "asked.jsonl", list(itertools.islice(others, MOST_WORDS)))
    arrol_train(
        *["collect", "--model", model, "--data", data, "--few-shot", shots, "--out", out / "collection"],
        *["--limit", count, "--n", n, "--stride", 1],
        *[*SMOLLM2, *engine_options(SMOLLM2_ENGINE | {"block_size": 32})],
    )
    return Source(out / "collection", data, out, n=n)


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- comparing ------------------------------------------------------------------------------------


def compare(
    part: Setting,
    source: Source,
    *,
    seeds: int = SEEDS,
    recipe: Recipe | None = None,
    measured_only: bool = False,
) -> dict[str, Any]:
    """Train and measure every design with every seed, and compare them.

    Args:
        part: the setting.
        source: of its states; its folder keeps a file of each head, which is not measured again.
        seeds: of the training.
        recipe: the same for all.
        measured_only: train nothing, and leave out what has not been measured with every seed.

    Raises:
        InputError: when the folder's states or heads are of other settings.
    """
    heads = source.out / "heads"
    states = source.states()
    split = split_groups(states.groups)
    length = float(states.lengths(split.train).mean())
    positions = sorted({max(1, round(share * length)) for share in CURVE})
    early = max(1, round(EARLY * length))
    fixed = sorted({*part.fixed, early})
    read = {"traces": len(states.traces), "rows": len(states.last), "fixed": fixed, "positions": positions}
    keep_for(heads, {**read, "recipe": asdict(recipe or Recipe())})
    found: dict[Design, list[dict[str, Any]]] = {design: [] for design in part.designs}
    for design, seed in itertools.product(part.designs, range(seeds)):
        path = heads / f"{design.name}, {seed}.json"
        if not path.exists():
            if measured_only:
                continue
            write_json(path, measure(design, source.states(design), split, seed, fixed, early, positions, recipe))
        found[design].append(json.loads(path.read_text()))
    found = {design: measured for design, measured in found.items() if len(measured) == seeds}
    majority = [bool(vote(traces_of(states, group)).correct) for group in split.compare]
    return {
        "model": part.model,
        "task": part.task,
        "synthetic": part.synthetic,
        "traces_per_question": states.n,
        "questions_to_learn_from": len(split.train),
        "questions_to_choose_on": len(split.choose),
        "questions_to_compare_on": len(split.compare),
        "of_these_with_right_and_wrong": int((states.labels(split.compare).mean(1) % 1 > 0).sum()),
        "mean_tokens": length,
        "early": early,
        "accuracy_samples": float(states.labels(split.compare).mean()),
        "accuracy_majority": float(np.mean(majority)),
        **summary(found, early, states.last.shape[1], np.array(majority, float)),
    }


def split_groups(groups: int, seed: int = 0) -> GroupSplit:
    """Deal the questions out."""
    order = [int(group) for group in np.random.default_rng(seed).permutation(groups)]
    learn, choose = round(groups * SHARES[0]), max(1, round(groups * SHARES[1]))
    return GroupSplit(
        sorted(order[:learn]), sorted(order[learn : learn + choose]), sorted(order[learn + choose :])
    )


def measure(
    design: Design,
    states: GroupStates,
    split: GroupSplit,
    seed: int,
    fixed: Sequence[int],
    early: int,
    positions: Sequence[int],
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """A head of a design, trained and measured.

    Returns:
        ``auroc``: ``{position: [AUROC of each question to compare on, None where all are right or all wrong]}``;
        ``votes``: whether each one's vote is right; the epoch, what chose it, and the seconds of the training.
    """
    began = time.perf_counter()
    head, inputs, chosen = train(design, states, split, seed, fixed=fixed, early=early, recipe=recipe)
    seconds = time.perf_counter() - began
    (there,) = scores_at(head, inputs, split.choose, [FINISH])
    a, b = platt_scale(there.ravel(), states.labels(split.choose).ravel())
    labels = states.labels(split.compare)
    asked = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)
    at = [*positions, FINISH]
    logits = scores_at(head, inputs, split.compare, at)
    known = {
        position: auroc_per_question(labels.ravel(), row.ravel(), asked.ravel())
        for position, row in zip(at, logits, strict=True)
    }
    return {
        "auroc": {str(p): [None if np.isnan(v) else float(v) for v in row] for p, row in known.items()},
        "votes": [
            weighted_vote(traces_of(states, group), a * row + b)
            for group, row in zip(split.compare, logits[-1], strict=True)
        ],
        "seconds": seconds,
        **chosen,
    }


def traces_of(states: GroupStates, group: int) -> list[Trace]:
    """The traces of a group."""
    return states.traces[group * states.n : (group + 1) * states.n]


def weighted_vote(traces: Sequence[Trace], log_odds: NDArray[np.float32]) -> bool:
    """Whether the vote with the odds as weights is right."""
    scored = [
        replace(trace, scores={trace.num_tokens: float(1 / (1 + np.exp(-np.float64(value))))})
        for trace, value in zip(traces, log_odds, strict=True)
    ]
    return bool(vote(scored, "quality", odds_power=1.0).correct)


def summary(
    found: Mapping[Design, Sequence[Mapping[str, Any]]], early: int, width: int, majority: Floats
) -> dict[str, Any]:
    """Means over seeds, and differences to the reference with intervals over questions.

    Args:
        found: what `measure` gave for every seed.
        early: the position that the table names.
        width: of a hidden state.
        majority: 1 for each question whose majority is right.
    """

    def values(design: Design, what: str) -> Floats:
        rows = [one["votes"] if what == "votes" else one["auroc"][what] for one in found[design]]
        means: Floats = np.array(rows, float).mean(axis=0)
        return means

    columns = {"auroc_early": str(early), "auroc_finish": str(FINISH), "vote": "votes"}
    designs: dict[str, dict[str, Any]] = {}
    for design in found:
        row: dict[str, Any] = {}
        for name, what in columns.items():
            mine, other = values(design, what), values(REFERENCE, what)
            there = ~np.isnan(mine)
            row[name] = float(mine[there].mean())
            row[f"{name}_above_reference"] = float((mine - other)[there].mean())
            row[f"{name}_above_reference_interval"] = list(bootstrap_interval((mine - other)[there]))
        gain = values(design, "votes") - majority
        row["vote_above_majority"] = float(gain.mean())
        row["vote_above_majority_interval"] = list(bootstrap_interval(gain))
        for name in ("choosing", "epochs", "seconds"):
            row[name] = float(np.mean([one[name] for one in found[design]]))
        designs[design.name] = row | design.cost(width)
    return {
        "reference": REFERENCE.name,
        "designs": designs,
        "curves": {
            design.name: {
                "finish" if p == str(FINISH) else p: float(np.nanmean(values(design, p)))
                for p in measured[0]["auroc"]
            }
            for design, measured in found.items()
        },
    }


if __name__ == "__main__":
    typer.run(main)
