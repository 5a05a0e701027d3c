"""Cost of scoring and stopping inside vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .base import Section
from .parts import NONE, Figures, difference, table, to

STEPS = {
    "pocket": "pocket model, head",
    "pocket_with_confidence": "pocket model, head and token confidences",
    "135m": "SmolLM2-135M's shape, head",
}
RULES = {
    "none": "none",
    "keep_share": "keep the best share",
    "keep_share in sequence": "keep the best share, twice",
    "threshold": "one threshold of the score",
    "confidence_floor": "DeepConf's confidence floor",
    "budget": "a budget of tokens",
    "consensus": "consensus",
    "keep_share + consensus": "keep the best share, and consensus",
}


def show(figures: Figures) -> Iterator[str]:
    """Step times, DeepConf online, and every stopping rule."""
    yield (
        "A step of vLLM without and with our worker and scheduler (engines that take turns every few steps; the "
        "interval is over pairs of engines):"
    )
    yield table(
        ["model and what is recorded", "sequences", "stock, ms", "ours, ms", "ratio", "95% interval"],
        [
            [
                STEPS.get(name, name),
                f"{row['sequences']}",
                f"{row['step_ms_off']:.1f}",
                f"{row['step_ms_on']:.1f}",
                f"{row['ratio']:.3f}",
                to(row["ratio_interval"]),
            ]
            for name, row in figures["steps"].items()
        ],
    )
    online = figures["deepconf_online"]
    rates = {name: median(values) for name, values in online["tokens_per_second"].items()}
    yield f"DeepConf online with {online['requests']} requests at once (medians of five runs):"
    yield table(
        ["where the rule runs", "tokens a second", "stopped traces"],
        [
            [label, f"{rates[name]:,.0f}", f"{online['stopped_traces'][name][0]}"]
            for name, label in (
                ("ours", "inside vLLM (ours)"),
                ("logprobs", "on log-probabilities that vLLM returns, as DeepConf's code"),
                ("logprobs_undecoded", "the same, without decoding the candidates to text"),
            )
        ],
    )
    if "plugin_scheduler_ms_1024" in figures:
        one, floor = figures["plugin_scheduler_ms_1024"], figures["plugin_scheduler_ms_1024_floor"]
        stock = figures["plugin_scheduler_ms_1024_of"]["stock"]
        yield (
            f"vLLM's scheduler takes {stock:.1f} ms of the processor for a step with 1,024 requests here; the "
            f"plug-in adds {one:.1f} ms with a pooling head and one rule, {floor:.1f} ms with a confidence floor "
            "(medians of steps that take turns)."
        )
    rules = figures["rules"]
    yield (
        f"Every stopping rule on the same {rules['questions']} pocket questions (synthetic) and seeds, "
        f"{rules['traces']} traces each:"
    )
    yield table(
        ["rule", "setting", "quality head", "against no rule (95%)", "majority", "tokens saved", "seconds"],
        [
            [
                RULES.get(row["rule"], row["rule"]),
                row["setting"] or NONE,
                f"{row['accuracy_quality']:.3f}",
                NONE if row["rule"] == "none" else _against(row["accuracy_against_none"]),
                f"{row['accuracy_majority']:.3f}",
                NONE if row["rule"] == "none" else f"{row['tokens_saved']:.1%}",
                f"{row['seconds']:.0f}",
            ]
            for row in rules["curve"]
        ],
    )
    losing = dict.fromkeys(
        RULES.get(row["rule"], row["rule"]) for row in rules["curve"] if row["accuracy_against_none"][2] < 0
    )
    yield (
        f"**What it means.** Scoring every token costs {_cost(figures['steps']['pocket'])} of a step on a model "
        "so small that there is hardly anything to hide it behind, and "
        f"{_cost(figures['steps']['135m'])} on a 135M model's shape. A pruned trace's memory is free "
        f"{_steps(figures['verdict_to_free_steps'])} ({figures['verdicts']} verdicts). Stopping inside the engine "
        f"is {figures['deepconf_online_speedup']:.1f} times as fast as DeepConf online on returned "
        f"log-probabilities, and still {figures['deepconf_online_speedup_undecoded']:.1f} times when those are "
        f"not decoded. Of the rules, these lose accuracy clearly: {', '.join(losing) or 'none'}. "
        f"{_best_share(rules)}"
    )


def _cost(step: Figures) -> str:
    """What is added to a step, as a share of it."""
    return difference(step["ratio"] - 1, [end - 1 for end in step["ratio_interval"]], "+.1%")


def _best_share(rules: Figures) -> str:
    """What keeping the best share loses and saves."""
    tried = [row for row in rules["curve"] if row["rule"] == "keep_share"]
    fine = [row for row in tried if row["accuracy_against_none"][2] >= 0]
    if not fine:
        return "Keeping the best share loses accuracy at every setting."
    where = "" if len(fine) == len(tried) else f" at {len(fine)} of {len(tried)} settings"
    return (
        f"Keeping the best share loses nothing that {rules['questions']} questions can show{where}, and saves up "
        f"to {max(row['tokens_saved'] for row in fine):.0%} of the tokens{' there' * bool(where)}."
    )


def _against(ends: list[float]) -> str:
    low, mean, high = ends
    return f"{mean:+.3f} ({to((low, high), '+.2f')})"


def _steps(count: int) -> str:
    return "in the step of the verdict" if count == 0 else f"{count} steps after the verdict"


SECTION = Section(
    "Cost of scoring and stopping inside vLLM",
    "What does the quality head cost in a step of real vLLM, what does stopping inside the engine save against "
    "doing it outside, and what does each stopping rule save and lose? On this machine's CPU; nothing here was "
    "measured on a GPU.",
    show,
)
