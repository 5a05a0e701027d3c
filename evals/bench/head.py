"""Heads for models that are not ours, and what making them costs: ``python -m evals.bench.head``.

Everything goes through the commands that users have, ``arrol-train collect``, ``head`` and ``inspect``.

``real``: SmolLM2-135M-Instruct (``python -m evals.smollm2``) on word problems from templates (the questions are
synthetic, the model is real), few-shot. Five heads, each tested on the fifth of the questions that neither it, nor
its calibration, nor the combined vote has seen; so every question is voted on once, held out.
``ablation``: what such a head loses when it learns from less of it, or reads less of it.
``strides``: what it loses on the pocket model (synthetic) when only every k-th token's vector was kept.
``transfer``: the pocket model (synthetic): a head trained on short expressions looks at samples of long ones, the
other way round, and at samples of a policy after reinforcement learning, which ``evals.bench.rl`` leaves.
``training``: processor time and memory of heads on 100,000 traces' random rows of width 4096.
``collecting``: what collecting adds to generating.

What was measured is kept in ``--out`` and not repeated; collecting goes on where it was cut.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from arrol_train.heads.choose import Split, split_questions
from arrol_train.heads.dataset import Collected, Group, open_collected
from arrol_train.heads.knowledge import rights
from arrol_train.heads.train import HeadTraining, train_head
from arrol_tts.head_config import QualityHeadConfig
from arrol_tts.metrics import auroc, bootstrap_interval
from arrol_tts.pocket import POCKET_MODEL, questions
from arrol_tts.store import TraceStore
from arrol_tts.trace import Trace

from ..smollm2 import FOLDER
from ..word_problems import problems
from . import keep_for, write_result
from .compared import compared

FOLDS = 5
METHODS = {"majority": "majority", "deepconf": "deepconf", "head": "quality", "combined": "combined"}
SHOTS, LARGEST = 12, 10
REAL_QUESTIONS = 400
SMOLLM2 = ["--max-tokens", "48", "--temperature", "0.7", "--positions", "4,8,12,16,24"]
SMOLLM2_ENGINE: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 1536, "max_num_seqs": 64}
POCKET = ["--max-tokens", "256", "--positions", "8,16,32,64", "--reward", "arrol_train.rewards:pocket_reward"]
POCKET_ENGINE: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "top_k": 5}
TRACES, WIDTH = 100_000, 4096
STRIDES = (1, 4, 16, 64)
PARTS = ("real", "ablation", "strides", "transfer", "training", "collecting")


def main(
    out: Annotated[Path, typer.Option(help="folder of collections, heads and measured parts")] = Path(
        "runs/bench-head"
    ),
    model: Annotated[Path, typer.Option(help="SmolLM2's folder")] = FOLDER,
    count: Annotated[int, typer.Option("--questions", help="questions of the real model")] = REAL_QUESTIONS,
    n: Annotated[int, typer.Option(help="samples per question")] = 16,
    policy: Annotated[Path, typer.Option(help="trained from the pocket model; by default bench-rl's")] = Path(
        "runs/rl/pocket-pruned-1/policy"
    ),
    pocket: Annotated[Path, typer.Option(help="collection of `python -m arrol_train.build_pocket head`")] = Path(
        "runs/pocket-collection"
    ),
    part: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; repeatable; by default what is not measured yet")
    ] = None,
) -> None:
    """Measure, and write evals/results/head.json."""
    keep_for(out, {"model": str(model), "questions": count, "n": n, "policy": str(policy), "pocket": str(pocket)})
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "real": lambda: real(out / "real", model, count, n),
        "ablation": lambda: ablation(out / "real" / "collection"),
        "strides": lambda: stride_ablation(pocket),
        "transfer": lambda: transfer(out / "transfer", policy),
        "training": lambda: training_speed(out / "training"),
        "collecting": lambda: overhead(out / "collecting", model),
    }
    for name in part or [name for name in PARTS if not (out / f"{name}.json").exists()]:
        figures = measure[name]()
        (out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    found = [json.loads((out / f"{name}.json").read_text()) for name in PARTS if (out / f"{name}.json").exists()]
    figures = {key: value for one in found for key, value in one.items()}
    write_result("head", figures, [0])
    typer.echo(json.dumps({k: v for k, v in figures.items() if isinstance(v, int | float)}, indent=2))


# --- a real model ---------------------------------------------------------------------------------


def real(out: Path, model: Path, count: int, n: int) -> dict[str, Any]:
    """Votes by a head for SmolLM2, every question held out once."""
    out.mkdir(parents=True, exist_ok=True)
    data, shots = write_word_problems(out, max(count, REAL_QUESTIONS))
    collection = out / "collection"
    arrol_train(
        *["collect", "--model", model, "--data", data, "--few-shot", shots, "--out", collection, "--n", n],
        *["--limit", count],
        *[*SMOLLM2, *engine_options(SMOLLM2_ENGINE)],
    )
    evaluations = []
    for fold in range(FOLDS):
        head = out / f"head-of-{count}x{n}-{fold}"
        if not (head / "evaluation.json").exists():
            arrol_train("head", collection, "--out", head, "--folds", FOLDS, "--fold", fold)
        evaluations.append(json.loads((head / "evaluation.json").read_text()))
    return {
        "real_model": "SmolLM2-135M-Instruct (Q4_1 weights)",
        "real_task": f"one-step word problems from templates (synthetic), {SHOTS} worked examples",
        "real_questions": count,
        "real_samples_per_question": n,
        **votes(evaluations),
        **knowledge(evaluations),
        "real_pruning": pruning(evaluations),
        "real_candidates": [evaluation["chosen"] for evaluation in evaluations],
    }


def write_word_problems(out: Path, count: int) -> tuple[Path, Path]:
    """Questions, and worked examples that are none of them."""
    examples = list(itertools.islice(problems(0, (1,), LARGEST), SHOTS))
    known = {example["question"] for example in examples}
    asked = (row for row in problems(1, (1,), LARGEST) if row["question"] not in known)
    data, shots = out / "questions.jsonl", out / "shots.jsonl"
    for path, rows in ((data, itertools.islice(asked, count)), (shots, examples)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data, shots


def votes(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies over all questions, each tested in one of the folds, with paired differences."""
    right = {
        name: np.array([v for e in evaluations for _, v in sorted(e["votes"][method]["right"].items())], float)
        for name, method in METHODS.items()
    }
    return compared(right)


def knowledge(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """AUROC at the finish and by position: means over the folds' tests, and each fold's."""

    def of(evaluation: dict[str, Any], who: str, position: int, signal: str, which: str) -> float | None:
        value: float | None = evaluation[who]["positions"][position][signal][which]
        return value

    figures: dict[str, Any] = {}
    rows = evaluations[0]["test"]["positions"]
    for i, row in enumerate(rows):
        at = "finish" if row["position"] is None else str(row["position"])
        figures[at] = {}
        for name, who, signal in (
            ("head", "test", "head"),
            ("linear_probe", "probe", "head"),
            ("mean_confidence", "test", "confidence"),
        ):
            for which in ("auroc", "within"):
                values = [of(evaluation, who, i, signal, which) for evaluation in evaluations]
                known = [value for value in values if value is not None]
                figures[at][f"{name}_{which}"] = {"mean": statistics.fmean(known), "folds": values}
    finish = figures["finish"]
    return {
        "sample_accuracy": statistics.fmean(e["test"]["sample_accuracy"] for e in evaluations),
        "auroc_head": finish["head_auroc"]["mean"],
        "auroc_within_head": finish["head_within"]["mean"],
        "auroc_within_mean_confidence": finish["mean_confidence_within"]["mean"],
        "calibration_error": statistics.fmean(e["test"]["ece"] for e in evaluations),
        "real_auroc_by_position": figures,
    }


def pruning(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The pruning curve: means over the folds' tests."""
    rows = zip(*(evaluation["test"]["pruning"] for evaluation in evaluations), strict=True)
    keys = ("position", "keep", "tokens_saved", "accuracy", "above_full", "random")
    return [{key: statistics.fmean(one[key] for one in row) for key in keys} for row in rows]


# --- what makes it work ---------------------------------------------------------------------------


def ablation(
    collection: Path, size: int = 128, names: Container[str] | None = None, tested: int = FOLDS
) -> dict[str, Any]:
    """Heads for the real model that learn from less, or read less, each tested on every question once.

    Votes and the AUROC within questions at the finish and at a fifth of the mean length, with paired differences
    from a head that learns from all of it. One seed, one size: nothing is chosen, so that nothing but the named
    thing differs.

    Args:
        collection: of samples.
        size: inner size of the heads.
        names: of the heads, ``all`` among them; None: every one.
        tested: folds of the questions that test, of all of them.
    """
    with open_collected(collection) as collected:
        found: dict[str, Found] = {}
        for fold in range(tested):
            split = split_questions(collected.question_ids, seed=0, folds=FOLDS, fold=fold)
            manifest = collected.manifest
            config = QualityHeadConfig(
                manifest.model, manifest.hidden_size, size, "mean", positions=manifest.positions
            )
            for name, (config_, training, train) in _variants(collected, split, config).items():
                if names is not None and name not in names:
                    continue
                _add(found.setdefault(name, {}), _trained(collected, split, config_, training, train))
    return {"real_ablation": {name: _against(found["all"], each) for name, each in found.items()}}


def stride_ablation(collection: Path, strides: Sequence[int] = STRIDES, size: int = 128) -> dict[str, Any]:
    """What it costs to keep every k-th token's vector of the pocket model (synthetic); one split, one seed."""
    with open_collected(collection) as collected:
        split = split_questions(collected.question_ids, seed=0)
        found: dict[str, Found] = {}
        for stride in strides:
            config = QualityHeadConfig("pocket", collected.manifest.hidden_size, size, "mean", stride)
            train = collected.traces_of(split.train)
            _add(found.setdefault(str(stride), {}), _trained(collected, split, config, HeadTraining(), train))
    first = found[str(strides[0])]
    return {"stride_ablation_synthetic": {name: _against(first, each) for name, each in found.items()}}


Variant = tuple[QualityHeadConfig, HeadTraining, NDArray[np.int64]]
"""What a head is, how it learns, and the traces it learns from."""
Found = dict[str, dict[str, float]]
"""A figure of every question, by its name."""


def _variants(collected: Collected, split: Split, config: QualityHeadConfig) -> dict[str, Variant]:
    train, training = collected.traces_of(split.train), HeadTraining()
    ease = {
        group[0].question_id: np.mean([bool(trace.correct) for trace in group])
        for group in collected.groups_of(split.train)
    }
    quarter = len(split.train) // 4
    hardest = frozenset(sorted(split.train, key=lambda name: ease[name])[:quarter])
    first = np.array([collected.traces[i].sample_id < 4 for i in train])
    return {
        "all": (config, training, train),
        **{f"stride_{stride}": (replace(config, stride=stride), training, train) for stride in STRIDES[1:]},
        "gated": (replace(config, pooling="gated"), training, train),
        "last_state_alone": (replace(config, pooling="last"), training, train),
        "linear_probe": (config, replace(training, linear=True), train),
        "no_ranking_term": (config, replace(training, ranking=0.0), train),
        "a_quarter_of_the_questions": (
            config,
            training,
            collected.traces_of(frozenset(sorted(split.train)[:quarter])),
        ),
        "the_hardest_quarter": (config, training, collected.traces_of(hardest)),
        "4_of_16_samples": (config, training, train[first]),
    }


def _trained(
    collected: Collected,
    split: Split,
    config: QualityHeadConfig,
    training: HeadTraining,
    train: NDArray[np.int64],
) -> list[Group]:
    """The test questions, scored by a head at a fifth of the mean length, or near it, and at the finish."""
    head = train_head(
        collected.states,
        collected.labels,
        collected.questions,
        config,
        training,
        train=train,
        held_out=collected.traces_of(split.validation),
    )
    fifth = round(collected.mean_tokens / 5)
    if config.pooling == "last":
        fifth = min(config.positions, key=lambda position: abs(position - fifth))
    return collected.scored(head, split.test, [fifth])


def _add(found: Found, groups: Sequence[Group]) -> None:
    for name in ("votes", "within", "within_fifth"):
        found.setdefault(name, {})
    for group, right in zip(groups, rights(groups, "quality"), strict=True):
        name = group[0].question_id
        found["votes"][name] = float(right)
        labels = np.array([bool(trace.correct) for trace in group])
        if labels.any() and not labels.all():
            found["within"][name] = auroc(labels, [trace.score or 0.0 for trace in group])
            first = [next(iter(trace.scores.values())) for trace in group]
            found["within_fifth"][name] = auroc(labels, first)


def _against(all_of_it: Found, found: Found) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    names = {"votes": "accuracy", "within": "auroc_within", "within_fifth": "auroc_within_fifth"}
    for what, called in names.items():
        values = np.array([found[what][name] for name in all_of_it[what]])
        lost = np.array(list(all_of_it[what].values())) - values
        figures[called] = float(values.mean())
        figures[f"{called}_interval"] = list(bootstrap_interval(values))
        figures[f"{called}_lost"] = float(lost.mean())
        figures[f"{called}_lost_interval"] = list(bootstrap_interval(lost))
    return figures


# --- transfer -------------------------------------------------------------------------------------


def transfer(out: Path, policy: Path, count: int = 150, n: int = 16) -> dict[str, Any]:
    """Heads of the pocket model on another task, and after reinforcement learning; all synthetic."""
    out.mkdir(parents=True, exist_ok=True)
    if not policy.is_dir():
        raise typer.BadParameter(
            f"{policy} is no policy: run `make bench-rl` first, or name one", param_hint="--policy"
        )
    models = {"short": POCKET_MODEL, "long": POCKET_MODEL, "after_rl": policy}
    for name, model in models.items():
        data = out / f"{name}.jsonl"
        rows = itertools.islice(expressions(short=name != "long"), count)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        arrol_train(
            *["collect", "--model", model, "--data", data, "--out", out / name, "--n", n],
            *[*POCKET, *engine_options(POCKET_ENGINE)],
        )
        arrol_train("head", out / name, "--out", out / f"head-{name}")
    found: dict[str, Any] = {}
    for trained, looked_at in itertools.product(models, models):
        where = out / f"inspect-{trained}-on-{looked_at}"
        # On its own samples a head is looked at by its test questions only.
        others = [] if trained == looked_at else ["--collection", out / looked_at]
        arrol_train("inspect", out / f"head-{trained}", *others, "--out", where)
        finish = json.loads((where / "inspection.json").read_text())["positions"][-1]["head"]
        found[f"{trained}_on_{looked_at}"] = {
            key: finish[key] for key in ("auroc", "interval", "within", "within_interval", "questions")
        }
    return {"transfer_synthetic": found}


def expressions(*, short: bool) -> Iterator[dict[str, str]]:
    """Pocket training questions of at most ``SHORT`` numbers, or of more."""
    for question in questions("train", 7):
        numbers = 1 + sum(question.text.count(sign) for sign in "+-*")
        if (numbers <= SHORT) == short:
            yield {"question": question.text, "answer": question.answer}


SHORT = 8
"""Numbers of a short expression, at most."""


# --- speed ----------------------------------------------------------------------------------------


def training_speed(out: Path) -> dict[str, Any]:
    """Processor time and memory of training on many wide rows, by the heads of format 1 and of format 2.

    Both learn from the same traces, whose vectors were kept at every 64th token.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"train_100k_traces_vectors_bytes_float16": TRACES * 5 * WIDTH * 2}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        collection = Path(folder) / "collection"
        write_random_collection(collection)
        for pooling in ("last", "mean"):
            head = Path(folder) / pooling
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            arrol_train(
                *["head", collection, "--out", head, "--pooling", pooling],
                *["--sizes", "64", "--weight-decays", "0.05", "--seeds", "1", "--cross-fit", "0"],
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            figures[f"train_100k_traces_{pooling}_processor_seconds"] = seconds
            # The peak is of the largest child so far: the older design comes first.
            figures[f"train_100k_traces_{pooling}_peak_bytes"] = after.ru_maxrss * 1024
            figures[f"head_4096_{pooling}_bytes"] = (head / "head.safetensors").stat().st_size
    return figures


def write_random_collection(folder: Path, traces: int = TRACES, width: int = WIDTH, n: int = 16) -> None:
    """A collection of random hidden vectors, one direction of which says a little about right and wrong."""
    from arrol_train.heads.collect import TRACES_FOLDER, CollectionManifest

    rng = np.random.default_rng(0)
    kept = (0, 64, 128, 192, 255)
    CollectionManifest(
        model="random",
        revision=None,
        hidden_size=width,
        data="random",
        data_sha256="",
        prompt=[],
        sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 256, "seed": 0},
        positions=[64, 128, 192],
        synthetic=True,
        stride=64,
    ).claim(folder)
    with TraceStore(folder / TRACES_FOLDER) as store:
        for i in range(traces):
            right = bool(rng.random() < 0.5)
            vectors = rng.standard_normal(size=(len(kept), width), dtype=np.float32)
            vectors[:, 0] += right
            store.append(
                Trace(
                    f"q{i // n}",
                    i % n,
                    answer="1" if right else str(2 + i % 3),
                    num_tokens=256,
                    correct=right,
                    features=dict(zip(kept, vectors.astype(np.float16), strict=True)),
                    confidence=rng.random(256, np.float32),
                )
            )


def overhead(out: Path, model: Path, count: int = 8, n: int = 16, rounds: int = 3) -> dict[str, Any]:
    """Processor time of collecting against that of plain generation of the same tokens, by the same engine."""
    from arrol_train.heads.collect import CollectionManifest, collect
    from arrol_train.questions import read_prompt, read_questions
    from arrol_train.rewards import math_reward
    from arrol_tts.engine.load import load_engine
    from arrol_tts.engine.request import Sampling

    out.mkdir(parents=True, exist_ok=True)
    data, shots = write_word_problems(out, count)
    asked, prompt = read_questions(data), read_prompt(None, shots)
    sampling: dict[str, Any] = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 48, "seed": 0}
    engine = load_engine(model, engine="vllm", **SMOLLM2_ENGINE)
    manifest = CollectionManifest(
        *(str(model), None, engine.hidden_size, data.name, "", prompt.to_messages(), sampling, [4, 8, 12, 16, 24]),
        stride=1,
    )

    def plain() -> int:
        batch = [prompt.ask(problem.id, problem.question) for problem in asked]
        return sum(trace.num_tokens for trace in engine.sample(batch, Sampling(n=n, **sampling)))

    def collecting() -> int:
        tokens: list[int] = []
        with tempfile.TemporaryDirectory(dir=out) as folder:
            collect(
                engine,
                manifest,
                asked,
                math_reward,
                Path(folder) / "c",
                n=n,
                on_trace=lambda t: tokens.append(t.num_tokens),
            )
        return sum(tokens)

    plain()  # loads what is loaded once
    ratios = []
    for _ in range(rounds):
        costs = []
        for run in (plain, collecting):
            began = time.process_time()
            tokens = run()
            costs.append((time.process_time() - began) / tokens)
        ratios.append(costs[1] / costs[0] - 1)
    engine.close()
    return {"collect_overhead": statistics.median(ratios), "collect_overhead_rounds": ratios}


# --- commands -------------------------------------------------------------------------------------


def engine_options(options: dict[str, Any]) -> list[str]:
    """As ``arrol-train collect`` takes them."""
    return [part for name, value in options.items() for part in ("--set", f"{name}={value}")]


def arrol_train(*arguments: object) -> None:
    """Run a command of ``arrol-train``; raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", "arrol_train.cli", *map(str, arguments)]
    subprocess.run(command, check=True, env=os.environ)


if __name__ == "__main__":
    typer.run(main)
