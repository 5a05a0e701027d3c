"""The pocket benchmark (synthetic) over several seeds: ``python -m evals.bench.pocket``.

Every method votes on the same held-out questions and the same traces; pruning happens in the engine. The
head and DeepConf's windows were fitted on training questions only. Intervals resample questions, each with
its mean over the seeds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from arrol_tts.files import write_json
from arrol_tts.head_config import ACCURACY_TOKENS_FILE
from arrol_tts.metrics import bootstrap_interval, bootstrap_ratio_interval
from arrol_tts.pocket import POCKET_HEAD
from arrol_tts.replay import replay
from arrol_tts.voter import WeightedVoter
from arrol_tts.voting import METHODS

from ..benchmarks import pocket
from ..reporting.figures import is_right, keep_rule, rows_of
from ..sampling.seed_samples import SeedSamples, sample_seed
from . import write_result

KEEPS = (0.125, 0.25, 0.5, 0.75)
CURVE_METHODS = ("quality", "majority")
UNAVAILABLE = ("self-certainty",)
"""Methods that need a signal which this benchmark does not record."""


def main(
    questions: Annotated[int, typer.Option(help="held-out questions")] = 200,
    n: Annotated[int, typer.Option(help="traces per question")] = 32,
    seeds: Annotated[int, typer.Option(help="number of sampling seeds")] = 3,
    keep: Annotated[float, typer.Option(help="keep ratio of the pruned pass")] = 0.5,
) -> None:
    """Sample, vote, and write evals/results/pocket.json, and its curve beside the pocket head."""
    benchmark = pocket.load(questions)
    voter = WeightedVoter.from_pretrained("pocket", engine="vllm")
    runs = []
    with Progress() as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("traces", total=seeds * 2 * questions * n)
        for seed in range(seeds):
            runs.append(
                sample_seed(
                    benchmark,
                    voter,
                    n=n,
                    seed=seed,
                    keep=keep,
                    out=Path(folder) / str(seed),
                    on_trace=lambda *_: progress.advance(task),
                )
            )
    figures = summarise(runs, voter)
    write_result("pocket", figures, list(range(seeds)))
    write_json(POCKET_HEAD / ACCURACY_TOKENS_FILE, accuracy_tokens(figures))
    voter.close()
    Console().print_json(data={k: v for k, v in figures.items() if not isinstance(v, (dict, list))})


def summarise(runs: list[SeedSamples], voter: WeightedVoter) -> dict[str, Any]:
    """The figures: means over seeds, with intervals and per-seed values."""
    rows = [{row.name: row for row in rows_of(run, voter)} for run in runs]
    names = list(rows[0])
    right: dict[str, NDArray[np.float64]] = {
        name: np.mean([seed[name].right for seed in rows], axis=0) for name in names
    }
    tokens = {name: np.mean([seed[name].tokens for seed in rows], axis=0) for name in names}
    saved = [1 - seed["quality_pruned"].tokens.sum() / seed["majority"].tokens.sum() for seed in rows]
    ratio = bootstrap_ratio_interval(tokens["quality_pruned"], tokens["majority"])
    figures: dict[str, Any] = {
        "synthetic": True,
        "questions": len(right["majority"]),
        "traces_per_question": runs[0].n,
        "keep": runs[0].keep,
        **{f"accuracy_{name}": float(right[name].mean()) for name in names},
        "tokens_saved_share": float(np.mean(saved)),
        "tokens_saved_share_interval": [1 - ratio[1], 1 - ratio[0]],
        "tokens_saved_share_per_seed": [float(s) for s in saved],
        "accuracy_intervals": {name: list(bootstrap_interval(right[name])) for name in names},
        "accuracy_per_seed": {name: [float(seed[name].right.mean()) for seed in rows] for name in names},
        "above_majority_intervals": {
            name: list(bootstrap_interval(right[name] - right["majority"])) for name in names[1:]
        },
        "above_deepconf_intervals": {
            name: list(bootstrap_interval(right[name] - right["deepconf"]))
            for name in ("quality", "quality_pruned")
        },
        "tokens_per_question": {name: float(tokens[name].mean()) for name in names},
        "seconds": {name: [run.seconds[name] for run in runs] for name in ("full", "pruned")},
        "accuracy_every_method": {
            name: float(np.mean([is_right(voter, group, name) for run in runs for group in run.full.values()]))
            for name in METHODS
            if name not in UNAVAILABLE
        },
        "keep_ratios_replayed": [_at_keep(runs, voter, share) for share in KEEPS],
        "settings": {"deepconf": voter.config.voting if voter.config else {}},
    }
    return figures


def _at_keep(runs: list[SeedSamples], voter: WeightedVoter, share: float) -> dict[str, float]:
    """Accuracy and tokens saved at another keep ratio, replayed over the unpruned traces."""
    rule = keep_rule(voter, share)
    groups = [group for run in runs for group in run.full.values()]
    pruned = [replay(group, rule) for group in groups]
    spent = sum(trace.num_tokens for group in pruned for trace in group)
    whole = sum(trace.num_tokens for group in groups for trace in group)
    return {
        "keep": share,
        "accuracy_quality": float(np.mean([is_right(voter, group, "quality") for group in pruned])),
        "accuracy_majority": float(np.mean([is_right(voter, group, "majority") for group in pruned])),
        "tokens_saved_share": 1 - spent / whole,
    }


def accuracy_tokens(figures: dict[str, Any]) -> dict[str, Any]:
    """Accuracy against tokens at every keep ratio, from the figures; the demo draws it, with or without evals."""
    whole = {"keep": 1.0, "tokens_saved_share": 0.0}
    whole |= {f"accuracy_{method}": figures[f"accuracy_{method}"] for method in CURVE_METHODS}
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
            for row in [*figures["keep_ratios_replayed"], whole]
        ],
    }


if __name__ == "__main__":
    typer.run(main)
