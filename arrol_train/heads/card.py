"""The model card of a head: what it is for, what it was made from, how good it is, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arrol_train.heads.figures import plot_by_position, plot_reliability, shown
from arrol_tts.files import write_atomic

if TYPE_CHECKING:
    from arrol_train.heads.knowledge import Knowledge
    from arrol_train.heads.make import HeadMade
    from arrol_tts.head_config import QualityHeadConfig

CARD_FILE = "README.md"
RELIABILITY_FILE = "reliability.png"
POSITIONS_FILE = "auroc_by_position.png"


def write_card(made: HeadMade, out: Path) -> None:
    """Write the card and its two pictures into the head's folder."""
    plot_reliability(*made.calibration, out / RELIABILITY_FILE)
    plot_by_position(made.test, out / POSITIONS_FILE, made.probe)
    write_atomic(out / CARD_FILE, card(made).encode())


def card(made: HeadMade) -> str:
    """The card as Markdown."""
    config, manifest, test = made.chosen.head.config, made.manifest, made.test
    best = made.chosen.best
    size = "a linear head" if not best.size else f"a network of inner size {best.size}"
    seeds = "the best seed" if config.pooling == "gated" else "seeds averaged"
    lines = [
        "---",
        "library_name: arrol",
        f"base_model: {config.base_model}",
        "---",
        "",
        f"# Quality head for {Path(config.base_model).name}",
        "",
        "It reads the hidden states of its language model while that writes, and says how likely a sample is to "
        "be right. Made with `arrol-train head`.",
        *(["", "**Synthetic**: questions or model were made by a program."] if manifest.synthetic else []),
        "",
        "## Use",
        "",
        "```python",
        "from arrol_tts import WeightedVoter",
        "",
        'voter = WeightedVoter.from_pretrained("path of this folder")',
        f"result = voter.solve(question, n=32)  # keeps {config.keep:g} of them at token {config.positions[0]}",
        "```",
        "",
        "The folder holds numbers and text only (safetensors, JSON): loading it executes nothing. `combined.json` "
        "is the fitted combined vote, for `CombinedVoter.from_dict`.",
        "",
        "## Made from",
        "",
        f"- language model: `{config.base_model}`, revision `{config.base_revision}`",
        f"- questions: `{manifest.data}`, SHA-256 `{manifest.data_sha256}`; {len(made.split.train)} to train, "
        f"{len(made.split.validation)} to choose by, {len(made.split.test)} to test",
        f"- samples: {config.metrics['samples']:,}, {config.metrics['sample_accuracy']:.1%} of them right, "
        f"{config.metrics['mean_tokens']:g} tokens on average; sampling {manifest.sampling}",
        f"- {size}, {_pooling(config)}, weight decay {best.weight_decay:g}, {seeds} of "
        f"{len(made.chosen.seeds)}: they reach "
        f"{', '.join(f'{value:.3f}' for value in made.chosen.seeds)} AUROC within validation questions",
        "",
        "## Votes on the test questions",
        "",
        "| vote | accuracy | 95% interval | above majority | above DeepConf |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, figures in made.votes.items():
        above = f"{_difference(figures.above_majority)} | {_difference(figures.above_deepconf)}"
        lines.append(f"| {name} | {figures.accuracy:.3f} | {shown(figures.interval)} | {above} |")
    lines += [
        "",
        "Intervals resample questions. Options of the votes were chosen on questions that are not tested on.",
        "",
        "## What it knows",
        "",
        "AUROC over all test samples, and within questions (what a vote can use), with 95% intervals:",
        "",
        "| at | signal | all | within questions |",
        "|---|---|---:|---:|",
    ]
    for row, linear in zip(test.positions, made.probe.positions, strict=True):
        if row.position is not None and row.position not in config.positions:
            continue  # of the picture only
        at = "finish" if row.position is None else f"token {row.position}"
        lines.append(f"| {at} | head | {_knowledge(row.head)} |")
        lines.append(f"| | linear head | {_knowledge(linear.head)} |")
        if row.confidence is not None:
            lines.append(f"| | mean confidence | {_knowledge(row.confidence)} |")
    lines += [
        "",
        f"![AUROC over position]({POSITIONS_FILE})",
        "",
        f"Expected calibration error {test.ece:.3f}:",
        "",
        f"![reliability]({RELIABILITY_FILE})",
        "",
        "## What pruning saves and costs",
        "",
        "| at token | kept | tokens saved | accuracy | against no pruning | kept at random |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for cut in test.pruning:
        lines.append(
            f"| {cut.position} | {cut.keep:g} | {cut.tokens_saved:.1%} | {cut.accuracy:.3f} | "
            f"{_difference((cut.above_full, *(cut.above_full_interval or (0, 0))))} | {cut.random:.3f} |"
        )
    return "\n".join([*lines, ""])


def _pooling(config: QualityHeadConfig) -> str:
    if config.pooling == "last":
        return "which reads the last state"
    kind = "gated mean" if config.pooling == "gated" else "mean"
    return f"{kind} over {'all tokens' if config.stride == 1 else f'every {config.stride}th token'}"


def _knowledge(found: Knowledge) -> str:
    overall = f"{_figure(found.auroc)} ({shown(found.interval)})"
    return f"{overall} | {_figure(found.within)} ({shown(found.within_interval)})"


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _difference(values: tuple[float, float, float] | None) -> str:
    return "" if values is None else f"{values[0]:+.3f} ({values[1]:+.3f} to {values[2]:+.3f})"
