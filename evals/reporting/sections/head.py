"""Quality heads: of a real pretrained model, and carried over between tasks."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Section
from .parts import NONE, Figures, difference, p_value, table, to

METHODS = {
    "majority": "majority",
    "deepconf": "DeepConf (bottom window)",
    "combined": "combined (head, confidence, length; fitted)",
    "head": "**quality head**",
}
ABLATION = {
    "all": "as trained",
    "stride_4": "every 4th token's vector only",
    "stride_16": "every 16th token's",
    "stride_64": "every 64th token's",
    "gated": "a mean of the tokens that a gate weighs",
    "last_state_alone": "the last state alone (format 1)",
    "linear_probe": "linear instead",
    "no_ranking_term": "without the ranking term of the loss",
    "a_quarter_of_the_questions": "a quarter of the training questions",
    "the_hardest_quarter": "the hardest quarter of them",
    "4_of_16_samples": "4 of 16 samples of each",
    "last_vectors_only": "last vectors of the traces only",
}


def show(figures: Figures) -> Iterator[str]:
    """Votes and pruning with a real model's head, ablations, transfer, and what making a head takes."""
    yield (
        f"{figures['real_model']} on {figures['real_task']}: {figures['real_questions']} questions, "
        f"{figures['real_samples_per_question']} samples each, five folds; a question is voted on with a head "
        "that was trained without it. p is McNemar's, exact."
    )
    yield table(
        ["vote", "accuracy", "95% interval", "above majority", "95% interval", "p"],
        [
            [
                label,
                f"{figures[f'accuracy_{name}']:.3f}",
                to(figures[f"accuracy_{name}_interval"]),
                *(
                    [NONE] * 3
                    if name == "majority"
                    else [
                        f"{figures[f'{name}_above_majority']:+.3f}",
                        to(figures[f"{name}_above_majority_interval"], "+.3f"),
                        p_value(figures[f"{name}_above_majority_mcnemar_p"]),
                    ]
                ),
            ]
            for name, label in METHODS.items()
        ],
    )
    yield (
        "How well right and wrong traces are told apart after so many tokens (AUROC over all traces, and in "
        "brackets within a question, which is what a vote can use):"
    )
    yield table(
        ["tokens", "quality head", "linear probe", "mean confidence"],
        [
            [
                position,
                *(
                    f"{row[f'{name}_auroc']['mean']:.3f} ({row[f'{name}_within']['mean']:.3f})"
                    for name in ("head", "linear_probe", "mean_confidence")
                ),
            ]
            for position, row in figures["real_auroc_by_position"].items()
        ],
    )
    yield "Pruning with that head, replayed:"
    yield table(
        ["at token", "keep ratio", "tokens saved", "accuracy", "against keeping all", "pruned at random"],
        [
            [
                f"{row['position']:.0f}",
                f"{row['keep']:g}",
                f"{row['tokens_saved']:.1%}",
                f"{row['accuracy']:.3f}",
                f"{row['above_full']:+.3f}",
                f"{row['random']:.3f}",
            ]
            for row in figures["real_pruning"]
        ],
    )
    yield "What the training of the head needs; one thing is taken away at a time (lost: against as trained):"
    yield table(
        ["head", *_columns(figures["real_ablation"]).values()],
        [
            [ABLATION.get(name, name), *(_with_interval(row, key) for key in _columns(figures["real_ablation"]))]
            for name, row in figures["real_ablation"].items()
        ],
    )
    if strides := figures.get("stride_ablation_synthetic"):
        yield "The pocket model (synthetic), when only every k-th token's vector is kept:"
        yield table(
            ["k", *_columns(strides).values()],
            [[name, *(_with_interval(row, key) for key in _columns(strides))] for name, row in strides.items()],
        )
    yield "Heads of the pocket model (synthetic) on questions they were not trained for:"
    yield table(
        ["trained on", "asked", "AUROC", "95% interval", "AUROC within a question", "95% interval", "questions"],
        [
            [
                *(part.replace("_", " ") for part in name.split("_on_")),
                f"{row['auroc']:.3f}",
                to(row["interval"]),
                f"{row['within']:.3f}",
                to(row["within_interval"]),
                f"{row['questions']}",
            ]
            for name, row in figures["transfer_synthetic"].items()
        ],
    )
    yield "What making a head takes:"
    yield table(
        ["what", "figure"],
        [
            *_training(figures),
            ["collecting vectors, against sampling alone", f"{figures['collect_overhead']:+.1%} of the time"],
        ],
    )
    gain = difference(figures["head_above_majority"], figures["head_above_majority_interval"])
    confidence = difference(figures["deepconf_above_majority"], figures["deepconf_above_majority_interval"])
    losing = [
        ABLATION.get(name, name)
        for name, row in figures["real_ablation"].items()
        if row["accuracy_lost_interval"][0] > 0
    ]
    after = figures["transfer_synthetic"]["after_rl_on_after_rl"]["within"]
    yield (
        f"**What it means.** On a real, small model the head's vote gains {gain} over majority; DeepConf "
        f"{confidence}. One sample alone is right {figures['sample_accuracy']:.3f} of the time. The head's "
        f"expected calibration error is {figures['calibration_error']:.3f}. Limits: the model has 135M parameters "
        "and the problems are one step long and made from templates. The combined vote, which is fitted on more "
        f"signals, is right {figures['accuracy_combined']:.3f} of the time, the head alone "
        f"{figures['accuracy_head']:.3f}. Of the ablations these lose votes that the questions can tell from "
        f"none: {', '.join(losing) or 'none'}. Heads carry over between lengths of the same task in part, and "
        "less to the model after reinforcement learning; one that was trained after it has an AUROC of "
        f"{after:.2f} within a question there, where 0.5 is chance. Train the head anew for another model, and "
        "look at it before use."
    )


_COLUMNS = {
    "accuracy": "accuracy of its vote",
    "accuracy_lost": "lost",
    "auroc_within_fifth": "AUROC within a question at a fifth",
    "auroc_within_fifth_lost": "lost",
    "auroc_within": "AUROC within a question at the finish",
    "auroc_within_lost": "lost",
}


def _columns(rows: Figures) -> dict[str, str]:
    """What was measured of all rows."""
    return {key: label for key, label in _COLUMNS.items() if all(key in row for row in rows.values())}


def _training(figures: Figures) -> Iterator[list[str]]:
    """What training took, on rows of width 4,096."""
    if "train_100k_seconds" in figures:
        yield ["training on 100,000 vectors of width 4,096", f"{figures['train_100k_seconds']:.0f} s on two cores"]
        yield ["its memory at the peak", f"{figures['train_100k_peak_bytes'] / 1e9:.2f} GB"]
        yield ["(those vectors as float32)", f"{figures['train_100k_rows_bytes_float32'] / 1e9:.2f} GB"]
        yield ["a head for width 4,096", f"{figures['head_4096_bytes'] / 1e6:.2f} MB"]
    for pooling, label in (("last", "a head of format 1"), ("mean", "a pooled head")):
        if f"train_100k_traces_{pooling}_processor_seconds" in figures:
            seconds = figures[f"train_100k_traces_{pooling}_processor_seconds"]
            peak = figures[f"train_100k_traces_{pooling}_peak_bytes"] / 1e9
            size = figures[f"head_4096_{pooling}_bytes"] / 1e6
            vectors = figures["train_100k_traces_vectors_bytes_float16"] / 1e9
            yield [
                f"{label} from 100,000 traces of 5 vectors of width 4,096 ({vectors:.1f} GB)",
                f"{seconds:.0f} s of processor time, {peak:.2f} GB at the peak; it has {size:.2f} MB",
            ]


def _with_interval(row: Figures, key: str) -> str:
    if key.endswith("_lost") and not row[key] and not any(row[f"{key}_interval"]):
        return NONE
    return f"{row[key]:.3f} ({to(row[f'{key}_interval'], '.2f')})"


SECTION = Section(
    "Quality heads",
    "Does a head that is trained with `arrol-train` help a real pretrained model's votes? When can it tell "
    "right from wrong, which parts of its training matter, does it carry over to other questions, and what does "
    "making it take?",
    show,
)
