"""A real model on a real benchmark: Qwen2.5-Coder-0.5B-Instruct on GSM8K."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .base import Section
from .parts import NONE, Figures, difference, p_value, table, to

VOTES = {
    "majority": "majority",
    "deepconf": "DeepConf",
    "self_certainty": "self-certainty (Borda)",
    "head_v1": "head of format 1 (last state)",
    "head": "**quality head**",
    "combined": "**head, confidence and agreement combined**",
    "head_pruned": "**quality head, pruned**",
}
CURVES = {"majority": "majority", "deepconf": "DeepConf", "head_v1": "head of format 1", "head": "quality head"}
SIGNALS = {"head": "quality head", "head_v1": "head of format 1", "confidence": "mean confidence"}
ASKING = {
    "waves": "**waves** by the quality vote",
    "adaptive_consistency": "Adaptive-Consistency",
    "esc": "ESC",
    "deepconf_online": "DeepConf online",
}
ABLATION = {
    "all": "mean over all tokens, a network of 32",
    "last_state_alone": "last state alone, at four positions and the finish",
    "linear_probe": "linear value",
    "stride_4": "every fourth token",
    "a_quarter_of_the_questions": "a quarter of the training questions",
}


def main_table(figures: Figures) -> str:
    """The table that README.md has too."""
    pruned = f" to {figures['keep']:g} at token {figures['detection_position']}"
    rows = [_vote(figures, name, label + pruned * (name == "head_pruned")) for name, label in VOTES.items()]
    return table(_VOTE_COLUMNS, rows)


def readme_part(figures: Figures) -> str:
    """What README.md says of it."""
    training, n = figures["train"], figures["samples_per_question"]
    intro = (
        f"**A real model on a real benchmark**: Qwen2.5-Coder-0.5B-Instruct on GSM8K, {figures['questions']} test "
        f"questions x {n} samples, of which {figures['sample_accuracy']:.0%} are right; questions of at most "
        f"three calculations. Heads and every choice come from {training['questions']} training questions x "
        f"{training['samples_per_question']} (`make bench-real` makes "
        "[evals/results/real.json](evals/results/real.json), `make demo-real` shows it):"
    )
    return "\n\n".join([intro, main_table(figures), _meaning(figures)])


def _vote(figures: Figures, name: str, label: str) -> list[str]:
    return [
        label,
        f"{figures[f'accuracy_{name}']:.3f}",
        to(figures[f"accuracy_{name}_interval"]),
        *(_value(figures, f"{name}_above_{other}", "+", "+.3f") for other in ("majority", "deepconf")),
    ]


def show(figures: Figures) -> Iterator[str]:
    """Votes, curves, what is known when, pruning, asking for fewer traces, ablations, the second benchmark."""
    yield _samples(figures, "test questions")
    yield main_table(figures)
    yield "Paired p of McNemar's exact test: " + "; ".join(
        f"{label.strip('*')} against {other} {p_value(figures[f'{name}_above_{key}_mcnemar_p'])}"
        for name, label in (("head", "head"), ("combined", "combined"), ("head_pruned", "head, pruned"))
        for key, other in (("majority", "majority"), ("deepconf", "DeepConf"))
    )
    yield "Votes over fewer traces, mean of random subsets (maj@k and weighted@k; a tie counts in part):"
    yield table(
        ["traces", *(label for label in CURVES.values())],
        [[f"{row['k']}", *(f"{row[name]:.3f}" for name in CURVES)] for row in figures["accuracy_over_k"]],
    )
    yield "AUROC within questions after so many tokens, with 95% intervals over questions:"
    yield _auroc_table(figures)
    yield (
        "Pruning by the head, replayed; beside it as many kept at random, and the votes over fewer whole traces "
        "that cost as many tokens:"
    )
    yield table(
        ["at token", "kept", "tokens saved", "accuracy", "against the head, all", "kept at random", *_CONTROLS],
        [
            [
                f"{row['position']}",
                f"{row['keep']:g}",
                f"{row['tokens_saved']:.0%}",
                f"{row['accuracy']:.3f}",
                _value(row, "above_all", "+", "+.3f"),
                f"{row['random_head']:.3f}, majority {row['random_majority']:.3f}",
                *_controls(row),
            ]
            for row in figures["pruning"]
        ],
    )
    yield "Asking for fewer traces, each way at its best setting on training questions, over eight random orders:"
    yield table(
        [
            *("way", "setting", "tokens saved", "accuracy", "against the head, all", *_CONTROLS),
            *("as many tokens, DeepConf", "difference"),
        ],
        [
            [
                ASKING.get(name, name),
                row["setting"],
                f"{row['tokens_saved']:.0%}",
                f"{row['accuracy']:.3f}",
                _value(row, "above_all", "+", "+.3f"),
                *_controls(row, ("head", "majority", "deepconf")),
            ]
            for name, row in figures["asking"].items()
        ],
    )
    yield from _ablation(figures)
    if other := figures.get("math500_easy"):
        yield from _transfer(other)
    yield _meaning(figures)


def _transfer(figures: Figures) -> Iterator[str]:
    yield "The same head, and everything else as it was chosen, on a tenth of MATH-500 (levels 1 and 2):"
    yield _samples(figures, "problems")
    yield table(
        _VOTE_COLUMNS, [_vote(figures, name, VOTES[name]) for name in VOTES if f"accuracy_{name}" in figures]
    )
    yield _auroc_table(figures)


_VOTE_COLUMNS = ("vote", "accuracy", "95% interval", "above majority", "above DeepConf")
_CONTROLS = ("as many tokens, head", "difference", "as many tokens, majority", "difference")


def _controls(row: Figures, votes: Sequence[str] = ("head", "majority")) -> Iterator[str]:
    for name in votes:
        yield f"{row[f'equal_tokens_{name}']:.3f}"
        yield _value(row, f"above_equal_tokens_{name}", "+", "+.3f")


def _samples(figures: Figures, what: str) -> str:
    n = figures["samples_per_question"]
    right, some = to(figures["sample_accuracy_interval"]), figures[f"pass_at_{n}"]
    both = figures["questions_with_both"]
    return (
        f"{figures['questions']} {what}, {n} samples each: one sample is right {figures['sample_accuracy']:.3f} "
        f"of the time ({right}), one of {n} {some:.3f} (pass@{n}). {both} questions have "
        f"both right and wrong samples. A sample has {figures['mean_tokens']:.0f} tokens; "
        f"{figures['cut_off_share']:.1%} are cut off."
    )


def _auroc_table(figures: Figures) -> str:
    rows = []
    for position, row in figures["auroc_by_position"].items():
        cells = [position if position == "finish" else f"token {position}"]
        cells += [_value(row, f"auroc_within_{name}", "", ".3f") for name in SIGNALS]
        cells += [_value(row, f"head_above_{name}", "+", "+.3f") for name in ("head_v1", "confidence")]
        rows.append(cells)
    return table(["at", *SIGNALS.values(), "head above format 1", "head above confidence"], rows)


def _ablation(figures: Figures) -> Iterator[str]:
    yield (
        "What the head and its training need: one thing changed at a time, one seed, tested on the training "
        "questions that each of two heads did not learn from. AUROC within questions (lost: against the first):"
    )
    keys = ("auroc_within_fifth", "auroc_within_fifth_lost", "auroc_within", "auroc_within_lost", "accuracy")
    yield table(
        ["head", "at a fifth of the length", "lost", "at the finish", "lost", "accuracy of its vote"],
        [
            [ABLATION.get(name, name), *(_value(row, key) for key in keys)]
            for name, row in figures["ablation"].items()
        ],
    )


def _value(row: Figures, key: str, sign: str = "", form: str = ".3f") -> str:
    return f"{row[key]:{sign}.3f} ({to(row[f'{key}_interval'], form)})" if key in row else NONE


def _meaning(figures: Figures) -> str:
    """Each aim with its difference, interval, and whether that can be told from none."""
    finish = figures["auroc_by_position"]["finish"]
    (pruned,) = (
        row
        for row in figures["pruning"]
        if (row["position"], row["keep"]) == (figures["detection_position"], figures["keep"])
    )
    waves, quarter = figures["asking"]["waves"], figures["ablation"]["a_quarter_of_the_questions"]
    votes = "; ".join(
        f"{label} against {other} {_difference(figures, f'{name}_above_{key}')}"
        for name, label in (("head", "the head's vote"), ("combined", "the combined vote"))
        for key, other in (("majority", "majority"), ("deepconf", "DeepConf"))
    )
    sentences = (
        f"**What it means.** Differences in accuracy on {figures['questions']} questions: {votes}.",
        "The head's AUROC within questions at the finish against format 1's is",
        f"{_difference(finish, 'head_above_head_v1')},",
        f"against mean confidence's {_difference(finish, 'head_above_confidence')}.",
        f"Pruning to {pruned['keep']:g} at token {pruned['position']} saves {pruned['tokens_saved']:.0%} of the",
        f"tokens and changes accuracy by {_difference(pruned, 'above_all')};",
        "against the same vote over fewer whole traces for as many tokens it is",
        f"{_difference(pruned, 'above_equal_tokens_head')}.",
        f"Waves save {waves['tokens_saved']:.0%} and change accuracy by {_difference(waves, 'above_all')},",
        f"and are {_difference(waves, 'above_equal_tokens_head')} against as many tokens.",
        "A head that learns from a quarter of the training questions loses",
        f"{_difference(quarter, 'auroc_within_lost')} of AUROC within questions.",
        "Limits: a model of half a billion parameters, rounded to 4 to 8 bits, whose makers may have trained it",
        "on these questions; pruning and waves are replayed over whole traces.",
    )
    return " ".join(sentences)


def _difference(row: Figures, key: str) -> str:
    return difference(row[key], row[f"{key}_interval"])


SECTION = Section(
    "A real model on a real benchmark",
    "Does any of this hold for a pretrained model on questions that people wrote? Qwen2.5-Coder-0.5B-Instruct on "
    "GSM8K, few-shot, temperature 0.7, on questions whose worked answer takes at most three calculations (61% of "
    "the test set: of longer ones nearly all samples of so small a model are wrong). Heads learned from samples "
    "of training questions, and everything was chosen there: sizes, detection position, DeepConf's measure and "
    "window, the options of every vote, the combined vote. The test questions were looked at once.",
    show,
    once_measured=True,
)
