"""Verdicts of several votes on the same questions: accuracies, and paired differences between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arrol_tts.metrics import Floats, bootstrap_interval, mcnemar


def compared(right: Mapping[str, Floats], against: Sequence[str] = ("majority", "deepconf")) -> dict[str, Any]:
    """``accuracy_NAME`` of every vote, and ``NAME_above_OTHER`` for the others that come before it.

    Args:
        right: for each vote its verdict on every question, 0 or 1, float ``[questions]``; baselines first.
        against: votes that the later ones are compared with.

    Returns:
        Accuracies and differences, each with a 95% interval that resamples questions; differences also with the
        p-value of McNemar's exact test.
    """
    figures: dict[str, Any] = {}
    before: list[str] = []
    for name, verdicts in right.items():
        figures[f"accuracy_{name}"] = float(verdicts.mean())
        figures[f"accuracy_{name}_interval"] = list(bootstrap_interval(verdicts))
        for other in before:
            difference = verdicts - right[other]
            figures[f"{name}_above_{other}"] = float(difference.mean())
            figures[f"{name}_above_{other}_interval"] = list(bootstrap_interval(difference))
            figures[f"{name}_above_{other}_mcnemar_p"] = mcnemar(verdicts > 0, right[other] > 0).p_value
        if name in against:
            before.append(name)
    return figures
