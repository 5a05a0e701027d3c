"""The pocket benchmark (synthetic) over several seeds: ``python -m evals.bench.pocket``.

Every method votes on the same held-out questions and the same traces; pruning happens in the engine, and what asks
for fewer traces is replayed over several orders of them. The head, DeepConf's windows and every setting were
fitted or chosen on training questions only. Each way of stopping early stands beside the same vote over as many
tokens in whole traces. Intervals resample questions, each with its mean over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from arrol_tts.files import write_json
from arrol_tts.head_config import ACCURACY_TOKENS_FILE, head_sha256
from arrol_tts.metrics import (
    bootstrap_interval,
    bootstrap_ratio_interval,
    within_question_auroc,
)
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.replay import replay
from arrol_tts.stopping import KeepShare
from arrol_tts.trace import Trace
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import METHODS, VoteResult

from ..benchmarks import pocket
from ..reporting.figures import control_of, full_votes, is_right, rows_of
from ..reporting.replays import Way, cheapest, row_of, spent, ways, windows_below
from ..sampling.seed_samples import SeedSamples, sample_seed
from . import write_result

KEEPS = (0.125, 0.25, 0.5, 0.75)
CURVE_METHODS = ("quality", "majority")
WHOLE = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""How many whole traces the line to beat is drawn at."""

SCORE_EVERY = 16
"""Tokens between the scores that say how well the head ranks on its way; votes do not see them."""

RECORDED = {"self_certainty": True, "score_every": SCORE_EVERY}


def main(
    questions: Annotated[int, typer.Option(help="held-out questions, and as many to choose on")] = 200,
    n: Annotated[int, typer.Option(help="traces per question")] = 32,
    seeds: Annotated[int, typer.Option(help="number of sampling seeds")] = 3,
    keep: Annotated[float, typer.Option(help="keep ratio of the pruned pass")] = 0.5,
    out: Annotated[Path, typer.Option(help="folder of the samples; goes on where it was cut")] = Path(
        "runs/bench-pocket"
    ),
) -> None:
    """Sample, vote, and write evals/results/pocket.json, and its curve beside the pocket head."""
    voter = WeightedVoter.from_pretrained("pocket", engine="vllm")
    # Other settings would go on from traces that are not theirs.
    folder = out / f"{head_sha256(POCKET_HEAD)[:12]}-at-{_position(voter)}-keep-{keep:g}-n-{n}"
    with Progress() as progress:
        task = progress.add_task("traces", total=(2 * seeds + 1) * questions * n)

        def sample(split: str, seed: int, stopping: Sequence[str]) -> SeedSamples:
            return sample_seed(
                pocket.load(questions, split),  # type: ignore[arg-type]
                voter,
                n=n,
                seed=seed,
                keep=keep,
                out=folder / f"{split}-{seed}",
                on_trace=lambda *_: progress.advance(task),
                stopping=stopping,
                sampling=RECORDED,
            )

        training = sample("train", 0, ())
        runs = [sample("test", seed, ("pruned",)) for seed in range(seeds)]
    figures = summarise(runs, choose(training, voter), voter)
    write_result("pocket", figures, list(range(seeds)))
    write_json(POCKET_HEAD / ACCURACY_TOKENS_FILE, accuracy_tokens(figures))
    voter.close()
    Console().print_json(data={k: v for k, v in figures.items() if not isinstance(v, (dict, list))})


def choose(training: SeedSamples, voter: WeightedVoter) -> list[Way]:
    """Each way of asking for fewer tokens at the setting that is best on training questions."""
    samples = as_voted(training, voter)
    settings = ways(voter, samples.n, windows_below(samples))
    return [cheapest(of_way, [samples], voter) for of_way in settings.values()]


def as_voted(samples: SeedSamples, voter: WeightedVoter) -> SeedSamples:
    """The samples with the scores that a vote has: at the detection position and at the finish."""
    passes = {
        name: {question: [_voted(trace, voter) for trace in group] for question, group in traces.items()}
        for name, traces in samples.passes.items()
    }
    return replace(samples, passes=passes)


def _voted(trace: Trace, voter: WeightedVoter) -> Trace:
    read = (_position(voter), trace.num_tokens - 1)
    return replace(trace, scores={k: score for k, score in trace.scores.items() if k in read})


def _position(voter: WeightedVoter) -> int:
    assert voter.config is not None
    return voter.config.positions[0]


def summarise(recorded: Sequence[SeedSamples], chosen: Sequence[Way], voter: WeightedVoter) -> dict[str, Any]:
    """The figures: means over seeds, with intervals and per-seed values."""
    runs = [as_voted(run, voter) for run in recorded]
    rows = [{row.name: row for row in rows_of(run, voter)} for run in runs]
    asked = {way.name: row_of(way, runs, voter) for way in chosen}
    sampled = list(rows[0])
    right: dict[str, NDArray[np.float64]] = {
        name: np.mean([seed[name].right for seed in rows], axis=0) for name in sampled
    }
    tokens = {name: np.mean([seed[name].tokens for seed in rows], axis=0) for name in sampled}
    right |= {name: row.right for name, row in asked.items()}
    tokens |= {name: row.tokens for name, row in asked.items()}
    votes = {method: full_votes(runs, voter, method) for method in CURVE_METHODS}
    saved = [1 - seed["quality_pruned"].tokens.sum() / seed["majority"].tokens.sum() for seed in rows]
    ratio = bootstrap_ratio_interval(tokens["quality_pruned"], tokens["majority"])
    stopped = {
        "quality_pruned": control_of(votes["quality"], float(tokens["quality_pruned"].mean())),
        "random_pruned": control_of(votes["majority"], float(tokens["random_pruned"].mean())),
        **{name: row.control for name, row in asked.items() if row.control is not None},
    }
    figures: dict[str, Any] = {
        "synthetic": True,
        "questions": len(right["majority"]),
        "traces_per_question": runs[0].n,
        "keep": runs[0].keep,
        "detection_position": _position(voter),
        **{f"accuracy_{name}": float(values.mean()) for name, values in right.items()},
        **auroc_by_position(recorded),
        "tokens_saved_share": float(np.mean(saved)),
        "tokens_saved_share_interval": [1 - ratio[1], 1 - ratio[0]],
        "tokens_saved_share_per_seed": [float(s) for s in saved],
    }
    for name, control in stopped.items():
        difference = right[name] - control.accuracy
        figures |= {
            f"tokens_{name}_share": float(tokens[name].sum() / tokens["majority"].sum()),
            f"whole_traces_for_{name}": control.traces,
            f"accuracy_{name}_equal_tokens": float(control.accuracy.mean()),
            f"{name}_above_equal_tokens": float(difference.mean()),
            f"{name}_above_equal_tokens_interval": list(bootstrap_interval(difference)),
        }
    whole = _whole_traces(votes, float(tokens["majority"].mean()) / runs[0].n)
    for name in ("quality_pruned", "waves"):
        as_good = tokens_as_good(whole, float(right[name].mean()))
        saved_at_equal = None if as_good is None else 1 - float(tokens[name].mean()) / as_good
        figures[f"tokens_{name}_saved_at_equal_accuracy"] = saved_at_equal
    figures |= {
        "waves_above_quality": float((right["waves"] - right["quality"]).mean()),
        "waves_above_quality_interval": list(bootstrap_interval(right["waves"] - right["quality"])),
        "accuracy_intervals": {name: list(bootstrap_interval(values)) for name, values in right.items()},
        "accuracy_per_seed": {name: [float(seed[name].right.mean()) for seed in rows] for name in sampled},
        "above_majority_intervals": {
            name: list(bootstrap_interval(values - right["majority"]))
            for name, values in right.items()
            if name != "majority"
        },
        "above_deepconf_intervals": {
            name: list(bootstrap_interval(right[name] - right["deepconf"]))
            for name in ("quality", "quality_pruned", "waves")
        },
        "tokens_per_question": {name: float(values.mean()) for name, values in tokens.items()},
        "seconds": {name: [run.seconds[name] for run in runs] for name in ("full", "pruned")},
        "accuracy_every_method": {
            name: float(np.mean([is_right(voter, group, name) for run in runs for group in run.full.values()]))
            for name in METHODS
        },
        "keep_ratios_replayed": [_at_keep(recorded, votes, voter, _position(voter), share) for share in KEEPS],
        "keep_ratios_elsewhere": [
            _at_keep(recorded, votes, voter, position, share)
            for position in _recorded_positions(voter)[1:]
            for share in KEEPS
        ],
        "whole_traces": whole,
        "waves_by_certainty": _waves_by_certainty(chosen, runs, voter),
        "settings": {
            "deepconf": voter.config.voting if voter.config else {},
            **{way.name: dict(way.setting) for way in chosen},
        },
    }
    return figures


def auroc_by_position(runs: Sequence[SeedSamples]) -> dict[str, float]:
    """``auroc_within_POSITION`` of the head on its way and at the finish; a group is a question in one seed."""
    traces = [(f"{run.seed}/{t.question_id}", t) for run in runs for group in run.full.values() for t in group]
    figures = {}
    for position in (SCORE_EVERY, 2 * SCORE_EVERY, 4 * SCORE_EVERY, 6 * SCORE_EVERY):
        scored = [(name, t) for name, t in traces if position in t.scores]
        figures[f"auroc_within_{position}"] = _auroc(scored, [t.scores[position] for _, t in scored])
    ended = [(name, t) for name, t in traces if t.score is not None]
    return figures | {"auroc_within_finish": _auroc(ended, [t.score for _, t in ended if t.score is not None])}


def _auroc(scored: Sequence[tuple[str, Trace]], scores: Sequence[float]) -> float:
    return within_question_auroc([bool(t.correct) for _, t in scored], scores, [name for name, _ in scored])


def _recorded_positions(voter: WeightedVoter) -> list[int]:
    """The head's positions at which every trace has a score: the first, and those that are recorded on the way."""
    assert voter.config is not None
    first, *others = voter.config.positions
    return [first, *(position for position in others if position % SCORE_EVERY == 0)]


def _at_keep(
    recorded: Sequence[SeedSamples],
    votes: Mapping[str, Sequence[Sequence[VoteResult]]],
    voter: WeightedVoter,
    position: int,
    share: float,
) -> dict[str, Any]:
    """Accuracy and tokens saved at a position and keep ratio, replayed over the unpruned traces."""
    rule = KeepShare(position, share)
    pruned = [
        [[_voted(trace, voter) for trace in replay(group, rule)] for group in run.full.values()]
        for run in recorded
    ]
    spent = float(np.mean([[sum(t.num_tokens for t in group) for group in of_seed] for of_seed in pruned]))
    whole = float(np.mean([result.tokens.generated for of_seed in votes["quality"] for result in of_seed]))
    figures: dict[str, Any] = {"position": position, "keep": share}
    for method in CURVE_METHODS:
        right = np.mean([[is_right(voter, group, method) for group in of_seed] for of_seed in pruned], axis=0)
        control = control_of(votes[method], spent)
        figures |= {
            f"accuracy_{method}": float(right.mean()),
            f"accuracy_{method}_equal_tokens": float(control.accuracy.mean()),
            f"{method}_above_equal_tokens": float((right - control.accuracy).mean()),
            f"{method}_above_equal_tokens_interval": list(bootstrap_interval(right - control.accuracy)),
        }
    return figures | {"tokens_saved_share": 1 - spent / whole}


def _whole_traces(votes: Mapping[str, Sequence[Sequence[VoteResult]]], per_trace: float) -> list[dict[str, float]]:
    """The line to beat: votes over fewer whole traces."""
    sizes = [k for k in WHOLE if k <= len(votes["quality"][0][0].traces)]
    return [
        {
            "traces": k,
            "tokens_per_question": k * per_trace,
            **{
                f"accuracy_{method}": float(control_of(of_method, k * per_trace).accuracy.mean())
                for method, of_method in votes.items()
            },
        }
        for k in sizes
    ]


def tokens_as_good(whole: Sequence[Mapping[str, float]], accuracy: float) -> float | None:
    """The fewest tokens of whole traces with which the head's vote is right as often; None where all are too few.

    Between the numbers of traces that were tried the line is straight.
    """
    best = np.maximum.accumulate([row["accuracy_quality"] for row in whole])
    tokens = [row["tokens_per_question"] for row in whole]
    if accuracy > best[-1]:
        return None
    i = int(np.searchsorted(best, accuracy))
    if i == 0 or best[i] == best[i - 1]:
        return tokens[i]
    return float(tokens[i - 1] + (accuracy - best[i - 1]) / (best[i] - best[i - 1]) * (tokens[i] - tokens[i - 1]))


def _waves_by_certainty(
    chosen: Sequence[Way], runs: Sequence[SeedSamples], voter: WeightedVoter
) -> list[dict[str, float]]:
    """Waves of the chosen sizes at every certainty; nothing is chosen by it."""
    sizes = next({**way.setting, "certainty": 0} for way in chosen if way.name == "waves")
    points = []
    for way in ways(voter, runs[0].n)["waves"]:
        if {**way.setting, "certainty": 0} == sizes:
            right, tokens = spent(way, runs, voter, orders=2)
            points.append(
                {
                    "certainty": way.setting["certainty"],
                    "tokens_per_question": float(tokens.mean()),
                    "accuracy": float(right.mean()),
                }
            )
    return points


def accuracy_tokens(figures: dict[str, Any]) -> dict[str, Any]:
    """Accuracy against tokens, from the figures: at every keep ratio, and of fewer whole traces.

    The demo draws it, with or without evals.
    """
    everything = {"keep": 1.0, "tokens_saved_share": 0.0}
    everything |= {f"accuracy_{method}": figures[f"accuracy_{method}"] for method in CURVE_METHODS}
    full = figures["tokens_per_question"]["majority"]
    return {
        "name": "pocket",
        "synthetic": figures["synthetic"],
        "questions": figures["questions"],
        "n": figures["traces_per_question"],
        "curve": [
            {
                "method": method,
                "keep": row["keep"],
                "accuracy": row[f"accuracy_{method}"],
                "tokens_per_question": full * (1 - row["tokens_saved_share"]),
            }
            for method in CURVE_METHODS
            for row in [*figures["keep_ratios_replayed"], everything]
        ]
        + [
            {
                "method": "quality, fewer whole traces",
                "accuracy": row["accuracy_quality"],
                "tokens_per_question": row["tokens_per_question"],
            }
            for row in figures["whole_traces"]
        ],
    }


if __name__ == "__main__":
    typer.run(main)
